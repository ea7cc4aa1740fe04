"""One JSON-ready record per run: what the site needs of every run before any is looked at closely.

Read from the run folder; numbers are passed on as they are. ε is computed again, and a run that claims
less is listed with the reason and without its figures.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_dp.privacy.claim import ClaimError
from lightning_dp.privacy.ledger import LedgerError
from lightning_dp.tracking.account import Account, read_account
from lightning_dp.tracking.results import (
    PRIVATE_PREFIX,
    RESULTS_NAME,
    RunResult,
    as_number,
    read_result,
    round_epsilon,
    seed_of_config,
    series_names,
)

_PLAN_FIELDS = (
    "noise_multiplier",
    "max_grad_norm",
    "sampling_rate",
    "expected_batch_size",
    "num_units",
    "num_steps",
    "steps_charged",
    "relation",
    "sampling",
    "accountant",
    "unit_description",
    "note",
)


@dataclass(frozen=True, kw_only=True)
class NamedFolder:
    """A run folder and how the site calls it.

    Attributes:
        key: a short name that is safe in addresses and file names.
        name: its path below what the user gave.
        folder: where it is.
    """

    key: str
    name: str
    folder: Path


def records_of(runs: Sequence[NamedFolder]) -> list[dict[str, Any]]:
    """The records of all runs, each with the line (`series`) it belongs to.

    `refused` is true of runs whose claims can't be believed: what they say is not to be passed on.
    """
    records, finished, results = [], [], []
    for run in runs:
        result, problem, account, refused = None, "", Account(report={}), False
        try:
            account = read_account(run.folder)
            if (run.folder / RESULTS_NAME).is_file():
                result = read_result(run.folder, account=account)
        except (ValueError, LedgerError) as error:
            problem = str(error).removeprefix(f"{run.folder}/")
            refused = not account.report or isinstance(error, ClaimError)
        record = _record(run, result, problem=problem, report=account.report)
        record["refused"] = refused
        records.append(record)
        if result is not None:
            finished.append(record)
            results.append(result)
    for record, series in zip(finished, series_names(results), strict=True):
        record["series"] = series
    return records


def _record(
    run: NamedFolder, result: RunResult | None, *, problem: str, report: dict[str, Any]
) -> dict[str, Any]:
    record = {
        "key": run.key,
        "name": run.name,
        "status": problem or report.get("status") or ("finished" if result else "no result"),
        "privacy": {name: report[name] for name in _PLAN_FIELDS if report.get(name) is not None},
        "ledger": [report.get("ledger_seq"), report.get("ledger_hash")],
        "ledger_run": report.get("run"),
        "plots": [
            path.relative_to(run.folder).as_posix() for path in sorted((run.folder / "plots").rglob("*.png"))
        ],
    }
    if result is None:
        # Without a result there is still what was spent, which must not be forgotten.
        set_ = _config(run.folder)
        epsilon = as_number(report.get("epsilon_spent"))
        return record | {
            "method": (set_.get("run") or {}).get("method") or run.folder.name,
            "series": "",
            "dataset": "",
            "task": "",
            "seed": seed_of_config(run.folder),
            "epsilon": epsilon,
            "group": round_epsilon(epsilon),
            "delta": report.get("delta"),
            "unit": report.get("unit") or "",
            "of_unit": report.get("epsilon_of_unit") or {},
            "facts": {},
            "scores": {},
            "baselines": {},
            "nonprivate": {},
            "finished": False,
        }
    metrics = json.loads((run.folder / RESULTS_NAME).read_text())["metrics"]
    return record | {
        "method": result.method,
        "dataset": result.dataset,
        "task": result.task,
        "seed": result.seed,
        "epsilon": result.epsilon,
        "group": round_epsilon(result.epsilon),
        "delta": result.delta,
        "unit": result.unit,
        "of_unit": result.epsilon_of_unit,
        "facts": {name: value for name, value in result.facts.items() if not name.startswith(PRIVATE_PREFIX)},
        "scores": result.scores,
        "baselines": result.baselines,
        "nonprivate": {
            name: as_number(value)
            for name, value in {**metrics, **result.facts}.items()
            if name.startswith(PRIVATE_PREFIX)
        },
        "finished": True,
    }


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    try:
        content = yaml.safe_load(path.read_text()) if path.is_file() else {}
    except yaml.YAMLError:
        content = {}
    return content if isinstance(content, dict) else {}
