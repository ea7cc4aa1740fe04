"""What a list of noisy releases costs, by Google's dp-accounting.

The reported ε is the PLD one (privacy loss distributions, pessimistic estimates). RDP is kept for filters
across runs and as a check: of Gaussian and Laplace noise it is never below PLD. All figures are for
add-or-remove-one adjacency and Poisson sampling; nothing here is valid for shuffled batches.

Scope: numbers in, numbers out. What was really sampled and noised is the caller's claim to keep.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any, get_args

import numpy as np
from dp_accounting import dp_event
from dp_accounting.pld import pld_pmf, privacy_loss_distribution as pld_lib
from dp_accounting.pld.common import DifferentialPrivacyParameters
from dp_accounting.rdp import RdpAccountant
from scipy import special
from scipy.stats import binom, norm

from lightning_dp.privacy.gaussian_loss import gaussian_pld

FINE_INTERVAL = 1e-4
"""Grid of the privacy loss for figures that are reported (dp-accounting's default)."""

COARSE_INTERVAL = 1e-3
"""Ten times coarser and about ten times faster; still an upper bound, so never too low."""

_SETTLED = 2e-4  # a share of ε
_OF_GROUP = 5e-4  # a share of a group's ε
_OF_EPSILON = 1e-5
_OF_SPREAD = 1e-2
_WIDEST = 100.0  # a grid of more has no room in floating point
_BEYOND = 3e8  # of an ε by Rényi divergences, above which a grid takes minutes and then has no room

_RDP_ORDERS = tuple(map(float, [*range(2, 65), *range(72, 257, 8), 320, 384, 512, 768, 1024]))
"""Whole orders only: their moments have a closed form, fractional ones may fail to converge."""


@dataclass(frozen=True, kw_only=True)
class GaussianEvent:
    """`steps` releases of a clipped sum with Gaussian noise, each over a fresh Poisson sample.

    Attributes:
        noise_multiplier: σ > 0, noise standard deviation ÷ ℓ2 sensitivity.
        sampling_rate: q in (0, 1], each unit's chance to be in one batch; 1 is no sampling.
        steps: ≥ 0 releases.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        _require(
            math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0,
            f"noise_multiplier must be a number above 0, not {self.noise_multiplier}",
        )
        _require(0 < self.sampling_rate <= 1, f"sampling_rate must be in (0, 1], not {self.sampling_rate}")
        _require(self.steps >= 0, f"steps must be ≥ 0, not {self.steps}")


@dataclass(frozen=True, kw_only=True)
class LaplaceEvent:
    """One release with Laplace noise; noise_multiplier = scale ÷ ℓ1 sensitivity > 0."""

    noise_multiplier: float

    def __post_init__(self) -> None:
        _require(
            math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0,
            f"noise_multiplier must be a number above 0, not {self.noise_multiplier}",
        )


@dataclass(frozen=True, kw_only=True)
class ExponentialEvent:
    """`rounds` draws of the exponential mechanism, each perhaps chosen after seeing those before.

    Attributes:
        bounded_range: η > 0: adding or removing a unit moves the logarithm of the odds of any two outcomes of
            one draw by at most η. With weights exp(η · u / Δ) of utilities u that a unit moves by 0 to Δ, all
            in one direction, it is η (Durfee & Rogers 2019, arXiv 1905.04273).
        rounds: ≥ 1.
    """

    bounded_range: float
    rounds: int = 1

    def __post_init__(self) -> None:
        _require(
            math.isfinite(self.bounded_range) and self.bounded_range > 0,
            f"bounded_range must be a number above 0, not {self.bounded_range}",
        )
        _require(self.rounds >= 1, f"rounds must be ≥ 1, not {self.rounds}")


@dataclass(frozen=True, kw_only=True)
class StabilityTestEvent:
    """A Gaussian release that says whether something may be published as it is; see `privacy.top_k`.

    Attributes:
        noise_multiplier: σ > 0 of the release.
        failure: in (0, 1), the largest chance that it says so where one unit could change what is published.
    """

    noise_multiplier: float
    failure: float

    def __post_init__(self) -> None:
        _require(
            math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0,
            f"noise_multiplier must be a number above 0, not {self.noise_multiplier}",
        )
        _require(0 < self.failure < 1, f"failure must be above 0 and below 1, not {self.failure}")


Event = GaussianEvent | LaplaceEvent | ExponentialEvent | StabilityTestEvent


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def check_delta(delta: float) -> None:
    """Raise ValueError unless 0 < δ < 1."""
    _require(0 < delta < 1, f"delta must be above 0 and below 1, not {delta}; take at most 1 / units")


def event_to_dict(event: Event) -> dict[str, Any]:
    """A JSON-ready description; `event_from_dict` reads it back."""
    return {"type": type(event).__name__, **asdict(event)}


def event_from_dict(description: dict[str, Any]) -> Event:
    """The event that `event_to_dict` described."""
    types: dict[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}
    fields = dict(description)
    name = fields.pop("type", None)
    if name not in types:
        raise ValueError(f"event type must be one of {sorted(types)}, not {name!r}")
    return types[name](**fields)


@lru_cache(maxsize=256)
def _single_pld(event: Event, interval: float) -> pld_lib.PrivacyLossDistribution:
    """The loss distribution of one release of the event (its `steps` are ignored)."""
    if isinstance(event, LaplaceEvent):
        return pld_lib.from_laplace_mechanism(event.noise_multiplier, value_discretization_interval=interval)
    if isinstance(event, ExponentialEvent):
        return _bounded_range_pld(event.bounded_range, interval)
    if isinstance(event, StabilityTestEvent):
        return _test_pld(event, interval)
    return gaussian_pld(event.noise_multiplier, sampling_rate=event.sampling_rate, interval=interval)


def _bounded_range_pld(eta: float, interval: float) -> pld_lib.PrivacyLossDistribution:
    """The worst of all mechanisms of a bounded range η, in one pair that composes like any other.

    Such a mechanism is never better told apart than a coin whose log-odds are t and t − η, 0 ≤ t ≤ η. Its
    hockey-stick divergence at ε, (1 − e^(t−η))(1 − e^(ε−t)) / (1 − e^(−η)), is largest at t = (ε + η)/2; the
    largest at each ε is convex in e^ε and so again a pair's, which dominates them all, in both directions
    (Zhu, Dong & Wang 2022, arXiv 2106.08567, Prop. 8 and Thm 10).
    """
    most = math.ceil(eta / interval)
    grid = np.arange(-most, most + 1)
    epsilons = np.clip(grid * interval, -eta, eta)
    deltas = np.expm1((epsilons - eta) / 2) ** 2 / -math.expm1(-eta)
    deltas[0] = -math.expm1(-most * interval)  # beyond −η nothing is left to tell apart
    deltas = np.minimum.accumulate(deltas)
    return pld_lib.PrivacyLossDistribution(
        pld_pmf.create_pmf_pessimistic_connect_dots(interval, grid, deltas)
    )


def _test_pld(event: StabilityTestEvent, interval: float) -> pld_lib.PrivacyLossDistribution:
    """The Gaussian's, and besides something that gives a unit away with a chance a little above `failure`.

    Where a unit could change what is published, published it is with a chance p ≤ failure. For ε ≥ 0 the
    divergence is then at most p + h, with h that of the Gaussian at ε, and h ≤ h(0) = 2Φ(1/2σ) − 1. That is
    at most d + (1 − d) h, the divergence of both together, for d = p / (1 − h(0)).
    """
    most = 2 * norm.cdf(0.5 / event.noise_multiplier) - 1
    given_away = min(1.0, event.failure / (1 - most)) if most < 1 else 1.0
    gaussian = gaussian_pld(event.noise_multiplier, sampling_rate=1.0, interval=interval)
    return gaussian.compose(
        pld_lib.from_privacy_parameters(DifferentialPrivacyParameters(0.0, given_away), interval)
    )


def releases(event: Event) -> tuple[Event, int]:
    """The mechanism of one release and how many of it the event holds."""
    if isinstance(event, GaussianEvent):
        return replace(event, steps=1), event.steps
    if isinstance(event, ExponentialEvent):
        return replace(event, rounds=1), event.rounds
    return event, 1


def count_releases(events: Sequence[Event]) -> Counter[Event]:
    """Each distinct mechanism with its total number of releases, those of none left out."""
    counts: Counter[Event] = Counter()
    for single, number in map(releases, events):
        if number:
            counts[single] += number
    return counts


def events_of_counts(counts: Mapping[Event, int]) -> list[Event]:
    """Events that hold so many releases: what `count_releases` counted."""
    events: list[Event] = []
    for single, number in counts.items():
        if isinstance(single, GaussianEvent):
            events += [replace(single, steps=number)] * (number > 0)
        elif isinstance(single, ExponentialEvent):
            events += [replace(single, rounds=number)] * (number > 0)
        else:
            events += [single] * number
    return events


def _composed_pld(counts: Mapping[Event, int], interval: float) -> pld_lib.PrivacyLossDistribution:
    total = pld_lib.identity(value_discretization_interval=interval)
    for event, number in counts.items():
        single = _single_pld(event, interval)
        total = total.compose(single if number == 1 else single.self_compose(number))
    return total


def epsilon_pld(events: Sequence[Event], delta: float, *, interval: float = FINE_INTERVAL) -> float:
    """ε at `delta` of all `events` together; 0 for none, inf where δ can't be met.

    An upper bound for any `interval`, the grid of the privacy loss; a coarser one is faster and a little
    larger. Where ε is far above 10 a grid follows from its size: 20,000 steps of σ = .05 need 22 GB at 1e-4.
    At the default interval it is halved until that moves ε by less than 2e-4 of it; see `grid_of`. Where even
    that would take minutes, at an ε that says nothing of anybody, it is the bound of `epsilon_rdp`.
    """
    check_delta(delta)
    if not count_releases(events):
        return 0.0
    if _is_beyond(bound := epsilon_rdp(events, delta)):
        return bound
    if interval > FINE_INTERVAL:
        if _OF_EPSILON * bound <= interval:  # where `_first_interval` is no wider, whatever else it says
            return _epsilon_at(events, delta, interval)
        return _epsilon_at(events, delta, max(interval, _first_interval(events, delta)))
    return _settled(tuple(events), delta)[0]


def epsilon_curve(events: Sequence[Event], deltas: Sequence[float]) -> list[float]:
    """ε at each δ, upper bounds as of `epsilon_pld`, of one composition on the coarse grid.

    For a curve to look at: 0.1 to 0.2 s for a dozen δ, where as many figures on a fine grid take seconds.
    """
    for delta in deltas:
        check_delta(delta)
    if not count_releases(events):
        return [0.0] * len(deltas)
    bounds = [epsilon_rdp(events, delta) for delta in deltas]
    if any(map(_is_beyond, bounds)):
        return [epsilon_pld(events, delta, interval=COARSE_INTERVAL) for delta in deltas]
    interval = max(COARSE_INTERVAL, _first_interval(events, sorted(deltas)[len(deltas) // 2]))
    total = _composed_pld(count_releases(events), interval)
    return [float(total.get_epsilon_for_delta(delta)) for delta in deltas]


def grid_of(events: Sequence[Event], delta: float) -> tuple[float, float]:
    """The grid on which `epsilon_pld` settles, and about how much it is too high at most.

    That is what half as fine a grid adds: an error shrinks at least as fast as the grid does. Both are inf
    where ε is no grid's.
    """
    if _is_beyond(epsilon_rdp(events, delta)):
        return math.inf, math.inf
    epsilon, interval = _settled(tuple(events), delta)
    return interval, max(0.0, _epsilon_at(events, delta, 2 * interval) - epsilon)


def _is_beyond(epsilon: float) -> bool:
    """Whether no grid is tried; an infinite bound says nothing, and a grid may know better."""
    return _BEYOND < epsilon < math.inf


def profile_of(
    events: Sequence[Event], delta: float
) -> tuple[Callable[[float], float], Callable[[np.ndarray], np.ndarray]]:
    """Upper bounds of ε as a function of δ, and of δ as a function of ε ≥ 0, of all `events` together.

    On the grid on which `epsilon_pld` settles at `delta`. Where no grid is tried δ is 1 and ε infinite.
    """
    interval, _ = grid_of(events, delta)
    if not math.isfinite(interval):
        return lambda _: math.inf, np.ones_like
    total = _composed_pld(count_releases(events), interval)
    return (
        lambda at: float(total.get_epsilon_for_delta(at)),
        lambda at: np.asarray(total.get_delta_for_epsilon(at), dtype=np.float64),
    )


@lru_cache(maxsize=256)
def _settled(events: tuple[Event, ...], delta: float) -> tuple[float, float]:
    """ε, and the grid that it was found on."""
    interval = max(FINE_INTERVAL, _first_interval(events, delta))
    return _refined(lambda grid: _epsilon_at(events, delta, grid), interval, least=FINE_INTERVAL)


def _refined(epsilon_at: Callable[[float], float], interval: float, *, least: float) -> tuple[float, float]:
    """The least of upper bounds on finer and finer grids, once halving one hardly moves it, and that grid."""
    epsilon = epsilon_at(interval)
    while interval > least:
        interval = max(least, interval / 2)
        before, epsilon = epsilon, min(epsilon, epsilon_at(interval))
        if not before - epsilon > _SETTLED * epsilon:  # both may be inf
            break
    return epsilon, interval


def _epsilon_at(events: Sequence[Event], delta: float, interval: float) -> float:
    return _epsilon_of(count_releases(events), delta, interval)


def _epsilon_of(counts: Mapping[Event, int], delta: float, interval: float) -> float:
    return float(_composed_pld(counts, interval).get_epsilon_for_delta(delta))


def _spread(single: Event) -> float:
    """About how far apart the privacy losses of one release are."""
    return single.bounded_range if isinstance(single, ExponentialEvent) else 1 / single.noise_multiplier


def _first_interval(events: Sequence[Event], delta: float) -> float:
    """Where to begin: at a hundred-thousandth of ε, and a hundredth of what the loss of one release spreads.

    Of releases that spread less only as many need a finer grid as could add a ten-thousandth to ε: losses
    are rounded up by at most an interval each.
    """
    of_epsilon = _OF_EPSILON * epsilon_rdp(events, delta)
    if of_epsilon <= FINE_INTERVAL:
        return FINE_INTERVAL
    counts = count_releases(events)
    widest = max(counts, key=_spread)
    interval = _OF_SPREAD * _spread(widest)
    if len(counts) > 1:
        alone = _epsilon_of({widest: counts[widest]}, delta, min(interval, _WIDEST))
        for single, number in counts.items():
            enough = 1e-4 * alone / (number * len(counts))
            interval = min(interval, max(_OF_SPREAD * _spread(single), enough))
    return min(of_epsilon, interval, _WIDEST)


def epsilon_rdp(events: Sequence[Event], delta: float) -> float:
    """ε at `delta` by Rényi composition at the best order.

    Never below `epsilon_pld`, but for draws of the exponential mechanism, which alone may cost up to a
    seventh less by this way.
    """
    check_delta(delta)
    counts = count_releases(events)
    if not counts:
        return 0.0
    left = delta - failures(counts)
    if left <= 0:
        return math.inf
    rdp = sum(number * rdp_curve(single, _RDP_ORDERS) for single, number in counts.items())
    return max(0.0, float(np.min(rdp + rdp_to_epsilon(left, np.array(_RDP_ORDERS)))))


def failures(counts: Mapping[Event, int]) -> float:
    """What of δ tests take away before Rényi divergences are turned into an ε."""
    return sum(
        number * event.failure for event, number in counts.items() if isinstance(event, StabilityTestEvent)
    )


@lru_cache(maxsize=256)
def rdp_curve(single: Event, orders: tuple[float, ...]) -> np.ndarray:
    """RDP of one release of the event at each of `orders`; inf where dp-accounting gives no bound.

    A bounded range η makes it α·η²/8 (Cesar & Rogers 2021, arXiv 2004.07223), and never more than η. Of a
    test
    it holds but for its failure: where a unit could change what is published, nothing is published with a
    chance of at least 1 − failure, and of that outcome alone the divergence is at most the Gaussian's and
    −ln(1 − failure)·α/(α − 1).
    """
    alphas = np.array(orders)
    if isinstance(single, ExponentialEvent):
        return np.minimum(alphas * single.bounded_range**2 / 8, single.bounded_range)
    if isinstance(single, StabilityTestEvent):
        gaussian = alphas / (2 * single.noise_multiplier**2)
        result: np.ndarray = gaussian - math.log1p(-single.failure) * alphas / (alphas - 1)
        return result
    curve = np.empty(len(orders))
    whole = np.zeros(len(orders), dtype=bool)
    if isinstance(single, GaussianEvent) and 0 < single.sampling_rate < 1:
        whole = alphas == np.floor(alphas)
        curve[whole] = _rdp_of_whole_orders(single, alphas[whole])
    if not whole.all():
        accountant = RdpAccountant(alphas[~whole].tolist())
        absl_logger, was_disabled = logging.getLogger("absl"), logging.getLogger("absl").disabled
        absl_logger.disabled = True  # an order without a bound is left out, which is safe: no need to warn
        try:
            accountant.compose(_dp_event(single))
        finally:
            absl_logger.disabled = was_disabled
        curve[~whole] = np.asarray(accountant.rdp, dtype=np.float64)
    return np.where(np.isnan(curve), np.inf, curve)


def _rdp_of_whole_orders(single: GaussianEvent, alphas: np.ndarray) -> np.ndarray:
    """RDP of a Poisson-sampled Gaussian at whole orders (Mironov et al. 2019, arXiv 1908.10530, §3.3).

    The sum that dp-accounting takes, Σ_k C(α, k) (1 − q)^(α−k) q^k exp((k² − k) / 2σ²), all terms at once:
    one by one they take a limit's check ten times as long.
    """
    q, variance = single.sampling_rate, single.noise_multiplier**2
    found = []
    for alpha in alphas:
        k = np.arange(alpha + 1)
        terms = (
            special.gammaln(alpha + 1)
            - special.gammaln(k + 1)
            - special.gammaln(alpha - k + 1)
            + k * math.log(q)
            + (alpha - k) * math.log1p(-q)
            + (k * k - k) / (2 * variance)
        )
        largest = terms.max()
        found.append((largest + math.log(np.exp(terms - largest).sum())) / (alpha - 1))
    return np.array(found)


def rdp_to_epsilon(delta: float | np.ndarray, orders: np.ndarray) -> np.ndarray:
    """What each order adds to its RDP to make an ε at δ.

    Canonne, Kamath & Steinke 2020, arXiv 2004.00010, Prop. 12.
    """
    result: np.ndarray = np.log1p(-1 / orders) - (np.log(delta) + np.log(orders)) / (orders - 1)
    return result


def _dp_event(event: GaussianEvent | LaplaceEvent) -> dp_event.DpEvent:
    if isinstance(event, LaplaceEvent):
        return dp_event.LaplaceDpEvent(event.noise_multiplier)
    gaussian = dp_event.GaussianDpEvent(event.noise_multiplier)
    if event.sampling_rate == 1:
        return gaussian
    return dp_event.PoissonSampledDpEvent(event.sampling_rate, gaussian)


def group_epsilon(events: Sequence[GaussianEvent], delta: float, *, group_size: int) -> float:
    """ε at `delta` for `group_size` units that are added or removed together.

    Under Poisson sampling k ~ Binomial(group_size, q) of them are in a batch and move the sum by at
    most k·C, so one step is dominated by the pair (Σ_k P(k) N(k, σ²), N(0, σ²)): far tighter than
    group privacy of the composed ε (Schuchardt et al. 2024, arXiv 2403.04867).
    """
    check_delta(delta)
    _require(group_size >= 1, f"group_size must be ≥ 1, not {group_size}")
    if group_size == 1 or not count_releases(events):
        return epsilon_pld(events, delta)
    if _is_beyond(epsilon_rdp(events, delta)):  # as if all of them were in every batch
        together = [
            replace(event, noise_multiplier=event.noise_multiplier / group_size, sampling_rate=1.0)
            for event in events
        ]
        return epsilon_rdp(together, delta)
    # ε may be 1 or 10⁷: a coarse pass finds its size, another one or more resolve it finely.
    coarse = min(_WIDEST, max(1.0, 1 / min(event.noise_multiplier for event in events)))
    rough = _group_epsilon(events, delta, group_size=group_size, interval=coarse)
    # Each loss was rounded up by at most an interval, so no finer grid could take more off than this.
    if coarse * sum(event.steps for event in events) <= _OF_GROUP * rough < math.inf:
        return rough
    fine = max(COARSE_INTERVAL, rough / 1e4)
    if fine < coarse:
        return min(rough, _group_epsilon(events, delta, group_size=group_size, interval=fine))
    again = partial(_group_epsilon, events, delta, group_size=group_size)
    return _refined(lambda grid: again(interval=grid), coarse, least=coarse / 8)[0]


def _group_epsilon(
    events: Sequence[GaussianEvent], delta: float, *, group_size: int, interval: float
) -> float:
    total = pld_lib.identity(value_discretization_interval=interval)
    lost = 0.0
    for event in events:
        # More hits than `most` are so unlikely that they go to δ: a millionth of it in all steps.
        unlikely = 1e-6 * delta / max(1, event.steps) / len(events)
        most = int(binom.isf(unlikely, group_size, event.sampling_rate))
        lost += event.steps * float(binom.sf(most, group_size, event.sampling_rate))
        hits = np.arange(most + 1)
        chances = binom.pmf(hits, group_size, event.sampling_rate)
        with np.errstate(all="ignore"):  # far tails overflow into the infinity mass, which is meant
            single = pld_lib.from_mixture_gaussian_mechanism(
                event.noise_multiplier,
                hits.astype(float).tolist(),
                (chances / chances.sum()).tolist(),
                value_discretization_interval=interval,
            )
            total = total.compose(single.self_compose(event.steps))
    return float(total.get_epsilon_for_delta(delta - lost))
