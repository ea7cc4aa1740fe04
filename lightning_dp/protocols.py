"""Every hook between callback, data module, data set, module, callbacks and loggers, in one place.

A hook is an attribute or a method that a part may have and that another part asks for. None has to be
inherited from: a class that has it takes part. Below, each is a `Protocol` that says what it gives, of which
shape, and who asks for it when; `HOOKS` lists them with the parts that they are asked of. Ask by
`provides(part, SomeProtocol)`: nothing else in the package looks a hook up by its name, which a test checks.

What a part must be, rather than may have, is an abstract class beside its idea: `DenoisingNet`,
`Conditioning`, `Adapter`, `ClippingFunction`, `ClippingEngine`, `Preparation`, `ImageSource`, `FollowsFit`.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeGuard, TypeVar, final

from lightning_dp.privacy.preparation import Preparation
from lightning_dp.privacy.units import PrivacyUnit

PRIVATE_PREFIX = "nonprivate/"
"""Before the name of every metric that no ε covers; loggers keep such metrics on this machine."""


@final
@dataclass(frozen=True, kw_only=True)
class LoggedMetrics:
    """Names of metrics by when they are logged.

    Attributes:
        train: by train hooks, so that trials can be compared before their end.
        validation: by validation.
        test: by the test at the end of a fit, which puts them into results.json.
    """

    train: frozenset[str] = frozenset()
    validation: frozenset[str] = frozenset()
    test: frozenset[str] = frozenset()

    def __or__(self, other: "LoggedMetrics") -> "LoggedMetrics":
        """Those of both."""
        return LoggedMetrics(
            train=self.train | other.train,
            validation=self.validation | other.validation,
            test=self.test | other.test,
        )

    def kept_private(self) -> "LoggedMetrics":
        """As the run folder of a private fit names them: what train hooks log is `nonprivate/…` there."""
        return LoggedMetrics(
            train=frozenset(
                name if name.startswith(PRIVATE_PREFIX) else PRIVATE_PREFIX + name for name in self.train
            ),
            validation=self.validation,
            test=self.test,
        )


# --- data modules and data sets, in a private fit ---------------------------------------------------


class DeclaresUnit(Protocol):
    """Asked by `DifferentialPrivacy` in `setup`, of the data module and then of the train set."""

    def privacy_unit(self) -> PrivacyUnit:
        """What one item of the train set is. Public facts only; reads no row."""


class NamesDataset(Protocol):
    """Asked by `DifferentialPrivacy` when a fit starts, and by whatever reports about a run.

    Attributes:
        dataset_id: the name under which the ledger keeps the account of these rows.
    """

    dataset_id: str


class MakesItems(Protocol):
    """Asked by the preflight of a private fit, of the data module and then of the train set."""

    def synthetic_items(self, num_items: int) -> Sequence[Any]:
        """`num_items` made-up items as `__getitem__` returns them, from public facts only."""


class MakesUnits(Protocol):
    """Asked by the preflight where there are no `synthetic_items`."""

    def synthetic_units(self, num_units: int) -> Any:
        """A collated batch of `num_units` made-up units, `rows_per_unit` consecutive rows each."""


class MakesRehearsal(Protocol):
    """Asked of the data module by `lightning-dp fit` before the first charge, to try validation and test."""

    def rehearsal_data(self) -> Any:
        """A data module with the same public facts and splits whose rows are made up; nothing is read."""


class ChecksTest(Protocol):
    """Asked of the data module by `lightning-dp fit` before the first charge, where a test follows."""

    def check_test(self) -> None:
        """Raise ValueError where the test split can't be read as a whole."""


class HasContentPieces(Protocol):
    """Asked by `DifferentialPrivacy` before the first charge, of data module and then train set."""

    def content_pieces(self) -> Iterable[bytes]:
        """What the train data is made of, piece by piece, alike however the data is stored or ordered.

        The ledger keeps a keyed sketch of them, by which it knows the data again under another name.
        """


class PublicValidation(Protocol):
    """Asked of the data module when callbacks of a private fit choose or stop by a metric.

    Attributes:
        validation_is_public: True says that no validation row is private.
    """

    validation_is_public: bool


class PublicData(Protocol):
    """Asked of the data module by what may look at public rows only, and when weights are marked.

    Attributes:
        public: exactly True says that no row at all is private.
    """

    public: bool


