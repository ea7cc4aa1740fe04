"""`lightning-dp verify`: whether a privacy report is whole, and agrees with its ledger and its files."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_dp.tracking.layout import CHECKPOINT, SAMPLES

if TYPE_CHECKING:
    from lightning_dp.privacy.ledger import Ledger

_EPILOG = """exit status: 0 nothing contradicts the report, 1 something does, 2 there is no report

examples:
  lightning-dp verify runs/mine
  lightning-dp verify samples/privacy.json --ledger /secure/ledger.sqlite
  lightning-dp verify runs/mine/privacy_report.html
  lightning-dp verify synthetic.csv.privacy.json
"""


def main(argv: list[str]) -> int:
    """Say what was checked and what is wrong, one sentence each."""
    parser = argparse.ArgumentParser(
        prog="lightning-dp verify",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Check the privacy report of a run, an export or a sample set: its signature, its ε against the\n"
            "mechanisms, the checkpoint and the configuration beside it, its entries in the ledger, the\n"
            "files that it speaks of, and the pages and the card that show it."
        ),
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument(
        "report", type=Path, metavar="REPORT_OR_RUN", help="the report, or the folder that has it"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--ledger",
        metavar="PATH",
        help="the ledger's file; else that of the run's configuration, or the default",
    )
    where.add_argument("--no-ledger", action="store_true", help="compare with no ledger")
    arguments = parser.parse_args(argv)

    # Late: --help should not wait for the accountant.
    from lightning_dp.privacy.ledger.names import shown
    from lightning_dp.privacy.report import REPORT_NAME
    from lightning_dp.privacy.report.readable import report_shown_by

    given = report_shown_by(arguments.report)
    path = given / REPORT_NAME if given.is_dir() else given
    if not path.is_file():
        raise ValueError(f"{path} is missing; name a privacy report, or a folder that has one.")
    wrong = False
    for one in [path, *_below(path)]:
        said, findings = _examine(one, ledger=arguments.ledger, with_ledger=not arguments.no_ledger)
        for sentence in said:
            print(shown(sentence))
        for sentence in findings:
            print(shown(f"lightning-dp verify: {sentence}"), file=sys.stderr)
        if not findings:
            print(f"Nothing contradicts {shown(str(one))}.")
        wrong = wrong or bool(findings)
    return 1 if wrong else 0


def _below(path: Path) -> list[Path]:
    """Reports of what a run keeps in its own folder: finished samples, and predictions."""
    if not _is_run(path):
        return []
    found = [path.parent / SAMPLES.parent / path.name, *sorted(path.parent.glob(f"?*.{path.name}"))]
    return [one for one in found if one.is_file()]


def _is_run(path: Path) -> bool:
    return path.name == "privacy.json" and (path.parent / "config.yaml").is_file()


def _examine(path: Path, *, ledger: str | None, with_ledger: bool) -> tuple[list[str], list[str]]:
    """What was checked, and what is wrong."""
    from lightning_dp.privacy.ledger import LedgerError
    from lightning_dp.privacy.ledger.signed_report import ReportChanged, signature_in_words, signer_of
    from lightning_dp.tracking.account import ledger_at_hand, read_account
    from lightning_dp.tracking.sealed import check_files

    folder = path.parent
    said, findings = [], []
    try:
        report = _read(path)
    except ValueError as error:
        return [], [f"{path} {error}"]
    signer = None
    try:
        unsigned, signer = signature_in_words(report), signer_of(report)
        said.append(
            f"Signed by key {signer[:16]}…, and not changed since."
            if signer
            else f"Not signed: what was changed in it, and fits, is not found. It is {unsigned}."
        )
    except ReportChanged as error:
        findings.append(f"{path} is not the report that was signed: {error}.")
    try:
        if _is_run(path):
            said.append(read_account(folder).sentence)
        else:
            said += _check_claim(report)
    except (ValueError, LedgerError) as error:
        findings.append(str(error))
    chosen = ledger_at_hand(folder, ledger)
    if with_ledger:
        _check_ledger(
            report, chosen, path=path, signer=signer, asked=ledger is not None, said=said, findings=findings
        )
    wrong = check_files(folder, report)
    findings += wrong
    if ("files" in report or "sha256" in report) and not wrong:
        said.append("Its files are those that it speaks of.")
    _check_form(report, path=path, said=said, findings=findings)
    return said, findings


def _check_form(report: Mapping[str, Any], *, path: Path, said: list[str], findings: list[str]) -> None:
    """That it is a report at all, and that pages, card and curve say what it says."""
    from lightning_dp.privacy.claim import ClaimError, check_at_least, mechanisms_of
    from lightning_dp.privacy.report.document import PrivacyReport
    from lightning_dp.privacy.report.readable import check_readable, readable_paths
    from lightning_dp.tracking.cards import CARD, card_beside, check_card

    try:
        document = PrivacyReport.of(report)
    except ValueError as error:
        findings.append(f"{path} can't be a privacy report: {error}.")
        return
    findings += check_readable(path, document)
    cards = {card_beside(path): path.name, path.parent / CHECKPOINT.parent / CARD: f"../{path.name}"}
    for card, name in cards.items():
        findings += check_card(card, document, report_name=name)
    if all(one.is_file() for one in readable_paths(path)) and not findings:
        said.append("Its pages show what it says.")
    try:
        for point in document.curve or ():
            check_at_least(
                point.epsilon, events=mechanisms_of(report), delta=point.delta, what="what it records"
            )
    except ClaimError as error:
        findings.append(f"{path}: on its curve {error}.")


def _read(path: Path) -> dict[str, Any]:
    import json

    try:
        report = json.loads(path.read_bytes(), object_pairs_hook=_once)
    except _Twice as error:
        raise ValueError(f"says {error} twice, so that readers may differ in what it claims.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is damaged ({type(error).__name__}), so it says nothing.") from error
    if not isinstance(report, dict):
        raise ValueError(f"holds a {type(report).__name__} and no report.")
    return report


class _Twice(ValueError):
    """A field that an object has more than once."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _Twice(name)
        found[name] = value
    return found


