"""One JSON-ready record per run: what the site needs of every run before any is looked at closely.

Read from the run folder; numbers are passed on as they are. ε is computed again, and a run that claims
less is listed with the reason and without its figures.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_dp.archives import inside
from lightning_dp.privacy.claim import ClaimError
from lightning_dp.privacy.ledger import LedgerError
from lightning_dp.tracking.account import Account, read_accounts
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
from lightning_dp.tracking.run_config import read_yaml

READ = ("config.yaml", "privacy.json", "results.json", "metrics.csv", "diagnostics.json")
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
    led_out = {run.key: _link_that_leads_out(run.folder) for run in runs}
    read = [run for run in runs if not led_out[run.key]]
    accounts = dict(zip([run.key for run in read], read_accounts([run.folder for run in read]), strict=True))
    for run in runs:
        result, problem, account, refused = None, "", Account(report={}), False
        try:
            if name := led_out[run.key]:
                raise ValueError(f"{name} is a link that leads out of the run folder")
            checked = accounts[run.key]
            if isinstance(checked, Exception):
                raise checked
            account = checked
            if (run.folder / RESULTS_NAME).is_file():
                result = read_result(run.folder, account=account)
            record = _record(run, result, problem="", report=account.report)
        except Exception as error:  # one damaged run of many is listed as such, whatever it breaks
            said = (
                str(error) if isinstance(error, ValueError | LedgerError | OSError) else type(error).__name__
            )
            said = said.replace(f"{run.folder}/", "")
            problem = said if isinstance(error, ClaimError) else f"damaged: {said}"
            refused = not account.report or isinstance(error, ClaimError)
            result, report = None, account.report if not isinstance(error, TypeError | AttributeError) else {}
            record = _record(run, None, problem=problem, report=report)
        record["refused"] = refused
        if signature := account.checks.get("signature"):
            record["privacy"]["signature"] = signature
        records.append(record)
        if result is not None:
            finished.append(record)
            results.append(result)
    for record, series in zip(finished, series_names(results), strict=True):
        record["series"] = series
    return records


def _link_that_leads_out(folder: Path) -> str:
    """The first of the files that are read which lies elsewhere, or ""."""
    return next((name for name in READ if not inside(folder / name, folder)), "")


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
            path.relative_to(run.folder).as_posix()
            for path in sorted((run.folder / "plots").rglob("*.png"))
            if path.is_file() and stays_inside(path, run.folder)
        ],
    }
    if result is None:
        # Without a result there is still what was spent, which must not be forgotten.
        set_ = {} if problem else _config(run.folder)
        epsilon = as_number(report.get("epsilon_spent"))
        return record | {
            "method": _method(set_) or run.folder.name,
            "series": "",
            "dataset": "",
            "task": "",
            "seed": None if problem else seed_of_config(run.folder),
            "epsilon": epsilon,
            "group": round_epsilon(epsilon),
            "delta": report.get("delta"),
            "unit": report.get("unit") or "",
            "of_unit": of_unit if isinstance(of_unit := report.get("epsilon_of_unit"), dict) else {},
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


def _method(config: dict[str, Any]) -> str:
    run = config.get("run")
    return str(run.get("method") or "") if isinstance(run, dict) else ""


def stays_inside(path: Path, folder: Path) -> bool:
    """Whether no link on the way to a file leads out of its run folder, to what others may not see."""
    return path.resolve().is_relative_to(folder.resolve())


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    content = read_yaml(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}
