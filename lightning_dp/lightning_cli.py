"""LightningCLI with three more top-level keys: `privacy`, `run`, and links from data to model."""

import logging
import os
import signal
import sys
import warnings
from functools import partial
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf.errors import OmegaConfBaseException

from lightning_dp import interpolation
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.callbacks.weights_origin import WeightsOrigin
from lightning_dp.choices import import_choices
from lightning_dp.config_errors import check_files, check_nulls, explained
from lightning_dp.fit.declared_unit import dataset_name
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.protocols import ChecksConfig, HasImages, provides
from lightning_dp.runs.rehearsal import Rehearsal, lacks_test
from lightning_dp.sweeps.yaml_text import yaml_text
from lightning_dp.tracking.charged_run import is_all_charged
from lightning_dp.tracking.checkpoint_file import UNREADABLE, WholeCheckpoints, damaged, read_checkpoint
from lightning_dp.tracking.layout import CHECKPOINT
from lightning_dp.tracking.local_loggers import RunMetrics, check_loggers
from lightning_dp.tracking.predictions import PredictionWriter
from lightning_dp.tracking.progress import StepProgress
from lightning_dp.tracking.run_config import trusted_classes, trusted_configs
from lightning_dp.tracking.run_folder import Run, RunFolder, check_unused, new_run_folder
from lightning_dp.tracking.summary import summary
from lightning_dp.tracking.wandb_logger import WandbStart, finish_wandb, make_wandb_logger
from lightning_dp.tracking.wandb_publish import publish

_SUBCOMMANDS = ("fit", "validate", "test", "predict")
# What a network must know of the data is taken from the data, wherever the chosen class asks for it.
_LINKS = {
    "length": "net.init_args.length",
    "num_channels": "net.init_args.num_channels",
    "num_covariates": "net.init_args.num_covariates",
    "steps_per_day": "normaliser.init_args.steps_per_day",
}

# Lightning's and torch's advice on what is done on purpose here, or what no user can act on.
_ADVICE = (
    ".*does not have many workers.*",
    ".*LeafSpec.*is deprecated.*",
    "No seed found.*",
    "Found .* module.* in eval mode.*",  # a frozen autoencoder stays there
    "Experiment logs directory .* exists and is not empty.*",
    "The number of training batches .* is smaller than the logging interval.*",
    ".*sync_dist=True.*",  # what this project logs without it is the same on all ranks
)

_FOLDER_FOR_RANKS = "LIGHTNING_DP_RUN_FOLDER"

_NESTED = "Does not validate against any of the Union subtypes"  # what the parser says of a wrong value


def run(argv: list[str]) -> LightningCLI:
    """Parse and run one subcommand.

    Raises:
        ValueError: the command line or a configuration file can't be right, in one sentence.
        SystemExit: with 143 after SIGTERM; checkpoint and report are written by then.
    """
    try:
        return _build(Cli, argv)
    except SIGTERMException as error:  # its own exit status is 0, which schedulers take for success
        raise SystemExit(128 + signal.SIGTERM) from error
    finally:
        finish_wandb(failed=sys.exc_info()[0] is not None)


def instantiate(argv: list[str]) -> "Cli":
    """Parse one subcommand and make its model, data and callbacks: run nothing, write nothing, seed nothing.

    Raises:
        ValueError: as `run`.
    """
    cli = _build(_Unstarted, argv)
    assert isinstance(cli, Cli)
    return cli


def instantiate_fit(options: list[str]) -> "Cli":
    """Make all that a private fit is made of, its trainer too, without a run: no folder, no logger of ours.

    Raises:
        ValueError: as `run`, or the fit is not private.
    """
    cli = _build(_UnstartedFit, ["fit", *options])
    assert isinstance(cli, Cli)
    return cli


def instantiate_planned(options: list[str]) -> "Cli":
    """As `instantiate_fit`, for a fit that need not be private.

    Raises:
        ValueError: as `run`.
    """
    cli = _build(_Planned, ["fit", *options])
    assert isinstance(cli, Cli)
    return cli


def instantiate_untrained(options: list[str]) -> tuple["Cli", str]:
    """The parts of a fit as `instantiate` makes them, and their configuration as YAML.

    Raises:
        ValueError: as `run`.
    """
    cli = _build(_Unstarted, ["fit", *options])
    assert isinstance(cli, Cli)
    text = cli._parser("fit").dump(cli.config["fit"], skip_link_targets=True, skip_none=False)
    return cli, text


