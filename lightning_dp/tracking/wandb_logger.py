"""The W&B logger: offline with no account, online with one, and discreet about private statistics."""

import netrc
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import wandb
from lightning.pytorch.loggers import WandbLogger

from lightning_dp.privacy.report import json_ready
from lightning_dp.tracking.run_folder import Run

PRIVATE_PREFIX = "nonprivate/"


class DiscreetWandbLogger(WandbLogger):
    """Keeps statistics that no ε covers on this machine, unless told to share them."""

    def __init__(self, *, share_nonprivate: bool, offline: bool, **options: Any) -> None:
        settings = wandb.Settings(
            # W&B would also upload what is printed, and the progress bar shows the training loss.
            console="auto" if share_nonprivate else "off",
            silent=offline,  # its advice fills a screen; finish_wandb says what matters
        )
        super().__init__(offline=offline, settings=settings, **options)
        self._wandb_init.pop("anonymous", None)  # Lightning always hands it on, and W&B warns of it
        self._share_nonprivate = share_nonprivate

    @property
    def experiment(self) -> Any:
        """The W&B run, started on first use.

        Raises:
            ValueError: W&B can't start it, e.g. its server refuses the key or isn't reached in 90 s.
        """
        try:
            return super().experiment
        except wandb.Error as error:
            raise ValueError(
                f"W&B did not start a run: {str(error).strip()}; correct WANDB_API_KEY or WANDB_BASE_URL, "
                "or keep the run on this machine with --run.wandb=offline"
            ) from error

    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        super().log_hyperparams(json_ready(vars(params) if isinstance(params, Namespace) else dict(params)))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self._share_nonprivate:
            metrics = {name: value for name, value in metrics.items() if not name.startswith(PRIVATE_PREFIX)}
        if metrics:
            super().log_metrics(metrics, step)


def make_wandb_logger(run: Run, *, folder: Path, config: dict) -> DiscreetWandbLogger | None:
    """The logger that `run` asks for, or None where W&B is disabled.

    `WANDB_MODE` wins over `run.wandb`. The W&B run itself starts with the first thing that is logged.
    """
    mode = os.environ.get("WANDB_MODE") or run.wandb
    if mode == "auto":
        mode = "online" if _has_key() else "offline"
    if mode == "disabled":
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return DiscreetWandbLogger(
        share_nonprivate=run.share_nonprivate,
        project=run.project,
        name=run.method or folder.name,
        group=run.group,
        tags=run.tags or None,
        save_dir=folder,
        offline=mode == "offline",
        config=json_ready(config),
        log_model=False,
    )


def finish_wandb(*, failed: bool) -> None:
    """End this process's W&B run, if there is one: everything is written, and the next run is its own."""
    if (run := wandb.run) is None:
        return
    wandb.finish(exit_code=int(failed))
    if run.offline:
        print(f"W&B offline: 'wandb sync {Path(run.dir).parent}' sends this run")


def _has_key() -> bool:
    """Whether W&B could log in without asking. Its own check would start a session, which spoils offline."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
