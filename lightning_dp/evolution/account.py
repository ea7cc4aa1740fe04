"""Pays for the votes of one run, one at a time, and never for more than the plan holds."""

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from lightning_dp.evolution.plan import VotesPlan
from lightning_dp.privacy.accounting import Event
from lightning_dp.privacy.ledger import Ledger, LedgerError, identify
from lightning_dp.privacy.ledger.account import total_for_report
from lightning_dp.privacy.release import PerUnit, VoteCounts
from lightning_dp.privacy.report.document import Total


class VotesAccount:
    """The account of one run as this process sees it; a context manager that ends the lease.

    Votes that were charged to an earlier, killed process of the run stay charged: they come off what is
    left, whether or not their counts were kept.

    Args:
        ledger: where charges are written.
        plan: its `iterations` are the run's whole allowance.
        dataset, unit: the account.
        run: id of the run; a resumed run keeps it.
        parent: (seq, hash) that the run's state carries, None for a new run.

    Attributes:
        run: its id.
        dataset: as the ledger spells it.
        spent: votes charged to the run so far.
        head: (seq, hash) of its last entry.
        identity: what reports say of the ledger and the data's content.

    Raises:
        LedgerError: the ledger can't vouch, what is left of the data set's budget does not cover the plan,
            or the run was charged by another plan. Nothing was charged.
    """

    def __init__(
        self,
        ledger: Ledger,
        plan: VotesPlan,
        *,
        dataset: str,
        unit: str,
        run: str,
        parent: tuple[int, str] | None,
    ) -> None:
        self._plan = plan
        self.run = run
        self.spent = 0
        if parent is None:
            ledger.register(dataset, unit=unit, delta=plan.delta)
        else:
            if not ledger.contains(*parent):
                raise LedgerError(
                    f"the run's state belongs to entry {parent[0]} ({parent[1][:12]}…) of a ledger, and "
                    f"{ledger.path} does not hold it: use the ledger that the run was started with"
                )
            self.spent = self._charged(ledger.events(dataset, unit=unit, run=run))
        planned = [plan.event(self.left)] if self.left else []
        # Rows are read after the first vote was charged, so there is nothing yet to compare a content with.
        self.identity = identify(ledger, dataset=dataset, pieces=None)
        self._ledger = ledger
        self.dataset = ledger.name_of(dataset)
        self._unit = unit
        self._lease = ledger.open_run(dataset, unit=unit, run=run, parent=parent, plan=planned)
        self.head = self._lease.head

    @property
    def left(self) -> int:
        """Votes that may still be taken."""
        return max(0, self._plan.iterations - self.spent)

    def signed(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """A report with what it says of the ledger, and the signature of who signs that."""
        return self._ledger.sign_report({**report, **self.identity, "ledger_proof": self._lease.proof})

    def total(self, events: Sequence[Event], *, epsilon: float) -> Total | None:
        """All runs on the account now, for a report whose own ε counts these events."""
        return total_for_report(
            self._ledger,
            dataset=self.dataset,
            unit=self._unit,
            delta=self._plan.delta,
            events=events,
            epsilon=epsilon,
        )

    def vote(self, ballots: Callable[[], PerUnit], *, num_options: int) -> np.ndarray:
        """Charge one vote, then read the ballots and return the noisy counts, (num_options,).

        Args:
            ballots: reads private rows: for each unit the options its rows vote for.
            num_options: M.

        Raises:
            LedgerError: nothing is left, and nothing was read.
        """
        if not self.left:
            raise LedgerError(f"all {self._plan.iterations} votes of the plan are spent")
        mechanism = VoteCounts(noise_multiplier=self._plan.noise_multiplier, num_options=num_options)
        note = f"vote {self.spent + 1} of {self._plan.iterations}"

        def paid() -> PerUnit:
            self.spent += 1  # whatever comes of it
            self.head = self._lease.head
            return ballots()

        return mechanism.release(paid, self._lease, note=note).value

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lease.__exit__(kind, error, trace)
        self.head = self._lease.head

    def _charged(self, events: list[Event]) -> int:
        total = 0
        for event in events:
            if event != self._plan.event(1):
                raise LedgerError(
                    f"this run was charged for {event} by an earlier process, and its plan now has "
                    f"noise_multiplier={self._plan.noise_multiplier}: resume with the settings of its "
                    "config.yaml, or start a new run"
                )
            total += 1
        return total
