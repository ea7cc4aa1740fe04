"""`lightning-dp ledger`: read the privacy ledger, check it, open accounts, change limits and names.

Scope: reading, and what a data set's owner decides. Charges are made by training and by releases only, and no
command removes one.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_dp.privacy.ledger import (
    ENVIRONMENT_VARIABLE,
    Budget,
    Entry,
    Ledger,
    LedgerCorrupt,
    LedgerError,
)
from lightning_dp.privacy.ledger.account import account_of, total_of
from lightning_dp.privacy.ledger.countersign import evidence_of_log
from lightning_dp.privacy.ledger.names import shown

_DAMAGED, _MISTAKE = 1, 2


class _Found(Exception):
    """The ledger contradicts what others carry of it: a sentence each."""


_EPILOG = f"""\
The ledger is the file given by --ledger, else by {ENVIRONMENT_VARIABLE}, else ledger.sqlite in the
user's data folder. ε is computed from all charges of a data set (PLD), over all runs: what a sweep on
private data really cost. The filter's ε is the figure that limits are held against; it also covers runs
that were chosen after looking at earlier ones.

Exit code: 0; 1 where the ledger is damaged or incomplete; 2 for a mistake in the command.
"""


def main(argv: list[str]) -> int:
    """Run `lightning-dp ledger` with `argv` (without the program's name); return the exit code."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as exit_:  # argparse has printed help or the mistake
        return exit_.code if isinstance(exit_.code, int) else _MISTAKE
    try:
        said = arguments.command(Ledger(arguments.ledger), arguments)
        # What a name or a reason holds must not reach the terminal as a command; JSON and files escape it.
        print(said if getattr(arguments, "json", False) else shown(said))
        sys.stdout.flush()
    except _Found as error:
        print(shown(f"lightning-dp ledger: {error}"), file=sys.stderr)
        return _DAMAGED
    except LedgerCorrupt as error:
        print(shown(f"lightning-dp ledger: {error}"), file=sys.stderr)
        return _DAMAGED
    except (LedgerError, ValueError) as error:
        print(shown(f"lightning-dp ledger: {error}"), file=sys.stderr)
        return _MISTAKE
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        sys.stdout = io.StringIO()
    except OSError as error:
        print(f"lightning-dp ledger: {error.strerror}: {error.filename}", file=sys.stderr)
        return _MISTAKE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-dp ledger",
        description="What was charged to each private data set, and how much may still be charged.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--ledger", metavar="PATH", default=None, help="the ledger's file")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, command: Any, help_: str, *, with_json: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_, description=help_, allow_abbrev=False)
        # Also after the command; without a default, which would undo one given before it.
        sub.add_argument("--ledger", metavar="PATH", default=argparse.SUPPRESS, help="the ledger's file")
        if with_json:
            sub.add_argument("--json", action="store_true", help="print JSON")
        sub.set_defaults(command=command)
        return sub

    def add_dataset(sub: argparse.ArgumentParser, *, optional: bool = False) -> None:
        sub.add_argument(
            "dataset",
            metavar="DATASET",
            nargs="?" if optional else None,
            help="name or fingerprint of a data set, or the beginning of it",
        )
        sub.add_argument(
            "--unit", help="privacy unit; needed where the data set has several and one must be chosen"
        )

    add("list", _list, "one line for each data set and unit")
    add_dataset(add("show", _show, "one data set: its limit, its runs, its releases, and what each cost"))
    verify = add(
        "verify",
        _verify,
        "check every row, the chain, its signatures, the guards, the anchor and the snapshot",
    )
    verify.add_argument(
        "--against",
        metavar="RUN",
        nargs="+",
        type=Path,
        default=[],
        help="run folders, or folders of them, whose reports and checkpoints carry the ledger as it was",
    )
    verify.add_argument("--log", metavar="PATH", type=Path, help="a log that 'countersign' wrote")
    sign = add("countersign", _countersign, "log the ledger's end in a second place", with_json=False)
    sign.add_argument(
        "--to",
        metavar="FOLDER",
        type=Path,
        required=True,
        help="appended to there, and committed where it is a git repository",
    )
    register = add(
        "register", _register, "open the account of a data set before its first run", with_json=False
    )
    register.add_argument("dataset", metavar="DATASET", help="its name: privacy.dataset, or that of the data")
    register.add_argument("--unit", required=True, help="privacy unit: user, window, record or another")
    register.add_argument(
        "--limit", metavar="E", type=float, help="no charge may take the filter's ε above it"
    )
    register.add_argument("--delta", type=float, help="δ of the account; left out, the first run's")
    register.add_argument(
        "--data",
        metavar="PATH",
        type=Path,
        help="what it holds, to be known again by another name: a configuration with a section data, or a "
        "folder of images",
    )
    same = add("same-as", _same_as, "let another name lead to a known data set's accounts", with_json=False)
    same.add_argument("name", metavar="NAME", help="the other name")
    same.add_argument("dataset", metavar="DATASET", help="the known data set, in full")
    same.add_argument("--reason", default="", help="kept with the entry")
    accept = add(
        "accept-content",
        _accept_content,
        "let a data set's next content be another than it was, or known by another name",
        with_json=False,
    )
    accept.add_argument("dataset", metavar="DATASET", help="its name in full, new or known")
    accept.add_argument("--reason", required=True, help="why; kept with the entry")
    limit = add("set-limit", _set_limit, "append a new limit for a data set", with_json=False)
    add_dataset(limit)
    limit.add_argument(
        "--epsilon",
        required=True,
        metavar="E",
        type=_epsilon,
        help="no charge may take the filter's ε above this; 0 stops all charges, 'none' lifts the limit",
    )
    limit.add_argument("--reason", default="", help="kept with the entry")
    allow = add("allow", _allow, "let a finer unit be charged beside a coarser unit's limit", with_json=False)
    add_dataset(allow)
    allow.add_argument("--finer", required=True, metavar="UNIT", help="the unit that may be charged")
    allow.add_argument("--reason", required=True, help="why; kept with the entry")
    export = add("export", _export, "all entries, as CSV or, with totals, as JSON")
    add_dataset(export, optional=True)
    export.add_argument("--output", metavar="FILE", type=Path, help="write there; must not exist yet")
    return parser


