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
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from lightning_dp.archives import inside, parse_json
from lightning_dp.dashboard.curves import read_curves
from lightning_dp.dashboard.records import NamedFolder, records_of, stays_inside
from lightning_dp.extras import needed_by
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.privacy.ledger.account import account_of
from lightning_dp.privacy.report import json_ready, read_privacy_report
from lightning_dp.tracking.palette import method_styles
from lightning_dp.tracking.results import better, metric_label, metrics_in_order, run_folders
from lightning_dp.tracking.run_config import read_yaml
from lightning_dp.tracking.wandb_config import outgoing_config

_MARKER = ".lightning-dp-dashboard"
_COPIED = ("config.yaml", "privacy.json", "results.json", "environment.json", "diagnostics.json")
_COVERED = ("privacy/", "test/", "val/")
_OF_THE_MODEL_ALONE = ("sample_grid",)
_FOOTER = """<p>Keep this page where the run folders are kept: figures and everything marked
      <span class="nonprivate">nonprivate</span> show data that no ε covers. Test scores are not covered
      either.</p>"""
_CLAIMS = ("privacy.json", "results.json")


def write_site(
    folders: Sequence[Path],
    *,
    out: Path,
    ledger: Ledger | None = None,
    title: str = "Runs",
    publishable: bool = False,
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
        publishable: leave out what no ε covers but test scores: `nonprivate/` values, figures of real rows,
            runs without a finite ε; and paths, columns and the machine.
        on_refused: told the name of each run that is damaged or whose claims can't be believed, and of links
            that lead out of a run folder, which are left out.

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
    left = 0
    if publishable:
        pairs = [pair for pair in zip(runs, records, strict=True) if _may_be_published(pair[1])]
        left = len(runs) - len(pairs)
        if not pairs:
            raise ValueError(
                "no run has a finite ε that can be believed, so nothing of them can be published"
            )
        runs, records = [run for run, _ in pairs], [published(record) for _, record in pairs]

    # Beside, and renamed: whoever looks at an older site sees that or this one, and a crash leaves that one.
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))  # for its owner alone
    try:
        _write(
            beside,
            runs=runs,
            records=records,
            library=library,
            title=title,
            footer=_footer(left) if publishable else _FOOTER,
            publishable=publishable,
            ledger=None if ledger is None else {"name": ledger.path.name, "accounts": accounts},
            tell=on_refused or (lambda _: None),
        )
        if publishable:
            beside.chmod(0o755)
        _swap(beside, out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return len(runs)


def _swap(new: Path, out: Path) -> None:
    """Put a folder in the place of another."""
    old = new.with_name(f"{new.name}.old")
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _write(
    out: Path,
    *,
    runs: Sequence[NamedFolder],
    records: list[dict[str, Any]],
    library: Path,
    title: str,
    footer: str,
    publishable: bool,
    ledger: dict[str, Any] | None,
    tell: Callable[[str], None],
) -> None:
    (out / _MARKER).touch()
    template = files("lightning_dp.dashboard") / "template"
    for item in template.iterdir():
        content = item.read_text(encoding="utf-8")
        if item.name == "index.html":
            content = content.replace("<!-- title -->", html.escape(title)).replace("<!-- footer -->", footer)
        (out / item.name).write_text(content, encoding="utf-8")
    shutil.copyfile(library, out / "plotly.min.js")
    for run, record in zip(runs, records, strict=True):
        left_out = _CLAIMS if record["refused"] else ()
        copy = _publish_run if publishable else _copy_run
        problem = copy(run, out / "runs" / run.key, record=record, left_out=left_out)
        if problem and not str(record["status"]).startswith("damaged"):
            record["status"] = f"damaged: {problem}"
        if record["refused"] or str(record["status"]).startswith("damaged"):
            tell(f"{run.name}: {record['status']}")
        for link in _links(run.folder):
            tell(f"{run.name}: {link} is a link that leads out of the run folder, and was left out")
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
            "ledger": ledger,
        },
    )


def _plotly() -> Path:
    with needed_by("the dashboard"):
        return Path(str(files("plotly") / "package_data" / "plotly.min.js"))


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


