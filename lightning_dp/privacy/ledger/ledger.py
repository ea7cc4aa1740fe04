"""Accounts, limits and leases at one path; what the rest of the package meets as `Ledger`."""

import contextlib
import math
import os
import platform
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_dp.privacy.accounting import (
    Event,
    check_delta,
    epsilon_pld,
    event_to_dict,
    events_of_counts,
    releases,
)
from lightning_dp.privacy.ledger.budget import Budget, budget_of, check_budget
from lightning_dp.privacy.ledger.content import Content, content_of
from lightning_dp.privacy.ledger.countersign import countersign
from lightning_dp.privacy.ledger.errors import LedgerError, LedgerMissing
from lightning_dp.privacy.ledger.evidence import Comparison, Evidence, compare
from lightning_dp.privacy.ledger.examination import examine
from lightning_dp.privacy.ledger.identity import find_name, is_news
from lightning_dp.privacy.ledger.keys import content_key, key_at_hand, key_id
from lightning_dp.privacy.ledger.lease import Lease
from lightning_dp.privacy.ledger.names import check_alike, check_text, normalised, spelt
from lightning_dp.privacy.ledger.processes import process_start
from lightning_dp.privacy.ledger.replay import Account, Replay
from lightning_dp.privacy.ledger.rows import ChargeKind, Entry
from lightning_dp.privacy.ledger.signed_report import with_signature
from lightning_dp.privacy.ledger.storage import ENVIRONMENT_VARIABLE, LedgerFile
from lightning_dp.privacy.ledger.totals import Totals
from lightning_dp.privacy.units import is_coarser

RELATION = "add_or_remove_one"


def _check_limit(value: float) -> float:
    if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
        raise ValueError(f"limit_epsilon is {value!r}; it must be a number of at least 0 (0: nothing more).")
    return float(value)


