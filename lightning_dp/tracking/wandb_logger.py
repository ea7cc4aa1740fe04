"""The W&B logger: offline with no account, online with one, and discreet about private statistics."""

import netrc
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import wandb
from lightning.fabric.loggers.logger import _DummyExperiment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_dp.privacy.report import json_ready
from lightning_dp.tracking.run_folder import Run, environment

PRIVATE_PREFIX = "nonprivate/"


class DiscreetWandbLogger(WandbLogger):
    """Keeps statistics that no ε covers on this machine, unless told to share them.

    W&B gets a run when training starts, not before: a fit that is refused because of a mistake leaves none.
    """

    def __init__(self, *, share_nonprivate: bool, offline: bool, **options: Any) -> None:
        settings = wandb.Settings(
            # W&B would also upload what is printed, and the progress bar shows the training loss.
            console="auto" if share_nonprivate else "off",
            silent=offline,  # its advice fills a screen; finish_wandb says what matters
        )
        super().__init__(offline=offline, settings=settings, **options)
        self._wandb_init.pop("anonymous", None)  # Lightning always hands it on, and W&B warns of it
        self._share_nonprivate = share_nonprivate
        self._started = False
        self._hyperparams: dict[str, Any] = {}  # until it has

    @property
    def experiment(self) -> Any:
        """The W&B run; before training a dummy, for which the key is checked, as ε is spent after that.

        Raises:
            ValueError: W&B can't start it, e.g. its server refuses the key or isn't reached in 90 s.
        """
        try:
            if self._started or getattr(rank_zero_only, "rank", 0) > 0:
                return super().experiment
            if not self._offline:
                wandb.login(verify=True, prompt=False)
            return _DummyExperiment()
        except wandb.Error as error:
            raise ValueError(
                f"W&B did not start a run: {str(error).strip()}; correct WANDB_API_KEY or WANDB_BASE_URL, "
                "or keep the run on this machine with --run.wandb=offline"
            ) from error

    def start(self) -> Any:
        """The W&B run, which begins now if it has not yet."""
        if not self._started:
            self._started = True
            Path(self.save_dir or ".").mkdir(parents=True, exist_ok=True)
            super().log_hyperparams(self._hyperparams)
        return self.experiment

    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        ready = self._sent(json_ready(vars(params) if isinstance(params, Namespace) else dict(params)))
        if self._started:
            super().log_hyperparams(ready)
        else:
            self._hyperparams |= ready

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if sent := self._sent(metrics):
            self.start()
            super().log_metrics(sent, step)

    def _sent(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What may be sent: facts about a run can be private statistics as well."""
        return {
            name: value
            for name, value in values.items()
            if self._share_nonprivate or not name.startswith(PRIVATE_PREFIX)
        }

    def log_nonprivate_image(self, name: str, path: Path) -> None:
        """A figure drawn from private rows: under `nonprivate/`, and only where sharing was asked for."""
        if self._share_nonprivate:
            self.log_image(key=PRIVATE_PREFIX + name, images=[str(path)])


class WandbStart(Callback):
    """Starts the W&B run with the first step: everything was checked, and the account is open."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, DiscreetWandbLogger):
                logger.start()


def make_wandb_logger(run: Run, *, folder: Path, config: dict) -> DiscreetWandbLogger | None:
    """The logger that `run` asks for, or None where W&B is disabled.

    `WANDB_MODE` wins over `run.wandb`. The W&B run itself starts with the training.
    """
    mode = os.environ.get("WANDB_MODE") or run.wandb
    if mode == "auto":
        mode = "online" if _has_key() else "offline"
    if mode == "disabled":
        return None
    made_by = environment()
    return DiscreetWandbLogger(
        share_nonprivate=run.share_nonprivate,
        project=run.project,
        name=run.method or folder.name,
        group=run.group,
        job_type=run.job_type,
        tags=run.tags or None,
        save_dir=folder,
        offline=mode == "offline",
        config={
            **json_ready(config),
            "git_commit": made_by["git_commit"],
            "git_changed": made_by["git_changed"],
        },
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
