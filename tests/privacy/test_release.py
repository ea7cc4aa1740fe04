"""One-off releases: paid before they read, and never more sensitive than they say."""

import math
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, dataclass, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from lightning_dp.privacy.accounting import GaussianEvent, epsilon_pld
from lightning_dp.privacy.charging import StepCharges
from lightning_dp.privacy.ledger import BudgetExceeded, Lease, Ledger
from lightning_dp.privacy.plan import PrivacyPlan
from lightning_dp.privacy.release import (
    BoundedMean,
    BoundedVariance,
    Histogram,
    Mechanism,
    Moments,
    PublicBounds,
    Released,
    VectorSum,
    Vote,
    VoteCounts,
)
from lightning_dp.privacy.units import PrivacyUnit

DATA, UNIT, DELTA = "meters", "user", 1e-5
BOUNDS = PublicBounds(lower=-2.0, upper=6.0)
MECHANISMS: list[Mechanism] = [
    BoundedMean(noise_multiplier=2.0, bounds=BOUNDS, num_units=100),
    BoundedVariance(noise_multiplier=2.0, bounds=BOUNDS, num_units=100),
    BoundedVariance(noise_multiplier=2.0, bounds=PublicBounds(lower=1e-9, upper=3e-9), num_units=1),
    Histogram(noise_multiplier=2.0, edges=(-1.0, 0.0, 0.5, 1e9)),
    Vote(noise_multiplier=2.0, num_options=3),
    VoteCounts(noise_multiplier=2.0, num_options=3),
    VectorSum(noise_multiplier=2.0, max_norm=0.3, dimension=3),
]


def name(mechanism: object) -> str:
    return type(mechanism).__name__


@pytest.fixture
def ledger(memory_folder: Path) -> Ledger:
    made = Ledger(memory_folder / "ledger.sqlite")
    made.register(DATA, unit=UNIT, delta=DELTA)
    return made


@pytest.fixture
def lease(ledger: Ledger) -> Iterator[Lease]:
    with ledger.open_run(DATA, unit=UNIT, run="run") as opened:
        yield opened


class NoNoise:
    """Answers without noise, to see what a mechanism works out."""

    def standard_normal(self, shape: torch.Size, *, device: torch.device) -> torch.Tensor:
        return torch.zeros(shape, device=device)

    def add_to(self, sums: torch.Tensor, *, scale: float) -> torch.Tensor:
        return sums


# --- sensitivity ----------------------------------------------------------------------------------

ANY_FLOAT = st.one_of(
    st.floats(),
    st.floats(-10, 10),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.0, -0.0, 0.5, 2.0]),
)


def units_of(mechanism: Mechanism) -> st.SearchStrategy[list[list[float]]]:
    """Data sets of none to eight units, with as many values as the mechanism takes."""
    if isinstance(mechanism, VectorSum):
        unit = st.lists(ANY_FLOAT, min_size=mechanism.dimension, max_size=mechanism.dimension)
    else:
        unit = st.lists(ANY_FLOAT, max_size=6)
    return st.lists(unit, max_size=8)


def moved_by_one_unit(mechanism: Mechanism, units: list[list[float]]) -> float:
    """The most that removing a unit, or adding it back, moves the raw input."""
    whole = mechanism.sums(units)
    assert np.isfinite(whole).all()
    most = 0.0
    for index in range(len(units)):
        rest = mechanism.sums(units[:index] + units[index + 1 :])
        assert rest.shape == whole.shape
        most = max(most, float(np.linalg.norm(whole - rest)))
    return most


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mechanism", MECHANISMS, ids=name)
def test_one_unit_moves_the_sums_by_at_most_the_sensitivity(mechanism: Mechanism) -> None:
    @given(units_of(mechanism))
    @settings(max_examples=150, deadline=None)
    def check(units: list[list[float]]) -> None:
        assert moved_by_one_unit(mechanism, units) <= mechanism.sensitivity * (1 + 1e-9)

    check()


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=name)
def test_the_sensitivity_is_reached(mechanism: Mechanism) -> None:
    """A stated bound far above the true one would waste budget."""
    unit = [1e308] * 3
    if isinstance(mechanism, Histogram | Vote | VoteCounts):
        unit = [1.0]
    assert moved_by_one_unit(mechanism, [unit, [0.0] * 3]) == pytest.approx(mechanism.sensitivity)


