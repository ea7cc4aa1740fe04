"""Whether two things that were made alike still are: tensors, arrays, numbers, and what holds them."""

from collections import deque
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_DEEPEST = 12


def first_difference(left: Any, right: Any, *, path: str = "", depth: int = 0) -> str | None:
    """Where two trees differ, as a path of names and numbers; None where they don't.

    Tensors and arrays must be equal bit for bit, NaN to NaN. Objects without values of their own, such as
    functions, count as equal.
    """
    if left is right or depth > _DEEPEST:
        return None
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return None if same_tensor(left, right) else path
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        if left.dtype.kind in "biufc":
            equal = np.array_equal(left, right, equal_nan=left.dtype.kind in "fc")
        else:
            equal = np.array_equal(left, right)
        return None if equal else path
    if type(left) is not type(right):
        return path
    if isinstance(left, bool | int | str | bytes | np.number | float | complex):
        return None if left == right or (left != left and right != right) else path
    if isinstance(left, Mapping):
        if list(left) != list(right):
            return path
        inside = [(f"{path}.{key}".lstrip("."), left[key], right[key]) for key in left]
    elif isinstance(left, list | tuple | deque):
        if len(left) != len(right):
            return path
        inside = [(f"{path}[{i}]", *pair) for i, pair in enumerate(zip(left, right, strict=True))]
    elif isinstance(left, Set):
        return None if left == right else path
    elif hasattr(left, "__dict__") and not isinstance(left, type | nn.Module) and not callable(left):
        inside = [(path, vars(left), vars(right))]
    else:
        return None
    for name, one, other in inside:
        where = first_difference(one, other, path=name, depth=depth + 1)
        if where is not None:
            return where
    return None


def same_tensor(first: Tensor, second: Tensor) -> bool:
    """Bit for bit, NaN to NaN."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.is_floating_point():
        return bool(torch.equal(first.isnan(), second.isnan())) and bool(
            torch.equal(first.nan_to_num(nan=0.0), second.nan_to_num(nan=0.0))
        )
    return bool(torch.equal(first, second))