def _build(kind: type[LightningCLI], argv: list[str]) -> LightningCLI:
    strict = {"allow_abbrev": False, "exit_on_error": False}
    options = {"parser_mode": interpolation.MODE, **strict}
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of how Lightning calls it
    if any(argument.endswith(("help", "-h")) for argument in argv):
        import_choices()
    before = sys.argv
    # LightningCLI warns about arguments that are handed over otherwise, and a strategy of several processes
    # starts them by this command again.
    # Values may be spelled as Python prints them, which is how a W&B agent hands them on.
    # A subcommand that is none is the parser's to refuse.
    subcommand = argv[0] if argv else ""
    check_files(argv)
    trusted_configs(argv)
    interpolation.read_below(subcommand)
    spelled = [interpolation.lengthen(yaml_text(argument), subcommand=subcommand) for argument in argv]
    sys.argv = [before[0], *spelled]
    try:
        with warnings.catch_warnings():
            for message in _ADVICE:
                warnings.filterwarnings("ignore", message=message)
            # Python hides it otherwise from whoever wrote the configuration.
            warnings.filterwarnings("default", message=".* is called .* now", category=DeprecationWarning)
            make = partial(
                kind,
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,  # RunFolder writes config.yaml, once, with or without a logger
                auto_configure_optimizers=False,
                parser_kwargs={"prog": "lightning-dp", **options, **dict.fromkeys(_SUBCOMMANDS, options)},
            )
            try:
                return make()
            except ArgumentError:
                import_choices()  # it may be for a class by its short name, known once it is imported
                return make()
    except OmegaConfBaseException as error:
        raise ValueError(interpolation.explained(error, subcommand=subcommand)) from error
    except (ArgumentError, ValueError) as error:
        if isinstance(error, ArgumentError) or _NESTED in str(error):
            raise ValueError(explained(str(error), argv=argv)) from error
        raise
    finally:
        sys.argv = before