@dataclass(frozen=True, kw_only=True)
class Unclipped(Mechanism[float]):
    """Planted: a mean without bounds."""

    @property
    def sensitivity(self) -> float:
        return 1.0

    def sums(self, values):
        return np.array([sum(np.nansum(unit) for unit in values)])

    def answer(self, noisy):
        return float(noisy[0])


@dataclass(frozen=True, kw_only=True)
class PerRow(Unclipped):
    """Planted: every value of a unit counts, as if values were units."""

    def sums(self, values):
        return np.array([sum(np.clip(unit, -1, 1).sum() for unit in values)])


@dataclass(frozen=True, kw_only=True)
class OwnCount(Unclipped):
    """Planted: divides by the realised number of units."""

    def sums(self, values):
        return np.array([100 * sum(np.clip(u[0], 0, 1) for u in values) / max(1, len(values))])


@dataclass(frozen=True, kw_only=True)
class UnboundedBallots(Unclipped):
    """Planted: each vote of a unit counts one."""

    def sums(self, values):
        return sum((np.bincount(np.int64(unit), minlength=3) for unit in values), np.zeros(3))


@dataclass(frozen=True, kw_only=True)
class ByNumberOfVotes(Unclipped):
    """Planted: n votes count 1/√n each, which is their ℓ2 norm only while no two are for the same."""

    def sums(self, values):
        ballots = (np.bincount(np.int64(unit), minlength=3) / math.sqrt(len(unit)) for unit in values)
        return sum(ballots, np.zeros(3))


@dataclass(frozen=True, kw_only=True)
class InAnotherNorm(Unclipped):
    """Planted: a unit's largest count is 1, a bound in ℓ∞."""

    def sums(self, values):
        ballots = (np.bincount(np.int64(unit), minlength=3) for unit in values)
        return sum((ballot / ballot.max() for ballot in ballots), np.zeros(3))


@dataclass(frozen=True, kw_only=True)
class PoisonedByNaN(Unclipped):
    """Planted: one NaN spoils the sum."""

    def sums(self, values):
        return np.array([sum(np.clip(u, -1, 1).mean() for u in values)])


@pytest.mark.parametrize(
    ("planted", "units"),
    [
        (Unclipped, [[1e30], [0.0]]),
        (PerRow, [[1.0, 1.0], [0.0]]),
        (OwnCount, [[1.0], [0.0]]),
        (PoisonedByNaN, [[math.nan], [0.0]]),
        (UnboundedBallots, [[1, 2], [0]]),
        (ByNumberOfVotes, [[1, 1], [0]]),
        (InAnotherNorm, [[1, 2], [0]]),
    ],
)
def test_planted_mechanisms_are_caught(planted: type[Mechanism], units: list[list[float]]) -> None:
    def sound() -> bool:
        mechanism = planted(noise_multiplier=1.0)
        try:
            return moved_by_one_unit(mechanism, units) <= mechanism.sensitivity
        except AssertionError:
            return False

    assert not sound()


@pytest.mark.parametrize("units", [[[1, 2], [0]], [[1, 1], [0]], [[1, 1, 2], [0, 0, 0, 1]], [[9], [-1, 2]]])
def test_the_counts_bound_what_the_planted_ones_do_not(units: list[list[float]]) -> None:
    counts = VoteCounts(noise_multiplier=1.0, num_options=3)
    assert moved_by_one_unit(counts, units) == pytest.approx(1.0)
    ballots = [np.array([unit.count(option) for option in range(3)]) for unit in units]
    expected = sum(ballot / max(np.linalg.norm(ballot), 1) for ballot in ballots)
    assert counts.sums(units) == pytest.approx(expected)
    assert (counts.sums(units) >= Vote(noise_multiplier=1.0, num_options=3).sums(units) - 1e-12).all()


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=name)
def test_no_units_or_units_without_values_are_no_trouble(mechanism: Mechanism, lease: Lease) -> None:
    nothing = [[math.nan] * 3] * 2
    assert (mechanism.sums([]) == 0).all()
    assert (mechanism.sums(nothing) == 0).all()
    for values in ([], nothing, np.zeros((0, 3))):
        mechanism.release(values, lease)


# --- charged first --------------------------------------------------------------------------------


