"""One-off releases about private data: means, variances, histograms, votes and sums, each paid for first.

Every mechanism bounds what one privacy unit adds to a vector of sums, adds noise to it, Gaussian unless it
says otherwise, and works out its answer from the noisy sums alone. Values come one array a unit, or as one
array whose first axis counts units; a unit with many values has no more influence than one with a single
value. Missing values (NaN) are left out. The number of units is a public fact, as in the plan, and is never
counted.

Scope: the ledger's relation, adding or removing one unit. What the values were computed from is the
caller's claim: a normalised or selected input has a cost of its own.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, final

import numpy as np
import torch
from numpy.typing import ArrayLike

from lightning_dp.privacy.accounting import Event, GaussianEvent
from lightning_dp.privacy.ledger import Lease
from lightning_dp.privacy.noise import NoiseSource
from lightning_dp.privacy.secure_noise import SecureGaussianNoise, check_margin

Value = TypeVar("Value")
Shift = TypeVar("Shift", float, np.ndarray, torch.Tensor)
PerUnit = ArrayLike | Sequence[ArrayLike]


@dataclass(frozen=True, kw_only=True)
class Released(Generic[Value]):
    """What was released and the ledger's entry that paid for it.

    Attributes:
        value: the noisy answer.
        seq, hash: the entry's reference, for whatever is made from the value.
    """

    value: Value
    seq: int
    hash: str


@dataclass(frozen=True, kw_only=True)
class Mechanism(ABC, Generic[Value]):
    """One noisy release.

    Guarantee: the Gaussian mechanism with noise of `noise_multiplier` · `sensitivity` on sums that one
    unit, whatever its values, moves by at most `sensitivity` in ℓ2. (The rounding of fp64 sums is paid
    for by the margin of `SecureGaussianNoise`.)

    Attributes:
        noise_multiplier: σ > 0.
        sampling_rate: r in (0, 1], each unit's chance to be among the values, drawn independently and
            secretly: whoever reads them draws so. 1 is every unit.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("noise_multiplier", self.noise_multiplier)
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(
                f"sampling_rate is {self.sampling_rate}; it is a chance in (0, 1], 1 for all units"
            )

    @property
    @abstractmethod
    def sensitivity(self) -> float:
        """> 0, the most that one unit added or removed moves `sums`, in ℓ2."""

    @abstractmethod
    def sums(self, values: PerUnit) -> np.ndarray:
        """The raw, private input of the mechanism: (k,) sums over units, before noise."""

    @abstractmethod
    def answer(self, noisy: np.ndarray) -> Value:
        """The answer from noisy sums and public facts alone."""

    @property
    def event(self) -> Event:
        """What the release costs: one Gaussian release, of a Poisson sample where the rate is below 1."""
        return GaussianEvent(
            noise_multiplier=self.noise_multiplier, sampling_rate=self.sampling_rate, steps=1
        )

    def perturbed(self, sums: torch.Tensor, noise: NoiseSource | None) -> torch.Tensor:
        """What of the sums (k,) is published: all of them, with Gaussian noise."""
        if noise is None:
            check_margin(noise_multiplier=self.noise_multiplier, num_values=len(sums))
        return (noise or SecureGaussianNoise()).add_to(sums, scale=self.noise_multiplier * self.sensitivity)

    @final
    def release(
        self,
        values: PerUnit | Callable[[], PerUnit],
        lease: Lease,
        *,
        note: str = "",
        noise: NoiseSource | None = None,
        drawn_at: float = 1.0,
    ) -> Released[Value]:
        """Charge the ledger, then read `values`, add noise and answer.

        Args:
            values: one array a unit, or an array (units, …), or what reads them, called after the charge.
            lease: pays; of several ranks only rank 0 has one, and sends the answer to the others.
            note: what this is, for readers of the ledger.
            noise: None takes `SecureGaussianNoise`: sums are fp64, and noise that is coarser than they
                are, as fp32 noise is, would let their low bits through.
            drawn_at: the chance that each unit had to be among the values; 1 is all of them.

        Raises:
            BudgetExceeded, LedgerError: nothing was read.
            ValueError: the values were drawn at another rate than the one that is paid for; nothing was read.
            ValueError: the values have an impossible shape, or are more than noise on a grid pays for; the
                charge stays.
        """
        if drawn_at != self.sampling_rate:
            raise ValueError(
                f"{type(self).__name__}.sampling_rate is {self.sampling_rate}, but the values are of units "
                f"drawn at {drawn_at}: draw them by PoissonLoader.in_order at that rate and say so by "
                "drawn_at, or set sampling_rate to 1"
            )
        entry = lease.reserve(self.event, kind="release", note=f"{note}: {self}" if note else str(self))
        sums = torch.from_numpy(self.sums(values() if callable(values) else values))
        noisy = self.perturbed(sums, noise)
        return Released(value=self.answer(noisy.numpy()), seq=entry.seq, hash=entry.hash)


