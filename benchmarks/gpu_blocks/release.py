"""What a step's release costs in time and memory where several ranks share it, for a model of 860 M values.

One card takes one rank only, so a group of one is told that it is one of two: the same code, messages that
go nowhere.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from gpu_blocks.setting import Setting, attempt
from lightning_dp.privacy.noise import GaussianNoise, NoiseSource
from lightning_dp.privacy.ranks import Ranks
from lightning_dp.privacy.secure_noise import SecureGaussianNoise

SECONDS = 30
_TENSORS = 100


def run(setting: Setting) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        if not setting.fake:
            torch.cuda.set_device(setting.device)
        dist.init_process_group(setting.of("nccl", "gloo"), store=store, rank=0, world_size=1)
        try:
            yield attempt("plain", lambda: _release(setting, GaussianNoise(), setting.of(860, 0.01)))
            yield attempt("alone", lambda: _release(setting, GaussianNoise(), setting.of(860, 0.01), ranks=1))
            yield attempt("secure", lambda: _release(setting, SecureGaussianNoise(), setting.of(43, 0.01)))
            yield attempt("words between ranks", lambda: _words(setting))
        finally:
            dist.destroy_process_group()


def _release(setting: Setting, noise: NoiseSource, millions: float, *, ranks: int = 2) -> dict[str, Any]:
    each = int(millions * 1e6) // _TENSORS
    sums = {str(n): torch.zeros(each, device=setting.device) for n in range(_TENSORS)}
    together = Ranks()
    together.world_size = ranks
    row: dict[str, Any] = {"values": each * _TENSORS, "bytes": 4 * each * _TENSORS}
    rounds = 1 if isinstance(noise, SecureGaussianNoise) else 3
    with setting.peak(row):
        together.release(sums, noise=noise, scale=1.0)
    work = lambda: together.release(sums, noise=noise, scale=1.0)  # noqa: E731
    row["release_seconds"] = setting.seconds(work, rounds=rounds, warm=rounds - 1)
    return row


def _words(setting: Setting) -> dict[str, Any]:
    together = Ranks()
    together.world_size = 2
    number = torch.ones(1, device=setting.device)
    return {
        "on_first_seconds": setting.seconds(lambda: together.on_rank_zero(lambda: 1)),
        "all_reduce_seconds": setting.seconds(lambda: dist.all_reduce(number)),
    }