class Watched:
    """Values that note whether the ledger held a release when they were read."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.charged_at_read: list[bool] = []

    def __iter__(self) -> Iterator[list[float]]:
        self.charged_at_read.append(self.ledger.entries(DATA)[-1].kind == "release")
        return iter([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=name)
def test_a_release_is_charged_before_it_reads(mechanism: Mechanism, ledger: Ledger, lease: Lease) -> None:
    values = Watched(ledger)
    released = mechanism.release(values, lease, note="loads")  # type: ignore[arg-type]
    assert values.charged_at_read == [True]
    entry = ledger.entries(DATA)[-1]
    assert (released.seq, released.hash) == entry.reference
    assert ledger.contains(released.seq, released.hash)
    assert entry.detail["note"].startswith(f"loads: {type(mechanism).__name__}(")
    event = GaussianEvent(noise_multiplier=2.0, sampling_rate=1.0, steps=1)
    assert ledger.events(DATA, unit=UNIT) == [event] == [mechanism.event]
    assert ledger.epsilon(DATA, unit=UNIT) == epsilon_pld([event], DELTA)


def test_planted_release_that_reads_first_is_caught(ledger: Ledger, lease: Lease) -> None:
    values = Watched(ledger)
    MECHANISMS[0].sums(values)  # type: ignore[arg-type]
    lease.reserve(MECHANISMS[0].event, kind="release")
    assert values.charged_at_read == [False]


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=name)
def test_a_refused_release_reads_nothing(mechanism: Mechanism, ledger: Ledger, lease: Lease) -> None:
    ledger.set_limit(DATA, unit=UNIT, limit_epsilon=0.1)
    values = Watched(ledger)
    with pytest.raises(BudgetExceeded):
        mechanism.release(values, lease)  # type: ignore[arg-type]
    assert values.charged_at_read == []


def test_a_run_that_made_a_release_can_be_resumed(ledger: Ledger) -> None:
    unit = PrivacyUnit(name="user", num_units=100, description="one household")
    plan = PrivacyPlan(
        unit=unit, expected_batch_size=10, num_steps=20, noise_multiplier=3.0, max_grad_norm=1.0, delta=DELTA
    )
    with ledger.open_run(DATA, unit=UNIT, run="run") as lease:
        MECHANISMS[0].release([[1.0]], lease)
    options = {"dataset": DATA, "run": "run", "reserve_steps": 5}
    first = StepCharges(ledger, plan, parent=None, **options)  # type: ignore[arg-type]
    first.cover()
    resumed = StepCharges(ledger, plan, parent=first.head, **options)  # type: ignore[arg-type]
    assert resumed.charged_before == 5
    assert len(ledger.events(DATA, unit=UNIT)) == 2
    assert ledger.events(DATA, unit=UNIT, kind="release") == [MECHANISMS[0].event]


# --- noise and answers ----------------------------------------------------------------------------


def repeated_sums(mechanism: Mechanism, lease: Lease, *, times: int) -> np.ndarray:
    """Noisy sums as `answer` gets them."""
    seen: list[np.ndarray] = []
    answer: Callable = type(mechanism).answer
    try:
        type(mechanism).answer = lambda _, noisy: seen.append(noisy.copy())  # type: ignore[method-assign]
        for _ in range(times):
            mechanism.release([], lease)
    finally:
        type(mechanism).answer = answer  # type: ignore[method-assign]
    return np.concatenate(seen)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=name)
def test_noise_has_the_scale_that_is_charged(mechanism: Mechanism, lease: Lease) -> None:
    values = repeated_sums(mechanism, lease, times=400)
    error = abs(values.std() / (mechanism.noise_multiplier * mechanism.sensitivity) - 1)
    bound = 5 / math.sqrt(2 * len(values))
    assert error < bound
    for wrong in (2 / 3, 3 / 2):  # the check would see it
        assert abs(wrong * values.std() / (mechanism.noise_multiplier * mechanism.sensitivity) - 1) > bound


def test_more_values_than_noise_on_a_grid_pays_for_are_not_released(lease: Lease) -> None:
    def of(dimension: int) -> VectorSum:
        return VectorSum(noise_multiplier=1e4, max_norm=1.0, dimension=dimension)

    with pytest.raises(ValueError, match=r"σ·√d is 1.732e\+04 and may be 16384"):
        of(3).release(np.zeros((2, 3)), lease)
    assert of(2).release(np.zeros((2, 2)), lease).value.shape == (2,)


def test_answers_without_noise_are_what_they_are_called(lease: Lease) -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(-2, 6, size=(100, 7))
    silent = NoNoise()

    def ask(mechanism: Mechanism, data):
        return mechanism.release(data, lease, noise=silent).value

    assert ask(MECHANISMS[0], values) == pytest.approx(values.mean())
    assert ask(MECHANISMS[0], list(values)) == pytest.approx(values.mean())
    assert ask(MECHANISMS[0], torch.from_numpy(values)) == pytest.approx(values.mean())
    moments = ask(MECHANISMS[1], values)
    assert moments.mean == pytest.approx(values.mean())
    assert moments.variance == pytest.approx(values.var())
    ragged = [values[0, :2], values[1, :5], np.append(values[2], math.nan)]
    mean = BoundedMean(noise_multiplier=1.0, bounds=BOUNDS, num_units=3)
    assert ask(mean, ragged) == pytest.approx(np.mean([np.nanmean(unit) for unit in ragged]))
    one_each = values[:, 0]
    histogram = Histogram(noise_multiplier=1.0, edges=(-2.0, 0.0, 3.0, 5.0))
    assert ask(histogram, one_each) == pytest.approx(np.histogram(one_each, histogram.edges)[0])
    assert ask(Vote(noise_multiplier=1.0, num_options=3), np.array([0, 2, 2, 1, 7, -1, 2])) == 2
    vectors = rng.normal(size=(50, 3)) * rng.choice([1e-3, 1e200], size=(50, 1))
    sums = VectorSum(noise_multiplier=1.0, max_norm=1.0, dimension=3)
    length = np.linalg.norm(vectors / 1e100, axis=1, keepdims=True) * 1e100
    assert ask(sums, vectors) == pytest.approx((vectors / np.maximum(length, 1.0)).sum(axis=0))


def test_answers_at_the_edges_of_what_is_public(lease: Lease) -> None:
    """Other bounds, one value a unit, the last edge, one entry a vector, arrays of objects."""

    def ask(mechanism: Mechanism, data):
        return mechanism.release(data, lease, noise=NoNoise()).value

    bounds = PublicBounds(lower=1.0, upper=2.5)
    two = BoundedVariance(noise_multiplier=1.0, bounds=bounds, num_units=2)
    apart = ask(two, [[1.0], [2.5]])
    assert (apart.mean, apart.variance) == pytest.approx((1.75, 0.75**2))
    moments = ask(
        BoundedVariance(noise_multiplier=1.0, bounds=bounds, num_units=3), [[1.2], [2.1], [2.4, 2.0]]
    )
    means, squares = [1.2, 2.1, 2.2], [1.2**2, 2.1**2, (2.4**2 + 2.0**2) / 2]
    assert moments.mean == pytest.approx(np.mean(means))
    assert moments.variance == pytest.approx(np.mean(squares) - np.mean(means) ** 2)
    assert ask(BoundedMean(noise_multiplier=1.0, bounds=bounds, num_units=2), [[9.0], []]) == pytest.approx(
        (2.5 + 1.75) / 2
    )
    mean = BoundedMean(noise_multiplier=1.0, bounds=bounds, num_units=1)
    # Each value is cut to the bounds, not only their mean.
    assert (ask(mean, [[9.0, 1.0]]), ask(mean, [[-9.0, 2.5]])) == pytest.approx((1.75, 1.75))
    histogram = Histogram(noise_multiplier=1.0, edges=(0.0, 1.0, 2.0, 3.0))
    assert ask(histogram, [[0.0], [1.0], [3.0], [2.0, 0.5], [7.0], []]).tolist() == [1.5, 1.0, 1.5]
    assert ask(Histogram(noise_multiplier=1.0, edges=(0.0, 1.0)), [[1.0], [0.0]]).tolist() == [2.0]
    vectors = VectorSum(noise_multiplier=1.0, max_norm=2.0, dimension=3)
    assert ask(vectors, [[0.0, 0.5, 0.0], [0.0, 0.0, -9.0]]).tolist() == [0.0, 0.5, -2.0]
    assert ask(vectors, [[0.3, 0.4, 0.0]]) == pytest.approx([0.3, 0.4, 0.0])
    of_objects = np.empty(2, dtype=object)
    of_objects[:] = [np.array([1.0]), np.array([2.0, 2.5])]
    mean = BoundedMean(noise_multiplier=1.0, bounds=bounds, num_units=2)
    assert ask(mean, of_objects) == pytest.approx((1.0 + 2.25) / 2)
    # Of arrays each row is a unit, however many dimensions it has.
    assert ask(mean, np.array([[[1.0, 2.0]], [[2.0, 2.0]]])) == pytest.approx((1.5 + 2.0) / 2)


def test_released_moments_stay_within_the_bounds(lease: Lease) -> None:
    loud = BoundedVariance(noise_multiplier=500.0, bounds=BOUNDS, num_units=3)
    for _ in range(50):
        moments = loud.release([[1.0]] * 3, lease).value
        assert -2 <= moments.mean <= 6
        assert 0 <= moments.variance <= 16


def test_public_bounds_are_free_and_invert(ledger: Ledger) -> None:
    before = ledger.head()
    values = torch.tensor([-2.0, 2.0, 6.0])
    assert BOUNDS.normalise(values).tolist() == [-1.0, 0.0, 1.0]
    assert torch.equal(BOUNDS.denormalise(BOUNDS.normalise(values)), values)
    assert ledger.head() == before


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PublicBounds(lower=1.0, upper=1.0), "lower is 1.0"),
        (lambda: PublicBounds(lower=-math.inf, upper=1.0), "lower is -inf"),
        (lambda: PublicBounds(lower=-1.7e308, upper=1.7e308), "both must be finite"),
        (lambda: BoundedMean(noise_multiplier=0.0, bounds=BOUNDS, num_units=3), "noise_multiplier is 0.0"),
        (lambda: BoundedMean(noise_multiplier=1.0, bounds=BOUNDS, num_units=0), "num_units is 0"),
        (lambda: BoundedVariance(noise_multiplier=1.0, bounds=BOUNDS, num_units=2.5), "num_units is 2.5"),
        (lambda: Histogram(noise_multiplier=1.0, edges=(1.0,)), "edges is"),
        (lambda: Histogram(noise_multiplier=1.0, edges=(1.0, 0.0)), "each above the one before"),
        (lambda: Histogram(noise_multiplier=1.0, edges=(0.0, math.inf)), "finite"),
        (lambda: Vote(noise_multiplier=1.0, num_options=1), "at least 2"),
        (lambda: VectorSum(noise_multiplier=1.0, max_norm=math.nan, dimension=2), "max_norm is nan"),
        (lambda: VectorSum(noise_multiplier=math.inf, max_norm=1.0, dimension=2), "noise_multiplier is inf"),
        (lambda: VectorSum(noise_multiplier=1.0, max_norm=1.0, dimension=True), "dimension is True"),
        (lambda: MECHANISMS[-1].sums([[1.0]]), "length 1; dimension says 3"),
        (lambda: MECHANISMS[-1].sums([[1.0] * 300] * 2), "length 300; dimension says 3"),
        (lambda: PublicBounds(lower=2.0, upper=1.0), "lower is 2.0"),
        (lambda: Histogram(noise_multiplier=1.0, edges=(0.0, 0.5, 0.5, 1.0)), "each above the one before"),
        (lambda: Histogram(noise_multiplier=1.0, edges=(0.5, 0.5)), "each above the one before"),
        (lambda: Histogram(noise_multiplier=1.0, edges=((0.0, 1.0), (0.0, 1.0))), "edges is"),  # type: ignore[arg-type]
        (lambda: Histogram(noise_multiplier=1.0, edges=0.5), "edges is"),  # type: ignore[arg-type]
        (lambda: VectorSum(noise_multiplier=1.0, max_norm=-1.0, dimension=2), "max_norm is -1.0"),
        *(
            (
                lambda rate=rate: Vote(noise_multiplier=1.0, num_options=2, sampling_rate=rate),
                "sampling_rate is",
            )
            for rate in (0.0, -0.5, 1.5, 2.0, math.nan)
        ),
    ],
)
def test_a_mistake_is_one_sentence(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    "fixed",
    [*MECHANISMS, BOUNDS, Released(value=1.0, seq=1, hash=""), Moments(mean=0.0, variance=1.0)],
    ids=name,
)
def test_what_was_charged_does_not_change(fixed: object) -> None:
    for field in fields(fixed):  # type: ignore[arg-type]
        with pytest.raises(FrozenInstanceError):
            setattr(fixed, field.name, 0.1)


@pytest.mark.parametrize(("paid", "drawn"), [(0.5, 1.0), (1.0, 0.5), (0.5, 0.6)])
def test_values_drawn_at_another_rate_than_the_one_paid_for_are_refused(lease, paid, drawn):
    mechanism = VectorSum(noise_multiplier=1.0, sampling_rate=paid, max_norm=1.0, dimension=2)
    with pytest.raises(ValueError, match=f"drawn at {drawn}"):
        mechanism.release(lambda: pytest.fail("values were read"), lease, drawn_at=drawn)
    assert mechanism.release(np.ones((3, 2)), lease, drawn_at=paid).value.shape == (2,)
