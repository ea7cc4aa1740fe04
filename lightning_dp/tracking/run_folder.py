"""One folder per run, complete by itself: config, metrics, checkpoints, plots, privacy, results.

```
RUN/
  config.yaml       everything that was set, resolved; `lightning-dp fit --config RUN/config.yaml` repeats it
  environment.json  versions, git state, machine
  nonprivate_data.json  what was found in a table of one's own; for its owner (0600), never sent
  metrics.csv       what was logged, private statistics marked `nonprivate/`
  privacy.json      ε of every unit, plan, ledger entry, signed; ε = "inf" without privacy
  privacy_report.html, .md   the same to be read
  checkpoints/last.ckpt, README.md   the weights and their model card
  results.json      test metrics, baselines, ε, seed and facts, written by `lightning-dp test`
  plots/
```
"""

import contextlib
import json
import math
import os
import platform
import secrets
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_dp.fit.declared_unit import dataset_name
from lightning_dp.lightning_internals import datamodule_of
from lightning_dp.privacy.report import (
    REPORT_NAME,
    json_ready,
    read_privacy_report,
    replace_text,
    write_privacy_report,
)
from lightning_dp.privacy.report.document import SCHEMA
from lightning_dp.privacy.report.readable import write_readable
from lightning_dp.protocols import Describes, ReportsOnData, TakesFacts, is_public, provides
from lightning_dp.tracking.account import Account, read_account
from lightning_dp.tracking.cards import CARD, write_model_card
from lightning_dp.tracking.folder_lock import FolderLock, make_run_folder
from lightning_dp.tracking.layout import CHECKPOINT, RESULTS_NAME