def _epsilon(text: str) -> float | None:
    try:
        return None if text.lower() == "none" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'none'") from None


# --- commands: each returns what is printed ---------------------------------------------------------


def _list(ledger: Ledger, arguments: argparse.Namespace) -> str:
    replay = ledger.replay()
    totals = ledger.totals()
    accounts = [total_of(replay, key, totals=totals) for key in replay.accounts]
    totals.save()
    if arguments.json:
        return _json({"ledger": str(ledger.path), "head": list(replay.reference), "accounts": accounts})
    if not accounts:
        return f"No data set in {ledger.path} yet."
    rows = [
        [
            _shorten(a["dataset"]),
            a["unit"],
            ("≤ " if a["rounded"] else "") + _number(a["epsilon"]),
            _delta(a),
            _number(a["limit_epsilon"]),
            _number(a["filter_epsilon"]),
            _share(a),
            str(a["num_runs"]),
            a["last_charge"][:16].replace("T", " ") or "–",
        ]
        for a in accounts
    ]
    head = ["data set", "unit", "ε spent", "δ", "limit", "filter's ε", "used", "runs", "last charge (UTC)"]
    text = f"Ledger {ledger.path}\n\n{_table(head, rows)}"
    if any(a["rounded"] for a in accounts):
        text += "\n\n  ≤: many different mechanisms, rounded up; 'ledger show' composes them as they are."
    return text


def _show(ledger: Ledger, arguments: argparse.Namespace) -> str:
    entries = ledger.entries()
    chosen = _choose(ledger, arguments.dataset, arguments.unit)
    accounts = [account_of(ledger, entries, dataset=dataset, unit=unit) for dataset, unit in chosen]
    if arguments.json:
        return _json({"ledger": str(ledger.path), "head": _head(entries), "accounts": accounts})
    text = "\n\n".join(_describe(account) for account in accounts)
    if len(accounts) > 1:
        text += (
            "\n\nThe units of one data set are accounts of their own; they do not add up into each other. A "
            "limit on a coarser unit refuses charges on finer ones until 'ledger allow' says why not."
        )
    return text


def _verify(ledger: Ledger, arguments: argparse.Namespace) -> str:
    evidence = []
    if arguments.against:
        from lightning_dp.tracking.evidence import evidence_of_runs

        evidence += evidence_of_runs(arguments.against)
    if arguments.log is not None:
        evidence += evidence_of_log(arguments.log)
    compared = ledger.examine(evidence)
    if compared.findings or compared.examination is None:
        raise _Found("\n".join(compared.findings))
    examination = compared.examination
    seq, digest = examination.head
    if arguments.json:
        return _json(
            {
                "ledger": str(ledger.path),
                "id": examination.identity,
                "intact": True,
                "head": [seq, digest],
                "anchored": examination.anchored,
                "keys": examination.keys,
                "signatures": examination.signatures,
                "compared_with": compared.agree,
            }
        )
    said = [f"Ledger {ledger.path}" + (", not the default one" if ledger.is_elsewhere else "")]
    said += [f"  {sentence}" for sentence in examination.sentences]
    said.append(
        f"  It holds all {compared.agree} entries that were carried elsewhere."
        if evidence
        else "  It was compared with nothing outside of its folder: whoever holds its key could have written "
        "all of it anew. --against RUNS and --log PATH compare it with what they carry."
    )
    return "\n".join([*said, f"Identity: {examination.identity}", f"Head: {seq} {digest}"])