@dataclass(frozen=True, kw_only=True)
class PublicBounds:
    """Bounds known without looking at the data; as a normaliser the free alternative to a release.

    Attributes:
        lower, upper: finite, lower < upper, in the data's unit.
    """

    lower: float
    upper: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.upper - self.lower) and self.lower < self.upper):
            raise ValueError(
                f"lower is {self.lower} and upper is {self.upper}; both must be finite, with lower below "
                "upper: take bounds that are known without looking at the data"
            )

    @property
    def centre(self) -> float:
        """The middle of the bounds."""
        return self.lower + self.radius

    @property
    def radius(self) -> float:
        """Half their distance, > 0."""
        return (self.upper - self.lower) / 2

    def normalise(self, values: Shift) -> Shift:
        """Values between the bounds to −1 … 1; others lie outside of it."""
        return (values - self.centre) / self.radius

    def denormalise(self, values: Shift) -> Shift:
        """The inverse."""
        return values * self.radius + self.centre


@final
@dataclass(frozen=True, kw_only=True)
class BoundedMean(Mechanism[float]):
    """The mean over units of each unit's mean value.

    A unit adds t ∈ [−1, 1], its mean on the scale of the bounds, so the sensitivity is 1.

    Attributes:
        bounds: values outside count as the nearest bound.
        num_units: ≥ 1, public.
    """

    bounds: PublicBounds
    num_units: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_count("num_units", self.num_units)

    @property
    def sensitivity(self) -> float:
        return 1.0

    def sums(self, values: PerUnit) -> np.ndarray:
        first, _, _ = _unit_moments(values, self.bounds)
        return np.array([first.sum()])

    def answer(self, noisy: np.ndarray) -> float:
        return _between(self.bounds.denormalise(float(noisy[0]) / self.num_units), self.bounds)


@dataclass(frozen=True, kw_only=True)
class Moments:
    """A released mean and variance, in the data's unit and its square."""

    mean: float
    variance: float


@final
@dataclass(frozen=True, kw_only=True)
class BoundedVariance(Mechanism[Moments]):
    """Mean and variance of all values, each unit weighing the same.

    A unit adds (m₁, m₂ − ½), the first two moments of its values on the scale of the bounds. With
    m₁² ≤ m₂ ≤ 1 its squared length is at most m₂² + ¼, so the sensitivity is √1.25: less than the √2
    of the moments as they are, and one charge for both.

    Attributes:
        bounds: values outside count as the nearest bound.
        num_units: ≥ 1, public.
    """

    bounds: PublicBounds
    num_units: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_count("num_units", self.num_units)

    @property
    def sensitivity(self) -> float:
        return math.sqrt(1.25)

    def sums(self, values: PerUnit) -> np.ndarray:
        first, second, counted = _unit_moments(values, self.bounds)
        return np.array([first.sum(), np.where(counted, second - 0.5, 0.0).sum()])

    def answer(self, noisy: np.ndarray) -> Moments:
        first, second = float(noisy[0]) / self.num_units, float(noisy[1]) / self.num_units + 0.5
        variance = min(max(second - first**2, 0.0), 1.0) * self.bounds.radius**2
        return Moments(mean=_between(self.bounds.denormalise(first), self.bounds), variance=variance)


