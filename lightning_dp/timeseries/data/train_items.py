"""What one train item of many users' series is: a user, a window, or a window that shares no step."""

from typing import Literal, get_args

from lightning_dp.privacy.units import PrivacyUnit, count_windows_per_event
from lightning_dp.timeseries.data.series import SeriesStore
from lightning_dp.timeseries.data.windows import UserWindowDataset, WindowDataset
from lightning_dp.timeseries.masks import Mask

TrainItem = Literal["user", "window", "disjoint"]
"""`user`: everything of one user, λ windows a step. `window`: one window of a user, one every `train_stride`
steps. `disjoint`: one window; windows touch end to end and begin at places of the clock that no data decides,
so one time step is in one item only."""


def check_train_item(unit: str) -> None:
    """Raise ValueError for a unit that doesn't exist."""
    if unit not in get_args(TrainItem):
        raise ValueError(f"unit is {unit!r}; it must be one of {', '.join(get_args(TrainItem))}.")


def make_train_items(
    store: SeriesStore,
    *,
    unit: TrainItem,
    context_length: int,
    horizon: int,
    windows_per_user: int,
    train_stride: int,
    task: Mask | None,
) -> WindowDataset | UserWindowDataset:
    """The train set of one kind of unit.

    Args:
        store: one series per user.
        unit: what an item is.
        context_length: ≥ 1, time steps.
        horizon: ≥ 1, time steps.
        windows_per_user: λ ≥ 1, for `user`.
        train_stride: ≥ 1, time steps between (possible) starts of train windows; not of `disjoint`. Forecasts
            begin where the clock is a multiple of it: one day makes them begin at midnight.
        task: what is to be predicted.
    """
    if unit == "user":
        return UserWindowDataset(
            store,
            context_length=context_length,
            horizon=horizon,
            windows_per_user=windows_per_user,
            stride=train_stride,
            clock_offset=-context_length,
            task=task,
        )
    return WindowDataset(
        store,
        context_length=context_length,
        horizon=horizon,
        stride=_stride(unit, length=context_length + horizon, train_stride=train_stride),
        clock_offset=-context_length,
        task=task,
    )


def describe_train_items(
    dataset: WindowDataset | UserWindowDataset,
    *,
    unit: TrainItem,
    length: int,
    train_stride: int,
    user: str,
) -> PrivacyUnit:
    """The privacy unit of what `make_train_items` made.

    Args:
        dataset: the train set.
        unit: what an item is.
        length: L, time steps of a window.
        train_stride: ≥ 1, time steps between the windows of `window`.
        user: what a user is called, e.g. "household".
    """
    if isinstance(dataset, UserWindowDataset):
        return PrivacyUnit(
            name="user",
            num_units=len(dataset),
            rows_per_unit=dataset.windows_per_user,
            description=(
                f"one {user}'s whole train series; it fills {dataset.windows_per_user} row(s) of a batch and "
                "is clipped as one"
            ),
        )
    stride = _stride(unit, length=length, train_stride=train_stride)
    touched = min(count_windows_per_event(window_length=length, stride=stride), len(dataset))
    return PrivacyUnit(
        name="window",
        num_units=len(dataset),
        windows_per_event=touched,
        description=(
            f"one window of {length} time steps of one {user}, taken every {stride} step(s) at places that "
            f"the data doesn't decide; one time step lies in up to {touched} window(s), a {user} in many "
            "more"
        ),
    )


def _stride(unit: TrainItem, *, length: int, train_stride: int) -> int:
    return length if unit == "disjoint" else train_stride
