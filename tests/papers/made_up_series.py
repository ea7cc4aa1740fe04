"""Files of the form of ETT and of the smart meters, with values that mean nothing."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from lightning_dp.timeseries.data import ett

_MINUTES = {"ETTh1": 60, "ETTm1": 15}
_CHANNELS = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")


def write_ett(folder: Path, name: str) -> list[str]:
    """`ett/NAME.csv` with the published columns, stamps and number of rows.

    The file's checksum takes the place of the published one in this process: whoever calls it puts that back.
    """
    minutes = _MINUTES[name]
    rows = 17_420 * 60 // minutes
    stamps = pd.date_range("2016-07-01", periods=rows, freq=f"{minutes}min")
    hours = np.arange(rows) * minutes / 60
    rng = np.random.default_rng(0)
    day = np.sin(2 * np.pi * hours / 24)[:, None] * np.linspace(1, 5, 7)
    table = pd.DataFrame((day + rng.normal(0, 1, (rows, 7))).round(3), columns=_CHANNELS)
    table.insert(0, "date", stamps.strftime("%Y-%m-%d %H:%M:%S"))
    path = folder / "ett" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    ett._CHECKSUMS[name] = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    return []


def write_smart_meters(folder: Path) -> list[str]:
    """`smartmeter/edrp622_halfhourly.npz` with 622 households of 4,416 half-hours."""
    rng = np.random.default_rng(0)
    stamps = pd.date_range("2009-03-01", periods=4_416, freq="30min").to_numpy()
    path = folder / "smartmeter" / "edrp622_halfhourly.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    kwh = rng.gamma(2.0, 0.1, (4_416, 622)).clip(0, 6).astype(np.float32)
    np.savez(path, kwh=kwh, timestamp=stamps, household=np.arange(622))
    return []