@final
@dataclass(frozen=True, kw_only=True)
class Histogram(Mechanism[np.ndarray]):
    """Units per bin, (bins,) fp64; noisy, so neither whole nor always above 0.

    A unit adds a weight of 1, shared over its values, so the sensitivity is 1.

    Attributes:
        edges: at least two rising finite numbers, public; bin i is [edges[i], edges[i+1]), the last one
            holds its upper edge too. Values outside are in no bin.
    """

    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        edges = np.asarray(self.edges, dtype=np.float64)
        if edges.ndim != 1 or len(edges) < 2 or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
            raise ValueError(
                f"edges is {self.edges}; it must be at least two finite numbers, each above the one before"
            )

    @property
    def sensitivity(self) -> float:
        return 1.0

    def sums(self, values: PerUnit) -> np.ndarray:
        return _shares(values, np.asarray(self.edges, dtype=np.float64))

    def answer(self, noisy: np.ndarray) -> np.ndarray:
        return noisy


@final
@dataclass(frozen=True, kw_only=True)
class Vote(Mechanism[int]):
    """The option with the most votes after noise, 0 … num_options − 1.

    A unit has one vote, for the option nearest to its value, shared over its values where there are
    several; votes for what is not on offer do not count. The sensitivity of the counts is 1; only the
    winner is published.

    Attributes:
        num_options: ≥ 2, public.
    """

    num_options: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_count("num_options", self.num_options, least=2)

    @property
    def sensitivity(self) -> float:
        return 1.0

    def sums(self, values: PerUnit) -> np.ndarray:
        return _shares(values, np.arange(self.num_options + 1) - 0.5)

    def answer(self, noisy: np.ndarray) -> int:
        return int(noisy.argmax())


@final
@dataclass(frozen=True, kw_only=True)
class VoteCounts(Mechanism[np.ndarray]):
    """Votes for each option after noise, (num_options,) fp64; neither whole nor always above 0.

    A unit may cast any number of votes, for one option several times; NaN, and what is not on offer,
    abstains. Let h be the unit's own histogram, how often it votes for each option. It adds h / ‖h‖₂, or
    nothing where h = 0: k votes for k options count 1/√k each.

    Proof that the sensitivity is 1: the sums are Σ_u h_u / ‖h_u‖₂, and h_u depends on the values of unit u
    alone. Adding or removing u leaves every other term as it is, so the sums move by h_u / ‖h_u‖₂, whose ℓ2
    norm is 1, or by 0. The noise is Gaussian, which asks for ℓ2 and nothing else. One vote shared over the
    unit's values, h / ‖h‖₁, would be as private, and no count of it larger: ‖h‖₂ ≤ ‖h‖₁.

    Attributes:
        num_options: ≥ 1, public; a value is the number of an option.
    """

    num_options: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_count("num_options", self.num_options)

    @property
    def sensitivity(self) -> float:
        return 1.0

    def sums(self, values: PerUnit) -> np.ndarray:
        rows = _rows(values)  # (units, width)
        options = np.round(rows)
        offered = (options >= 0) & (options < self.num_options)  # False of NaN
        owners = np.nonzero(offered)[0]
        # One number for each pair of a unit and an option that it votes for; how often is h.
        pairs, times = np.unique(
            owners * self.num_options + options[offered].astype(np.int64), return_counts=True
        )
        owners, options = pairs // self.num_options, pairs % self.num_options
        norms = np.sqrt(np.bincount(owners, weights=times.astype(np.float64) ** 2, minlength=1))
        sums = np.bincount(options, weights=times / norms[owners], minlength=self.num_options)
        return sums.astype(np.float64)  # of nothing at all bincount makes whole numbers

    def answer(self, noisy: np.ndarray) -> np.ndarray:
        return noisy


