"""What a fit ends with: ε of each unit, the data set's total, metrics beside baselines, the next commands."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_dp.privacy.ledger import Ledger, LedgerError
from lightning_dp.privacy.report import read_privacy_report

_COMPARED = ("mse", "mae", "crps")  # smaller is better
_WITHOUT = {
    "user": "that of a whole user covers each of their windows and readings",
    "window": "what several windows of one person cost together is not known",
    "record": "what several records of one person cost together is not known",
}


def summary(folder: Path, *, dataset: str, ledger: Ledger, draws_images: bool) -> Iterator[str]:
    """Lines for a terminal.

    Args:
        folder: of the run.
        dataset: the ledger's name for its data.
        ledger: that paid.
        draws_images: whether `lightning-dp evaluate` can judge its samples.
    """
    report = read_privacy_report(folder)
    yield from _privacy(report)
    yield from _total(report, dataset=dataset, ledger=ledger)
    path = folder / "results.json"
    yield from _metrics(json.loads(path.read_text())["metrics"] if path.is_file() else {})
    yield f"folder   {folder}"
    commands = [f"sample {folder} --output samples", *([f"evaluate {folder}"] if draws_images else [])]
    commands += [f"report {folder}", f"verify {folder}"]
    yield "next     " + ", ".join(f"lightning-dp {command}" for command in commands)


def _privacy(report: Mapping[str, Any]) -> Iterator[str]:
    unit = report.get("unit")
    if unit is None:
        yield "ε        ∞: trained without privacy, nothing about the training data is protected"
        return
    yield f"ε        {float(report['epsilon_spent']):.4g} per {unit} at δ = {report['delta']:g}"
    others = {name: value for name, value in report.get("epsilon_of_unit", {}).items() if name != unit}
    known = [f"{float(value):.4g} per {name}" for name, value in others.items() if value is not None]
    if known:
        yield f"         at the plan's end {', '.join(known)}"
    undefined = [name for name, value in others.items() if value is None]
    if undefined:
        why = _WITHOUT.get(unit, "")
        yield f"         undefined per {', '.join(undefined)}{f': {why}' if why else ''}"


def _total(report: Mapping[str, Any], *, dataset: str, ledger: Ledger) -> Iterator[str]:
    unit = report.get("unit")
    if unit is None:
        return
    try:
        known = ledger.name_of(dataset)
        yield f"in all   {known}: ε = {ledger.epsilon(known, unit=unit):.4g} per {unit} over all its runs"
    except LedgerError as error:
        yield f"in all   unknown: {error}"


def _metrics(metrics: Mapping[str, Any]) -> Iterator[str]:
    for score in _COMPARED:
        own = metrics.get(f"test/{score}")
        rivals = {
            name.split("/")[1].replace("_", " "): float(value)
            for name, value in metrics.items()
            if name.startswith("baseline/") and name.endswith(f"/{score}")
        }
        if own is None:
            continue
        line = f"{score:<9}{float(own):.4g}"
        if rivals:
            best = min(rivals, key=lambda name: rivals[name])
            verdict = "beaten" if float(own) < rivals[best] else "not beaten"
            line += f", best baseline {best} {rivals[best]:.4g}: {verdict}"
        yield line