class Cli(LightningCLI):
    """Puts privacy, run folder and loggers into the trainer."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--privacy",
            type=DifferentialPrivacy | None,
            default=None,
            help="DP-SGD, by its fields; null trains without privacy and every artefact says ε = inf",
        )
        parser.add_argument("--run", type=Run, default=Run(), help="the run's folder and its tracking")
        for source, target in _LINKS.items():
            parser.link_arguments(f"data.{source}", f"model.init_args.{target}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        filled_in = [target.rpartition(".")[2] for target in _LINKS.values()]
        check_nulls(self.config[self.config.subcommand], argv=sys.argv[1:], filled_in=filled_in)
        model = self.config[self.config.subcommand].model
        for target in _LINKS.values() if model is not None else ():
            part, _, name = target.partition(".init_args.")
            interpolation.open_link_targets(model.init_args.get(part), [name])

    def _parse_ckpt_path(self) -> None:
        """A checkpoint's settings of its model, where nothing else gives any: what a user writes wins."""
        given = self.config[self.config.subcommand]
        try:
            if given.model is None:
                if given.ckpt_path and Path(given.ckpt_path).is_file():
                    settings = read_checkpoint(Path(given.ckpt_path)).get("hyper_parameters")
                    trusted_classes(settings, where=given.ckpt_path)
                super()._parse_ckpt_path()
            elif given.ckpt_path and Path(given.ckpt_path).is_file():
                read_checkpoint(Path(given.ckpt_path))  # a damaged one is named before all else
        except UNREADABLE as error:
            raise damaged(given.ckpt_path, error) from error

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        self._folder = _run_folder(config.run.dir)
        config.run.dir = str(self._folder)
        _settle_accelerator(config.trainer)
        if self.subcommand == "fit":
            check_unused(self._folder, resuming=config.ckpt_path is not None)
        if config.get("weights_only") is False:
            raise ValueError(
                "weights_only is false, by which a checkpoint may run code: checkpoints are read by their "
                "weights only; leave it out."
            )
        if config.ckpt_path == "last":
            config.ckpt_path = str(self._folder / CHECKPOINT)
        if config.ckpt_path is not None and not Path(config.ckpt_path).is_file():
            raise ValueError(f"ckpt_path={config.ckpt_path} is not a file")
        _check_before_data(config)
        # Read before anything is instantiated, and with what the links will fill in left open.
        self._text = self._parser(self.subcommand).dump(config, skip_link_targets=True, skip_none=False)
        _accept_sharing(config)

    def instantiate_trainer(self, **options: Any) -> Trainer:
        run = self.config_init[self.subcommand].run
        privacy = self.config_init[self.subcommand].privacy
        method = run.method or self._folder.name
        folder = RunFolder(
            self._folder,
            config=self._text,
            private=privacy is not None,
            method=method,
            seed=self.config[self.subcommand].seed_everything,
        )
        self._rehearsal = Rehearsal(self._folder, test=run.test)
        # After the preflight, and before anything is written.
        rehearsal = [self._rehearsal] if self.subcommand == "fit" else []
        extra = [*([privacy] if privacy is not None else []), *rehearsal, folder]
        trainer_config = self.config_init[self.subcommand].trainer
        if trainer_config.default_root_dir is None:
            trainer_config.default_root_dir = str(self._folder)
        trainer_config.logger = self._loggers(trainer_config.logger, run)
        plugins = trainer_config.plugins
        plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins] if plugins else []
        if not _has(plugins, CheckpointIO):
            trainer_config.plugins = [*plugins, WholeCheckpoints()]
        extra.append(WandbStart())
        callbacks = self._given_callbacks()
        if not _has(callbacks, WeightsOrigin):
            extra.append(WeightsOrigin())
        if self.subcommand == "fit" and not _has(callbacks, ModelCheckpoint):
            extra.append(
                ModelCheckpoint(
                    dirpath=self._folder / CHECKPOINT.parent,
                    filename=CHECKPOINT.stem,
                    every_n_train_steps=run.checkpoint_every,
                    save_top_k=1,
                    save_on_exception=True,  # an interrupted run goes on from its last step
                    enable_version_counter=False,
                )
            )
        if trainer_config.enable_progress_bar is not False and not _has(callbacks, ProgressBar):
            extra.append(StepProgress())
        if self.subcommand == "predict":
            extra.append(PredictionWriter(self._folder))
        if self.subcommand == "fit" and privacy is None and os.environ.get("LOCAL_RANK", "0") == "0":
            print("privacy: null, so ε = ∞: nothing about the training data is protected")
        trainer_config.callbacks = [*callbacks, *extra]
        return super().instantiate_trainer(**options)

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand == "fit" and self._is_all_charged():
            self._finish_charged_run()
            return
        super()._run_subcommand(subcommand)

    def _is_all_charged(self) -> bool:
        config = self.config_init[self.subcommand]
        if config.privacy is None or config.ckpt_path is None:
            return False
        ledger = Ledger(config.privacy.ledger)
        steps = self.trainer.max_steps
        return is_all_charged(Path(config.ckpt_path), ledger=ledger, num_steps=steps)

    def _finish_charged_run(self) -> None:
        """Go on to the test of a run that was killed when all of its steps were charged."""
        config = self.config_init[self.subcommand]
        lacks = lacks_test(self.model, self.datamodule)
        if self.trainer.is_global_zero:
            print(
                f"all {self.trainer.max_steps} steps of this run are charged: nothing is trained or charged"
            )
        if config.run.test and not lacks:
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=config.ckpt_path)
        elif lacks and self.trainer.is_global_zero:
            print(f"the test is left out: {lacks}")
        self._summarise()
        publish(self.trainer, folder=self._folder, run=config.run)

    def _summarise(self) -> None:
        if not self.trainer.is_global_zero:
            return
        privacy = self.config_init[self.subcommand].privacy
        lines = summary(
            self._folder,
            dataset=dataset_name(
                None, datamodule=self.datamodule, dataset=None if privacy is None else privacy.dataset
            ),
            ledger=Ledger(None if privacy is None else privacy.ledger),
            draws_images=provides(self.datamodule, HasImages),
        )
        print("\n".join(lines), flush=True)

    def _given_callbacks(self) -> list[Callback]:
        """Those of the configuration; Lightning takes a single one without a list too."""
        given = self.config_init[self.subcommand].trainer.callbacks
        return list(given) if isinstance(given, list | tuple) else [given] if given else []

    def after_fit(self) -> None:
        if self._rehearsal.test and not self.trainer.interrupted:
            self.trainer.test(self.model, datamodule=self.datamodule)
        if not self.trainer.interrupted:
            self._summarise()
        publish(self.trainer, folder=self._folder, run=self.config_init[self.subcommand].run)

    def _loggers(self, given: Any, run: Run) -> Any:
        """The folder's own metrics.csv first, beside it the loggers that are given, else W&B."""
        others = list(given) if isinstance(given, list | tuple) else [given]
        others = [one for one in others if one is not None and not isinstance(one, bool)]
        check_loggers(others, share_nonprivate=run.share_nonprivate)
        if self.subcommand != "fit":
            return given or False
        if given is False:
            return False
        own: list[Logger] = [
            RunMetrics(
                save_dir=self._folder,
                name="",
                version="",
                flush_logs_every_n_steps=1,
                public_metrics=run.public_metrics,
            )
        ]
        if given is None or given is True:
            wandb_logger = make_wandb_logger(run, folder=self._folder, config=yaml.safe_load(self._text))
            return [*own, *([wandb_logger] if wandb_logger else [])]
        return [*own, *others]


