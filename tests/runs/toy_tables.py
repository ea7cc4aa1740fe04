"""Rows of numbers with a class: a third kind of data beside series and images."""

from functools import partial

import pandas as pd
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp.modules import Condition, DiffusionModule, TrainingRows
from lightning_dp.nets.embeddings import TimestepEmbedding
from lightning_dp.privacy.report import write_privacy_report
from lightning_dp.runs import SampleWriter


class Patients(LightningDataModule):
    """Made-up patients, C numbers each, healthy (0) or not (1); one privacy unit is one of them."""

    dataset_id = "made-up-patients"

    def __init__(self, num_patients: int = 200, *, num_channels: int = 3, batch_size: int = 32) -> None:
        super().__init__()
        self.num_patients, self.num_channels, self.batch_size = num_patients, num_channels, batch_size

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(self.num_patients) % 2
        values = torch.randn(self.num_patients, self.num_channels, generator=generator)
        rows = TensorDataset(0.3 * values + labels[:, None], labels)
        return DataLoader(rows, batch_size=self.batch_size, shuffle=True)


class RowNet(nn.Module):
    """Two layers that are told time and class, −1 for none."""

    rows_per_example = 1

    def __init__(self, *, num_channels: int, num_classes: int = 2, hidden_size: int = 32) -> None:
        super().__init__()
        self.num_channels, self.num_classes = num_channels, num_classes
        self.noisy, self.time = nn.Linear(num_channels, hidden_size), TimestepEmbedding(hidden_size)
        self.label = nn.Embedding(num_classes + 1, hidden_size)
        self.out = nn.Linear(hidden_size, num_channels)

    def forward(self, noisy: Tensor, timesteps: Tensor, *, labels: Tensor) -> Tensor:
        known = torch.where(labels < 0, self.num_classes, labels)  # (R,)
        hidden = self.noisy(noisy) + self.time(timesteps) + self.label(known)  # (R, D)
        return self.out(nn.functional.silu(hidden))  # (R, C)


class TableDiffusion(DiffusionModule, SampleWriter):
    """Rows (B, C) given their class; one in ten is trained without it, for guidance."""

    def training_rows(self, batch: list[Tensor]) -> TrainingRows:
        values, labels = (column.repeat_interleave(self.noise_draws, dim=0) for column in batch)
        dropped = torch.rand(len(labels), device=self.device) < 0.1  # (R,)
        told = torch.where(dropped, -1, labels)
        return TrainingRows(clean=values, condition=Condition(net=partial(self.net, labels=told)))

    @torch.no_grad()
    def sample(self, labels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """(n, C), one row for each label (n,)."""

        def conditions(part: slice, guided: bool) -> tuple[Condition, Condition]:
            told, nothing = labels[part], torch.full_like(labels[part], -1)
            return tuple(Condition(net=partial(self.net, labels=known)) for known in (told, nothing))

        shape = (self.net.num_channels,)
        drawn = self.draws(len(labels), conditions=conditions, shape=shape, generator=generator)
        return torch.cat([rows for _, rows in drawn])

    def write_samples(self, request, *, run) -> list[str]:
        """A folder with a CSV file, classes in turn, and the privacy report beside it."""
        labels = torch.arange(request.num or 100, device=self.device) % self.net.num_classes
        rows = pd.DataFrame(self.sample(labels).cpu().numpy()).assign(label=labels.cpu())
        request.output.mkdir(parents=True)
        write_privacy_report(request.output, run.to_dict())  # before what it speaks of
        rows.to_csv(request.output / "rows.csv", index=False)
        return [f"table    {request.output / 'rows.csv'} ({len(rows)} rows)", run.account.sentence]