class ChecksConfig(Protocol):
    """Asked of the data module's class by `lightning-dp fit` and `check`, before it is made."""

    @staticmethod
    def check_config(arguments: Any) -> None:
        """Raise ValueError for `init_args` that a private fit would refuse."""


class ReadsFiles(Protocol):
    """Asked of a data module, or its source, by `DifferentialPrivacy.check(needs=True)`."""

    def files(self) -> list[Path]:
        """The files that it reads, there or not."""


class HasSource(Protocol):
    """A data module that reads from another object.

    Attributes:
        source: what it reads from.
    """

    source: Any


class HasTrainDataset(Protocol):
    """Asked of the data module by modules that compute something of each train row once.

    Attributes:
        train_dataset: the train set, after `setup("fit")`.
    """

    train_dataset: Any


class Describes(Protocol):
    """Asked of data module and module when a fit starts and a test ends, for tables and plots."""

    def facts(self) -> dict[str, str | float | int]:
        """Public facts by name, such as the kind of a conditioning."""


class ReportsOnData(Protocol):
    """Asked of the data module by `RunFolder` when a fit starts; what it says stays on this machine."""

    def data_report(self) -> dict[str, Any]:
        """What was found in the data, as JSON without anybody's name. Private facts: covered by no ε."""


# --- modules ----------------------------------------------------------------------------------------


class ListsPreparations(Protocol):
    """Asked of the module by `DifferentialPrivacy` when it plans, and by what sums up a sweep's cost."""

    def preparations(
        self, *, unit: PrivacyUnit, target_epsilon: float | None, delta: float
    ) -> Sequence[Preparation[Any]]:
        """Releases before the first step, in order; from public facts only."""


class ReadsTrainSet(Protocol):
    """Asked of the module when the first steps are charged, in every process, before any release."""

    def read_train_set(self) -> Any:
        """Compute something of each train row once, such as latents. The result is not used."""


class SeesMoreRows(Protocol):
    """Asked of the module before every batch.

    Attributes:
        rows_per_example: ≥ 1, rows that its layers see for one row of the data set.
    """

    rows_per_example: int


class ModuleLogs(Protocol):
    """Asked of the module before a sweep, so that no trial is paid for that can't be judged."""

    def logged_metrics(self, data: Any) -> LoggedMetrics:
        """Names that a fit on this data module will log; `data` is declared and not opened."""


class HasAdapter(Protocol):
    """Asked of the module by reports on what was chosen to train.

    Attributes:
        adapter: an `Adapter`, or None.
    """

    adapter: Any


class HasNet(Protocol):
    """Asked of the module by messages that name its network.

    Attributes:
        net: the network that trains.
    """

    net: Any


# --- callbacks and loggers --------------------------------------------------------------------------


class CallbackLogs(Protocol):
    """Asked of every callback before a sweep, as `ModuleLogs` is of the module."""

    def logged_metrics(self, module: Any, data: Any) -> LoggedMetrics:
        """Names that the callback adds."""


class TakesFacts(Protocol):
    """Asked of loggers when training starts; others get the facts by `log_hyperparams`."""

    def log_facts(self, facts: Mapping[str, Any]) -> None:
        """Public facts of a run by plain names, for grouping and tables."""


class TakesPrivateImages(Protocol):
    """Asked of loggers at the end of a fit with `GradientDiagnostics`."""

    def log_nonprivate_image(self, name: str, path: Path) -> None:
        """A picture of raw private statistics; sent only where the user shares them."""


# --- series and images, in reports ------------------------------------------------------------------


class StandardisesErrors(Protocol):
    """Asked of the data module when validation or test of series starts.

    Attributes:
        metric_mean, metric_std: (C,) constants that make errors comparable over channels.
    """

    metric_mean: Any
    metric_std: Any


class HasDays(Protocol):
    """Asked of the data module by reports on series.

    Attributes:
        steps_per_day: ≥ 1 time steps.
        channel_names: C names.
    """

    steps_per_day: int
    channel_names: Sequence[str]


class NamesUnitOfValues(Protocol):
    """Asked of the data module by figures of series.

    Attributes:
        value_unit: what values are measured in, such as "kW".
    """

    value_unit: str


class LabelsWindows(Protocol):
    """Asked of the data module when predictions of series are written."""

    def window_labels(self, index: int) -> tuple[Any, Any]:
        """The series' name and the (L,) stamps of test window `index`, as the data itself writes them."""


