"""How many files of this package one private step visits, and which: what a reader of it has to open.

Counted is every file with a function that runs, for a user's plain module under the default engine. Set-up
and preflight are not, nor is code that runs when a module is imported. Two figures: from the start of the
fit, whose first batch is followed operator by operator as the preflight follows made-up units; and a later
step.

    python benchmarks/step_files.py
"""

import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_dp
from lightning_dp import DifferentialPrivacy

_PACKAGE = Path(lightning_dp.__file__).parent


class _Regression(LightningModule):
    """Two linear layers and one loss a row: what every user has."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return (self.net(x).squeeze(1) - y).square()  # (R,)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class _Count(Callback):
    """The files of every call while it listens.

    Args:
        first: comes before all other callbacks and begins to listen; its partner comes after them and ends.
        step: the `global_step` that is counted alone; None counts from the fit's start to its first step.
    """

    def __init__(self, files: dict[str, None], *, first: bool, step: int | None) -> None:
        self._files, self._first, self._step = files, first, step

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._first and self._step is None:
            sys.setprofile(self._note)

    def on_train_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if self._first and trainer.global_step == self._step:
            sys.setprofile(self._note)

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        if not self._first:
            sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_name != "<module>":
            path = Path(code.co_filename)
            if path.is_relative_to(_PACKAGE):
                self._files[str(path.relative_to(_PACKAGE))] = None


def files_of_a_step(folder: Path, *, step: int | None = None) -> list[str]:
    """Paths below the package, in the order in which they are first entered.

    Args:
        folder: for the ledger and the run; nothing is written elsewhere.
        step: a `global_step` that is counted alone, from its batch's start to its end; None counts from
            `on_fit_start` to the end of the first step.
    """
    files: dict[str, None] = {}
    privacy = DifferentialPrivacy(
        noise_multiplier=1.0,
        delta=1e-3,
        expected_batch_size=8,
        unit="record",
        ledger=str(folder / "ledger.sqlite"),
        spot_check=0,
    )
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_steps=1 if step is None else step + 1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            _Count(files, first=True, step=step),
            privacy,
            _Count(files, first=False, step=step),
        ],
    )
    data = TensorDataset(torch.randn(64, 4), torch.randn(64))
    try:
        trainer.fit(_Regression(), DataLoader(data, batch_size=8))
    finally:
        sys.setprofile(None)
    return list(files)


USUAL = 7
"""A step whose operators are not watched and whose batch is not followed, but for one in 1000."""


if __name__ == "__main__":
    for _step, _what in ((None, "from the start of the fit to the end of step 1"), (USUAL, "a later step")):
        with tempfile.TemporaryDirectory() as _folder:
            _files = files_of_a_step(Path(_folder), step=_step)
        print(*_files, sep="\n")
        print(f"{len(_files)} files: {_what}\n")
