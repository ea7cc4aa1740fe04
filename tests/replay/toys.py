"""A small module and data set of a user's own, and the options most replays share."""

from collections.abc import Iterable

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp.privacy.preparation import Preparation
from lightning_dp.privacy.release import BoundedMean, PublicBounds
from lightning_dp.privacy.units import PrivacyUnit

NUM_UNITS = 12
PRIVACY = {"noise_multiplier": 4.0, "delta": 1e-2, "expected_batch_size": 4, "max_grad_norm": 0.3}
STEPS = 6


class Line(LightningModule):
    """Ordinary code: a small net, dropout and input noise, Adam, a schedule, a private and a public log."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(0.2), nn.Linear(8, 1))

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) losses."""
        x = x + 0.1 * torch.randn_like(x)
        return (self.net(x).squeeze(1) - y).square()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.losses(*batch).mean()
        self.log("nonprivate/train_loss", loss.detach(), batch_size=len(batch[0]))
        self.log("steps_so_far", float(self.trainer.global_step), batch_size=1)
        return loss

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Points(LightningDataModule):
    """A pool of points, two more than a data set of them has."""

    dataset_id = "points"

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        x = 3 * torch.randn(NUM_UNITS + 2, 4, generator=generator)
        self.points = TensorDataset(x, torch.randn(len(x), generator=generator))

    def synthetic_units(self, num_units: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(2)
        return [torch.randn(num_units, *shape, generator=generator) for shape in ((4,), ())]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.points, batch_size=4, shuffle=True)


class Still(Line):
    """The same without anything random inside of a layer, for engines that run layers twice."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1))


class PointsAndMore(Points):
    """With public points to validate on."""

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(1, 4))


class Validated(Line):
    """Counts its validations."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("validations", torch.zeros((), dtype=torch.int64))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validations += 1


class Learner(Line):
    """Learns the mean of the targets by a release before its first step."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(()))

    def preparations(self, *, unit: PrivacyUnit, target_epsilon: float | None, delta: float) -> list:
        return [Centre(self, num_units=unit.num_units)]

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        return super().losses(x, y - self.centre)


class Centre(Preparation[float]):
    """The mean target."""

    def __init__(self, module: Learner, *, num_units: int) -> None:
        self.module = module
        self.num_units = num_units

    @property
    def mechanism(self) -> BoundedMean:
        bounds = PublicBounds(lower=-0.5, upper=0.5)
        return BoundedMean(noise_multiplier=3.0, bounds=bounds, num_units=self.num_units)

    def values(self, batches: Iterable[list[Tensor]]) -> list:
        return [y.numpy() for batch in batches for y in batch[1][:, None]]

    def apply(self, answer: float) -> None:
        self.module.centre.fill_(answer)
