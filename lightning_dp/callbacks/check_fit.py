"""`DifferentialPrivacy.check`: what `setup` of a fit checks, without a fit."""

from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_dp.callbacks.check import Refusals, plain_trainer, without_fit
from lightning_dp.callbacks.check_report import CheckReport, report_of
from lightning_dp.callbacks.needs import measure
from lightning_dp.callbacks.planned_fit import checked_fit
from lightning_dp.callbacks.preflight import look
from lightning_dp.privacy.plan import PrivacyPlan
from lightning_dp.privacy.ranks import Ranks

if TYPE_CHECKING:
    from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy


def check_fit(
    privacy: "DifferentialPrivacy",
    module: LightningModule,
    data: LightningDataModule | DataLoader[Any],
    *,
    trainer: Trainer | None,
    needs: bool,
) -> CheckReport:
    """Look at a fit; the arguments are those of `DifferentialPrivacy.check`, which has no fit running."""
    refused = Refusals()
    chosen = trainer if trainer is not None else plain_trainer(privacy)
    plan, seen, needed = None, None, None
    with without_fit(chosen, module, data, beside=(privacy, privacy.clipping_engine)):
        with refused.kept():
            loader, facts = checked_fit(privacy, chosen, module, ranks=Ranks(), attempt=refused.kept)
            plan = facts.plan
            seen = look(chosen, module, **preflight_arguments(privacy, loader, plan))
            # A step that the preflight refuses may not even run.
            if needs and seen.trial is not None and not seen.findings:
                physical = privacy.physical_batch_size
                needed = measure(seen.trial, plan=plan, physical_batch_size=physical, data=data)
        return report_of(
            module,
            plan=plan,
            seen=seen,
            refused=refused.sentences,
            accept=privacy.accept,
            engine=privacy.clipping_engine,
            steps_are_given=trainer is not None,
            needs=needed,
        )


def preflight_arguments(
    privacy: "DifferentialPrivacy", loader: DataLoader[Any], plan: PrivacyPlan
) -> dict[str, Any]:
    """What `look` and `run_preflight` take of a callback's settings."""
    return {
        "loader": loader,
        "plan": plan,
        "engine": privacy.clipping_engine,
        "function": privacy.clipping_function,
        "accept": privacy.accept,
        "synthetic_items": privacy.synthetic_items,
        "synthetic_units": privacy.synthetic_units,
    }
