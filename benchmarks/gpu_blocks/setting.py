"""What a block is told: where it runs, how large, and for how long."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Attributes:
    fake: the CPU at toy size, to see that everything runs; its figures mean nothing.
    folder: scratch.
    until: `time.monotonic()` at which the block has to have ended.
    """

    fake: bool
    folder: Path
    until: float

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.fake else torch.device("cuda", 0)

    @property
    def kind(self) -> str:
        return self.device.type

    def of(self, full: T, toy: T) -> T:
        """The size for a GPU, or the toy's."""
        return toy if self.fake else full

    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if not self.fake:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], *, rounds: int = 5, warm: int = 2) -> float:
        """Of one call: the shortest of some rounds after a few for warmth, by the device's own clock."""
        for _ in range(warm):
            work()
        self.wait()
        found = []
        for _ in range(rounds):
            if self.fake:
                start = time.perf_counter()
                work()
                found.append(time.perf_counter() - start)
            else:
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                first.record()
                work()
                last.record()
                last.synchronize()
                found.append(first.elapsed_time(last) / 1000)
            if self.left() < 1:
                break
        return min(found)

    @contextmanager
    def peak(self, row: dict[str, Any]) -> Iterator[None]:
        """Put the device's peak of memory over what was there before into a row, in bytes; None on a CPU."""
        if self.fake:
            yield
            row["peak_bytes"] = None
            return
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield
        self.wait()
        row["peak_bytes"] = torch.cuda.max_memory_allocated() - before


def attempt(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row of something that may fail: what it says of itself, or why it failed; and how long it took."""
    start = time.perf_counter()
    try:
        row = {"case": name, "ok": True, **work()}
    except Exception as error:  # a finding, like any other
        row = {"case": name, "ok": False, "error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    return {**row, "seconds": time.perf_counter() - start}
