"""What a private fit has charged and what it says of it: ledger, report and checkpoint agree by this."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, final

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn

from lightning_dp.callbacks.audit_canaries import AuditCanaries
from lightning_dp.callbacks.planned_fit import PlannedFit
from lightning_dp.callbacks.spot_check import SpotCheck
from lightning_dp.callbacks.weights_account import Before, account_for
from lightning_dp.callbacks.weights_seen import Origin, remember, seen_by
from lightning_dp.fit.declared_unit import ASSUMED
from lightning_dp.fit.facts import FitFacts
from lightning_dp.privacy.accounting import event_to_dict
from lightning_dp.privacy.charging import StepCharges
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.privacy.noise import NoiseSource
from lightning_dp.privacy.preflight import Accepted
from lightning_dp.privacy.randomness import SecretRandomness
from lightning_dp.privacy.ranks import Ranks
from lightning_dp.privacy.report import REPORT_NAME, json_ready, write_privacy_report
from lightning_dp.privacy.report.document import SCHEMA, Composed
from lightning_dp.privacy.report.facts import NOT_COVERED, compose, facts_of_end, noise_of, unit_in_words
from lightning_dp.privacy.report.readable import remove_readable, write_readable
from lightning_dp.privacy.report.typed import to_json
from lightning_dp.privacy.sampling import PoissonLoader
from lightning_dp.privacy.secure_noise import SecureGaussianNoise


@final
@dataclass(frozen=True, kw_only=True)
class FitAccount:
    """The account of one fit, from its first charge to its report after the end.

    Attributes:
        run: id of the run; a resumed fit goes on under the one in its checkpoint.
        facts: of the fit; its plan counts what earlier runs charged for the same weights.
        charges: pays for steps and releases.
        accepted: findings that the user answers for.
        before: what the weights had seen.
        folder: of the privacy report.
        ranks: the first one writes.
        noise: the source that training draws from.
        spot_check, audit: report what they looked at.
    """

    run: str
    facts: FitFacts
    charges: StepCharges
    accepted: tuple[Accepted, ...]
    before: Before
    folder: Path
    ranks: Ranks
    noise: NoiseSource
    spot_check: SpotCheck
    audit: AuditCanaries

    @classmethod
    def open(
        cls,
        fit: PlannedFit,
        module: LightningModule,
        *,
        run: str,
        parent: tuple[int, str] | None,
        accepted: tuple[Accepted, ...],
        folder: Path,
        ledger: Ledger,
        pieces: Callable[[], Iterator[bytes] | None],
        reserve_steps: int,
        public_start: str | None,
        noise: NoiseSource,
        spot_check: SpotCheck,
        audit: AuditCanaries,
    ) -> "FitAccount":
        """Count what the weights have seen and open the run in the ledger; nothing is charged yet.

        Args:
            fit: as `setup` planned it.
            module: whose weights are trained; it is marked with this run.
            run: id of the run.
            parent: (sequence number, hash) in the checkpoint that is resumed, or None.
            accepted: all findings that the user answers for.
            folder: of the privacy report.
            ledger: that pays.
            pieces: what the data is made of, or None where it has no such hook; called once.
            reserve_steps, public_start: see `DifferentialPrivacy`.
            noise, spot_check, audit: of the fit.

        Raises:
            ValueError: no ε could be stated for these weights.
            LedgerError: the ledger can't vouch, or the budget is exhausted.
        """
        facts, before = fit.facts, Before()
        # As the ledger spells it: a blank more is no other data set.
        facts = replace(facts, dataset=fit.ranks.on_rank_zero(partial(ledger.name_of, facts.dataset)))
        if origins := seen_by(module):
            before = fit.ranks.on_rank_zero(
                lambda: account_for(
                    origins,
                    ledger=ledger,
                    dataset=facts.dataset,
                    unit=facts.unit.name,
                    run=run,
                    public_start=public_start,
                )
            )
        if before.events:
            facts = facts.after(before.events)
        charges = StepCharges(
            ledger,
            facts.plan,
            dataset=facts.dataset,
            run=run,
            parent=parent,
            reserve_steps=reserve_steps,
            ranks=fit.ranks,
            overrides=tuple(map(str, accepted)),
            facts={
                **({} if facts.unit.declared else {"unit": ASSUMED, "declared": False}),
                **({} if public_start is None else {"public_start": public_start}),
                **({"weights_seen": json_ready(before.report)} if before.report else {}),
            },
            pieces=pieces,
        )
        remember(module, Origin(dataset=facts.dataset, run=run, ledger=list(charges.head)))
        return cls(
            run=run,
            facts=facts,
            charges=charges,
            accepted=accepted,
            before=before,
            folder=folder,
            ranks=fit.ranks,
            noise=noise,
            spot_check=spot_check,
            audit=audit,
        )

    @property
    def epsilon_spent(self) -> float:
        """ε per unit of all that the ledger holds against this run, as in the privacy report."""
        return self.facts.plan.epsilon_after(self.charges.charged)

    def figures(self) -> dict[str, float]:
        """What is published of the fit so far."""
        return {
            "privacy/steps": float(self.charges.spent),
            "privacy/noise_multiplier": self.facts.plan.noise_multiplier,
            "privacy/epsilon": self.facts.plan.epsilon_after(self.charges.spent),
        }

    def cover(self) -> bool:
        """Have the next step paid for; True if something was charged, which the report then says.

        The report says what a reservation costs before the ledger does, so that it is never below it.
        """
        charged = self.charges.cover(announce=lambda steps: self.report(status="running", charged=steps))
        if charged:
            self.report(status="running")
        return charged

    def report(self, *, status: str, charged: int | None = None) -> None:
        """Write the privacy report, on the first rank; at the end with ε(δ) and the pages that show it.

        Args:
            status: running, interrupted or finished.
            charged: steps that it speaks of; None is those that are charged.
        """
        if not self.ranks.is_first:
            return
        plan = self.facts.plan
        seq, digest = self.charges.head
        charged = self.charges.charged if charged is None else charged
        epsilon, end = plan.epsilon_after(charged), {}
        if status != "running":
            events = plan.events_of_weights(charged)
            total = self.charges.total(events, epsilon=epsilon)
            end = facts_of_end(events, delta=plan.delta, epsilon=epsilon, total=total)
        report = {
            "schema": SCHEMA,
            "kind": "fit",
            "status": status,
            "epsilon_spent": epsilon,
            "steps_charged": charged,
            "composition": to_json(self._composition(charged)),
            "mechanisms": self._mechanisms(charged),
            "run": self.run,
            "ledger_seq": seq,
            "ledger_hash": digest,
            "spot_check": self.spot_check.to_dict(),
            "audit": self.audit.to_dict(epsilon),
            **self._facts_of_report,
            **end,
        }
        path = self.folder / REPORT_NAME
        remove_readable(path)  # of an earlier fit into this folder: it claims less from now on
        content = self.charges.signed(report)
        write_privacy_report(self.folder, content)
        if status != "running":
            try:
                write_readable(path, content)
            except OSError as error:  # the report itself is there, and a fit's end has more to save
                rank_zero_warn(f"the privacy report could not be shown as HTML and Markdown: {error}")

    @cached_property
    def _facts_of_report(self) -> dict[str, object]:
        unit = self.facts.unit
        noise = [noise_of(self.noise, of="training")]
        if self.facts.preparations:
            noise.append(noise_of(SecureGaussianNoise, of="releases before training"))
        return {
            **self.facts.plan.to_dict(),
            "dataset": self.facts.dataset,
            "unit_in_words": unit_in_words(unit.name, unit.description),
            "noise": to_json(noise),
            "accepted_findings": [one.to_dict() for one in self.accepted],
            "weights_seen": self.before.report,
            "not_covered": list(NOT_COVERED),
        }

    def _composition(self, steps: int) -> list[Composed]:
        """The same as `_mechanisms`, in words."""
        plan, unit = self.facts.plan, self.facts.unit.name
        own = {"dataset": self.facts.dataset, "unit": unit}
        return [
            *compose(plan.earlier, released="in earlier fits of these weights", runs=self.before.runs, **own),
            *(
                one
                for preparation in self.facts.preparations
                for one in compose(
                    [preparation.mechanism.event],
                    released=f"{type(preparation).__name__}, before the first step",
                    runs=[self.run],
                    **own,
                )
            ),
            *compose(
                [plan.event(steps)],
                released="the sum of a batch's clipped gradients, with noise, at each step",
                runs=[self.run],
                **own,
            ),
        ]

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs to find its account; never the state of the noise."""
        plan, spent = self.facts.plan, self.charges.spent
        return {
            "run": self.run,
            "ledger": list(self.charges.head),
            "ledger_proof": self.charges.proof,
            "epsilon": plan.epsilon_after(spent),
            "steps": spent,
            "mechanisms": self._mechanisms(spent),
            "delta": plan.delta,
            "unit": plan.unit.name,
        }

    def _mechanisms(self, steps: int) -> list[dict[str, Any]]:
        """Everything that the weights release in so many steps, for whoever computes ε again."""
        return [event_to_dict(event) for event in self.facts.plan.events_of_weights(steps)]


def make_releases(
    account: FitAccount, *, loader: PoissonLoader, units_at_once: int, randomness: SecretRandomness
) -> None:
    """Charge and make every release before training, in order; each is in the report before the next.

    Args:
        account: of the fit, whose facts list the releases.
        loader: reads the train set.
        units_at_once: ≥ 1 units of a physical batch of training.
        randomness: of the fit, begun.
    """
    for preparation in account.facts.preparations:
        units = max(1, int(units_at_once / preparation.rows_of_step))
        rate = preparation.mechanism.sampling_rate
        batches = loader.in_order(units_per_batch=units, sampling_rate=rate)
        answer = account.charges.release(
            preparation.mechanism,
            partial(preparation.values, batches),
            note=type(preparation).__name__,
            drawn_at=rate,
        )
        preparation.apply(answer)
        account.report(status="running")
        randomness.check(type(preparation).__name__)