@final
@dataclass(frozen=True, kw_only=True)
class VectorSum(Mechanism[np.ndarray]):
    """Σ over units of a vector each, (dimension,) fp64, clipped to an ℓ2 norm of `max_norm`.

    Attributes:
        max_norm: > 0, in the data's unit; the sensitivity. A vector with a NaN or an infinity counts as 0.
        dimension: ≥ 1, public.
    """

    max_norm: float
    dimension: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive("max_norm", self.max_norm)
        _check_count("dimension", self.dimension)

    @property
    def sensitivity(self) -> float:
        return self.max_norm

    def sums(self, values: PerUnit) -> np.ndarray:
        vectors = _rows(values)  # (units, dimension)
        if len(vectors) and vectors.shape[1] != self.dimension:
            raise ValueError(
                f"values has vectors of length {vectors.shape[1]}; dimension says {self.dimension}"
            )
        vectors = np.where(np.isfinite(vectors).all(axis=1, keepdims=True), vectors, 0.0)
        # The largest entry is divided out first: the square of 1e200 is no number.
        peak = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
        scaled = np.divide(vectors, peak, out=np.zeros_like(vectors), where=peak > 0)
        length = np.linalg.norm(scaled, axis=1, keepdims=True)
        with np.errstate(over="ignore"):
            clipped = np.minimum(peak * length, self.max_norm)
        factor = np.divide(clipped, length, out=np.zeros_like(length), where=length > 0)
        return (scaled * factor).sum(axis=0) if len(vectors) else np.zeros(self.dimension)

    def answer(self, noisy: np.ndarray) -> np.ndarray:
        return noisy


def _check_positive(field: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{field} is {value}; it must be a number above 0")


def _check_count(field: str, value: int, *, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"{field} is {value!r}; it must be a whole number of at least {least}, known publicly"
        )


def _between(value: float, bounds: PublicBounds) -> float:
    return min(max(value, bounds.lower), bounds.upper)


def _rows(values: PerUnit) -> np.ndarray:
    """(units, width) fp64, short units filled up with NaN."""
    if isinstance(values, np.ndarray):
        units = list(values) if values.dtype == object else values
    else:
        units = list(values)  # type: ignore[arg-type]
    if isinstance(units, np.ndarray):
        return np.asarray(units, dtype=np.float64).reshape(len(units), math.prod(units.shape[1:]))
    rows = [np.asarray(unit, dtype=np.float64).ravel() for unit in units]
    filled = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for index, row in enumerate(rows):
        filled[index, : len(row)] = row
    return filled


def _unit_moments(values: PerUnit, bounds: PublicBounds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each unit's mean and mean square on the scale of the bounds, and whether it has a value at all."""
    rows = _rows(values)  # (units, width)
    known = ~np.isnan(rows)
    with np.errstate(over="ignore"):  # beyond the largest number is beyond the bounds
        scaled = np.where(known, np.clip(bounds.normalise(rows), -1.0, 1.0), 0.0)
    number = np.maximum(known.sum(axis=1), 1)
    # Means of numbers up to 1 can end a rounding error above it.
    first = np.clip(scaled.sum(axis=1) / number, -1.0, 1.0)
    second = np.clip((scaled**2).sum(axis=1) / number, 0.0, 1.0)
    return first, second, known.any(axis=1)


def _shares(values: PerUnit, edges: np.ndarray) -> np.ndarray:
    """(bins,) sums of weights of 1 a unit, shared over its values."""
    rows = _rows(values)  # (units, width)
    inside = (rows >= edges[0]) & (rows <= edges[-1])
    weights = np.broadcast_to(1 / np.maximum((~np.isnan(rows)).sum(axis=1, keepdims=True), 1), rows.shape)
    bins = np.minimum(np.searchsorted(edges, rows[inside], side="right") - 1, len(edges) - 2)
    # Of nothing at all bincount makes whole numbers, which would round the noise.
    return np.bincount(bins, weights=weights[inside], minlength=len(edges) - 1).astype(np.float64)
