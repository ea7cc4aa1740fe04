"""What `sample` writes of windows that were read: draws, and not one reading of theirs."""

import numpy as np
import pandas as pd
import pytest
import torch

from lightning_dp.diffusion.sampler import Sampler
from lightning_dp.diffusion.schedule import Cosine
from lightning_dp.nets.conditioning.adaln_zero import AdaLNZero
from lightning_dp.nets.series_dit import SeriesDiT
from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.export import Schema, predict
from lightning_dp.timeseries.module import TimeSeriesDiffusion
from lightning_dp.timeseries.normalise import DayMean

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own use of numpy

ROWS, LENGTH, CHANNELS = 5, 12, 2


def test_a_table_of_an_imputation_holds_no_reading_of_the_data():
    torch.manual_seed(0)
    module = TimeSeriesDiffusion(
        SeriesDiT(
            AdaLNZero(),
            length=LENGTH,
            num_channels=CHANNELS,
            num_covariates=1,
            patch_size=3,
            hidden_size=8,
            depth=1,
            num_heads=2,
        ),
        normaliser=DayMean(steps_per_day=3),
        schedule=Cosine(num_steps=20),
        sampler=Sampler(num_steps=2),
    )
    values = torch.randn(ROWS, LENGTH, CHANNELS)
    observed = torch.rand(ROWS, LENGTH, CHANNELS) < 0.9
    target = observed & (torch.rand(ROWS, LENGTH, CHANNELS) < 0.4)  # some steps with one channel of two
    batch = Batch(
        values=torch.where(observed, values, 0.0),
        observed=observed,
        target=target,
        covariates=torch.zeros(ROWS, LENGTH, 1),
    )

    def labels(row: int):
        return str(row), pd.date_range("2024-01-01", periods=LENGTH, freq="h")

    schema = Schema(id_column="id", time_column="date", channel_names=["a", "b"])
    frames = predict(module, batches=[batch], num_windows=None, num_samples=2, labels=labels, schema=schema)
    table = pd.concat(frames)
    written = table[["a", "b"]].to_numpy()
    assert len(table) == 2 * int(target.any(dim=2).sum())
    readings = set(values[observed].tolist())
    assert not readings & set(written[np.isfinite(written)].astype(np.float32).tolist())
    asked = target[target.any(dim=2)]  # (steps, C), window by window
    assert np.isfinite(written).sum() == 2 * int(target.sum())
    first = table[table["sample"] == 1][["a", "b"]].to_numpy()
    np.testing.assert_array_equal(np.isfinite(first), asked.numpy())
