"""What one guarantee protects: the privacy unit, how many there are and how they meet the batch.

Scope: public facts only, declared before any private value is read. Nothing here samples or accounts.
"""

from dataclasses import dataclass
from typing import Literal, get_args

UnitName = Literal["record", "window", "user"]

_COARSENESS = {"record": 0, "event": 0, "window": 1, "user": 2}


def is_coarser(unit: str, other: str) -> bool:
    """Whether what protects one `unit` may hold many of the `other`: user ⊐ window ⊐ record and event.

    A unit of another name may hold anything, and be part of anything.
    """
    if unit == other:
        return False
    if unit not in _COARSENESS or other not in _COARSENESS:
        return True
    return _COARSENESS[unit] > _COARSENESS[other]


@dataclass(frozen=True, kw_only=True)
class PrivacyUnit:
    """The unit of a training set; every item of the train dataset is exactly one of them.

    Attributes:
        name: `record` (one independent example), `window` (one slice of a longer series; slices may
            overlap, so this says nothing about a person) or `user` (everything one person gave).
        num_units: ≥ 1, units in the train dataset: its `len`.
        rows_per_unit: ≥ 1, consecutive rows of a collated batch that belong to one unit.
        windows_per_event: ≥ 1, the largest number of training windows that one event (a run of one
            time step) can touch; None where an event is not defined for this unit.
        description: one sentence for reports: what exactly is protected.
        declared: False where nobody said what the unit is, so that it was assumed.
    """

    name: UnitName
    num_units: int
    rows_per_unit: int = 1
    windows_per_event: int | None = None
    description: str
    declared: bool = True

    def __post_init__(self) -> None:
        if self.name not in get_args(UnitName):
            raise ValueError(
                f"PrivacyUnit.name is {self.name!r}; it must be one of {', '.join(get_args(UnitName))}."
            )
        counts = {"num_units": self.num_units, "rows_per_unit": self.rows_per_unit}
        if self.windows_per_event is not None:
            counts["windows_per_event"] = self.windows_per_event
        for field, value in counts.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"PrivacyUnit.{field} is {value!r}; it must be a whole number of at least 1: "
                    "count the items of the train dataset."
                )
        if not isinstance(self.description, str) or not self.description.strip():
            raise ValueError(
                f"PrivacyUnit.description is {self.description!r}; say in one sentence what one unit is, "
                "because reports print it beside epsilon."
            )


def count_windows_per_event(*, window_length: int, stride: int, event_length: int = 1) -> int:
    """The largest number of windows that a run of `event_length` time steps can touch.

    Windows start at multiples of `stride`. A window [s, s + window_length) meets the run
    [t, t + event_length) exactly for t − window_length < s < t + event_length, an interval of
    window_length + event_length − 1 whole numbers, of which at most ⌈(·) / stride⌉ are starts.
    Stride 1 gives L_C + L_F − 1 + w for a context L_C, a horizon L_F and a run of w steps.

    Args:
        window_length: ≥ 1, time steps of a window (context and horizon together).
        stride: ≥ 1, time steps between the starts of neighbouring windows.
        event_length: ≥ 1, time steps of the event.
    """
    for field, value in (
        ("window_length", window_length),
        ("stride", stride),
        ("event_length", event_length),
    ):
        if value < 1:
            raise ValueError(f"{field} is {value}; it counts time steps and must be at least 1.")
    return -(-(window_length + event_length - 1) // stride)