class ContinuesSeries(Protocol):
    """Asked of the data module by `lightning-dp forecast`."""

    def whole_series(self) -> Any:
        """A `WholeSeries`: all series to their last reading and beyond."""


class HasLayout(Protocol):
    """Asked of the data module by the export of series.

    Attributes:
        layout: of an own table: names of columns, and what covariates there are.
    """

    layout: Any


class HasExtraCovariates(Protocol):
    """Asked of the data module by the export of series.

    Attributes:
        extra_covariates: what there is beside the calendar.
    """

    extra_covariates: Any


class StatesFrequency(Protocol):
    """Asked of the data module by `lightning-dp sample`.

    Attributes:
        reading: of an own table; its `frequency` is the time between steps.
    """

    reading: Any


class HasTask(Protocol):
    """Asked of the data module by `lightning-dp sample`.

    Attributes:
        task: which positions of a window are to be filled in.
    """

    task: Any


class HasImages(Protocol):
    """Asked of the data module in `setup` of a module of images.

    Attributes:
        size: pixels of a side.
        num_classes: of the labels.
        class_names: what the labels mean, in their order.
        dataset_id: see `NamesDataset`.
    """

    size: int
    num_classes: int
    class_names: Sequence[str]
    dataset_id: str


class NamesClasses(Protocol):
    """Asked of the data module by grids of samples.

    Attributes:
        class_names: what the labels mean, in their order.
    """

    class_names: Sequence[str]


class HasCaptions(Protocol):
    """Asked of the data module in `setup` of a module of images.

    Attributes:
        has_captions: whether its rows come with a text.
        dataset_id: see `NamesDataset`.
    """

    has_captions: bool
    dataset_id: str


class Tokenises(Protocol):
    """Asked of the data module in `setup` of a module of images.

    Attributes:
        tokenizer: what turns its texts into numbers, or None.
    """

    tokenizer: Any


# --- parts of networks ------------------------------------------------------------------------------

Role = Literal[
    "modulation_modules", "condition_modules", "embedder_modules", "transformer_modules", "output_modules"
]


class Modulates(Protocol):
    """Asked of every part of a network by adapters and diagnostics, as are the four that follow."""

    def modulation_modules(self) -> Sequence[Any]:
        """Modules that map a condition to scale, shift and gate."""


class Conditions(Protocol):
    def condition_modules(self) -> Sequence[Any]:
        """Modules that make the condition, diffusion time included."""


class Embeds(Protocol):
    def embedder_modules(self) -> Sequence[Any]:
        """Modules that embed class or context alone."""


class HasTransformers(Protocol):
    def transformer_modules(self) -> Sequence[Any]:
        """Whole transformer blocks."""


class HasOutput(Protocol):
    def output_modules(self) -> Sequence[Any]:
        """The last layers."""


class FusesLayers(Protocol):
    def fused_layers(self) -> Mapping[str, Sequence[str]]:
        """By name of each linear layer that does the work of several: their names, in the output's order."""


# --- the list ---------------------------------------------------------------------------------------

Place = Literal["data", "module", "callback", "logger", "layer"]


@dataclass(frozen=True, kw_only=True)
class Hook:
    """One protocol and who is asked for it.

    Attributes:
        protocol: one of the classes above.
        of: the parts that are asked; "data" is the data module, the train set, or the class of the former.
        near: similarity in (0, 1], by `difflib`, from which another name on a user's class is taken for this
            one misspelt, so that a private fit is refused; None for hooks whose absence changes no guarantee
            and names so short or common that others have them by chance.
    """

    protocol: type[Any]
    of: Place
    near: float | None = None


