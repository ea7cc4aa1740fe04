"""What commands ask of a finished run's module, or of its Private Evolution task: one class an ability.

A command looks for the ability and never for the name of a class, so whatever has it is served: a subclass,
or a module for another kind of data.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from pandas import DataFrame

    from lightning_dp.runs.loaded_run import LoadedRun


class RunModule(ABC):
    """A module that `load_run` makes again from the settings in its checkpoint."""

    @classmethod
    def settings_to_load(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """The constructor's arguments as a checkpoint has them, without what its weights replace.

        Files of earlier stages may be gone: what the checkpoint holds is not read from them again.
        """
        return settings

    @abstractmethod
    def set_sampling(self, *, num_steps: int | None, rank: int | None) -> None:
        """Sample otherwise than the run did from now on.

        Args:
            num_steps: ≥ 1 of the sampler; None leaves it.
            rank: of a run that trained a `DyLoRA`, which of its ranks to use; None for the largest.

        Raises:
            ValueError: the module has no such number.
        """


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """What `lightning-dp sample` was asked for.

    Attributes:
        output: file or folder to write.
        num: ≥ 1 samples; None where the command line didn't say.
        seed: of the draws; None for fresh randomness.
        num_steps, rank: what the run was set to by `LoadedRun.set_sampling`; None where it was left as it is.
        options: further options that were given, by their names without dashes; each one of
            `SampleWriter.sample_options`.
    """

    output: Path
    num: int | None = None
    seed: int | None = None
    num_steps: int | None = None
    rank: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class SampleWriter(ABC):
    """Writes samples of a run to files: what `lightning-dp sample` calls.

    Attributes:
        sample_options: options of the command, beside those of every run, that it understands.
    """

    sample_options: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def write_samples(self, request: SampleRequest, *, run: "LoadedRun") -> list[str]:
        """Write the samples, and what may be claimed of them, `run.account`, beside them.

        Returns:
            What to tell the user: a line each.

        Raises:
            ValueError: the request can't be met; nothing was written.
        """


@dataclass(frozen=True, kw_only=True)
class ForecastRequest:
    """What `lightning-dp forecast`, or `LoadedRun.forecast`, was asked for.

    Attributes:
        data: rows to continue: a path, a frame, or None for the run's own data.
        start: first stamp to predict, for all series; None = after each one's last reading.
        quantiles: to write, each in (0, 1); None for the usual ones.
        num_samples: ≥ 1 draws to write instead of quantiles.
        wide: one row a stamp, rather than one for each quantile or draw.
        fill_missing: predict what is missing between readings instead of what follows them.
        seed: of the draws; None for fresh randomness.
    """

    data: Any = None
    start: Any = None
    quantiles: Sequence[float] | None = None
    num_samples: int | None = None
    wide: bool = False
    fill_missing: bool = False
    seed: int | None = None


class Forecaster(ABC):
    """Continues series, and fills their gaps: what `lightning-dp forecast` and `LoadedRun.forecast` call."""

    @abstractmethod
    def write_forecast(self, request: ForecastRequest, *, output: Path, run: "LoadedRun") -> list[str]:
        """Write a table, and what may be claimed of it beside it; a line for each thing to tell the user.

        Raises:
            ValueError: the request can't be met; nothing was written.
        """

    @abstractmethod
    def forecast_frame(self, request: ForecastRequest, *, run: "LoadedRun") -> "DataFrame":
        """The same table as a frame of pandas.

        Raises:
            ValueError: the request can't be met.
        """


class WeightExporter(ABC):
    """Writes a run's weights for other programs: what `lightning-dp export` calls."""

    @abstractmethod
    def export_weights(self, out: Path) -> list[str]:
        """Write them into a folder that exists and holds the privacy report; a line for each thing written.

        Raises:
            ValueError: no other program knows such weights.
        """
