"""What `lightning-dp data check` takes of time and memory on a table of 10⁷ rows.

Makes a long CSV (1,000 customers × 10,000 hours, in order of customers) in a scratch folder, checks it in a
process of its own, and writes what it took to docs/results/data_check.json.

    python benchmarks/data_check.py [--rows 10000000]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv, parquet

_HOURS = 10_000
_RESULT = Path(__file__).parents[1] / "docs" / "results" / "data_check.json"


def main() -> None:
    """Make the tables, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    rows = parser.parse_args().rows
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in ("csv", "parquet"):
            path = Path(scratch) / f"load.{kind}"
            _write(path, rows=rows)
            begin = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "lightning_dp", "data", "check", str(path)],
                check=True,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "XDG_CACHE_HOME": scratch},
            )
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)  # the largest child so far
            found[kind] = {
                "rows": rows,
                "file_mb": round(path.stat().st_size / 1e6),
                "seconds": round(time.perf_counter() - begin, 1),
                "peak_mb": round(usage.ru_maxrss / 1024),
            }
            path.unlink()
            print(kind, found[kind])
    _RESULT.write_text(json.dumps(found, indent=2) + "\n")


def _write(path: Path, *, rows: int) -> None:
    stamps = pd.date_range("2020-01-01", periods=_HOURS, freq="h").strftime("%Y-%m-%d %H:%M:%S")
    rng = np.random.default_rng(0)
    schema = pa.schema([("meter", pa.string()), ("time", pa.string()), ("kwh", pa.float64())])
    make = csv.CSVWriter if path.suffix == ".csv" else parquet.ParquetWriter
    with make(path, schema) as writer:
        for customer in range(rows // _HOURS):
            columns = [[f"m{customer:05}"] * _HOURS, list(stamps), rng.gamma(2, 0.3, _HOURS).round(3)]
            writer.write_table(pa.table([pa.array(one) for one in columns], schema=schema))


if __name__ == "__main__":
    main()
