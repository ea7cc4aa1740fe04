"""Reads finished runs back: what `report`, the demo and the dashboard compare.

Everything comes from the run folders' `results.json`; nothing is computed from checkpoints or data.
"""

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_dp.archives import parse_json
from lightning_dp.extras import needed_by
from lightning_dp.privacy.claim import TOLERANCE, ClaimError
from lightning_dp.privacy.ledger import LedgerError
from lightning_dp.privacy.report import REPORT_NAME
from lightning_dp.tracking.account import Account, read_account, read_accounts
from lightning_dp.tracking.layout import RESULTS_NAME

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRIVATE_PREFIX = "nonprivate/"
# The task has tables of its own; what a selection came to is an outcome, which may change with the seed.
_NO_SETTINGS = {"task", "trainable_parameters"}
_ORDER = ("mse", "mae", "crps", "fid", "kid", "accuracy")
_UPPER_CASE = {"mse", "mae", "crps", "fid", "kid", "rmse"}
_LOWER_IS_BETTER = ("mse", "mae", "crps", "fid", "kid", "fd_", "rmse", "loss", "error")
_INTERVAL_COVERAGE = re.compile(r"coverage_(\d+)")
_HIGHER_IS_BETTER = ("accuracy", "precision", "recall", "density", "coverage", "auc", "r2", "inception_score")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What one finished run found.

    Attributes:
        folder: the run folder.
        dataset, method: names.
        epsilon: spent, per unit; inf without privacy, NaN where the folder does not say.
        delta: δ of that ε, or None.
        unit: the privacy unit, or "".
        epsilon_of_unit: unit → its ε, None where undefined.
        seed: of everything that is seeded (never the noise), or None where the folder does not say.
        facts: plain names → what was set, such as `task` or `saliency_ratio`.
        scores: metric → value on the test split.
        baselines: baseline → metric → value, on the same test split.
        signature: of its privacy report: "agrees", or why there is none; "" where nothing is claimed.
    """

    folder: Path
    dataset: str
    method: str
    epsilon: float
    delta: float | None
    unit: str
    epsilon_of_unit: dict[str, float | None]
    seed: int | None
    facts: dict[str, str | float | int]
    scores: dict[str, float]
    baselines: dict[str, dict[str, float]]
    signature: str = ""

    @property
    def task(self) -> str:
        """The task among the facts, or ""."""
        return str(self.facts.get("task", ""))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a comparison: a method at one ε on one task and data set, over its seeds.

    Attributes:
        dataset, task, method: names; "" where there is no task. The method's name also says which facts
            differ between runs of that method.
        epsilon: per unit; inf without privacy, 0 for a baseline that learnt nothing from the data.
        unit: the privacy unit, or "".
        epsilon_of_event: ε per event, or None where undefined.
        runs: number of runs averaged.
        seeds: of those runs, None where unknown.
        mean, se: metric → mean and standard error (NaN for one run).
    """

    dataset: str
    task: str = ""
    method: str
    epsilon: float
    unit: str
    epsilon_of_event: float | None
    runs: int
    seeds: tuple[int | None, ...] = ()
    mean: dict[str, float]
    se: dict[str, float]


def read_results(
    folders: Sequence[Path], *, on_damaged: Callable[[str], None] | None = None
) -> list[RunResult]:
    """Every `results.json` below the folders.

    Args:
        folders: run folders, or folders that hold runs.
        on_damaged: told of each run that can't be read or believed, which is left out; None stops at it.

    Raises:
        ValueError: a folder does not exist, none holds a result, or a result can't be read.
    """
    runs: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; give a run folder or one that holds runs")
        runs += [run for run in run_folders(folder) if (run / RESULTS_NAME).is_file()]
    found: list[RunResult] = []
    problem: Exception | None = None
    for run, account in zip(runs, read_accounts(runs), strict=True):
        try:
            if isinstance(account, Exception):
                raise account
            found.append(read_result(run, account=account))
        except (ValueError, LedgerError, OSError) as error:
            problem = error
            if on_damaged is None:
                raise
            on_damaged(str(error))
    if not found and problem is not None:
        raise problem
    if not found:
        names = ", ".join(map(str, folders))
        raise ValueError(f"no results.json below {names}: 'lightning-dp fit' and 'test' write one per run")
    return found


