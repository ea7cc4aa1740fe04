"""Where a training step waits for the device, by line, after the first steps.

On a GPU torch itself says so; on a CPU, reads of numbers by the host are counted below autograd.
"""

import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_blocks.setting import Setting
from gpu_blocks.small_fits import private_fit

SECONDS = 30
_READING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")


class _Reads(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in _READING:
            self._found[_place(traceback.extract_stack())] += 1
        return func(*args, **(kwargs or {}))


class CountSyncs(Callback):
    """Counts from the batch of one step to the end of it."""

    def __init__(self, *, step: int, fake: bool) -> None:
        self.found: Counter[str] = Counter()
        self._step, self._fake = step, fake
        self._open: Any = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self._step:
            return
        if self._fake:
            self._open = _Reads(self.found)
            self._open.__enter__()
            return
        self._open = warnings.catch_warnings()
        self._open.__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = self._note  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(self, *_: Any) -> None:
        if self._open is None:
            return
        if not self._fake:
            torch.cuda.set_sync_debug_mode("default")
        self._open.__exit__(None, None, None)
        self._open = None

    def _note(self, message: Any, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):
            self.found[_place(traceback.extract_stack())] += 1


def _place(stack: traceback.StackSummary) -> str:
    """The innermost line of the project, and of whatever it called."""
    for frame in reversed(stack):
        _, found, tail = frame.filename.rpartition("/lightning_dp/")
        if found:
            return f"{tail}:{frame.lineno}"
    inner = [frame for frame in stack if frame.filename != __file__]
    return f"{inner[-1].filename.rpartition('site-packages/')[2]}:{inner[-1].lineno}"


def run(setting: Setting) -> Iterator[dict[str, Any]]:
    for half in ("series", "images"):
        counted = CountSyncs(step=setting.of(3, 1), fake=setting.fake)
        with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
            private_fit(setting, half, folder=folder, steps=setting.of(5, 2), callbacks=[counted])
        lines = dict(counted.found.most_common())
        yield {"case": half, "syncs_a_step": counted.found.total(), "lines": lines}
