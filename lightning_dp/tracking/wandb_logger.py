"""The W&B logger: offline with no account, online with one, and discreet about private statistics.

What it sends of a private fit is an allow list. What a module sends past it, by `wandb.log` or over the
network, no logger sees.
"""

import netrc
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final
from urllib.parse import urlparse

import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_dp.lightning_internals import private_name
from lightning_dp.privacy.report import json_ready
from lightning_dp.tracking.folder_lock import make_run_folder
from lightning_dp.tracking.outgoing import PRIVATE_PREFIX, FollowsFit, Outgoing
from lightning_dp.tracking.run_folder import Run, environment

_DummyExperiment = private_name("_DummyExperiment")
_DESCRIBE = {"config", "dir", "entity", "group", "id", "job_type", "name", "notes", "project", "resume"}
_DESCRIBE |= {"save_dir", "tags", "version"}
_OF_A_RUN = {"define_metric", "dir", "entity", "finish", "group", "id", "job_type", "name", "offline", "path"}
_OF_A_RUN |= {"project", "project_name", "url"}


@final
class DiscreetWandbLogger(WandbLogger, FollowsFit):
    """Keeps statistics that no ε covers on this machine, unless told to share them.

    Of a private fit it sends what `Outgoing` lets go, the facts that `log_facts` is handed, and `config`; not
    what train hooks log, hyperparameters that Lightning collects, gradients, code, the console, measurements
    of the machine (they follow the sizes of batches), checkpoints. Without privacy it keeps what is named
    `nonprivate/…`.

    W&B gets a run when training starts, not before: a fit that is refused because of a mistake leaves none.

    Args:
        public_metrics: names of metrics and media that are public knowledge whatever logs them, such as a
            learning rate that was fixed beforehand.
        share_nonprivate: send everything.
        offline: keep the run in `save_dir` until `wandb sync`.
        **options: of W&B's run: project, name, group, job_type, tags, notes, entity, id, save_dir, config.

    Raises:
        ValueError: an option would send more, or a public metric is called `nonprivate/…`.
    """

    def __init__(
        self,
        *,
        public_metrics: Sequence[str] = (),
        share_nonprivate: bool = False,
        offline: bool = False,
        **options: Any,
    ) -> None:
        if isinstance(public_metrics, str) or any(name.startswith(PRIVATE_PREFIX) for name in public_metrics):
            raise ValueError(
                f"public_metrics is {public_metrics!r}; it must be a list of names without {PRIVATE_PREFIX}, "
                "which says the opposite."
            )
        more = [name for name, value in options.items() if name not in _DESCRIBE and value]
        if more and not share_nonprivate:
            raise ValueError(
                f"DiscreetWandbLogger.{more[0]} is {options[more[0]]!r}, by which W&B may get more than the "
                "metrics that may leave this machine: leave it out, or say share_nonprivate=True."
            )
        # W&B would also upload what is printed, and the progress bar shows the training loss; changes to the
        # code; and the machine's load, which follows the sizes of batches.
        closed: dict[str, Any] = {"console": "off", "save_code": False, "disable_code": True}
        closed |= {"disable_git": True, "disable_job_creation": True, "x_disable_stats": True}
        settings = wandb.Settings(
            silent=offline,  # its advice fills a screen; finish_wandb says what matters
            **({} if share_nonprivate else closed),
        )
        super().__init__(offline=offline, settings=settings, **options)
        self._wandb_init.pop("anonymous", None)  # Lightning always hands it on, and W&B warns of it
        self._public_metrics = tuple(public_metrics)
        self._share_nonprivate = share_nonprivate
        self._started = False
        self._outgoing: Outgoing | None = None  # until a private fit begins
        self._hyperparams: dict[str, Any] = {}  # until it has

    def follow(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing

    @property
    def experiment(self) -> Any:
        """The W&B run; before training a dummy, for which the key is checked, as ε is spent after that.

        Of a private fit it is what may be handed to a module: the run's names, and `log` under the same rule.

        Raises:
            ValueError: W&B can't start it, e.g. its server refuses the key or isn't reached in 90 s.
        """
        run = self._run()
        return run if self._keeps_nothing or isinstance(run, _DummyExperiment) else _HandedOut(run, self)

    @property
    def _keeps_nothing(self) -> bool:
        return self._outgoing is None or self._share_nonprivate

    def _run(self) -> Any:
        if self._experiment is None and wandb.run is not None and not self._share_nonprivate:
            raise ValueError(
                f"W&B's run {wandb.run.id} is open already, with settings that are not this logger's: end it "
                "by wandb.finish() before the fit."
            )
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
            make_run_folder(Path(self.save_dir or "."))
            self.log_facts(self._hyperparams)
        return self._run()

    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """What module and data module save of themselves, which may hold what they counted in the data."""
        if self._keeps_nothing:
            self.log_facts(vars(params) if isinstance(params, Namespace) else dict(params))

    @rank_zero_only
    def log_facts(self, facts: Mapping[str, Any]) -> None:
        """Facts about the run for its W&B configuration, chosen by whoever calls; not `nonprivate/…`."""
        ready = self._unmarked(json_ready(dict(facts)))
        if self._started:
            self._run().config.update(ready, allow_val_change=True)
        else:
            self._hyperparams |= ready

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        sent = self._unmarked(metrics)
        if self._outgoing is not None and not self._share_nonprivate:
            asked, sent = sent, self._outgoing.metrics(sent, public=self._public_metrics)
            self._outgoing.tell(set(asked) - set(sent))
            step = self._outgoing.step(step)
        if sent:
            self.start().log(sent if step is None else {**sent, "trainer/global_step": step})

    def watch(self, *arguments: Any, **options: Any) -> None:
        """Refused, as gradients before clipping and noise are private.

        Raises:
            ValueError: unless everything may be shared.
        """
        if not self._share_nonprivate:
            raise ValueError(
                "DiscreetWandbLogger.watch would send gradients and weights as they are, which no ε covers: "
                "leave it out, or say share_nonprivate=True."
            )
        super().watch(*arguments, **options)

    def _unmarked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """All but what says of itself that it is private, facts about a run included."""
        return {
            name: value
            for name, value in values.items()
            if self._share_nonprivate or not name.startswith(PRIVATE_PREFIX)
        }

    def log_nonprivate_image(self, name: str, path: Path) -> None:
        """A figure drawn from private rows: under `nonprivate/`, and only where sharing was asked for."""
        if self._share_nonprivate:
            self.log_image(key=PRIVATE_PREFIX + name, images=[str(path)])


class _HandedOut:
    """What modules and callbacks get of the W&B run of a private fit."""

    def __init__(self, run: Any, logger: DiscreetWandbLogger) -> None:
        self._run, self._logger = run, logger

    def log(self, data: Mapping[str, Any], *_: Any, **__: Any) -> None:
        """Send what may go; the step is the trainer's."""
        self._logger.log_metrics(data)

    def __getattr__(self, name: str) -> Any:
        if name in _OF_A_RUN:
            return getattr(self._run, name)
        if name.startswith("_"):
            raise AttributeError(name)
        raise RuntimeError(
            f"logger.experiment.{name} would send what is not known to be public out of a private fit: log "
            "numbers by self.log in validation or test, name what is public in public_metrics, or say "
            "share_nonprivate=True."
        )


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
        public_metrics=run.public_metrics,
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