EPSILON_OF_TEST = "test/epsilon"
_PACKAGES = ("torch", "lightning", "opacus", "dp-accounting", "diffusers", "wandb", "numpy")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run lives and who is told about it.

    Attributes:
        dir: its folder; None makes `runs/<time>-<random>`.
        method: a short name for tables and plots, e.g. `dp-aware`; None takes the folder's name.
        checkpoint_every: ≥ 1 optimizer steps between checkpoints.
        wandb: `online` sends; `offline` keeps the run here until `wandb sync`; `dry` shows what would be
            sent, and keeps nothing; `disabled` writes nothing; `auto` is offline, whether or not a key is at
            hand, and online in a trial of a W&B agent. Of this and WANDB_MODE the more private one wins.
        project: W&B project.
        group: W&B group, e.g. one sweep.
        job_type: W&B job type, e.g. `final` for the runs of a paper.
        tags: W&B tags.
        test: evaluate on the test split when a fit ends, in the same W&B run.
        upload_checkpoint: also send the weights to W&B, as an artifact with privacy.json beside them.
        public_metrics: names of metrics that W&B may get though train hooks log them: public knowledge, such
            as a learning rate that was fixed beforehand.
        share_nonprivate: also send `nonprivate/` statistics, whatever train hooks log, figures of real rows,
            and what is printed, to W&B or to another service. No ε covers them.
    """

    dir: str | None = None
    method: str | None = None
    checkpoint_every: int = 50
    wandb: Literal["auto", "online", "offline", "dry", "disabled"] = "auto"
    project: str = "lightning_dp"
    group: str | None = None
    job_type: str = "fit"
    tags: list[str] = field(default_factory=list)
    test: bool = True
    upload_checkpoint: bool = False
    public_metrics: list[str] = field(default_factory=list)
    share_nonprivate: bool = False

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1:
            raise ValueError(f"run.checkpoint_every must be at least 1, not {self.checkpoint_every}")


def new_run_folder() -> Path:
    """`runs/<UTC time>-<random>`, or under a W&B agent `runs/sweep-<its id>/<the run's id>`; not made yet."""
    sweep, run = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    if sweep and run:
        return Path("runs") / f"sweep-{sweep}" / run
    return Path("runs") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def check_unused(folder: Path, *, resuming: bool) -> None:
    """Raise ValueError if a fit would write over another run."""
    if not resuming and (folder / CHECKPOINT).exists():
        raise ValueError(
            f"run.dir={folder} holds a run already: resume it with --ckpt_path {folder / CHECKPOINT}, or "
            "choose another folder"
        )


class RunFolder(Callback):
    """Writes what Lightning does not: config, environment, results; ε = ∞ where nothing is private.

    Args:
        folder: of the run.
        config: the resolved configuration as YAML.
        private: whether a DifferentialPrivacy callback is at work.
        method: name for tables.
        seed: of everything that is not noise; None where nobody set one.
    """

    def __init__(
        self, folder: Path, *, config: str, private: bool, method: str, seed: int | None = None
    ) -> None:
        self.folder = folder
        self._config = config
        self._private = private
        self._method = method
        self._seed = seed
        self._account: Account | None = None
        self._lock: FolderLock | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not trainer.is_global_zero or stage != "fit":
            return
        self._lock = FolderLock(self.folder)
        self._set_results_aside()
        (self.folder / "config.yaml").write_text(self._config)
        (self.folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
        data = datamodule_of(trainer)
        if provides(data, ReportsOnData):
            _write_for_owner(self.folder / "nonprivate_data.json", data.data_report())
        if not self._private:
            content = {
                "schema": SCHEMA,
                "kind": "fit",
                "epsilon": float("inf"),
                "epsilon_spent": float("inf"),
                "noise_multiplier": 0.0,
                "epsilon_of_unit": {},
                "note": "trained without privacy: nothing about the training data is protected",
                "unsigned": "no ledger was asked, as nothing is claimed",
            }
            write_privacy_report(self.folder, content)
            write_readable(self.folder / REPORT_NAME, json_ready(content))

    def _set_results_aside(self) -> None:
        """What was measured of the weights that a fit goes on from no longer speaks of the run."""
        path = self.folder / RESULTS_NAME
        if path.is_file():
            path.replace(path.with_name("results.before_resume.json"))
        (self.folder / CHECKPOINT.parent / CARD).unlink(missing_ok=True)

    def _write_card(self) -> None:
        """The model card beside the weights, of a run whose report is written."""
        report, card = read_privacy_report(self.folder), self.folder / CHECKPOINT.parent / CARD
        if not report or not (self.folder / CHECKPOINT).is_file():
            return
        path = self.folder / RESULTS_NAME
        write_model_card(
            card,
            report,
            results=json.loads(path.read_text()) if path.is_file() else {},
            library="lightning-dp",
            report_name=f"../{REPORT_NAME}",
        )

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let another fit into the folder."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As at the end of a fit that went well."""
        self._release()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to spoil a private run by going on without privacy; a test elsewhere keeps its ε."""
        state = checkpoint.get("callbacks", {}).get("DifferentialPrivacy")
        if trainer.state.fn != TrainerFn.FITTING:
            self._keep_account(trainer, run=state["run"] if state else None)
        elif state and not self._private:
            raise ValueError(
                "the checkpoint of --ckpt_path was trained with privacy and this fit has 'privacy: null': "
                "what follows would not be private; keep the run's own config.yaml"
            )

    def _keep_account(self, trainer: Trainer, *, run: str | None) -> None:
        """Copy the report of the run folder that the weights lie in, if it is the report of these weights."""
        # Of RUN/checkpoints/last.ckpt the run; a checkpoint that lies by itself has none.
        origin = Path(str(trainer.ckpt_path)).resolve().parent.parent
        here = read_privacy_report(self.folder)
        if here and here.get("run") != run:
            raise ValueError(
                f"{self.folder} has the privacy.json of run {here.get('run')}, and the weights of "
                f"--ckpt_path are of run {run}: restore the one that belongs to the weights, or name "
                "another --run.dir"
            )
        if read_privacy_report(origin).get("run") != run:
            return
        self._account = read_account(origin)
        if trainer.is_global_zero and self._account.report and not here:
            copy = {**self._account.to_dict(), "weights_of": origin.name}
            write_privacy_report(self.folder, self._account.signed(copy))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plain names for whatever groups and plots runs: dots and nesting get in the way there."""
        report = read_privacy_report(self.folder)
        plain = {
            "method": self._method,
            "dataset": dataset_name(None, datamodule=datamodule_of(trainer), dataset=None),
            "seed": self._seed,
            "epsilon": report.get("epsilon"),
            "unit": report.get("unit"),
            **facts_of(trainer, pl_module),
        }
        known = {name: value for name, value in plain.items() if value is not None}
        for logger in trainer.loggers:
            if provides(logger, TakesFacts):
                logger.log_facts(known)
            else:
                logger.log_hyperparams(known)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.folder / CHECKPOINT)
        if trainer.is_global_zero:
            self._write_card()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """ε stands beside the test metrics wherever they are logged."""
        spent = self._checked().report.get("epsilon_spent")
        if spent is not None:
            pl_module.log(EPSILON_OF_TEST, float(spent))

    def _checked(self) -> Account:
        """The account of the weights that are tested: of a fit in this process, or of a checkpoint."""
        if self._account is None:
            self._account = read_account(self.folder)
        return self._account

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        make_run_folder(self.folder)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        account = self._checked()
        report = account.report
        results = {
            "method": self._method,
            "dataset": dataset_name(None, datamodule=datamodule_of(trainer), dataset=None),
            "seed": self._seed,
            "facts": facts_of(trainer, pl_module),
            "epsilon": report.get("epsilon_spent", "unknown: this folder has no privacy.json"),
            "delta": report.get("delta"),
            "unit": report.get("unit"),
            "epsilon_of_unit": report.get("epsilon_of_unit", {}),
            "noise_multiplier": report.get("noise_multiplier"),
            "steps": report.get("steps_charged"),
            "ledger": [report.get("ledger_seq"), report.get("ledger_hash")],
            "checks": account.checks,
            "test_rows_are_public": is_public(datamodule_of(trainer)),
            "metrics": metrics,
        }
        text = json.dumps(_strict(results), indent=2, allow_nan=False)
        replace_text(self.folder / RESULTS_NAME, text + "\n")
        self._write_card()


def facts_of(trainer: Trainer, module: LightningModule) -> dict[str, str | float | int]:
    """What data and module say of themselves for tables, by their methods `facts()`."""
    facts: dict[str, str | float | int] = {}
    for part in (datamodule_of(trainer), module):
        facts |= part.facts() if provides(part, Describes) else {}
    return facts


def _write_for_owner(path: Path, content: dict[str, Any]) -> None:
    """JSON that nobody else on this machine can read."""
    path.unlink(missing_ok=True)  # else an older file keeps its mode
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(json.dumps(_strict(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _strict(value: Any) -> Any:
    """The value with ∞ as "inf" and NaN as "nan": JSON has numbers for neither, and `float` reads both."""
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def environment() -> dict[str, Any]:
    """Versions, git state and machine, for whoever wants to repeat a run."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    except OSError:  # no git on this machine
        commit, changes = None, None
    return {
        "python": platform.python_version(),
        "packages": _versions(),
        "git_commit": commit,
        "git_changed": bool(changes),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _versions() -> dict[str, str]:
    """Of those packages that are installed: some are extras."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
