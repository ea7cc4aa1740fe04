"""Accounts, limits and leases at one path; what the rest of the package meets as `Ledger`."""

import contextlib
import math
import os
import platform
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_dp.privacy.accounting import Event, check_delta, epsilon_pld, event_to_dict, releases
from lightning_dp.privacy.ledger.budget import Budget, check_budget, undrawn_plans
from lightning_dp.privacy.ledger.errors import LedgerError
from lightning_dp.privacy.ledger.filter import filter_epsilon_of_counts
from lightning_dp.privacy.ledger.lease import Lease
from lightning_dp.privacy.ledger.processes import process_start
from lightning_dp.privacy.ledger.replay import Replay
from lightning_dp.privacy.ledger.rows import ChargeKind, Entry
from lightning_dp.privacy.ledger.storage import ENVIRONMENT_VARIABLE, LedgerFile
from lightning_dp.privacy.units import is_coarser

RELATION = "add_or_remove_one"


def _check_name(field_name: str, value: str) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > 200 or not value.isprintable():
        raise ValueError(f"{field_name} is {value!r}; it must be 1 to 200 printable characters.")
    return value


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

    # writing

    def register(
        self,
        dataset: str,
        *,
        unit: str,
        delta: float,
        relation: str = RELATION,
        limit_epsilon: float | None = None,
    ) -> None:
        """Open the account of a data set and unit; again with the same facts, do nothing.

        Args:
            dataset: fingerprint or name, 1 to 200 printable characters.
            unit: what one guarantee protects (`record`, `window`, `user`, …).
            delta: δ in (0, 1) of every ε of this account.
            relation: `add_or_remove_one`.
            limit_epsilon: ≥ 0; None leaves the limit as it is. An account without a limit gets this one.

        Raises:
            ValueError: a fact differs from the registered one; a limit is changed by `set_limit` only.
        """
        key = (_check_name("dataset", dataset), _check_name("unit", unit))
        check_delta(delta)
        if relation != RELATION:
            raise ValueError(
                f"relation is {relation!r}; only {RELATION!r} is accounted for. For replace-one, treat a "
                "replacement as one removal and one addition (group of two)."
            )
        wanted = None if limit_epsilon is None else _check_limit(limit_epsilon)
        with self._appending(create=True) as (replay, append):
            account = replay.accounts.get(key)
            if account is None:
                append(key, kind="register", detail={"relation": relation, "delta": float(delta)})
            else:
                for name, old, new in (
                    ("relation", account.relation, relation),
                    ("delta", account.delta, delta),
                ):
                    if old != new:
                        raise ValueError(
                            f"{name} of data set {dataset!r} ({unit}) is {new!r}, but the ledger has {old!r}:"
                            " an account keeps its facts, so that its runs can be added up. Use those."
                        )
            known = replay.accounts[key].limit
            if wanted is not None and known is None:
                append(key, kind="limit", detail={"epsilon": wanted, "reason": "registered"})
            elif wanted is not None and wanted != known:
                raise ValueError(
                    f"limit_epsilon of data set {dataset!r} ({unit}) is {wanted:g}, but the ledger has "
                    f"{known:g}. A run can't change it; its owner can: "
                    f"lightning-dp ledger set-limit {dataset} --unit {unit} --epsilon {wanted:g}"
                )

    def set_limit(self, dataset: str, *, unit: str, limit_epsilon: float | None, reason: str = "") -> Entry:
        """Append a new limit; None lifts it. Below what is spent it stops all further charges.

        The filter's guarantee is for limits that are not chosen by looking at earlier outputs.
        """
        wanted = None if limit_epsilon is None else _check_limit(limit_epsilon)
        with self._appending() as (replay, append):
            replay.account(dataset, unit)
            return append((dataset, unit), kind="limit", detail={"epsilon": wanted, "reason": reason})

    def allow(self, dataset: str, *, unit: str, finer: str, reason: str) -> Entry:
        """Let runs at a finer unit go on beside the limit of a coarser one, which does not see them.

        Kept for good; a new limit on the coarser unit ends it.

        Args:
            dataset, unit: a registered account.
            finer: the unit that may be charged, such as `window` beside `user`.
            reason: why, in words.
        """
        if len(reason.split()) < 2:
            raise ValueError(f"reason is {reason!r}; say in words why {finer} may be charged beside {unit}.")
        if not is_coarser(unit, _check_name("finer", finer)):
            raise ValueError(
                f"finer is {finer!r}, which is not finer than {unit!r}: a limit per {unit} does not stop it."
            )
        with self._appending() as (replay, append):
            replay.account(dataset, unit)
            return append((dataset, unit), kind="override", detail={"finer_unit": finer, "reason": reason})

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
        """Take a lease: what one process start needs to reserve. Checks the whole ledger first.

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
        _check_name("run", run)
        plan = [event for event in plan if releases(event)[1]]
        connection = self._file.connect()
        try:
            replay = self._file.load(connection)
            with self._file.transaction(connection, replay):
                replay.account(dataset, unit)
                if parent is not None and replay.hashes.get(parent[0]) != parent[1]:
                    raise LedgerError(
                        f"The checkpoint was written when the ledger had entry {parent[0]} "
                        f"({parent[1][:12]}…); {self.path} ends at {replay.seq} and does not hold it, so "
                        "what was charged since is not in it. Use the ledger that the run was started "
                        f"with ({ENVIRONMENT_VARIABLE} or --ledger), or put back its newest copy."
                    )
                lease = secrets.token_hex(8)
                check_budget(replay, (dataset, unit), plan, run=run, lease=lease)
                pid = os.getpid()
                process = {"host": platform.node(), "pid": pid, "started": process_start(pid)}
                detail = {
                    "parent": None if parent is None else list(parent),
                    "plan": [event_to_dict(event) for event in plan],
                    "process": process,
                    **({"facts": dict(facts)} if facts else {}),
                }
                entry = self._file.insert(
                    connection, replay, (dataset, unit), kind="open", run=run, lease=lease, detail=detail
                )
            return Lease(self._file, connection, replay, entry)
        except BaseException:
            connection.close()
            raise

    # reading

    def head(self) -> tuple[int, str]:
        """(seq, hash) of the last entry."""
        return self._file.read()[0].reference

    def contains(self, seq: int, digest: str) -> bool:
        """Whether the ledger holds the entry that a checkpoint or artefact carries."""
        return self._file.read()[0].hashes.get(seq) == digest

    def verify(self) -> tuple[int, str]:
        """Check every row, the append-only triggers, SQLite's own structure and the anchor.

        Returns:
            (seq, hash) of the last entry.

        Raises:
            LedgerCorrupt: names the first entry that can't be trusted.
        """
        return self._file.read()[0].reference

    def entries(self, dataset: str | None = None, *, unit: str | None = None) -> list[Entry]:
        """All rows, or those of one data set (and unit), in order."""
        return [
            entry
            for entry in self._file.read()[1]
            if dataset in (None, entry.dataset) and unit in (None, entry.unit)
        ]

    def events(
        self, dataset: str, *, unit: str, run: str | None = None, kind: ChargeKind | None = None
    ) -> list[Event]:
        """Everything charged to an account, closed reservations at the steps taken.

        Args:
            dataset, unit: a registered account.
            run: only what this run charged.
            kind: only steps of training (`reserve`), one-off releases or audits.
        """
        return self._events(self._file.read()[0], dataset, unit, run, kind)

    def events_by_run(self, dataset: str, *, unit: str) -> dict[str, list[Event]]:
        """The same for every run that opened a lease, in order; empty where it charged nothing."""
        replay = self._file.read()[0]
        runs: dict[str, list[Event]] = {run: [] for run in replay.account(dataset, unit).runs}
        for charge in replay.charges.values():
            if charge.key == (dataset, unit):
                runs[charge.run].append(charge.event)
        return runs

    def charges_of(
        self, runs: Collection[str]
    ) -> dict[tuple[str, str], tuple[float, dict[str, list[Event]]]]:
        """Everything that some runs charged: (data set, unit) → (δ, run → its charges)."""
        replay = self._file.read()[0]
        found: dict[tuple[str, str], tuple[float, dict[str, list[Event]]]] = {}
        for charge in replay.charges.values():
            if charge.run in runs:
                _, by_run = found.setdefault(charge.key, (replay.accounts[charge.key].delta, {}))
                by_run.setdefault(charge.run, []).append(charge.event)
        return found

    def epsilon(self, dataset: str, *, unit: str, delta: float | None = None) -> float:
        """ε of everything charged to an account (PLD), at its δ or another.

        Never below what was released. Exact for plans made before looking at earlier outputs; where a
        run was chosen because of an earlier one's result, `budget` has the figure that covers that.
        """
        return self._epsilon(dataset, unit, None, delta)

    def epsilon_of_run(self, run: str, *, dataset: str, unit: str, delta: float | None = None) -> float:
        """ε of everything that one run charged to an account, over all its restarts (PLD)."""
        return self._epsilon(dataset, unit, run, delta)

    def budget(self, dataset: str, *, unit: str) -> Budget:
        """Facts, limit and the filter's figures of one account."""
        replay = self._file.read()[0]
        account = replay.account(dataset, unit)
        spent = held = None
        if account.limit is not None:
            undrawn = undrawn_plans(replay, (dataset, unit), run=None, lease=None)
            spent = filter_epsilon_of_counts(account.counts, account.delta, account.limit)
            held = filter_epsilon_of_counts(account.counts + undrawn, account.delta, account.limit)
        return Budget(
            dataset=dataset,
            unit=unit,
            relation=account.relation,
            delta=account.delta,
            limit_epsilon=account.limit,
            filter_epsilon=spent,
            held_epsilon=held,
            runs=tuple(account.runs),
        )

    def accounts(self) -> list[tuple[str, str]]:
        """(data set, unit) of every account, in the order of registration."""
        return list(self._file.read()[0].accounts)

    # private

    def _epsilon(self, dataset: str, unit: str, run: str | None, delta: float | None) -> float:
        replay = self._file.read()[0]
        events = self._events(replay, dataset, unit, run)
        return epsilon_pld(events, replay.account(dataset, unit).delta if delta is None else delta)

    def _events(
        self, replay: Replay, dataset: str, unit: str, run: str | None, kind: ChargeKind | None = None
    ) -> list[Event]:
        account = replay.account(dataset, unit)
        if run is not None and run not in account.runs:
            raise LedgerError(f"Run {run!r} has no entry for data set {dataset!r} ({unit}) in {self.path}.")
        charges = (c for c in replay.charges.values() if c.key == (dataset, unit))
        return [c.event for c in charges if run in (None, c.run) and kind in (None, c.kind)]

    @contextlib.contextmanager
    def _appending(self, *, create: bool = False) -> Iterator[tuple[Replay, Callable[..., Entry]]]:
        """A transaction of its own, for entries that belong to no lease."""
        with contextlib.closing(self._file.connect(create=create)) as connection:
            replay = self._file.load(connection)
            with self._file.transaction(connection, replay):

                def append(key: tuple[str, str], *, kind: str, detail: dict[str, Any]) -> Entry:
                    return self._file.insert(connection, replay, key, kind=kind, detail=detail)

                yield replay, append