def _copy_run(run: NamedFolder, target: Path, *, record: dict[str, Any], left_out: Sequence[str]) -> str:
    """Copy what the page links to; `.txt`, so that browsers show it and nobody takes it for a run.

    Returns what is damaged of it, or "".
    """
    target.mkdir(parents=True)
    record["files"] = [
        name
        for name in _COPIED
        if name not in left_out and (run.folder / name).is_file() and inside(run.folder / name, run.folder)
    ]
    for name in record["files"]:
        shutil.copyfile(run.folder / name, target / f"{name}.txt")
    for plot in record["plots"]:
        (target / plot).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.folder / plot, target / plot)
    curves, diagnostics, problem = {}, None, ""
    if not record["refused"]:
        try:
            curves, diagnostics = read_curves(run.folder / "metrics.csv"), _diagnostics(run.folder)
        except (ValueError, OSError) as error:
            problem = str(error)
    _write_details(target, run=run, curves=curves, diagnostics=diagnostics)
    return problem


def _diagnostics(folder: Path) -> Any:
    path = folder / "diagnostics.json"
    if not path.is_file():
        return None
    found = parse_json(path.read_bytes(), where=path.name)
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds a {type(found).__name__}")
    return found


def _publish_run(run: NamedFolder, target: Path, *, record: dict[str, Any], left_out: Sequence[str]) -> str:
    """As `_copy_run`, of what may be published: the account, settings without places, covered curves."""
    target.mkdir(parents=True)
    report, settings = read_privacy_report(run.folder), {}
    if (run.folder / "config.yaml").is_file():
        settings = read_yaml(run.folder / "config.yaml")
    record["files"] = ["privacy.json"]
    text = json.dumps(json_ready(outgoing_config(report)), indent=2)
    (target / "privacy.json.txt").write_text(text + "\n", encoding="utf-8")
    if isinstance(settings, dict) and settings:
        record["files"].append("config.yaml")
        text = yaml.safe_dump(outgoing_config(settings), sort_keys=False)
        (target / "config.yaml.txt").write_text(text, encoding="utf-8")
    for plot in record["plots"]:
        (target / plot).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.folder / plot, target / plot)
    curves, problem = {}, ""
    try:
        found = read_curves(run.folder / "metrics.csv")
        curves = {name: curve for name, curve in found.items() if name.startswith(_COVERED)}
    except (ValueError, OSError) as error:
        problem = str(error)
    _write_details(target, run=run, curves=curves, diagnostics=None)
    return problem


def _write_details(target: Path, *, run: NamedFolder, curves: Any, diagnostics: Any) -> None:
    _write_script(
        target / "details.js",
        f"LightningDP.receiveDetails({json.dumps(run.key)}, ",
        {"curves": curves, "diagnostics": diagnostics},
    )


def _may_be_published(record: dict[str, Any]) -> bool:
    """Whether a run has an ε at all, and one that is believed."""
    epsilon = record["epsilon"]
    damaged = record["refused"] or str(record["status"]).startswith("damaged")
    return not damaged and isinstance(epsilon, int | float) and math.isfinite(epsilon)


def published(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what no ε covers; scores of test rows stay, which the page says."""
    plots = [plot for plot in record["plots"] if Path(plot).stem in _OF_THE_MODEL_ALONE]
    return record | {"nonprivate": {}, "plots": plots, "privacy": outgoing_config(record["privacy"])}


def _links(folder: Path) -> list[str]:
    """Files of a run folder that the site would show and that are links out of it."""
    found = [folder / name for name in _COPIED if (folder / name).is_symlink()]
    if (folder / "plots").is_dir():
        found += [folder / "plots"] if (folder / "plots").is_symlink() else (folder / "plots").rglob("*")
    return [path.relative_to(folder).as_posix() for path in sorted(found) if not stays_inside(path, folder)]


def _footer(left: int) -> str:
    more = (
        f" {left} run{'s' * (left != 1)} without a finite ε {'are' if left != 1 else 'is'} left out."
        if left
        else ""
    )
    return (
        "<p>Made to be published: values computed without noise, figures of real rows, paths, columns and "
        f"the machine are left out.{more} Test scores and baselines are functions of the test rows, which no "
        "ε covers.</p>"
    )


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