HOOKS: tuple[Hook, ...] = (
    Hook(protocol=DeclaresUnit, of="data", near=0.82),
    Hook(protocol=NamesDataset, of="data", near=0.88),
    Hook(protocol=MakesItems, of="data", near=0.82),
    Hook(protocol=MakesUnits, of="data", near=0.82),
    Hook(protocol=MakesRehearsal, of="data"),
    Hook(protocol=ChecksTest, of="data"),
    Hook(protocol=HasContentPieces, of="data", near=0.82),
    Hook(protocol=PublicValidation, of="data", near=0.75),
    Hook(protocol=PublicData, of="data"),
    Hook(protocol=ChecksConfig, of="data"),
    Hook(protocol=ReadsFiles, of="data"),
    Hook(protocol=HasSource, of="data"),
    Hook(protocol=HasTrainDataset, of="data"),
    Hook(protocol=Describes, of="data"),
    Hook(protocol=ReportsOnData, of="data"),
    Hook(protocol=Describes, of="module"),
    Hook(protocol=ListsPreparations, of="module", near=0.82),
    Hook(protocol=ReadsTrainSet, of="module", near=0.82),
    Hook(protocol=SeesMoreRows, of="module", near=0.82),
    Hook(protocol=ModuleLogs, of="module", near=0.95),  # `log_metrics` is a name of many
    Hook(protocol=HasAdapter, of="module"),
    Hook(protocol=HasNet, of="module"),
    Hook(protocol=CallbackLogs, of="callback"),
    Hook(protocol=TakesFacts, of="logger"),
    Hook(protocol=TakesPrivateImages, of="logger"),
    Hook(protocol=StandardisesErrors, of="data"),
    Hook(protocol=HasDays, of="data"),
    Hook(protocol=NamesUnitOfValues, of="data"),
    Hook(protocol=LabelsWindows, of="data"),
    Hook(protocol=ContinuesSeries, of="data"),
    Hook(protocol=HasLayout, of="data"),
    Hook(protocol=HasExtraCovariates, of="data"),
    Hook(protocol=StatesFrequency, of="data"),
    Hook(protocol=HasTask, of="data"),
    Hook(protocol=HasImages, of="data"),
    Hook(protocol=NamesClasses, of="data"),
    Hook(protocol=HasCaptions, of="data"),
    Hook(protocol=Tokenises, of="data"),
    Hook(protocol=Modulates, of="layer"),
    Hook(protocol=Conditions, of="layer"),
    Hook(protocol=Embeds, of="layer"),
    Hook(protocol=HasTransformers, of="layer"),
    Hook(protocol=HasOutput, of="layer"),
    Hook(protocol=FusesLayers, of="layer"),
)

Asked = TypeVar("Asked")


def members(protocol: type[Any]) -> dict[str, Any]:
    """Name → type of an attribute, or the function of a method, for each member of a protocol."""
    held = {name: value for name, value in vars(protocol).items() if not name.startswith("_")}
    methods = {name: one.__func__ if isinstance(one, staticmethod) else one for name, one in held.items()}
    return {**inspect.get_annotations(protocol), **methods}


def hook_names() -> frozenset[str]:
    """Names of all members of all hooks."""
    return frozenset(name for hook in HOOKS for name in members(hook.protocol))


def provides(part: object, protocol: type[Asked]) -> TypeGuard[Asked]:
    """Whether a part has every member of a protocol.

    Unlike `isinstance` with a runtime-checkable Protocol, a property that fails with an AttributeError counts
    as there: whoever reads it hears of the failure, instead of going on as if nobody had written it.
    """
    return all(_has(part, name) for name in members(protocol))


def _has(part: object, name: str) -> bool:
    try:
        inspect.getattr_static(part, name)
    except AttributeError:
        return hasattr(part, name)  # given by `__getattr__`, as the parameters and modules of a module are
    return True


# --- small questions --------------------------------------------------------------------------------


def is_public(data: object) -> bool:
    """Whether a data module says, by exactly True, that no row of it is private."""
    return provides(data, PublicData) and data.public is True


def rows_per_unit_of(data: object) -> int:
    """λ ≥ 1, consecutive rows of a collated batch that are one unit's, as a data module says; else 1."""
    return data.privacy_unit().rows_per_unit if provides(data, DeclaresUnit) else 1


def rows_per_example_of(module: object) -> int:
    """Rows that the layers of a module see for one row of the data set; 1 where it says nothing."""
    return int(module.rows_per_example) if provides(module, SeesMoreRows) else 1


def unit_of_values(data: object) -> str:
    """What values of series are measured in; "" where nobody says."""
    return data.value_unit if provides(data, NamesUnitOfValues) else ""


def modules_in_role(layer: object, role: Role) -> list[Any]:
    """What a part of a network declares for a role; [] where it declares nothing."""
    declare = getattr(layer, role, None)
    return list(declare()) if callable(declare) else []


def layers_fused_in(layer: object) -> Mapping[str, Sequence[str]]:
    """What a part of a network says of layers that do the work of several; {} where it says nothing."""
    if not provides(layer, FusesLayers) or not callable(layer.fused_layers):
        return {}
    return layer.fused_layers()
