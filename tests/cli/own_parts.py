"""A LightningModule and a data module as users write them, knowing nothing of this package."""

import os
import time
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Rows(LightningDataModule):
    """Rows of four numbers and a class."""

    def __init__(self, num_rows: int = 64, scale: float | None = 1.0) -> None:
        super().__init__()
        self.num_rows, self.scale = num_rows, scale

    def _loader(self) -> DataLoader:
        rows = torch.randn(self.num_rows, 4) * (self.scale or 1.0)
        return DataLoader(TensorDataset(rows, torch.arange(self.num_rows) % 2), batch_size=8)

    def train_dataloader(self) -> DataLoader:
        return self._loader()


class TestedRows(Rows):
    __test__ = False

    def val_dataloader(self) -> DataLoader:
        return self._loader()

    def test_dataloader(self) -> DataLoader:
        return self._loader()


class Classifier(LightningModule):
    """Two layers; `dropout` may be None."""

    def __init__(self, hidden_size: int = 8, dropout: float | None = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.Linear(4, hidden_size), nn.ReLU(), nn.Dropout(dropout or 0.0), nn.Linear(hidden_size, 2)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TestedClassifier(Classifier):
    __test__ = False

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test/accuracy", (self.layers(batch[0]).argmax(dim=1) == batch[1]).float().mean())


class BrokenTest(TestedClassifier):
    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test/accuracy", self.layer(batch[0]).sum())  # `layers` is meant


class BrokenValidation(TestedClassifier):
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        raise RuntimeError("no such metric")


class Unpicklable(Classifier):
    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["later"] = lambda: None


class SlowTest(TestedClassifier):
    """Its test lasts until somebody kills it, where the environment names a file to say so in."""

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        place = os.environ.get("SLOW_TEST")
        if place and not self.trainer.fast_dev_run:
            Path(place).write_text("the test has begun")
            time.sleep(600)
        super().test_step(batch, batch_idx)