def run_folders(folder: Path) -> list[Path]:
    """The run folders at or below a folder, sorted: those with a privacy report or a result."""
    found = []
    for path, folders, files in os.walk(folder):
        # W&B and Lightning keep files of their own here, copies of results among them.
        folders[:] = sorted(set(folders) - {"wandb", "checkpoints", "plots"})
        if RESULTS_NAME in files or REPORT_NAME in files:
            found.append(Path(path))
    return found


def read_result(folder: Path, *, account: Account | None = None) -> RunResult:
    """The result of one run folder. Older folders have bare `Infinity` in them, newer ones are strict JSON.

    Args:
        folder: of the run.
        account: its checked account; None reads it.

    Raises:
        ValueError: it is not a run's result, or it claims less than the run's account, which is checked.
    """
    account = read_account(folder) if account is None else account
    path = folder / RESULTS_NAME
    content = _content(path)
    dataset, method, metrics = content["dataset"], content["method"], content["metrics"]
    epsilon = as_number(content.get("epsilon"))
    spent = as_number(account.report.get("epsilon_spent"))
    if epsilon < spent * (1 - TOLERANCE) if math.isfinite(spent) else epsilon < spent:
        raise ClaimError(
            f"{path} claims ε = {epsilon:.6g}, and the account of its run says {spent:.6g}: write it again "
            "with 'lightning-dp test'"
        )
    scores: dict[str, float] = {}
    baselines: dict[str, dict[str, float]] = defaultdict(dict)
    for name, value in metrics.items():
        if name.startswith("baseline/") and name.count("/") >= 2:
            _, baseline, metric = name.split("/", 2)
            baselines[baseline][metric] = as_number(value)
        elif name.startswith("test/") and name != "test/epsilon":
            scores[name.removeprefix("test/")] = as_number(value)
    of_unit = content.get("epsilon_of_unit") or {}
    return RunResult(
        folder=folder,
        dataset=dataset,
        method=method,
        epsilon=epsilon,
        delta=content.get("delta"),
        unit=content.get("unit") or "",
        epsilon_of_unit={
            unit: None if epsilon is None else as_number(epsilon) for unit, epsilon in of_unit.items()
        },
        seed=content["seed"] if "seed" in content else seed_of_config(folder),
        facts=content.get("facts") or {},
        scores=scores,
        baselines=dict(baselines),
        signature=account.checks.get("signature", ""),
    )


