"""The right of one process to charge one account, and to give back what it did not use."""

import os
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NoReturn

from lightning_dp.privacy.accounting import Event, GaussianEvent, event_to_dict, releases
from lightning_dp.privacy.ledger.budget import check_budget
from lightning_dp.privacy.ledger.connections import Connection
from lightning_dp.privacy.ledger.errors import LedgerError
from lightning_dp.privacy.ledger.replay import Replay
from lightning_dp.privacy.ledger.rows import CHARGES, ChargeKind, Entry
from lightning_dp.privacy.ledger.storage import LedgerFile


class Lease:
    """The right of one process start to charge one account; made by `Ledger.open_run`.

    Safe to use from several threads. Belongs to the process that opened it: after a fork every method
    raises. With several ranks only rank 0 holds one and tells the others. As a context manager it is
    closed without credit at the end, which is right after an exception.
    """

    def __init__(self, file: LedgerFile, connection: Connection, replay: Replay, entry: Entry) -> None:
        self._file = file
        self.dataset = entry.dataset
        self.unit = entry.unit
        self.run = entry.run
        self.id = entry.lease
        self._head = entry.reference
        self._connection = connection
        self._replay = replay
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def head(self) -> tuple[int, str]:
        """(seq, hash) of this lease's last entry: what a checkpoint carries as `parent`."""
        return self._head

    @property
    def proof(self) -> dict[str, Any] | None:
        """The chain's end after this lease's last entry, signed: what checkpoints and reports carry."""
        return self._connection.proof

    def reserve(self, event: Event, *, kind: ChargeKind = "reserve", note: str = "") -> Entry:
        """Charge `event`. Only after this returned may the private rows it pays for be read.

        Args:
            event: a mechanism; a Gaussian one has steps ≥ 1.
            kind: `reserve` for training steps, `release` for a one-off statistic, `audit`.
            note: what was released, for readers.

        Returns:
            The entry, which is on disk.

        Raises:
            BudgetExceeded: the limit would be passed; nothing was charged.
            LedgerError: the entry may or may not be there; release nothing.
        """
        if kind not in CHARGES:
            raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(CHARGES)}.")
        if releases(event)[1] < 1:
            raise ValueError("event.steps is 0; reserve at least one step.")

        def check() -> None:
            check_budget(self._replay, self._key, [event], run=self.run, lease=self.id)

        return self._append(kind, {"event": event_to_dict(event), "note": note}, check)

    def override(self, reason: str) -> Entry:
        """Write down that a check was overridden and why; costs nothing, lifts no limit."""
        if not reason.strip():
            raise ValueError("reason is empty; say why the check may be overridden.")
        return self._append("override", {"reason": reason})

    def close(self, *, steps_taken: Mapping[int, int] | None = None) -> Entry:
        """End the lease cleanly and give back what it reserved and did not use.

        Args:
            steps_taken: seq of a Gaussian reservation of this lease → steps really taken, between 0
                and those reserved. Reservations left out stay charged in full, and so does
                everything where this is never called: after a crash nothing is given back.
        """
        taken = dict(steps_taken or {})

        def check() -> None:
            for seq, steps in taken.items():
                charge = self._replay.charge(seq, lease=self.id)
                if charge is None or not isinstance(charge.event, GaussianEvent):
                    raise ValueError(f"steps_taken names entry {seq}, no Gaussian reservation of this lease.")
                if not isinstance(steps, int) or not 0 <= steps <= charge.event.steps:
                    raise ValueError(
                        f"steps_taken of entry {seq} is {steps!r}; {charge.event.steps} were reserved."
                    )

        entry = self._append("close", {"steps_taken": {str(seq): n for seq, n in taken.items()}}, check)
        self._closed = True
        self._file.keep(self._replay, key=self._connection.key)
        self._connection.close()
        return entry

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._closed:
            self.close()

    def __reduce__(self) -> NoReturn:
        raise LedgerError(
            "A lease belongs to one process and can't be pickled; open one in the other process."
        )

    @property
    def _key(self) -> tuple[str, str]:
        return self.dataset, self.unit

    def _append(self, kind: str, detail: dict[str, Any], check: Callable[[], None] = lambda: None) -> Entry:
        if os.getpid() != self._pid:  # before the lock, which another thread may have held at the fork
            raise LedgerError(
                f"This lease was opened by process {self._pid} and used in its fork {os.getpid()}: each "
                "process must open its own, or let rank 0 reserve."
            )
        with self._lock:
            if self._closed:
                raise LedgerError("This lease is closed; open a new one with open_run.")
            with self._file.transaction(self._connection, self._replay):
                check()
                entry = self._file.insert(
                    self._connection,
                    self._replay,
                    self._key,
                    kind=kind,
                    run=self.run,
                    lease=self.id,
                    detail=detail,
                )
            self._head = entry.reference
            return entry