def _countersign(ledger: Ledger, arguments: argparse.Namespace) -> str:
    log, seq = ledger.countersign(arguments.to)
    return f"{log} ends at entry {seq}. Compare with it: lightning-dp ledger verify --log {log}"


def _register(ledger: Ledger, arguments: argparse.Namespace) -> str:
    content = None
    if arguments.data is not None:
        from lightning_dp.commands.data_content import pieces_at

        content = ledger.content_of(pieces_at(arguments.data))
        if content is None:
            raise ValueError(f"--data {arguments.data} holds nothing that could be known again.")
        ledger.identify(arguments.dataset, content)
    ledger.register(
        arguments.dataset, unit=arguments.unit, delta=arguments.delta, limit_epsilon=arguments.limit
    )
    budget = ledger.budget(arguments.dataset, unit=arguments.unit)
    known = "" if content is None else ", known by its content"
    return f"Data set {budget.dataset} ({budget.unit}): limit {_number(budget.limit_epsilon)}{known}."


def _same_as(ledger: Ledger, arguments: argparse.Namespace) -> str:
    entry = ledger.same_as(arguments.name, arguments.dataset, reason=arguments.reason)
    return f"{arguments.name} now leads to the accounts of {entry.dataset} (entry {entry.seq})."


def _accept_content(ledger: Ledger, arguments: argparse.Namespace) -> str:
    entry = ledger.accept_content(arguments.dataset, reason=arguments.reason)
    return f"The next content of {entry.dataset} is taken as it is (entry {entry.seq})."


def _set_limit(ledger: Ledger, arguments: argparse.Namespace) -> str:
    dataset, unit = _choose_one(ledger, arguments)
    before = ledger.budget(dataset, unit=unit).limit_epsilon
    entry = ledger.set_limit(dataset, unit=unit, limit_epsilon=arguments.epsilon, reason=arguments.reason)
    budget = ledger.budget(dataset, unit=unit)
    return (
        f"Limit of {dataset} ({unit}): {_number(before)} → {_number(budget.limit_epsilon)} "
        f"(entry {entry.seq}). {_left(budget)}"
    )


def _allow(ledger: Ledger, arguments: argparse.Namespace) -> str:
    dataset, unit = _choose_one(ledger, arguments)
    entry = ledger.allow(dataset, unit=unit, finer=arguments.finer, reason=arguments.reason)
    return (
        f"Data set {dataset}: charges per {arguments.finer} are allowed beside the limit per {unit} (entry "
        f"{entry.seq}), until that limit is set anew."
    )


def _choose_one(ledger: Ledger, arguments: argparse.Namespace) -> tuple[str, str]:
    chosen = _choose(ledger, arguments.dataset, arguments.unit)
    if len(chosen) > 1:
        raise ValueError(
            f"data set {arguments.dataset!r} fits {_accounts(chosen)}; name one in full and give --unit"
        )
    return chosen[0]


def _export(ledger: Ledger, arguments: argparse.Namespace) -> str:
    entries = ledger.entries()
    accounts = ledger.accounts()
    head = _head(entries)
    if arguments.dataset is not None:
        accounts = _choose(ledger, arguments.dataset, arguments.unit)
        entries = [entry for entry in entries if (entry.dataset, entry.unit) in accounts]
    elif arguments.unit is not None:
        raise ValueError("--unit needs a DATASET")
    if arguments.json:
        text = _json(
            {
                "ledger": str(ledger.path),
                "head": head,
                "accounts": [
                    account_of(ledger, entries, dataset=dataset, unit=unit) for dataset, unit in accounts
                ],
                "entries": [vars(entry) for entry in entries],
            }
        )
    else:
        buffer = io.StringIO()
        columns = ["seq", "time", "dataset", "unit", "run", "lease", "kind", "detail", "prev_hash", "hash"]
        writer = csv.DictWriter(buffer, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**vars(entry), "detail": json.dumps(entry.detail)} for entry in entries)
        text = buffer.getvalue().rstrip("\n")
    if arguments.output is None:
        return text
    with arguments.output.open("x", encoding="utf-8") as file:
        file.write(text + "\n")
    return f"{len(entries)} entries in {arguments.output}"


