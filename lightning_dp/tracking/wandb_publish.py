"""What W&B gets when a run has ended: ε of each unit and the ledger's hash, figures, the weights if asked.

Private statistics stay here. That goes for figures too: of gradients always, and all that are not known to be
drawn by the model alone, unless the data says that its rows are public, or the user that all may go. And
it goes for the checkpoint: what is sent has the weights and their configuration, not the optimizer's or the
loops' state, which counts batches whose sizes are no secret of ours to give away.
"""

from pathlib import Path
from typing import Any

import torch
import wandb
from lightning.pytorch import Trainer

from lightning_dp.lightning_internals import datamodule_of
from lightning_dp.privacy.report import REPORT_NAME, json_ready
from lightning_dp.protocols import is_public
from lightning_dp.tracking.account import read_account
from lightning_dp.tracking.layout import CHECKPOINT
from lightning_dp.tracking.run_folder import Run
from lightning_dp.tracking.wandb_logger import DiscreetWandbLogger

_LOCAL = ("nonprivate", "gradient_")
_OF_THE_MODEL_ALONE = ("sample_grid",)
"""Samples are post-processing of the weights. Any other figure may show real rows beside them."""
_WEIGHTS = ("state_dict", "hyper_parameters", "epoch", "global_step", "pytorch-lightning_version")


def publish(trainer: Trainer, *, folder: Path, run: Run) -> None:
    """Send what may be sent of a finished run; nothing happens without a W&B logger."""
    for logger in trainer.loggers:
        if isinstance(logger, DiscreetWandbLogger) and trainer.is_global_zero:
            _publish(logger, trainer, folder=folder, run=run)


def figures_to_send(folder: Path, *, rows_are_public: bool, share_nonprivate: bool) -> list[Path]:
    """The pictures of `plots/` that may leave this machine."""
    found = sorted((folder / "plots").glob("*.png"))
    if share_nonprivate:
        return found
    return [
        path
        for path in found
        if path.stem in _OF_THE_MODEL_ALONE or (rows_are_public and not path.stem.startswith(_LOCAL))
    ]


def _publish(logger: DiscreetWandbLogger, trainer: Trainer, *, folder: Path, run: Run) -> None:
    wandb_run: Any = logger.start()
    account = read_account(folder)
    report = account.report
    summary = {
        "epsilon": report.get("epsilon_spent"),
        "delta": report.get("delta"),
        "unit": report.get("unit"),
        "noise_multiplier": report.get("noise_multiplier"),
        "ledger_seq": report.get("ledger_seq"),
        "ledger_hash": report.get("ledger_hash"),
        "report_signature": account.checks.get("signature"),
        **{f"epsilon_of_{unit}": value for unit, value in report.get("epsilon_of_unit", {}).items()},
    }
    wandb_run.summary.update({name: value for name, value in summary.items() if value is not None})
    figures = figures_to_send(
        folder,
        rows_are_public=is_public(datamodule_of(trainer)),
        share_nonprivate=run.share_nonprivate,
    )
    if figures:
        logger.log_now({f"plots/{path.stem}": wandb.Image(str(path)) for path in figures})
    if run.upload_checkpoint:
        artifact = wandb.Artifact(f"model-{wandb_run.id}", type="model", metadata=json_ready(report))
        artifact.add_file(str(_released_weights(folder)), name="weights.ckpt")
        artifact.add_file(str(folder / REPORT_NAME))
        wandb_run.log_artifact(artifact)


def _released_weights(folder: Path) -> Path:
    """`checkpoints/weights.ckpt`: what `load_from_checkpoint` needs, and no more."""
    whole = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
    path = folder / CHECKPOINT.parent / "weights.ckpt"
    torch.save({name: whole[name] for name in _WEIGHTS if name in whole}, path)
    return path
