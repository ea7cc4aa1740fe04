"""The rows that a forecast continues: the run's own data, another table read alike, or a frame of pandas."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from lightning.pytorch import LightningDataModule

from lightning_dp.protocols import ContinuesSeries, HasLayout, provides
from lightning_dp.runs.configured import make_parts
from lightning_dp.runs.loaded_run import LoadedRun


@contextlib.contextmanager
def opened(run: LoadedRun, data: Any) -> Iterator[Any]:
    """A data module over the rows, set up by nobody yet. What is converted of them is removed afterwards.

    Args:
        run: whose module is to be asked.
        data: None for the run's own data; the path of a .csv or .parquet file, a folder or a pattern of some,
            or a frame, read as the run's own table is; the path of a .yaml file whose section `data` says
            how, where its arguments are laid over the run's.

    Raises:
        ValueError: there is nothing like it, or it can't be read so.
    """
    with tempfile.TemporaryDirectory(prefix="lightning-dp-") as place:  # 0700
        module = run.data if data is None else _made(run, data, place=Path(place))
        if not provides(module, ContinuesSeries):
            raise ValueError(
                f"{type(module).__name__} has no whole_series, so nothing says what follows its series: give "
                "--data, a table or a configuration of one."
            )
        yield module


def _made(run: LoadedRun, data: Any, *, place: Path) -> Any:
    if isinstance(data, pd.DataFrame):
        path = place / "frame.parquet"
        data.to_parquet(path, index=False)
        return _read_as_the_runs(run, str(path), place=place)
    if not isinstance(data, str | Path):
        raise ValueError(
            f"data is a {type(data).__name__}; give a path, a pandas DataFrame, or None for the run's own "
            "data."
        )
    if Path(data).suffix.lower() not in (".yaml", ".yml"):
        return _read_as_the_runs(run, str(data), place=place)
    path = Path(data)
    if not path.is_file():
        raise ValueError(f"--data {path} is not a file.")
    content = yaml.safe_load(path.read_text())
    section = content.get("data") if isinstance(content, Mapping) else None
    if not isinstance(section, Mapping):
        raise ValueError(f"--data {path} has no section data, which says how a table is read.")
    own = run.config["data"]
    if section.get("class_path", own["class_path"]) == own["class_path"]:
        section = {
            "class_path": own["class_path"],
            "init_args": _over(own["init_args"], section.get("init_args")),
        }
    return make_parts({"data": section}, {"data": LightningDataModule}).data


def _read_as_the_runs(run: LoadedRun, path: str, *, place: Path) -> Any:
    if not provides(run.data, HasLayout):
        raise ValueError(
            f"{run.folder} was trained on {type(run.data).__name__}, which says nothing of the columns of "
            "another table: give --data a .yaml file with a section data of a lightning_dp.Table."
        )
    section = deepcopy(dict(run.config["data"]))
    section["init_args"] = {**section["init_args"], "path": path, "cache_dir": str(place / "cache")}
    return make_parts({"data": section}, {"data": LightningDataModule}).data


def _over(own: Mapping[str, Any], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The run's arguments with those that are given laid over them; a class with another name replaces."""
    merged = dict(own)
    for name, value in (given or {}).items():
        before = merged.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            kind = before.get("class_path")
            merged[name] = _over(before, value) if value.get("class_path", kind) == kind else value
        else:
            merged[name] = value
    return merged
