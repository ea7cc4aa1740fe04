"""`lightning-dp verify`: whether a privacy report is whole, and agrees with its ledger and its files."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_dp.privacy.ledger import Ledger

_EPILOG = """exit status: 0 nothing contradicts the report, 1 something does, 2 there is no report

examples:
  lightning-dp verify runs/mine
  lightning-dp verify samples/privacy.json --ledger /secure/ledger.sqlite
  lightning-dp verify synthetic.csv.privacy.json
"""


def main(argv: list[str]) -> int:
    """Say what was checked and what is wrong, one sentence each."""
    parser = argparse.ArgumentParser(
        prog="lightning-dp verify",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Check the privacy report of a run, an export or a sample set: its signature, its ε against the\n"
            "mechanisms, the checkpoint and the configuration beside it, its entries in the ledger, and the\n"
            "files that it speaks of."
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

    path = arguments.report / REPORT_NAME if arguments.report.is_dir() else arguments.report
    if not path.is_file():
        raise ValueError(f"{path} is missing; name a privacy report, or a folder that has one.")
    said, findings = _examine(path, ledger=arguments.ledger, with_ledger=not arguments.no_ledger)
    for sentence in said:
        print(shown(sentence))
    for sentence in findings:
        print(shown(f"lightning-dp verify: {sentence}"), file=sys.stderr)
    if not findings:
        print(f"Nothing contradicts {shown(str(path))}.")
    return 1 if findings else 0


def _examine(path: Path, *, ledger: str | None, with_ledger: bool) -> tuple[list[str], list[str]]:
    """What was checked, and what is wrong."""
    from lightning_dp.privacy.ledger.signed_report import ReportChanged, signer_of
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
        signer = signer_of(report)
        said.append(
            f"Signed by key {signer[:16]}…, and not changed since."
            if signer
            else "Not signed: what was changed in it, and fits, is not found."
        )
    except ReportChanged as error:
        findings.append(f"{path} is not the report that was signed: {error}.")
    is_run = path.name == "privacy.json" and (folder / "config.yaml").is_file()
    try:
        if is_run:
            said.append(read_account(folder).sentence)
        else:
            said += _check_claim(report)
    except ValueError as error:
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
    return said, findings


def _read(path: Path) -> dict[str, Any]:
    import json

    try:
        report = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"is damaged ({type(error).__name__}), so it says nothing.") from error
    if not isinstance(report, dict):
        raise ValueError(f"holds a {type(report).__name__} and no report.")
    return report


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
        events: list[Event] = []
        for _, by_run in ledger.charges_of([str(report.get("run"))]).values():
            events += [event for one in by_run.values() for event in one]
        claimed = claimed_epsilon({"epsilon_spent": report.get("epsilon_spent", report.get("epsilon"))})
        check_at_least(
            claimed, events=tuple(events), delta=delta_of_report(report), what="what its run was charged"
        )
    except (LedgerError, ValueError) as error:
        findings.append(str(error))
        return
    elsewhere = " (not the default one)" if ledger.is_elsewhere else ""
    said.append(
        f"The ledger{elsewhere} is intact and holds its entries; its run was charged no more than it claims."
    )
    if report.get("ledger_elsewhere"):
        said.append(
            "The run was charged to another ledger than the one that runs use where nobody names one."
        )