# --- what is reported -------------------------------------------------------------------------------


def _describe(account: dict[str, Any]) -> str:
    lines = [
        f"Data set {account['dataset']}, unit {account['unit']}, relation {account['relation']}",
        f"  ε spent     {_number(account['epsilon'])} at δ = {_delta(account)} "
        f"(PLD, all {len(account['runs'])} run(s) together)",
    ]
    if account["other_names"]:
        lines.append(f"  also called {', '.join(account['other_names'])}")
    if account["limit_epsilon"] is None:
        lines.append("  limit       none")
    else:
        lines.append(
            f"  limit       {_number(account['limit_epsilon'])}; the filter's ε is "
            f"{_number(account['filter_epsilon'])} ({_share(account)} used)"
        )
        if account["held_epsilon"] > account["filter_epsilon"]:
            lines.append(
                f"  held        {_number(account['held_epsilon'])} with the plans of running processes"
            )
    if account["runs"]:
        rows = [
            [
                _shorten(run["run"]),
                _number(run["epsilon"]),
                str(run["steps"]),
                _values(run["noise_multipliers"]),
                _values(run["sampling_rates"]),
                f"{run['starts']} / {run['clean_ends']}",
                run["last_entry"][:16].replace("T", " "),
            ]
            for run in account["runs"]
        ]
        head = ["run", "ε", "steps charged", "σ", "q", "starts / clean ends", "last entry (UTC)"]
        lines += ["", _table(head, rows)]
        said = [(run["run"], name, value) for run in account["runs"] for name, value in run["facts"].items()]
        lines += [
            f"  {_shorten(run)}: {name}: {value}" for run, name, value in said if isinstance(value, str)
        ]
    if account["releases"]:
        rows = [
            [str(r["seq"]), r["kind"], _shorten(r["run"]), _number(r["epsilon"]), r["note"]]
            for r in account["releases"]
        ]
        lines += ["", _table(["entry", "release", "run", "ε alone", "note"], rows)]
    if account["overrides"]:
        rows = [[str(o["seq"]), _shorten(o["run"]), o["reason"]] for o in account["overrides"]]
        lines += ["", _table(["entry", "override in run", "reason"], rows)]
    return "\n".join(lines)


def _choose(ledger: Ledger, dataset: str, unit: str | None) -> list[tuple[str, str]]:
    """The accounts of the data set of this name, or of the only one that begins with it."""
    accounts = ledger.accounts()
    names = {name for name, _ in accounts}
    found = {dataset} & names or {name for name in names if name.startswith(dataset)}
    chosen = [a for a in accounts if a[0] in found and unit in (None, a[1])]
    if len(found) > 1:
        raise ValueError(f"data set {dataset!r} could be any of {', '.join(sorted(found))}; type more of it")
    if not chosen:
        what = f"data set {dataset!r}" + (f" with unit {unit!r}" if unit else "")
        raise ValueError(
            f"no {what} in {ledger.path}; it has {_accounts(accounts) or 'none'}; open one: "
            f"lightning-dp ledger register {dataset} --unit {unit or 'UNIT'} --limit E"
        )
    return chosen


def _accounts(accounts: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{dataset} ({unit})" for dataset, unit in accounts)


def _left(budget: Budget) -> str:
    if budget.limit_epsilon is None or budget.filter_epsilon is None:
        return "Nothing stops further charges."
    if budget.filter_epsilon >= budget.limit_epsilon:
        return f"The filter's ε is {budget.filter_epsilon:.4g}: nothing more can be charged."
    return f"The filter's ε is {budget.filter_epsilon:.4g}."


def _head(entries: Sequence[Entry]) -> list[Any]:
    return list(entries[-1].reference)


def _share(account: dict[str, Any]) -> str:
    limit, spent = account["limit_epsilon"], account["filter_epsilon"]
    if limit is None:
        return "–"
    return f"{100 * spent / limit:.0f} %" if limit else "all"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _values(values: Sequence[float]) -> str:
    if len(values) > 2:
        return f"{values[0]:.4g} … {values[-1]:.4g}"
    return ", ".join(f"{value:.4g}" for value in values) or "–"


def _delta(account: dict[str, Any]) -> str:
    return "–" if account["delta"] is None else f"{account['delta']:g}"


def _shorten(text: str, length: int = 32) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in [head, ["-" * width for width in widths], *rows]
    ]
    return "\n".join("  " + line.rstrip() for line in lines)


def _json(value: object) -> str:
    # ε is infinite where δ can't be met: JSON has no word for that.
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return "inf" if isinstance(value, float) and value == float("inf") else value