class _Unstarted(Cli):
    """Stops where the parts are made."""

    def before_instantiate_classes(self) -> None:
        """No run, so no folder."""

    def instantiate_trainer(self, **options: Any) -> Any:
        return None

    def _set_seed(self) -> None:
        """What is made here is thrown away."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing runs."""


class _Planned(Cli):
    """Stops where a fit would start."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        _settle_accelerator(config.trainer)
        _check_before_data(config)
        _accept_sharing(config)

    def instantiate_trainer(self, **options: Any) -> Trainer:
        config = self.config_init[self.subcommand]
        private = [] if config.privacy is None else [config.privacy]
        config.trainer.callbacks = [*self._given_callbacks(), *private]
        given = config.trainer.logger
        loggers = [] if given is None or isinstance(given, bool) else given  # else this project's own
        config.trainer.logger = loggers if isinstance(loggers, list | tuple) else [loggers]
        check_loggers(list(config.trainer.logger), share_nonprivate=config.run.share_nonprivate)
        return LightningCLI.instantiate_trainer(self, **options)

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing runs."""


class _UnstartedFit(_Planned):
    """Stops where a private fit would start."""

    def before_instantiate_classes(self) -> None:
        if self.config[self.subcommand].privacy is None:
            raise ValueError("privacy is null, so there is nothing to check: set privacy.target_epsilon")
        super().before_instantiate_classes()


def _check_before_data(config: Any) -> None:
    if config.privacy is not None and config.data is not None:
        _check_data_config(config.data)


def _settle_accelerator(trainer: Any) -> None:
    """What `auto` means, and a sentence where there is no such device."""
    chosen = trainer.accelerator
    has_gpu = torch.cuda.is_available()
    if chosen == "mps" or (chosen == "gpu" and not has_gpu and torch.backends.mps.is_available()):
        raise ValueError(
            f"trainer.accelerator is {chosen}, but Apple's MPS has no float64, in which gradients are "
            "checked and errors summed: set --trainer.accelerator cpu"
        )
    if chosen in ("gpu", "cuda") and not has_gpu:
        raise ValueError(
            f"trainer.accelerator is {chosen}, but torch {torch.__version__} sees no GPU on this machine: "
            "set --trainer.accelerator auto, or install a build of torch for your GPU"
        )
    if chosen == "auto" and not has_gpu and torch.backends.mps.is_available():
        trainer.accelerator = "cpu"  # Lightning would take MPS


def _accept_sharing(config: Any) -> None:
    if config.run.share_nonprivate and config.privacy is not None:  # on whose word is told to the ledger
        config.privacy.accept = {"logger": "--run.share_nonprivate=true", **(config.privacy.accept or {})}


def _check_data_config(config: Any) -> None:
    """What a data module would refuse in a private fit, before links to its facts make it read its rows."""
    kind = locate(config.class_path)
    if provides(kind, ChecksConfig):
        kind.check_config(config.init_args)


def _run_folder(given: str | None) -> Path:
    """The folder, the same one in every process that a strategy starts from this one."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank > 0 and not given:
        given = os.environ.get(_FOLDER_FOR_RANKS)
        if given is None:
            raise ValueError("several processes share one run folder: name it by --run.dir")
    folder = Path(given) if given else new_run_folder()
    if local_rank == 0:
        os.environ[_FOLDER_FOR_RANKS] = str(folder)
    return folder


def _has(callbacks: Any, kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks or [])
