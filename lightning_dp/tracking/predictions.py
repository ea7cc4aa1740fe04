"""`nonprivate_predictions.npz` in the run folder: what `lightning-dp predict` forecast, contexts included.

What a forecast continues stands in it as it was read, so it says by name, content and report that it holds
private inputs; `lightning-dp sample` writes what was drawn alone.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from lightning_dp.privacy.ranks import Ranks
from lightning_dp.privacy.report import replace_text
from lightning_dp.privacy.report.document import SCHEMA
from lightning_dp.tracking.folder_lock import make_run_folder
from lightning_dp.tracking.sealed import sha256_of

STATEMENT = (
    "contains private inputs: beside what was predicted, the readings that it was predicted from, as they "
    "are; no ε covers this file, so keep it where the data is kept"
)


class PredictionWriter(BasePredictionWriter):
    """Joins the tensors that `predict_step` returns in a dict, along the first dimension, and saves them.

    Rows are in the order of the data set and each is there once, however many processes shared them.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(write_interval="batch")
        self._path = folder / "nonprivate_predictions.npz"
        self._parts: list[tuple[int, list[int], dict[str, Tensor]]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._parts = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep a batch until all are there, with the data set's index of each row."""
        if not isinstance(prediction, dict):
            raise ValueError(
                f"{type(pl_module).__name__}.predict_step returns a {type(prediction).__name__}; "
                "return a dict of tensors to have it saved"
            )
        values = {name: value.detach().cpu() for name, value in prediction.items()}
        rows = list(batch_indices or [])
        if trainer.world_size > 1 and any(len(value) != len(rows) for value in values.values()):
            sizes = ", ".join(f"{len(value)} of {name}" for name, value in values.items())
            raise ValueError(
                f"{type(pl_module).__name__}.predict_step returns {sizes} for {len(rows)} rows, so that "
                "several processes can't tell which are whose: return one a row, or predict on one device "
                "(--trainer.devices 1)"
            )
        self._parts.append((dataloader_idx, rows, values))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        every = [part for parts in Ranks().gather(self._parts) for part in parts]
        self._parts = []
        if not trainer.is_global_zero:
            return
        make_run_folder(self._path.parent)
        names = every[0][2] if every else {}
        arrays = {name: torch.cat([values[name] for _, _, values in every]).numpy() for name in names}
        if trainer.world_size > 1:  # by loader, then by row
            keys = [(loader, row) for loader, rows, _ in every for row in rows]
            order = sorted(range(len(keys)), key=keys.__getitem__)
            arrays = {name: array[order] for name, array in arrays.items()}
        statement = np.array(STATEMENT)
        np.savez_compressed(self._path, contains_private_inputs=statement, **arrays)  # type: ignore[arg-type]
        replace_text(
            self._path.with_name(f"{self._path.name}.privacy.json"),
            json.dumps(
                {
                    "schema": SCHEMA,
                    "kind": "predictions",
                    "file": self._path.name,
                    "sha256": sha256_of(self._path),
                    "epsilon": "inf",
                    "statement": STATEMENT,
                    "unsigned": "nothing is claimed",
                },
                ensure_ascii=False,
            )
            + "\n",
        )
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        print(f"{self._path}: {shapes}\n{STATEMENT}")
