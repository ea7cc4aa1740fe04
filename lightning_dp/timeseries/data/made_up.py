"""Made-up windows in the place of a data module's own, to try validation and test before a fit is paid."""

from typing import final

import numpy as np
import torch

from lightning_dp.privacy.units import PrivacyUnit
from lightning_dp.strategies.every_row_once import evaluation_sampler
from lightning_dp.timeseries.data.base import Splits, WindowDataModule
from lightning_dp.timeseries.data.synthetic import synthetic_windows
from lightning_dp.timeseries.data.windows import WindowDataset

_WINDOWS = 4
_PUBLIC_FACTS = ("dataset_id", "channel_names", "num_covariates", "steps_per_day", "value_unit")


@final
class MadeUpWindows(WindowDataModule):
    """Four windows (more where several processes share them) in each split, with another's public facts.

    Three of them have no gap, as a synthesis is compared with whole windows.

    Args:
        like: whose facts they are; nothing of it is read, and its splits are those that it says it has.
    """

    def __init__(self, like: WindowDataModule) -> None:
        super().__init__(
            context_length=like.context_length,
            horizon=like.horizon,
            batch_size=like.batch_size,
            num_workers=0,
            task=like.task,
        )
        for name in _PUBLIC_FACTS:
            setattr(self, name, getattr(like, name))
        self._has_validation = not like.is_set_up or like.val_dataset is not None

    def read_splits(self) -> Splits:
        sampler = evaluation_sampler(range(1_000_000))
        number = _WINDOWS * (1 if sampler is None else sampler.num_replicas)
        batch = synthetic_windows(
            number,
            length=self.length,
            horizon=self.horizon,
            num_channels=self.num_channels,
            num_covariates=self.num_covariates,
            task=self.task,
        )
        observed = batch["observed"]
        observed[:, 0] = True  # every series has a value
        observed[torch.arange(number) % _WINDOWS != 0] = True
        values = torch.where(observed, batch["values"], torch.nan)  # (N, L, C)
        windows = WindowDataset(
            list(values.numpy().astype(np.float32)),
            covariates=list(batch["covariates"].numpy()),
            context_length=self.context_length,
            horizon=self.horizon,
            stride=self.length,
            source="made-up series",
            task=self.task,
            fixed_masks=True,
        )
        return Splits(train=windows, val=windows if self._has_validation else None, test=windows)

    def privacy_unit(self) -> PrivacyUnit:
        return PrivacyUnit(name="record", num_units=_WINDOWS, description="a made-up window")
