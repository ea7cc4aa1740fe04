"""What a sweep costs: every trial on private data is one more look at it, and the ledger adds them up.

Scope: plans. A trial that is stopped early costs less, one that is repeated without a checkpoint more; what
was really charged is in the ledger.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from lightning.pytorch import LightningDataModule, LightningModule

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.fit.facts import FitFacts
from lightning_dp.privacy.accounting import Event, epsilon_pld
from lightning_dp.privacy.ledger import Ledger, LedgerMissing, filter_epsilon


@dataclass(frozen=True, kw_only=True)
class TrialCost:
    """What one private trial will charge.

    Attributes:
        dataset, unit: the account.
        delta: δ of the account.
        epsilon: of this trial alone.
        events: its releases before training and its steps.
        ledger: path of the ledger, or None for the usual one.
    """

    dataset: str
    unit: str
    delta: float
    epsilon: float
    events: tuple[Event, ...]
    ledger: str | None


def cost_of_trial(
    privacy: DifferentialPrivacy, *, module: LightningModule, data: LightningDataModule, num_steps: int
) -> TrialCost:
    """The plan of a trial, made as its fit will make it.

    Raises:
        ValueError: the plan is impossible.
    """
    fit = FitFacts.before_data(privacy, module=module, datamodule=data, num_steps=num_steps)
    return TrialCost(
        dataset=fit.dataset,
        unit=fit.unit.name,
        delta=fit.plan.delta,
        epsilon=fit.plan.epsilon,
        events=tuple(fit.plan.events(num_steps)),
        ledger=privacy.ledger,
    )


def describe_costs(costs: Iterable[TrialCost], *, at_most: bool) -> list[str]:
    """A line for each account: its trials, their ε together, and with what the ledger holds already.

    Args:
        costs: of every trial that is still to run.
        at_most: the trials' parameters are not known yet, and these are the dearest that may come.

    Raises:
        ValueError: the trials of an account differ in δ, or would go above the account's limit.
    """
    accounts: dict[tuple[str, str, str | None], list[TrialCost]] = defaultdict(list)
    for cost in costs:
        accounts[cost.dataset, cost.unit, cost.ledger].append(cost)
    lines = []
    for (dataset, unit, path), own in accounts.items():
        if len(deltas := {cost.delta for cost in own}) > 1:
            raise ValueError(
                f"privacy.delta differs between trials on {dataset} ({', '.join(map(str, sorted(deltas)))}), "
                "and an account has one δ: fix it"
            )
        (delta,) = deltas
        events = [event for cost in own for event in cost.events]
        before, limit = _account(path, dataset, unit)
        together = epsilon_pld(events, delta)
        total = epsilon_pld([*before, *events], delta)
        each = sorted({f"{cost.epsilon:.3g}" for cost in own}, key=float)
        bound = "at most " if at_most else ""
        line = (
            f"{dataset}: {len(own)} private trial{'s' if len(own) > 1 else ''} with ε per {unit} of "
            f"{', '.join(each)}, together {bound}ε = {together:.4g} at δ = {delta:g}"
        )
        lines.append(
            line + (f"; with what the ledger has, {bound}ε = {total:.4g}" if before else " in the ledger")
        )
        if limit is not None:
            filtered = filter_epsilon([*before, *events], delta, limit_epsilon=limit)
            if filtered > limit:
                raise ValueError(
                    f"the sweep would take {dataset} to ε = {filtered:.4g} per {unit}, above its limit of "
                    f"{limit:g}: sweep fewer trials or smaller ε, or raise the limit by 'lightning-dp ledger "
                    "set-limit'"
                )
    return lines


def ledger_totals(costs: Iterable[TrialCost]) -> list[str]:
    """A line for each account: what the ledger has now."""
    lines = []
    for dataset, unit, path, delta in sorted(
        {(cost.dataset, cost.unit, cost.ledger, cost.delta) for cost in costs}, key=str
    ):
        charged, _ = _account(path, dataset, unit)
        spent = epsilon_pld(charged, delta)
        lines.append(f"{dataset}: the ledger has ε = {spent:.4g} per {unit} at δ = {delta:g}, over all runs")
    return lines


def _account(path: str | None, dataset: str, unit: str) -> tuple[list[Event], float | None]:
    ledger = Ledger(path)
    try:
        dataset = ledger.name_of(dataset)
        if (dataset, unit) not in ledger.accounts():
            return [], None
    except LedgerMissing:
        return [], None
    return ledger.events(dataset, unit=unit), ledger.budget(dataset, unit=unit).limit_epsilon