def results_of(folder: Path) -> dict[str, Any]:
    """What results.json of a run says, for a card; {} where there is none.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / RESULTS_NAME
    return _content(path) if path.is_file() else {}


_FORMS: dict[str, tuple[type, ...]] = {
    "dataset": (str,),
    "method": (str,),
    "metrics": (dict,),
    "facts": (dict, type(None)),
    "epsilon_of_unit": (dict, type(None)),
    "seed": (int, type(None)),
    "unit": (str, type(None)),
    "delta": (int, float, type(None)),
}


def _content(path: Path) -> dict[str, Any]:
    """results.json with each field of the kind that it should be.

    Raises:
        ValueError: it is damaged.
    """
    try:
        content = parse_json(path.read_bytes(), where=str(path))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        for name, kinds in _FORMS.items():
            if not isinstance(content.get(name), kinds):
                raise ValueError(f"its {name} is a {type(content.get(name)).__name__}")
        for name, value in (content.get("facts") or {}).items():
            if not isinstance(value, str | int | float | None):
                raise ValueError(f"its fact {name} is a {type(value).__name__}")
    except ValueError as error:
        raise ValueError(
            f"{path} is not the result of a run ({error}); write it again with 'lightning-dp test', or move "
            "the folder away"
        ) from error
    return content


def compare(results: Sequence[RunResult]) -> list[Row]:
    """Average runs of the same data set, task, method, facts and ε; baselines come last.

    Methods are compared at equal ε only, so runs whose ε differ in the third digit stay apart.
    """
    groups: dict[tuple, list[RunResult]] = defaultdict(list)
    baselines: dict[tuple[str, str, str], dict[tuple, dict[str, float]]] = defaultdict(dict)
    for result, method in zip(results, series_names(results), strict=True):
        epsilon = round_epsilon(result.epsilon)
        # NaN equals nothing, itself included: unknown ε go last, in one group.
        order = (1, 0.0) if math.isnan(epsilon) else (0, epsilon)
        groups[result.dataset, result.task, order, result.unit, method].append(result)
        for baseline, scores in result.baselines.items():
            baselines[result.dataset, result.task, baseline][tuple(sorted(scores.items()))] = scores
    rows = []
    for (dataset, task, _, unit, method), group in sorted(groups.items(), key=lambda item: item[0]):
        events = [result.epsilon_of_unit.get("event") for result in group]
        rows.append(
            _row(
                dataset=dataset,
                task=task,
                method=method,
                epsilon=max(result.epsilon for result in group),
                unit=unit,
                event=max((event for event in events if event is not None), default=None),
                seeds=tuple(result.seed for result in group),
                scores=[result.scores for result in group],
            )
        )
    for (dataset, task, baseline), distinct in sorted(baselines.items()):
        # One value where all runs were tested on the same windows, an average where the data differ.
        rows.append(
            _row(
                dataset=dataset,
                task=task,
                method=baseline.replace("_", " "),
                epsilon=0.0,
                unit="",
                event=None,
                seeds=(),
                scores=list(distinct.values()),
            )
        )
    return rows


def series_names(results: Sequence[RunResult]) -> list[str]:
    """For each run the name of the line it belongs to: its method and the facts in which its runs differ.

    Runs that differ in a fact are no seeds of one another, so they are never averaged.
    """
    alike: dict[tuple[str, str, str], list[RunResult]] = defaultdict(list)
    for result in results:
        alike[result.dataset, result.task, result.method].append(result)
    varying = {key: _varying_facts(group) for key, group in alike.items()}
    names = []
    for result in results:
        facts = varying[result.dataset, result.task, result.method]
        told = ", ".join(f"{name} {result.facts[name]}" for name in facts if name in result.facts)
        names.append(f"{result.method} · {told}" if told else result.method)
    return names


def repeated_seeds(rows: Sequence[Row]) -> list[str]:
    """A sentence for each row that averages two runs of one seed: they differ in something not shown."""
    return [
        f"{row.method} at ε = {epsilon_text(row.epsilon)} on {row.dataset} has one seed in several runs, so "
        "they differ in something that is not shown: tell them apart with --run.method"
        for row in rows
        if len(set(row.seeds) - {None}) < len([seed for seed in row.seeds if seed is not None])
    ]


def unsigned_reports(results: Sequence[RunResult]) -> list[str]:
    """A sentence for each reason why privacy reports have no signature, with how many runs it is of."""
    counts = Counter(result.signature for result in results if result.signature not in ("", "agrees"))
    return [
        f"the privacy report of {number} run{'s' * (number != 1)} is {why}" for why, number in counts.items()
    ]


def figure(rows: Sequence[Row], *, metric: str) -> "Figure":
    """`metric` against ε, one line per method with error bars, baselines as horizontal lines.

    A baseline of more than 1.3 times the largest result is left out: it would squeeze the rest.

    Raises:
        ValueError: the rows are of several data sets or tasks, or none has the metric.
    """
    with needed_by("a figure"):
        from lightning_dp.tracking.figures import quality_against_epsilon

    shown = sorted({" · ".join(filter(None, (row.dataset, row.task))) for row in rows})
    if len(shown) != 1:
        raise ValueError(f"one figure shows one data set and task, and these runs are of {', '.join(shown)}")
    own = [row for row in rows if metric in row.mean]
    units = {row.unit for row in own if row.unit}
    largest = max((row.mean[metric] for row in own if row.epsilon > 0), default=math.inf)
    return quality_against_epsilon(
        [
            {
                "method": row.method,
                "epsilon": round_epsilon(row.epsilon),
                "mean": row.mean[metric],
                "se": 0.0 if math.isnan(row.se[metric]) else row.se[metric],
            }
            for row in own
            if row.epsilon > 0
        ],
        metric=metric_label(metric),
        baselines={
            row.method: row.mean[metric]
            for row in own
            if row.epsilon == 0 and row.mean[metric] <= 1.3 * largest
        },
        unit_name=units.pop() if len(units) == 1 else "",
        title=shown[0],
    )


def metric_label(metric: str) -> str:
    """How tables and axes write a metric: words for underscores, acronyms in capitals.

    >>> metric_label("crps_sum"), metric_label("coverage_90")
    ('CRPS sum', 'coverage of 90 %')
    """
    if share := _INTERVAL_COVERAGE.fullmatch(metric):
        return f"coverage of {share[1]} %"
    return " ".join(word.upper() if word in _UPPER_CASE else word for word in metric.split("_"))


def better(metric: str) -> str:
    """`lower`, `higher` or "" where the name does not tell; intervals should cover what they say."""
    if metric.startswith(_LOWER_IS_BETTER):
        return "lower"
    if _INTERVAL_COVERAGE.fullmatch(metric):
        return ""
    return "higher" if metric.startswith(_HIGHER_IS_BETTER) else ""


def metrics_in_order(names: Iterable[str]) -> list[str]:
    """Distinct metrics: the well-known ones first, then by name."""

    def place(name: str) -> tuple[int, str]:
        return (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)

    return sorted(set(names), key=place)


def round_epsilon(epsilon: float) -> float:
    """To the three digits in which two ε count as equal; what is not finite stays."""
    return epsilon if not math.isfinite(epsilon) else float(f"{epsilon:.3g}")


def epsilon_text(epsilon: float | None) -> str:
    """ε for a table."""
    if epsilon is None:
        return "undefined"
    if math.isnan(epsilon):
        return "unknown"
    return "∞" if math.isinf(epsilon) else f"{float(f'{epsilon:.3g}'):,g}"


def as_number(value: Any) -> float:
    """A number of a JSON file; strict JSON writes ∞ as text, and anything else that is none is NaN."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def seed_of_config(folder: Path) -> int | None:
    """`seed_everything` of the folder's config.yaml: older results don't repeat it."""
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    found = re.search(r"^seed_everything: (\d{1,18})\s*$", path.read_text(errors="replace"), re.MULTILINE)
    return int(found[1]) if found else None


def _row(
    *,
    dataset: str,
    task: str,
    method: str,
    epsilon: float,
    unit: str,
    event: float | None,
    seeds: tuple[int | None, ...],
    scores: list[dict[str, float]],
) -> Row:
    names = sorted(set.intersection(*map(set, scores)))
    values = {name: np.array([own[name] for own in scores]) for name in names}
    n = len(scores)
    return Row(
        dataset=dataset,
        task=task,
        method=method,
        epsilon=epsilon,
        unit=unit,
        epsilon_of_event=event,
        runs=n,
        seeds=seeds,
        mean={name: float(v.mean()) for name, v in values.items()},
        se={name: float(v.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan for name, v in values.items()},
    )


def _varying_facts(group: Sequence[RunResult]) -> list[str]:
    """The facts that tell runs apart, without those that others tell already; statistics of data are none."""
    told: list[str] = []
    parts = 1
    for name in sorted({name for result in group for name in result.facts} - _NO_SETTINGS):
        if name.startswith(PRIVATE_PREFIX):
            continue
        finer = len({tuple(result.facts.get(fact) for fact in (*told, name)) for result in group})
        if finer > parts:
            told.append(name)
            parts = finer
    return told
