"""Tasks as masks: which positions of a window a model has to predict.

Forecasting, imputation, interpolation and synthesis differ only in that mask, so one module serves them
all. A mask is drawn without looking at the values: it costs no privacy.

Shapes: B windows, L time steps, C channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Kind = Literal["forecast", "imputation", "synthesis"]
"""What a batch of masks asks for; see `kind_of`."""


class Mask(ABC):
    """A task: draws the positions to be predicted."""

    @abstractmethod
    def draw(
        self, num_windows: int, *, length: int, num_channels: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw one mask per window, independently of each other.

        Args:
            num_windows: B ≥ 0.
            length: L ≥ 1, time steps of a window.
            num_channels: C ≥ 1.
            generator: source of randomness on the CPU; None = torch's global generator, for training.

        Returns:
            (B, L, C) bool, True = to be predicted.

        Raises:
            ValueError: the task doesn't fit into windows of this length.
        """

    def draw_fixed(
        self, window_indices: Sequence[int] | Tensor, *, length: int, num_channels: int, seed: int = 0
    ) -> Tensor:
        """The masks of evaluation: window i gets the same mask in every run, whatever batch it is in.

        Args:
            window_indices: (B,) numbers ≥ 0 of the windows.
            length: L ≥ 1.
            num_channels: C ≥ 1.
            seed: another seed gives another set of masks.

        Returns:
            (B, L, C) bool, True = to be predicted.
        """
        masks = torch.empty(len(window_indices), length, num_channels, dtype=torch.bool)
        generator = torch.Generator()
        for row, index in enumerate(window_indices):
            # Mixed to 32 bits, as torch's generator on the CPU uses no more of a seed.
            mixed = np.random.SeedSequence([seed, int(index)]).generate_state(1)[0]
            generator.manual_seed(int(mixed))
            masks[row] = self.draw(1, length=length, num_channels=num_channels, generator=generator)[0]
        return masks

    @abstractmethod
    def __str__(self) -> str:
        """The task in a few plain words, for tables."""


class Forecast(Mask):
    """The last `horizon` steps of all channels."""

    def __init__(self, horizon: int | tuple[int, int]) -> None:
        """Define the task.

        Args:
            horizon: ≥ 1 time steps, fewer than a window has; or [low, high]: uniform, one number per window.
        """
        low, high = horizon if isinstance(horizon, tuple | list) else (horizon, horizon)
        self._low = _count("horizon", low, least=1)
        self._high = _count("horizon", high, least=low)

    @property
    def horizon(self) -> int:
        """The most steps that are predicted."""
        return self._high

    def draw(
        self, num_windows: int, *, length: int, num_channels: int, generator: torch.Generator | None = None
    ) -> Tensor:
        if self._high >= length:
            raise ValueError(
                f"horizon is {self._high} in windows of {length} steps; a forecast needs one known step or "
                "more: shorten the horizon, lengthen the window, or use Synthesis."
            )
        horizon = torch.full((num_windows, 1), self._low)  # (B, 1)
        if self._high > self._low:
            horizon = torch.randint(self._low, self._high + 1, (num_windows, 1), generator=generator)
        steps = torch.arange(length) >= length - horizon  # (B, L)
        return _every_channel(steps, num_windows=num_windows, num_channels=num_channels)

    def __str__(self) -> str:
        steps = str(self._low) if self._low == self._high else f"{self._low}–{self._high}"
        return f"forecast {steps} steps"


class PointImputation(Mask):
    """Single positions, each missing independently of the others."""

    def __init__(self, ratio: float | tuple[float, float]) -> None:
        """Define the task.

        Args:
            ratio: probability of a missing position, in (0, 1); or [low, high]: uniform, one per window.
        """
        self._ratio = _interval("ratio", ratio)

    def draw(
        self, num_windows: int, *, length: int, num_channels: int, generator: torch.Generator | None = None
    ) -> Tensor:
        ratio = _uniform(self._ratio, num_windows=num_windows, generator=generator)  # (B,)
        return torch.rand(num_windows, length, num_channels, generator=generator) < ratio[:, None, None]

    def __str__(self) -> str:
        return f"impute points {_percent(self._ratio)}"


