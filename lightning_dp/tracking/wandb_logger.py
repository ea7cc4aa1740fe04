"""The W&B logger: offline with no account, online with one, and discreet about private statistics.

What it sends of a private fit is an allow list. What a module sends past it, by `wandb.log` or over the
network, no logger sees.
"""

import os
import shutil
import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_dp.lightning_internals import private_name
from lightning_dp.privacy.report import json_ready
from lightning_dp.tracking.folder_lock import make_run_folder
from lightning_dp.tracking.outgoing import PRIVATE_PREFIX, FollowsFit, Outgoing
from lightning_dp.tracking.run_folder import Run, environment
from lightning_dp.tracking.wandb_config import outgoing_config
from lightning_dp.tracking.wandb_dry import described

_DummyExperiment = private_name("_DummyExperiment")
_DESCRIBE = {"config", "dir", "entity", "group", "id", "job_type", "name", "notes", "project", "resume"}
_DESCRIBE |= {"save_dir", "tags", "version"}
_MODES = ("disabled", "dry", "offline", "online")
_NOT_SAID = "not said"
_COARSE_SECONDS = 3600
_DRY = "lightning-dp-dry-"
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
        dry: show what would be sent when the run has ended, and keep nothing.
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
        dry: bool = False,
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
        # The host, the command line, the program and where it lies, packages, the machine.
        closed |= {"x_disable_meta": True, "x_save_requirements": False, "x_disable_machine_info": True}
        closed |= {"host": _NOT_SAID, "program": _NOT_SAID, "program_relpath": _NOT_SAID}
        closed |= {"program_abspath": _NOT_SAID, "root_dir": str(options.get("save_dir") or ".")}
        settings = wandb.Settings(
            silent=offline,  # its advice fills a screen; finish_wandb says what matters
            **({} if share_nonprivate else closed),
        )
        self._dry_folder = tempfile.mkdtemp(prefix=_DRY) if dry else None
        if self._dry_folder is not None:
            options["save_dir"] = self._dry_folder
        super().__init__(offline=offline or dry, settings=settings, **options)
        self._wandb_init.pop("anonymous", None)  # Lightning always hands it on, and W&B warns of it
        self._public_metrics = tuple(public_metrics)
        self._share_nonprivate = share_nonprivate
        self._started = False
        self._hour: float | None = None  # of a private fit, when it began
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
            if not self._keeps_nothing:
                # Durations of steps follow the sizes of their batches, which are private.
                self._hour = time.time() // _COARSE_SECONDS * _COARSE_SECONDS
                self._wandb_init["settings"].x_start_time = self._hour
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
            self.log_now(sent if step is None else {**sent, "trainer/global_step": step})

    def log_now(self, values: Mapping[str, Any]) -> None:
        """Log what may go as it is; of a private fit with the hour at which it began for a time."""
        run = self.start()
        run.log(dict(values) if self._hour is None else {**values, "_timestamp": self._hour})

    def told(self) -> list[str]:
        """What may leave this machine, in a few lines for people."""
        where = "nowhere (a dry run)" if self._dry_folder else f"W&B, project {self._project}"
        if self._share_nonprivate:
            return [f"sent to {where}: everything, nonprivate/ statistics and the console included"]
        public = ", ".join(self._public_metrics) or "none"
        return [
            f"sent to {where}:",
            "  privacy figures, epoch, metrics of validation and test, the figure of samples",
            f"  public_metrics: {public}",
            "  the configuration without paths, columns, categories and customers",
            "kept here: nonprivate/, what train hooks log, times of steps, host, command line, git remote, "
            "console",
        ]

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
                if not logger._offline or logger._dry_folder:
                    print("\n".join(logger.told()), flush=True)
                logger.start()


def make_wandb_logger(run: Run, *, folder: Path, config: dict) -> DiscreetWandbLogger | None:
    """The logger that `run` asks for, or None where W&B is disabled.

    The W&B run itself starts with the training.
    """
    mode = wandb_mode(run.wandb)
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
        dry=mode == "dry",
        config={
            **json_ready(config if run.share_nonprivate else outgoing_config(config)),
            "git_commit": made_by["git_commit"],
            "git_changed": made_by["git_changed"],
        },
    )


def finish_wandb(*, failed: bool) -> None:
    """End this process's W&B run, if there is one: everything is written, and the next run is its own."""
    if (run := wandb.run) is None:
        return
    folder = Path(run.dir).parent
    wandb.finish(exit_code=int(failed))
    if _DRY in folder.as_posix():
        wandb.teardown()  # the file is whole once W&B's own process has ended
        print("W&B dry run: nothing was sent. It would be")
        for path in folder.glob("*.wandb"):
            print("\n".join(described(path)))
        shutil.rmtree(next(one for one in folder.parents if one.name.startswith(_DRY)), ignore_errors=True)
    elif run.offline:
        print(f"W&B offline: 'wandb sync {Path(run.dir).parent}' sends this run")


def wandb_mode(asked: str) -> str:
    """The more private of `run.wandb` and WANDB_MODE: disabled, dry, offline or online.

    A key at hand is no wish to send: `auto` sends nothing, but in a trial that a W&B agent has started.
    """
    if asked == "auto":
        asked = "online" if os.environ.get("WANDB_SWEEP_ID") else "offline"
    given = os.environ.get("WANDB_MODE") or asked
    given = {"dryrun": "offline", "run": "online"}.get(given, given)
    return min(asked, given if given in _MODES else "online", key=_MODES.index)
