"""Whose a test window is, and when: said by each data module as its own data says it."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lightning_dp.timeseries.data.ett import ETT
from lightning_dp.timeseries.data.simulator import HouseholdLoad, simulate_household_load
from lightning_dp.timeseries.data.smartmeter import SmartMeter
from lightning_dp.timeseries.export import WindowLabels, schema_of
from lightning_dp.timeseries.table_samples import unlabelled

DATA = os.environ.get("LIGHTNING_DP_DATA")


def test_simulated_households_are_labelled_by_who_they_are():
    data = HouseholdLoad(20, num_days=10, context_length=48, horizon=24, seed=5)
    data.setup()
    load = simulate_household_load(20, num_days=10, seed=5)
    for index in range(len(data.test_dataset)):
        name, stamps = data.window_labels(index)
        rows = load.stamps.get_indexer(pd.DatetimeIndex(stamps))
        truth = load.kwh[int(name.removeprefix("household-")), rows]
        window = data.test_dataset[index]
        read = np.where(window["observed"][:, 0], window["values"][:, 0], np.nan)
        np.testing.assert_array_equal(read, truth)


def test_households_of_the_smart_meters_have_the_names_of_the_file(tmp_path):
    (tmp_path / "smartmeter").mkdir()
    kwh = np.arange(622)[None, :] + np.arange(4416)[:, None] / 4416
    stamps = pd.date_range("2009-03-01", periods=4416, freq="30min").strftime("%Y-%m-%dT%H:%M")
    arrays = {"kwh": kwh.astype(np.float32), "timestamp": np.array(stamps, dtype=str)}
    path = tmp_path / "smartmeter" / "edrp622_halfhourly.npz"
    np.savez(path, household=np.array([f"X{number}" for number in range(622)]), **arrays)
    data = SmartMeter(data_dir=str(tmp_path))
    data.setup()
    for index in (0, 1, 500):
        name, own = data.window_labels(index)
        first = float(data.test_dataset[index]["values"][0, 0])
        assert name == f"X{int(first)}"
        row = round((first - int(first)) * 4416)
        assert list(own) == list(stamps[row : row + data.length])
    np.savez(path, **arrays)
    nameless = SmartMeter(data_dir=str(tmp_path))
    nameless.setup()
    with pytest.raises(ValueError, match="has no array 'household' with the names of the 622"):
        nameless.window_labels(0)


@pytest.mark.skipif(
    not DATA or not (Path(DATA) / "ett" / "ETTh1.csv").exists(),
    reason="LIGHTNING_DP_DATA has no ett/ETTh1.csv",
)
def test_ett_has_the_stamps_of_its_file():
    data = ETT("ETTh1", channels=["OT"])
    data.setup()
    table = pd.read_csv(Path(str(DATA)) / "ett" / "ETTh1.csv", dtype={"date": str}).set_index("date")
    name, stamps = data.window_labels(7)
    assert name == "ETTh1"
    truth = table.loc[list(stamps), "OT"].to_numpy(dtype=np.float32)
    np.testing.assert_array_equal(data.test_dataset[7]["values"][:, 0], truth)


def test_without_labels_no_number_stands_in_a_column_of_ids():
    class Bare:
        channel_names = ("load",)
        length = 3

        class test_dataset:
            locate = staticmethod(lambda index: (4, 10 * index))

    labels = WindowLabels(Bare())
    assert not labels.known
    name, steps = labels(2)
    assert (name, list(steps)) == (4, [20, 21, 22])
    schema = schema_of(Bare(), labelled=False)
    assert (schema.id_column, schema.time_column) == ("series", "step")
    assert "Bare has no window_labels" in unlabelled(Bare())