def _check_claim(report: Mapping[str, Any]) -> list[str]:
    from lightning_dp.privacy.claim import check_report

    if "mechanisms" not in report:
        return []
    check_report(report)
    return ["ε is no smaller than that of the mechanisms that it records."]


def _check_ledger(
    report: Mapping[str, Any],
    ledger: "Ledger | None",
    *,
    path: Path,
    signer: str | None,
    asked: bool,
    said: list[str],
    findings: list[str],
) -> None:
    """Compare the entries that the report carries, and its ε with what its run was charged."""
    from lightning_dp.privacy.accounting import Event
    from lightning_dp.privacy.claim import check_at_least, claimed_epsilon, delta_of_report
    from lightning_dp.privacy.ledger import Evidence, LedgerError

    if not asked and (ledger is None or not ledger.path.exists()):
        said.append("Not compared with its ledger, which is not at hand.")
        return
    assert ledger is not None
    try:
        evidence = Evidence.of_account(report, where=str(path))
        if not evidence:
            said.append("It names no entry of a ledger.")
            return
        compared = ledger.examine(evidence)
        findings += compared.findings
        if compared.findings or compared.examination is None:
            return
        if signer is not None and signer not in compared.examination.keys:
            findings.append(f"{path} was signed by key {signer[:16]}…, which is none of the ledger's.")
        runs = {str(report.get("run")), *_earlier_runs(report, ledger)}
        events: list[Event] = []
        for key, (_, by_run) in ledger.charges_of(sorted(runs)).items():
            own = [run for run in by_run if run == report.get("run") or list(key) == _account(report)]
            events += [event for run in own for event in by_run[run]]
        claimed = claimed_epsilon({"epsilon_spent": report.get("epsilon_spent", report.get("epsilon"))})
        check_at_least(
            claimed, events=tuple(events), delta=delta_of_report(report), what="what its run was charged"
        )
        if report.get("total"):
            _check_total(report["total"], ledger)
    except (KeyError, TypeError, AttributeError) as error:
        findings.append(f"{path} has a field of another form than reports have ({error}).")
        return
    except LedgerError as error:
        findings += [str(error)] if str(error) not in findings else []
        return
    except ValueError as error:
        findings.append(f"{path}: {error}.")
        return
    elsewhere = " (not the default one)" if ledger.is_elsewhere else ""
    said.append(
        f"The ledger{elsewhere} is intact and holds its entries; its run was charged no more than it claims."
    )
    if report.get("ledger_elsewhere"):
        said.append(
            "The run was charged to another ledger than the one that runs use where nobody names one."
        )


def _earlier_runs(report: Mapping[str, Any], ledger: "Ledger") -> set[str]:
    """Earlier fits of the same weights: those that the report names, and that the run told the ledger of."""
    runs = {run for one in report.get("composition") or () for run in one["runs"]}
    for entry in ledger.entries():
        if entry.run == report.get("run"):
            for seen in entry.detail.get("facts", {}).get("weights_seen", ()):
                runs |= set(seen.get("runs", ()))
    return runs


def _account(report: Mapping[str, Any]) -> list[Any]:
    return [report.get("dataset"), report.get("unit")]


def _check_total(total: Mapping[str, Any], ledger: "Ledger") -> None:
    """That all runs which had ended by the entry of a report's total cost no more than it says."""
    from lightning_dp.privacy.claim import check_at_least

    dataset, unit, last = total["dataset"], total["unit"], int(total["entry"])
    later = {
        entry.run
        for entry in ledger.entries(dataset, unit=unit)
        if "event" in entry.detail and entry.seq > last
    }
    charges = ledger.events_by_run(dataset, unit=unit)
    events = tuple(event for run, own in charges.items() if run not in later for event in own)
    check_at_least(
        float(total["epsilon"]),
        events=events,
        delta=float(total["delta"]),
        what=f"what all runs on {dataset} were charged up to entry {last}",
    )
