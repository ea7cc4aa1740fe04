"""Small real modules and data for the private training path."""

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy


class Regression(LightningModule):
    """Two layers, mean squared error, plain SGD of rate 1: the update is minus the gradient."""

    def __init__(self, *, width: int = 16, zero_loss: bool = False, extra: nn.Module | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))
        self.zero_loss = zero_loss
        self.extra = extra
        self.seen: list[Tensor] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        self.seen.append(x[:, 0].clone())
        loss = (self.net(x).squeeze(1) - y).square().mean()
        return loss * 0 if self.zero_loss else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Records(LightningDataModule):
    """`n` records; the first column of x is the record's number."""

    def __init__(self, n: int = 100, *, dataset_id: str = "records") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(n, 4, generator=generator)
        x[:, 0] = torch.arange(n)
        self.dataset = TensorDataset(x, torch.randn(n, generator=generator))
        self.dataset_id = dataset_id

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.dataset, batch_size=8, shuffle=True)


def make_trainer(
    folder, *, steps: int, privacy: DifferentialPrivacy | None, callbacks=(), **options
) -> Trainer:
    """A CPU trainer that writes into `folder` only."""
    options = {"logger": False, "enable_checkpointing": False, **options}
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*([privacy] if privacy else []), *callbacks],
        **options,
    )