class StepImputation(Mask):
    """Single steps, each missing in all channels at once, independently of the others."""

    def __init__(self, ratio: float | tuple[float, float]) -> None:
        """Define the task.

        Args:
            ratio: probability of a missing step, in (0, 1); or [low, high]: uniform, one per window.
        """
        self._ratio = _interval("ratio", ratio)

    def draw(
        self, num_windows: int, *, length: int, num_channels: int, generator: torch.Generator | None = None
    ) -> Tensor:
        ratio = _uniform(self._ratio, num_windows=num_windows, generator=generator)  # (B,)
        steps = torch.rand(num_windows, length, generator=generator) < ratio[:, None]  # (B, L)
        return _every_channel(steps, num_windows=num_windows, num_channels=num_channels)

    def __str__(self) -> str:
        return f"impute steps {_percent(self._ratio)}"


class SubSequenceImputation(Mask):
    """One run of consecutive steps per channel, at a place of its own in every channel."""

    def __init__(self, ratio: float | tuple[float, float]) -> None:
        """Define the task.

        Args:
            ratio: length of the run relative to the window, in (0, 1); or [low, high]: uniform, one per
                window.
        """
        self._ratio = _interval("ratio", ratio)

    def draw(
        self, num_windows: int, *, length: int, num_channels: int, generator: torch.Generator | None = None
    ) -> Tensor:
        return _runs(
            self._ratio, num_windows=num_windows, length=length, num_runs=num_channels, generator=generator
        )

    def __str__(self) -> str:
        return f"impute sub-sequences {_percent(self._ratio)}"


class BlackoutImputation(Mask):
    """One run of consecutive steps in which all channels are missing at once."""

    def __init__(self, ratio: float | tuple[float, float]) -> None:
        """Define the task.

        Args:
            ratio: length of the run relative to the window, in (0, 1); or [low, high]: uniform, one per
                window.
        """
        self._ratio = _interval("ratio", ratio)

    def draw(
        self, num_windows: int, *, length: int, num_channels: int, generator: torch.Generator | None = None
    ) -> Tensor:
        runs = _runs(self._ratio, num_windows=num_windows, length=length, num_runs=1, generator=generator)
        return runs.repeat(1, 1, num_channels)

    def __str__(self) -> str:
        return f"impute blackouts {_percent(self._ratio)}"


class StrideImputation(Mask):
    """Every second block of a window that is cut into equal blocks, in all channels.

    Whether the first block is missing or known is drawn per window.
    """

    def __init__(self, num_blocks: int | tuple[int, int]) -> None:
        """Define the task.

        Args:
            num_blocks: ≥ 2 blocks per window; or [low, high]: uniform, one number per window.
        """
        low, high = num_blocks if isinstance(num_blocks, tuple | list) else (num_blocks, num_blocks)
        self._low = _count("num_blocks", low, least=2)
        self._high = _count("num_blocks", high, least=low)

    def draw(
        self, num_windows: int, *, length: int, num_channels: int, generator: torch.Generator | None = None
    ) -> Tensor:
        if self._high > length:
            raise ValueError(
                f"num_blocks is {self._high} in windows of {length} steps; a block has at least one step: "
                "use fewer blocks."
            )
        blocks = torch.randint(self._low, self._high + 1, (num_windows, 1), generator=generator)  # (B, 1)
        first = torch.randint(0, 2, (num_windows, 1), generator=generator)  # (B, 1)
        block = torch.arange(length) * blocks // length  # (B, L)
        return _every_channel((block + first) % 2 == 0, num_windows=num_windows, num_channels=num_channels)

    def __str__(self) -> str:
        blocks = str(self._low) if self._low == self._high else f"{self._low}–{self._high}"
        return f"impute every second of {blocks} blocks"


class Interpolation(Mask):
    """All steps but every `spacing`-th, in all channels: a coarse series made finer."""

    def __init__(self, spacing: int) -> None:
        """Define the task.

        Args:
            spacing: ≥ 2; steps 0, spacing, 2·spacing, … are known.
        """
        self.spacing = _count("spacing", spacing, least=2)

    def draw(
        self, num_windows: int, *, length: int, num_channels: int, generator: torch.Generator | None = None
    ) -> Tensor:
        steps = torch.arange(length) % self.spacing != 0  # (L,)
        return _every_channel(steps[None], num_windows=num_windows, num_channels=num_channels)

    def __str__(self) -> str:
        return f"interpolate between every {self.spacing} steps"


