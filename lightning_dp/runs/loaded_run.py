"""A run folder as Python sees it. Opening one reads no row of the data."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_dp.privacy.ledger.signed_report import ReportChanged, signature_in_words
from lightning_dp.privacy.report import REPORT_NAME, read_privacy_report
from lightning_dp.runs.abilities import Forecaster, ForecastRequest, RunModule
from lightning_dp.runs.configured import class_named, make_parts
from lightning_dp.tracking.account import Account
from lightning_dp.tracking.layout import CHECKPOINT, SAMPLES
from lightning_dp.tracking.run_config import trusted_classes
from lightning_dp.tracking.sealed import check_files, sha256_of

if TYPE_CHECKING:
    from pandas import DataFrame


class LoadedRun(ABC):
    """A finished run; made by `load_run`.

    Attributes:
        folder: of the run.
        config: what its config.yaml says.
        account: its privacy report, whose ε was computed again and agrees with the other files.
    """

    def __init__(self, folder: Path, *, config: Mapping[str, Any], account: Account) -> None:
        self.folder = folder
        self.config = config
        self.account = account

    @property
    def epsilon(self) -> float:
        """ε that the run has spent on its unit, at `account.report["delta"]`; ∞ without privacy."""
        return float(self.account.report["epsilon_spent"])

    @cached_property
    def data(self) -> Any:
        """The data module that the run was trained on, which has read nothing yet."""
        from lightning.pytorch import LightningDataModule

        return make_parts(self.config, {"data": LightningDataModule}).data

    @property
    @abstractmethod
    def module(self) -> Any:
        """The trained module with its final weights, for evaluation, on a GPU if there is one.

        Raises:
            ValueError: the run trained none, or its checkpoint can't be read.
        """

    @property
    @abstractmethod
    def sampler(self) -> Any:
        """What has the abilities of the run, see `abilities`."""

    @abstractmethod
    def sample(self, *arguments: Any, **options: Any) -> Any:
        """Samples, by the arguments of the module's own `sample`; free post-processing of what was paid for.

        Those of a Private Evolution are its finished samples: `sample(num)`.
        """

    def forecast(
        self,
        data: Any = None,
        *,
        start: Any = None,
        quantiles: Sequence[float] | None = None,
        num_samples: int | None = None,
        wide: bool = False,
        fill_missing: bool = False,
        seed: int | None = None,
    ) -> "DataFrame":
        """What follows each series' last reading, with the ids and stamps of the input; costs no ε.

            run.forecast("readings.csv", quantiles=[0.1, 0.5, 0.9])   # columns id, time, quantile, values

        The rows that are continued are read, and no ε covers them. Series that can't be forecast are left out
        with a warning that counts them; the frame's attrs["left_out"] says which and why.

        Args:
            data: a path of CSV, Parquet or YAML, or a frame, see `lightning-dp forecast --help`; None for the
                run's own data.
            start: first stamp to predict, for all series; None = after each one's last reading.
            quantiles: each in (0, 1); None for .1, .5 and .9.
            num_samples: ≥ 1 draws instead of quantiles.
            wide: one row a stamp with a column for each quantile or draw.
            fill_missing: predict what is missing between readings instead; of a run that imputes.
            seed: of the draws.

        Raises:
            ValueError: the run can't forecast, or not these rows.
        """
        return self.forecaster.forecast_frame(
            ForecastRequest(
                data=data,
                start=start,
                quantiles=quantiles,
                num_samples=num_samples,
                wide=wide,
                fill_missing=fill_missing,
                seed=seed,
            ),
            run=self,
        )

    @property
    def forecaster(self) -> Forecaster:
        """What forecasts.

        Raises:
            ValueError: nothing of this run does.
        """
        found = self.sampler
        if not isinstance(found, Forecaster):
            raise ValueError(
                f"{self.folder} holds a {type(found).__name__}, which doesn't forecast: name a run on "
                "series, or give it the methods of lightning_dp.runs.Forecaster."
            )
        return found

    def set_sampling(self, *, num_steps: int | None = None, rank: int | None = None) -> None:
        """Sample otherwise than the run did from now on, as `RunModule.set_sampling` says.

        Raises:
            ValueError: the run has no such number.
        """
        if num_steps is None and rank is None:
            return
        if not isinstance(self.module, RunModule):
            raise ValueError(
                f"{self.folder} holds a {type(self.module).__name__}, whose steps and rank can't be set: "
                "leave --steps and --rank out."
            )
        self.module.set_sampling(num_steps=num_steps, rank=rank)

    def to_dict(self) -> dict[str, Any]:
        """The privacy report with its checks, to lie beside whatever is made of the run."""
        return self.account.to_dict()


class TrainedRun(LoadedRun):
    """A run of `lightning-dp fit`, or of `lightning-dp public`.

    Args:
        trust: whether the checkpoint's settings may choose classes of other packages.
        unchanged: raises ValueError if the checkpoint is no longer the one whose account was read.
    """

    def __init__(
        self, folder: Path, *, config: Mapping[str, Any], account: Account, trust: bool, unchanged: Any
    ) -> None:
        super().__init__(folder, config=config, account=account)
        self._trust = trust
        self._unchanged = unchanged

    @cached_property
    def module_class(self) -> type:
        """Of the module, by whichever of its names the configuration calls it."""
        name = self.config["model"].get("class_path")
        return class_named(name, key="model.class_path", path=self.folder / "config.yaml")

    @cached_property
    def module(self) -> Any:
        from lightning.pytorch.cli import instantiate_module

        from lightning_dp.strategies.device import command_device
        from lightning_dp.tracking.checkpoint_file import read_checkpoint

        kind: Any = self.module_class
        path = self.folder / CHECKPOINT
        checkpoint = read_checkpoint(path)  # weights only: no code of the file is run
        settings = dict(checkpoint.get("hyper_parameters", {}))
        if not self._trust:
            trusted_classes(settings, where=path)
        if "state_dict" not in checkpoint:
            raise ValueError(f"{path} is no Lightning checkpoint: it has no state_dict; put back a copy.")
        if settings.pop("_instantiator", None) is None:
            raise ValueError(
                f"{path} holds no configuration: it was not trained by 'lightning-dp fit'; load it by "
                "load_from_checkpoint of its class, with its net and its other parts."
            )
        if issubclass(kind, RunModule):
            settings = kind.settings_to_load(settings)
        module = instantiate_module(kind, settings)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
        self._unchanged()
        return module.eval().to(command_device())

    @property
    def sampler(self) -> Any:
        return self.module

    @cached_property
    def weights_sha256(self) -> str:
        """Of the checkpoint file."""
        found = sha256_of(self.folder / CHECKPOINT)
        self._unchanged()
        return found

    def sample(self, *arguments: Any, **options: Any) -> Any:
        return self.module.sample(*arguments, **options)


class EvolvedRun(LoadedRun):
    """A run of `lightning-dp evolve`: finished samples, and no module."""

    @cached_property
    def task(self) -> Any:
        """What kind of data it evolved."""
        from lightning.pytorch import LightningDataModule

        from lightning_dp.evolution.task import EvolutionTask

        kinds = {"data": LightningDataModule, "task": EvolutionTask}
        return make_parts(self.config, kinds, links={"data": "task.init_args.data"}).task

    @property
    def module(self) -> Any:
        raise ValueError(
            f"{self.folder} is a run of Private Evolution, which trains no module: take its samples, by "
            "load_run(folder).sample() or 'lightning-dp sample'."
        )

    @property
    def sampler(self) -> Any:
        return self.task

    def set_sampling(self, *, num_steps: int | None = None, rank: int | None = None) -> None:
        if num_steps is not None or rank is not None:
            raise ValueError(
                f"{self.folder} holds finished samples of a Private Evolution and no model: leave steps and "
                "rank out."
            )

    def sample(self, num: int | None = None) -> Any:
        """Samples (n, …) and labels (n,), of each class as many as of any other but for the remainder.

        Args:
            num: ≥ 1, at most as many as the run has made; None for all.

        Raises:
            ValueError: there are not so many, or they are not those that their report speaks of.
        """
        folder = self.folder / SAMPLES.parent
        report = read_privacy_report(folder)
        wrong = check_files(folder, report)
        try:
            signature_in_words(report)
        except ReportChanged as error:
            wrong.append(f"{folder / REPORT_NAME} is not the report that was signed: {error}")
        if report and wrong:
            raise ValueError(f"{wrong[0]}: put back what the run made, or evolve again.")
        samples, labels = self.task.read_samples(self.folder)
        return _balanced(samples, labels, num=num, folder=self.folder)


def _balanced(samples: Any, labels: Any, *, num: int | None, folder: Path) -> tuple[Any, Any]:
    import numpy as np

    if num is None:
        return samples, labels
    if not 1 <= num <= len(labels):
        raise ValueError(
            f"the number of samples is {num}, but {folder} holds {len(labels)}, made once and for all: ask "
            "for 1 to that many, or evolve again with generations.num_samples."
        )
    rank = np.zeros(len(labels), dtype=np.int64)  # which of its class a sample is
    for label in np.unique(labels):
        own = labels == label
        rank[own] = np.arange(own.sum())
    chosen = np.sort(np.argsort(rank, kind="stable")[:num])
    return samples[chosen], labels[chosen]