class Ledger:
    """The ledger at one path. Holds no connection between calls, so it may be pickled and forked.

    A relation other than add-or-remove-one is refused: the accountant knows no other, and a
    replacement costs twice the sensitivity.

    Errors: every method raises `LedgerError` (or `LedgerCorrupt`) in one sentence where the file is
    missing, damaged, locked, full, not writable or put back to an older state, and `ValueError` for
    arguments that can't be right.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, lock_timeout: float = 30.0) -> None:
        """Name the ledger; the file is made by the first `register`.

        Args:
            path: the file; None takes `default_ledger_path`.
            lock_timeout: seconds to wait for another process's transaction.
        """
        self._file = LedgerFile(path, lock_timeout=lock_timeout)

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    @property
    def is_elsewhere(self) -> bool:
        """Whether this is another file than the one that runs use where nobody names one."""
        try:
            return self.path != LedgerFile(None, lock_timeout=0).path
        except RuntimeError:  # nobody knows where this user's home is
            return True

    def is_same(self, name: str, other: str) -> bool:
        """Whether two names, however spelt, mean one data set here; the empty name means none."""
        if name == other:
            return True
        try:
            aliases = self._file.read().aliases
        except LedgerMissing:
            aliases = {}
        one, two = (aliases.get(spelling, spelling) for spelling in map(spelt, (name, other)))
        return one == two

    def datasets_of(self, run: str) -> list[str]:
        """Data sets that a run has an account of."""
        accounts = self._file.read().accounts.items()
        return sorted({dataset for (dataset, _), account in accounts if run in account.runs})

    # writing

    def register(
        self,
        dataset: str,
        *,
        unit: str,
        delta: float | None,
        relation: str = RELATION,
        limit_epsilon: float | None = None,
    ) -> None:
        """Open the account of a data set and unit; again with the same facts, do nothing.

        Args:
            dataset: its name, 1 to 200 printable characters.
            unit: what one guarantee protects (`record`, `window`, `user`, …).
            delta: δ in (0, 1) of every ε of this account; None leaves it to the first run.
            relation: `add_or_remove_one`.
            limit_epsilon: ≥ 0; None leaves the limit as it is. An account without a limit gets this one.

        Raises:
            ValueError: a fact differs from the registered one; a limit is changed by `set_limit` only; the
                name could be taken for another.
        """
        normalised("dataset", dataset)
        unit = normalised("unit", unit)
        if delta is not None:
            check_delta(delta)
        if relation != RELATION:
            raise ValueError(
                f"relation is {relation!r}; only {RELATION!r} is accounted for. For replace-one, treat a "
                "replacement as one removal and one addition (group of two)."
            )
        wanted = None if limit_epsilon is None else _check_limit(limit_epsilon)
        with self._appending(create=True) as (replay, append):
            dataset = find_name(replay, dataset)
            key = (dataset, unit)
            account = replay.accounts.get(key)
            if account is None:
                append(
                    key,
                    kind="register",
                    detail={"relation": relation, "delta": None if delta is None else float(delta)},
                )
            else:
                for name, old, new in (
                    ("relation", account.relation, relation),
                    ("delta", account.delta, delta),
                ):
                    if old is not None and new is not None and old != new:
                        raise ValueError(
                            f"{name} of data set {dataset!r} ({unit}) is {new!r}, but the ledger has {old!r}:"
                            " an account keeps its facts, so that its runs can be added up. Use those."
                        )
                if account.delta is None and delta is not None:
                    append(key, kind="delta", detail={"delta": float(delta)})
            known = replay.accounts[key].limit
            if wanted is not None and known is None:
                append(key, kind="limit", detail={"epsilon": wanted, "reason": "registered"})
            elif wanted is not None and wanted != known:
                raise ValueError(
                    f"limit_epsilon of data set {dataset!r} ({unit}) is {wanted:g}, but the ledger has "
                    f"{known:g}. A run can't change it; its owner can: "
                    f"lightning-dp ledger set-limit {dataset} --unit {unit} --epsilon {wanted:g}"
                )

    def content_of(self, pieces: Iterable[bytes]) -> Content | None:
        """Marks of what a data set holds, by this ledger's key; None where there is nothing to mark.

        Args:
            pieces: what it is made of, such as images; see `content.py`.
        """
        key = content_key(self.path)
        content = content_of(pieces, key=key, key_id=key_id(key))
        return content if content.pieces else None

    def sign_report(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """A report signed by the key that signs this ledger; unsigned where there is none yet."""
        return with_signature(report, key=key_at_hand(self.path))

    def identify(self, dataset: str, content: Content) -> None:
        """See that a data set is the one that its name stands for, and remember its content.

        Raises:
            UnclearData: it is known under another name, or this name stood for something else.
        """
        key = content_key(self.path)
        with self._appending(create=True) as (replay, append):
            name = find_name(replay, dataset)
            if is_news(replay, name, content, key=key):
                append((name, ""), kind="content", detail=content.sealed(key))

    def accept_content(self, dataset: str, *, reason: str) -> Entry:
        """Let the next content under this name be whatever it is.

        Args:
            dataset: its name, new or known.
            reason: why, in words.
        """
        reason = _check_reason(reason, "the content may be another, or be known by another name")
        with self._appending() as (replay, append):
            return append((find_name(replay, dataset), ""), kind="accept", detail={"reason": reason})

    def same_as(self, dataset: str, known: str, *, reason: str = "") -> Entry:
        """Let another name lead to the accounts of a known data set.

        Raises:
            ValueError: the other name has accounts of its own, which can't be joined.
        """
        reason = check_text("reason", reason)
        name = normalised("dataset", dataset)
        with self._appending() as (replay, append):
            target = find_name(replay, known)
            if target not in {one for one, _ in replay.accounts}:
                raise LedgerError(f"Data set {known!r} is not registered in {self.path}: see ledger list.")
            if name in {one for one, _ in replay.accounts} or name in replay.aliases:
                raise ValueError(
                    f"dataset {name!r} is known already, with charges or a meaning of its own, and what "
                    f"was charged stays where it is: from now on name the data {target!r}."
                )
            check_alike(name, [one for one, _ in replay.accounts if one != target])
            return append((target, ""), kind="alias", detail={"name": name, "reason": reason})

    def name_of(self, dataset: str) -> str:
        """The name of the accounts that a data set is charged to."""
        try:
            return find_name(self._file.read(), dataset)
        except LedgerMissing:
            return normalised("dataset", dataset)

    def set_limit(self, dataset: str, *, unit: str, limit_epsilon: float | None, reason: str = "") -> Entry:
        """Append a new limit; None lifts it. Below what is spent it stops all further charges.

        The filter's guarantee is for limits that are not chosen by looking at earlier outputs.
        """
        wanted = None if limit_epsilon is None else _check_limit(limit_epsilon)
        reason = check_text("reason", reason)
        with self._appending() as (replay, append):
            key, _ = _account(replay, dataset, unit)
            return append(key, kind="limit", detail={"epsilon": wanted, "reason": reason})

    def allow(self, dataset: str, *, unit: str, finer: str, reason: str) -> Entry:
        """Let runs at a finer unit go on beside the limit of a coarser one, which does not see them.

        Kept for good; a new limit on the coarser unit ends it.

        Args:
            dataset, unit: a registered account.
            finer: the unit that may be charged, such as `window` beside `user`.
            reason: why, in words.
        """
        reason = _check_reason(reason, f"{finer} may be charged beside {unit}")
        if not is_coarser(unit, normalised("finer", finer)):
            raise ValueError(
                f"finer is {finer!r}, which is not finer than {unit!r}: a limit per {unit} does not stop it."
            )
        with self._appending() as (replay, append):
            key, _ = _account(replay, dataset, unit)
            return append(key, kind="override", detail={"finer_unit": finer, "reason": reason})

    def open_run(
        self,
        dataset: str,
        *,
        unit: str,
        run: str,
        parent: tuple[int, str] | None = None,
        plan: Sequence[Event] = (),
        facts: Mapping[str, object] | None = None,
    ) -> Lease:
        """Take a lease: what one process start needs to reserve. Checks the ledger first.

        Args:
            dataset, unit: a registered account.
            run: id of the run; a resumed run keeps it.
            parent: (seq, hash) from the checkpoint that is resumed.
            plan: everything that this process means to charge. It is held against the limit while the
                process lives, so of two runs that can't both end one is refused here, before any
                private row is read. A plan is not a charge and not part of any ε.
            facts: what else the entry says about the run, for readers; JSON-ready.

        Raises:
            LedgerError: the ledger does not hold `parent`, so charges since then would be lost.
            BudgetExceeded: `plan` does not fit.
        """
        normalised("run", run)
        plan = [event for event in plan if releases(event)[1]]
        connection = self._file.connect()
        try:
            replay = self._file.load(connection)
            with self._file.transaction(connection, replay):
                key, _ = _account(replay, dataset, unit)
                if parent is not None and not replay.holds(connection, *parent):
                    raise LedgerError(
                        f"The checkpoint was written when the ledger had entry {parent[0]} "
                        f"({parent[1][:12]}…); {self.path} ends at {replay.seq} and does not hold it, so "
                        "what was charged since is not in it. Use the ledger that the run was started "
                        f"with ({ENVIRONMENT_VARIABLE} or --ledger), or put back its newest copy."
                    )
                lease = secrets.token_hex(8)
                check_budget(replay, key, plan, run=run, lease=lease)
                pid = os.getpid()
                process = {"host": platform.node(), "pid": pid, "started": process_start(pid)}
                detail = {
                    "parent": None if parent is None else list(parent),
                    "plan": [event_to_dict(event) for event in plan],
                    "process": process,
                    **({"facts": dict(facts)} if facts else {}),
                }
                entry = self._file.insert(
                    connection, replay, key, kind="open", run=run, lease=lease, detail=detail
                )
            return Lease(self._file, connection, replay, entry)
        except BaseException:
            connection.close()
            raise

    # reading

    def head(self) -> tuple[int, str]:
        """(seq, hash) of the last entry."""
        return self._file.read().reference

    def contains(self, seq: int, digest: str) -> bool:
        """Whether the ledger holds the entry that a checkpoint or artefact carries."""
        return self._file.holds([(seq, digest)])[0]

    def holds(self, references: Collection[tuple[object, object]]) -> list[bool]:
        """`contains` of many (seq, hash), by one look."""
        return self._file.holds(references)

    def verify(self) -> tuple[int, str]:
        """Check every row, the append-only triggers, SQLite's own structure, the anchor and signatures.

        Returns:
            (seq, hash) of the last entry.

        Raises:
            LedgerCorrupt: names the first entry that can't be trusted.
        """
        return examine(self._file).head

    def examine(self, evidence: Sequence[Evidence] = ()) -> Comparison:
        """`verify`, with what others carry of this ledger.

        Raises:
            LedgerCorrupt: the ledger contradicts itself.
            LedgerMissing: there is none, and nothing carries anything of it.
        """
        compared = compare(self._file, evidence)
        if compared.examination is None and not evidence:
            self._file.read()
        return compared

    def countersign(self, folder: Path) -> tuple[Path, int]:
        """Log the chain's end in a second place; see `countersign.py`."""
        return countersign(self._file, folder=folder)

    def entries(self, dataset: str | None = None, *, unit: str | None = None) -> list[Entry]:
        """All rows, or those of one data set (and unit), in order."""
        found: list[Entry] = []

        def keep(entry: Entry) -> None:
            if dataset in (None, entry.dataset) and unit in (None, entry.unit):
                found.append(entry)

        self._file.read_all(keep)
        return found

    def replay(self) -> Replay:
        """Everything that the ledger says, for who asks for several things of one moment."""
        return self._file.read()

    def totals(self) -> Totals:
        """ε of accounts that were computed before."""
        return Totals(self.path, key=key_at_hand(self.path))

    def events(
        self, dataset: str, *, unit: str, run: str | None = None, kind: ChargeKind | None = None
    ) -> list[Event]:
        """Everything charged to an account, closed reservations at the steps taken.

        Args:
            dataset, unit: a registered account.
            run: only what this run charged.
            kind: only steps of training (`reserve`), one-off releases or audits.
        """
        runs = None if run is None else [run]
        replay, charges = self._file.charges(runs=runs, key=lambda read: _account(read, dataset, unit)[0])
        account = _account(replay, dataset, unit)[1]
        if run is not None and run not in account.runs:
            raise LedgerError(f"Run {run!r} has no entry for data set {dataset!r} ({unit}) in {self.path}.")
        return [charge.event for charge in charges if kind in (None, charge.kind)]

    def events_by_run(self, dataset: str, *, unit: str) -> dict[str, list[Event]]:
        """The same for every run that opened a lease, in order; empty where it charged nothing."""
        replay, charges = self._file.charges(key=lambda read: _account(read, dataset, unit)[0])
        runs: dict[str, list[Event]] = {run: [] for run in _account(replay, dataset, unit)[1].runs}
        for charge in charges:
            runs[charge.run].append(charge.event)
        return runs

    def charges_of(
        self, runs: Collection[str]
    ) -> dict[tuple[str, str], tuple[float, dict[str, list[Event]]]]:
        """Everything that some runs charged: (data set, unit) → (δ, run → its charges)."""
        replay, charges = self._file.charges(runs=runs)
        found: dict[tuple[str, str], tuple[float, dict[str, list[Event]]]] = {}
        for charge in charges:
            _, by_run = found.setdefault(charge.key, (replay.accounts[charge.key].known_delta, {}))
            by_run.setdefault(charge.run, []).append(charge.event)
        return found

    def epsilon(self, dataset: str, *, unit: str, delta: float | None = None) -> float:
        """ε of everything charged to an account (PLD), at its δ or another.

        Never below what was released. Exact for plans made before looking at earlier outputs; where a
        run was chosen because of an earlier one's result, `budget` has the figure that covers that.
        """
        _, account = _account(self._file.read(), dataset, unit)
        if not any(account.counts.values()):
            return 0.0
        return epsilon_pld(events_of_counts(account.counts), account.known_delta if delta is None else delta)

    def epsilon_of_run(self, run: str, *, dataset: str, unit: str, delta: float | None = None) -> float:
        """ε of everything that one run charged to an account, over all its restarts (PLD)."""
        events = self.events(dataset, unit=unit, run=run)
        _, account = _account(self._file.read(), dataset, unit)
        return epsilon_pld(events, account.known_delta if delta is None else delta)

    def budget(self, dataset: str, *, unit: str) -> Budget:
        """Facts, limit and the filter's figures of one account."""
        replay = self._file.read()
        return budget_of(replay, _account(replay, dataset, unit)[0])

    def accounts(self) -> list[tuple[str, str]]:
        """(data set, unit) of every account, in the order of registration."""
        return list(self._file.read().accounts)

    # private

    @contextlib.contextmanager
    def _appending(self, *, create: bool = False) -> Iterator[tuple[Replay, Callable[..., Entry]]]:
        """A transaction of its own, for entries that belong to no lease."""
        with contextlib.closing(self._file.connect(create=create)) as connection:
            replay = self._file.load(connection)
            with self._file.transaction(connection, replay):

                def append(key: tuple[str, str], *, kind: str, detail: dict[str, Any]) -> Entry:
                    return self._file.insert(connection, replay, key, kind=kind, detail=detail)

                yield replay, append


def identify(ledger: Ledger, *, dataset: str, pieces: Iterable[bytes] | None) -> dict[str, object]:
    """See that a data set is the one that its name stands for, before anything is charged to it.

    Args:
        ledger: where its content is remembered.
        dataset: its name.
        pieces: what it is made of; None where nobody says.

    Returns:
        What reports say of it: whether the content could be compared, and which ledger it is.

    Raises:
        UnclearData: it is known under another name, or this name stood for something else.
    """
    content = None if pieces is None else ledger.content_of(pieces)
    if content is not None:
        ledger.identify(dataset, content)
    return {
        "content": "compared with what the ledger knows"
        if content
        else "not compared: it has no fingerprint",
        "ledger_elsewhere": ledger.is_elsewhere,
    }


def _account(replay: Replay, dataset: str, unit: str) -> tuple[tuple[str, str], Account]:
    """The account of a data set by any of its names, with its key."""
    key = (find_name(replay, dataset), unit)
    return key, replay.account(*key)


def _check_reason(reason: str, what: str) -> str:
    reason = check_text("reason", reason)
    if len(reason.split()) < 2:
        raise ValueError(f"reason is {reason!r}; say in words why {what}.")
    return reason