class Synthesis(Mask):
    """Everything: the model sees the covariates of a window and none of its values."""

    def draw(
        self, num_windows: int, *, length: int, num_channels: int, generator: torch.Generator | None = None
    ) -> Tensor:
        return torch.ones(num_windows, length, num_channels, dtype=torch.bool)

    def __str__(self) -> str:
        return "synthesise"


class Mixture(Mask):
    """Another task for every window: one model for several tasks."""

    def __init__(self, tasks: list[Mask], *, weights: list[float] | None = None) -> None:
        """Define the mixture.

        Args:
            tasks: at least one.
            weights: one per task, positive, relative to each other; None = all alike.
        """
        if not tasks:
            raise ValueError("tasks is empty; a mixture needs at least one task.")
        chosen = [1.0] * len(tasks) if weights is None else list(weights)
        if len(chosen) != len(tasks) or not all(weight > 0 for weight in chosen):
            raise ValueError(
                f"weights is {weights} for {len(tasks)} tasks; give every task one number above 0, or leave "
                "weights out."
            )
        self.tasks = tuple(tasks)
        self._weights = torch.tensor(chosen, dtype=torch.float64)

    def draw(
        self, num_windows: int, *, length: int, num_channels: int, generator: torch.Generator | None = None
    ) -> Tensor:
        masks = torch.empty(num_windows, length, num_channels, dtype=torch.bool)
        if not num_windows:  # torch.multinomial refuses to draw nothing
            return masks
        task = torch.multinomial(self._weights, num_windows, replacement=True, generator=generator)  # (B,)
        for number, part in enumerate(self.tasks):
            rows = (task == number).nonzero()[:, 0]
            masks[rows] = part.draw(len(rows), length=length, num_channels=num_channels, generator=generator)
        return masks

    def __str__(self) -> str:
        return " | ".join(str(task) for task in self.tasks)


def kind_of(target: Tensor) -> Kind:
    """What a batch of masks asks for, as its baselines and its report need to know.

    Args:
        target: (B, L, C) bool with B ≥ 1.

    Returns:
        "synthesis" where everything is to be predicted, "forecast" where it is the same last steps of all
        windows and channels, else "imputation".
    """
    if bool(target.all()):
        return "synthesis"
    horizon = int(target[0, :, 0].sum())
    last = torch.arange(target.shape[1], device=target.device) >= target.shape[1] - horizon
    return "forecast" if horizon and bool((target == last[:, None]).all()) else "imputation"


def _runs(
    ratio: tuple[float, float],
    *,
    num_windows: int,
    length: int,
    num_runs: int,
    generator: torch.Generator | None,
) -> Tensor:
    """(B, L, num_runs) one run per column; its first step is uniform over all places where it fits."""
    share = _uniform(ratio, num_windows=num_windows, generator=generator)  # (B,)
    missing = (share * length).round().long().clamp(1, max(length - 1, 1))[:, None]  # (B, 1)
    places = length - missing + 1
    draws = torch.rand(num_windows, num_runs, dtype=torch.float64, generator=generator)
    first = (draws * places).long()[:, None]  # (B, 1, num_runs)
    step = torch.arange(length)[None, :, None]
    return (step >= first) & (step < first + missing[:, None])


def _every_channel(steps: Tensor, *, num_windows: int, num_channels: int) -> Tensor:
    """(1 or B, L) → (B, L, C), in memory of its own."""
    return steps[:, :, None].expand(num_windows, -1, num_channels).contiguous()


def _uniform(interval: tuple[float, float], *, num_windows: int, generator: torch.Generator | None) -> Tensor:
    low, high = interval
    return low + (high - low) * torch.rand(num_windows, generator=generator)  # (B,)


def _interval(field: str, value: float | tuple[float, float]) -> tuple[float, float]:
    low, high = value if isinstance(value, tuple | list) else (value, value)
    if not 0 < low <= high < 1:
        raise ValueError(
            f"{field} is {value}; it must lie strictly between 0 and 1, or be [low, high] with low ≤ high."
        )
    return float(low), float(high)


def _count(field: str, value: int, *, least: int) -> int:
    if value < least:
        raise ValueError(f"{field} is {value}; it must be at least {least}.")
    return value


def _percent(interval: tuple[float, float]) -> str:
    low, high = (f"{100 * value:g}" for value in interval)
    return f"{low} %" if low == high else f"{low}–{high} %"
