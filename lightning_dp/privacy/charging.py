"""Pays for training steps ahead of time, a handful at once, and never for more than the plan holds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lightning_dp.privacy.accounting import Event, GaussianEvent
from lightning_dp.privacy.ledger import Lease, Ledger, LedgerError, identify
from lightning_dp.privacy.ledger.account import total_for_report
from lightning_dp.privacy.plan import PrivacyPlan
from lightning_dp.privacy.ranks import Ranks
from lightning_dp.privacy.release import Mechanism, PerUnit, Value
from lightning_dp.privacy.report.document import Total


class StepCharges:
    """The account of one run, as the processes that train it together see it.

    `cover` is called before a step may release anything; `take` when it does. Steps that were charged
    by an earlier, killed process of the same run stay charged: they come off what is left. Every rank
    makes the same calls in the same order; rank 0 alone talks to the ledger.

    Args:
        ledger: where charges are written.
        plan: its `num_steps` is the run's whole allowance.
        dataset: the ledger's name for the data.
        run: id of the run; a resumed run keeps it.
        parent: (seq, hash) carried by the checkpoint that is resumed, else None.
        reserve_steps: ≥ 1, steps charged at once.
        ranks: the processes; None is what torch.distributed says.
        overrides: reasons for which checks were overridden, kept in the ledger.
        facts: what else the ledger's entry says about this run, JSON-ready.
        pieces: gives what the data is made of, to be compared with what the ledger knows; None where nobody
            says. Asked for by rank 0 alone, before anything is charged.

    Attributes:
        identity: what reports say of the ledger and the data's content; of rank 0 alone.
        charged_before: steps that earlier processes of the run were charged for.
        head: (seq, hash) of the last entry, for checkpoints.
        taken: steps of this process.

    Raises:
        RankZeroError: on other ranks, where rank 0 raised one of the following.
        LedgerError: the ledger can't vouch, the budget is exhausted, or the run was charged by
            another plan.
    """

    def __init__(
        self,
        ledger: Ledger,
        plan: PrivacyPlan,
        *,
        dataset: str,
        run: str,
        parent: tuple[int, str] | None,
        reserve_steps: int,
        ranks: Ranks | None = None,
        overrides: tuple[str, ...] = (),
        facts: Mapping[str, object] | None = None,
        pieces: Callable[[], Iterable[bytes] | None] = lambda: None,
    ) -> None:
        self.identity: dict[str, object] = {}
        self._plan = plan
        self._pieces = pieces
        self._facts = facts or {}
        self._reserve_steps = reserve_steps
        self._ranks = ranks or Ranks()
        self._lease: Lease | None = None
        self._paying: Lease | None = None
        self._ledger = ledger
        self._dataset = dataset

        def open_run() -> tuple[int, tuple[int, str]]:
            charged = self._open(ledger, dataset=dataset, run=run, parent=parent)
            assert self._lease is not None
            for reason in overrides:
                self._lease.override(reason)
            return charged, self._lease.head

        self.charged_before, self.head = self._ranks.on_rank_zero(open_run)
        self._taken_of: dict[int, int] = {}
        self._credit = 0
        self.taken = 0

    @property
    def left(self) -> int:
        """Steps that this process may still take."""
        return self._plan.num_steps - self.charged_before - self.taken

    @property
    def spent(self) -> int:
        """Steps charged to the run so far: earlier processes' charges and this one's steps."""
        return self.charged_before + self.taken

    @property
    def charged(self) -> int:
        """Steps that the ledger holds against the run: those spent and, until `close`, those reserved."""
        return self.spent + self._credit

    def cover(self, *, announce: Callable[[int], None] | None = None) -> bool:
        """Make sure that the next step is paid for; True if something was charged.

        Args:
            announce: told on rank 0 what `charged` will be, before the ledger is: whoever reads what it
                writes finds at no moment less than the ledger holds. If it fails, nothing is charged.

        Raises:
            LedgerError: nothing is left of the plan or of the data set's budget.
        """
        if self._credit:
            return False
        if self.left < 1:
            raise LedgerError(f"all {self._plan.num_steps} steps of the plan are spent")
        steps = min(self._reserve_steps, self.left)

        def reserve() -> tuple[int, str]:
            assert self._lease is not None
            if announce is not None:
                announce(self.charged + steps)
            return self._lease.reserve(self._plan.event(steps)).reference

        self.head = self._ranks.on_rank_zero(reserve)
        self._taken_of[self.head[0]] = 0
        self._credit = steps
        return True

    def release(
        self,
        mechanism: Mechanism[Value],
        values: Callable[[], PerUnit],
        *,
        note: str,
        drawn_at: float = 1.0,
    ) -> Value:
        """Make one release that the plan holds in `prior`: charge, read and answer on rank 0, tell all."""
        if mechanism.event not in self._plan.prior:
            raise LedgerError(f"{note} was about to release {mechanism.event}, which the plan does not hold")

        def pay_and_answer() -> tuple[Value, tuple[int, str]]:
            assert self._lease is not None
            released = mechanism.release(values, self._lease, note=note, drawn_at=drawn_at)
            return released.value, (released.seq, released.hash)

        answer, self.head = self._ranks.on_rank_zero(pay_and_answer)
        return answer

    def take(self) -> None:
        """Count one step; only after `cover`."""
        if self._credit < 1:
            raise LedgerError("a step was about to be released that the ledger does not cover")
        self._credit -= 1
        self.taken += 1
        self._taken_of[max(self._taken_of)] += 1

    def close(self) -> None:
        """End cleanly: what was charged and not used is given back. Safe to call twice.

        Waits for no other rank, which may be gone.
        """
        if self._lease is not None:
            lease, self._lease = self._lease, None
            self.head = lease.close(steps_taken=self._taken_of).reference
            self._credit = 0

    def _open(self, ledger: Ledger, *, dataset: str, run: str, parent: tuple[int, str] | None) -> int:
        """Take the lease; return the steps that earlier processes of the run were charged for."""
        plan, unit = self._plan, self._plan.unit.name
        charged = 0
        self.identity = identify(ledger, dataset=dataset, pieces=self._pieces())
        if parent is None:
            ledger.register(dataset, unit=unit, delta=plan.delta)
        else:
            if not ledger.contains(*parent):
                raise LedgerError(
                    f"the checkpoint belongs to entry {parent[0]} ({parent[1][:12]}…) of a ledger, and "
                    f"{ledger.path} does not hold it: use the ledger that the run was started with"
                )
            charged = self._charged(ledger.events(dataset, unit=unit, run=run, kind="reserve"))
        left = plan.num_steps - charged
        if left < 1:
            raise LedgerError(
                f"run {run} has been charged for all its {plan.num_steps} steps (ε = {plan.epsilon:.4g}); "
                "steps lost in a crash stay charged. Start a new run to spend more."
            )
        events = plan.events(left) if parent is None else [plan.event(left)]
        self._lease = self._paying = ledger.open_run(
            dataset, unit=unit, run=run, parent=parent, plan=events, facts=self._facts
        )
        return charged

    @property
    def proof(self) -> dict[str, Any] | None:
        """The ledger's end after the last entry, signed; of rank 0 alone."""
        return None if self._paying is None else self._paying.proof

    def signed(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """A report with what it says of the ledger, and the signature of who signs that; of rank 0 alone."""
        return self._ledger.sign_report({**report, **self.identity, "ledger_proof": self.proof})

    def total(self, events: Sequence[Event], *, epsilon: float) -> Total | None:
        """All runs on the account now, for a report whose own ε counts these events; of rank 0 alone."""
        plan = self._plan
        return total_for_report(
            self._ledger,
            dataset=self._dataset,
            unit=plan.unit.name,
            delta=plan.delta,
            events=events,
            epsilon=epsilon,
        )

    def _charged(self, events: list[Event]) -> int:
        expected = self._plan.event(1)
        total = 0
        for event in events:
            if not isinstance(event, GaussianEvent) or (
                (event.noise_multiplier, event.sampling_rate)
                != (expected.noise_multiplier, expected.sampling_rate)
            ):
                raise LedgerError(
                    f"this run was charged for {event} by an earlier process, and its plan now has "
                    f"noise_multiplier={expected.noise_multiplier} and sampling_rate="
                    f"{expected.sampling_rate:.6g}: resume with the settings of its config.yaml, or start "
                    "a new run"
                )
            total += event.steps
        return total
