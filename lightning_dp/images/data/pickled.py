"""Batches of images as Python pickles, the form of CIFAR and of downsampled ImageNet."""

import io
import pickle
from typing import Any

import numpy as np

from lightning_dp.told import told_error


def read_pickle(content: bytes, *, where: str, what: str) -> Any:
    """What a pickle of numpy arrays and plain values holds; one that asks for anything else is refused.

    Args:
        content: the file.
        where: its name.
        what: the data set, for messages.

    Raises:
        ValueError: it is damaged, or would run code.
    """
    try:
        return _ArraysOnly(io.BytesIO(content), what=what).load()
    except Exception as error:  # of a damaged pickle anything
        reason = str(error) if isinstance(error, _Foreign) else told_error(error)
        raise ValueError(f"{where} is not a batch of {what} ({reason}): get it again.") from error


def colour_last(pixels: np.ndarray, *, side: int) -> np.ndarray:
    """(N, 3·S²), plane by plane, to (N, S, S, 3)."""
    return np.ascontiguousarray(pixels.reshape(-1, 3, side, side).transpose(0, 2, 3, 1))


class _Foreign(pickle.UnpicklingError):
    """A pickle asks for something that no array needs."""


class _ArraysOnly(pickle.Unpickler):
    """A pickle can run any code; these need nothing but numpy's array constructors."""

    _allowed = ("_reconstruct", "ndarray", "dtype", "_frombuffer")

    def __init__(self, file: io.BytesIO, *, what: str) -> None:
        super().__init__(file, encoding="latin1")
        self._what = what

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how old protocols spell bytes
            return super().find_class(module, name)
        if module.split(".")[0] == "numpy" and name in self._allowed:
            # numpy 2 moved the module that old pickles name.
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise _Foreign(f"{module}.{name} is not part of {self._what}")
