"""Writes the site: a hand-written page, its data as scripts, and copies of each run's small files.

```
OUT/
  index.html, *.css, *.js   the page, the same for everybody
  plotly.min.js             the chart library, of the installed `plotly`
  data.js                   one record per run, the ledger's accounts, colours
  runs/KEY/details.js       curves and gradient statistics of one run, loaded when it is looked at
  runs/KEY/*.txt, plots/    its config, privacy report, results and figures
```

Data are scripts because a page opened from the file system may not fetch JSON.
"""

import html
import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from lightning_dp.dashboard.curves import read_curves
from lightning_dp.dashboard.records import NamedFolder, records_of
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.privacy.ledger.account import account_of
from lightning_dp.privacy.report import json_ready
from lightning_dp.tracking.palette import method_styles
from lightning_dp.tracking.results import better, metric_label, metrics_in_order, run_folders

_MARKER = ".lightning-dp-dashboard"
_COPIED = ("config.yaml", "privacy.json", "results.json", "environment.json", "diagnostics.json")
_CLAIMS = ("privacy.json", "results.json")


def write_site(
    folders: Sequence[Path],
    *,
    out: Path,
    ledger: Ledger | None = None,
    title: str = "Runs",
    on_refused: Callable[[str], None] | None = None,
) -> int:
    """Write the site over all runs at or below `folders`, in place of an older one.

    The site holds what the run folders hold, figures of private windows and `nonprivate/` statistics
    included: no ε covers it, so it belongs where the run folders belong.

    Args:
        folders: run folders, or folders that hold runs.
        out: where to; new, empty, or an older dashboard.
        ledger: whose accounts to show; only read. None shows none.
        title: of the page.
        on_refused: told the name of each run whose claims can't be believed, and why; it is listed as such.

    Returns:
        The number of runs.

    Raises:
        ValueError: there is no run, `out` holds something else, or plotly is not installed.
        LedgerError: the ledger is missing or damaged.
    """
    library = _plotly()
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not (out / _MARKER).exists():
        raise ValueError(f"--out {out} holds something that is no dashboard; choose another folder")
    runs = _named(folders, out=out)
    records = records_of(runs)
    accounts = None if ledger is None else _accounts(ledger)

    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).touch()
    shutil.rmtree(out / "runs", ignore_errors=True)
    template = files("lightning_dp.dashboard") / "template"
    for item in template.iterdir():
        content = item.read_text(encoding="utf-8")
        if item.name == "index.html":
            content = content.replace("<!-- title -->", html.escape(title))
        (out / item.name).write_text(content, encoding="utf-8")
    shutil.copyfile(library, out / "plotly.min.js")
    for run, record in zip(runs, records, strict=True):
        left_out = _CLAIMS if record["refused"] else ()
        record["files"] = _copy_run(run, out / "runs" / run.key, plots=record["plots"], left_out=left_out)
        if record["refused"] and on_refused is not None:
            on_refused(f"{run.name}: {record['status']}")
    metrics = metrics_in_order(
        name
        for record in records
        for scores in [record["scores"], *record["baselines"].values()]
        for name in scores
    )
    _write_script(
        out / "data.js",
        "LightningDP.receive(",
        {
            "title": title,
            "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "runs": records,
            "metrics": [
                {"name": name, "label": metric_label(name), "better": better(name)} for name in metrics
            ],
            "styles": {
                method: asdict(style)
                for method, style in method_styles(record["method"] for record in records).items()
            },
            "ledger": None if ledger is None else {"name": ledger.path.name, "accounts": accounts},
        },
    )
    return len(runs)


def _plotly() -> Path:
    try:
        library = files("plotly") / "package_data" / "plotly.min.js"
    except ModuleNotFoundError as error:
        raise ValueError(
            "the dashboard needs plotly, which is not installed: pip install 'lightning-dp[dashboard]'"
        ) from error
    return Path(str(library))


def _named(folders: Sequence[Path], *, out: Path) -> list[NamedFolder]:
    """Every run once, with a name that is unique and says where it is."""
    found: dict[Path, str] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; give a run folder or one that holds runs")
        for run in run_folders(folder):
            path = run.resolve()
            if path.is_relative_to(out.resolve()):
                continue
            inside = run.relative_to(folder).as_posix()
            base = folder.resolve().name
            name = base if inside == "." else inside if len(folders) == 1 else f"{base}/{inside}"
            found.setdefault(path, name)
    if not found:
        raise ValueError(
            f"no run below {', '.join(map(str, folders))}: 'lightning-dp fit' writes one folder per run"
        )
    return [
        NamedFolder(key=f"{number:04d}-{_slug(name)}", name=name, folder=path)
        for number, (path, name) in enumerate(found.items())
    ]


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[-60:].lower() or "run"


def _copy_run(
    run: NamedFolder, target: Path, *, plots: Sequence[str], left_out: Sequence[str] = ()
) -> list[str]:
    """Copy what the page links to; `.txt`, so that browsers show it and nobody takes it for a run."""
    target.mkdir(parents=True)
    copied = [name for name in _COPIED if (run.folder / name).is_file() and name not in left_out]
    for name in copied:
        shutil.copyfile(run.folder / name, target / f"{name}.txt")
    for plot in plots:
        (target / plot).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.folder / plot, target / plot)
    diagnostics = run.folder / "diagnostics.json"
    _write_script(
        target / "details.js",
        f"LightningDP.receiveDetails({json.dumps(run.key)}, ",
        {
            "curves": read_curves(run.folder / "metrics.csv"),
            "diagnostics": json.loads(diagnostics.read_text()) if diagnostics.is_file() else None,
        },
    )
    return copied


def _accounts(ledger: Ledger) -> list[dict[str, Any]]:
    entries = ledger.entries()
    return [account_of(ledger, entries, dataset=dataset, unit=unit) for dataset, unit in ledger.accounts()]


def _write_script(path: Path, call: str, value: object) -> None:
    text = json.dumps(_strict(json_ready(value)), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    path.write_text(f"{call}{text});\n", encoding="utf-8")


def _strict(value: Any) -> Any:
    """NaN as null: JSON has no number for it. ∞ is text by now."""
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
