"""What a sweep varies: parameters in W&B's schema, drawn by Optuna.

A parameter is a constant, a list of values, or a range. Nested `parameters:` are leaves with a longer path;
W&B hands them to a trial as one dictionary, and so does `assemble`.
"""

import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import optuna

Path = tuple[str, ...]

_FRACTIONS = ("limit_", "overfit_batches", "val_check_interval")
"""Of the trainer: 1.0 means all and 1 means one, and W&B's server turns the first into the second."""


class Parameter(ABC):
    """One leaf of `parameters:`."""

    @abstractmethod
    def draw(self, trial: optuna.trial.Trial, name: str) -> Any:
        """The trial's value."""

    @abstractmethod
    def extremes(self) -> list[Any]:
        """Every value of a list, both ends of a range."""


@final
@dataclass(frozen=True, kw_only=True)
class Choice(Parameter):
    """One of `values`, which may be anything that YAML can say."""

    values: tuple[Any, ...]

    def draw(self, trial: optuna.trial.Trial, name: str) -> Any:
        # As JSON texts, since Optuna keeps no lists and takes 1, 1.0 and True for the same.
        return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in self.values]))

    def extremes(self) -> list[Any]:
        return list(self.values)


@final
@dataclass(frozen=True, kw_only=True)
class Range(Parameter):
    """A number between two bounds.

    Attributes:
        low, high: inclusive; both integers for integers.
        log: uniform in the logarithm.
        step: of the grid that is drawn from, or None.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def draw(self, trial: optuna.trial.Trial, name: str) -> Any:
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def extremes(self) -> list[Any]:
        return [self.low, self.high]


def read_parameters(described: Any, *, where: str = "parameters") -> dict[Path, Parameter]:
    """The leaves of a `parameters:` block, in the file's order.

    Raises:
        ValueError: a parameter is described in a way that W&B or Optuna does not know.
    """
    if not isinstance(described, Mapping) or not described:
        raise ValueError(f"{where} must map names to what they may be, not {described!r}")
    leaves: dict[Path, Parameter] = {}
    for key, description in described.items():
        name = f"{where}.{key}"
        if not isinstance(description, Mapping):
            raise ValueError(f"{name} is {description!r}; write 'value: …' or 'values: […]' below it")
        if "parameters" in description:
            nested = read_parameters(description["parameters"], where=name)
            leaves.update({(str(key), *path): leaf for path, leaf in nested.items()})
        else:
            leaves[(str(key),)] = _leaf(dict(description), name=name, key=str(key))
    return leaves


def grid(parameters: Mapping[Path, Parameter]) -> Iterator[dict[Path, Any]]:
    """Every combination, the last parameter running fastest.

    Raises:
        ValueError: a parameter is a range.
    """
    for path, parameter in parameters.items():
        if not isinstance(parameter, Choice):
            raise ValueError(f"parameters.{'.'.join(path)} is a range; a grid needs 'values: […]'")
    return corners(parameters)


def corners(parameters: Mapping[Path, Parameter]) -> Iterator[dict[Path, Any]]:
    """Every combination of listed values and ends of ranges."""
    for values in itertools.product(*(parameter.extremes() for parameter in parameters.values())):
        yield dict(zip(parameters, values, strict=True))


def assemble(point: Mapping[Path, Any]) -> dict[str, Any]:
    """What a W&B agent is told of the point: one entry per top-level name, nested ones as a dictionary.

    Whole floats become integers, as they do on the way through W&B's server.
    """
    arguments: dict[str, Any] = {}
    for path, value in point.items():
        place = arguments
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = _as_sent(value)
    return arguments


def _as_sent(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_sent(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_sent(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _leaf(description: dict[str, Any], *, name: str, key: str) -> Parameter:
    if "value" in description:
        values: Sequence[Any] = [description.pop("value")]
    elif "values" in description:
        values = description.pop("values")
        if not isinstance(values, list) or not values:
            raise ValueError(f"{name}.values is {values!r}; it must be a list with at least one value")
        if description.get("distribution") == "categorical":
            del description["distribution"]
    else:
        return _range(description, name=name)
    if description:
        raise ValueError(
            f"{name} has {', '.join(description)} beside its values, which is not supported: remove it"
        )
    if any(isinstance(value, float) and value == 1.0 for value in values) and (
        key.rsplit(".", 1)[-1].startswith(_FRACTIONS)
    ):
        raise ValueError(
            f"{name} is 1.0, which W&B hands on as 1, and that means one batch instead of all: put "
            f"--{key}=1.0 into the command"
        )
    return Choice(values=tuple(values))


def _range(description: dict[str, Any], *, name: str) -> Parameter:
    distribution = description.pop("distribution", None)
    step = description.pop("q", None)
    low, high = description.pop("min", None), description.pop("max", None)
    numbers = all(isinstance(bound, int | float) and math.isfinite(bound) for bound in (low, high))
    if description or not numbers or isinstance(low, bool) or isinstance(high, bool) or not low < high:
        raise ValueError(
            f"{name} must have 'value', 'values', or 'min' and 'max' with min < max; it has "
            f"{', '.join([*description, f'min {low!r}', f'max {high!r}'])}"
        )
    whole = isinstance(low, int) and isinstance(high, int)
    if distribution is None and whole != (isinstance(low, int) or isinstance(high, int)):
        raise ValueError(f"{name} has one whole and one broken bound; write both as 1.0 or both as 1")
    match distribution or ("int_uniform" if whole else "uniform"):
        case "int_uniform" if whole:
            return Range(low=low, high=high, step=step)
        case "uniform" | "q_uniform":
            return Range(low=float(low), high=float(high), step=step)
        case "log_uniform_values" if low > 0 and step is None:
            return Range(low=float(low), high=float(high), log=True)
        case "log_uniform" if step is None:
            return Range(low=math.exp(low), high=math.exp(high), log=True)
    raise ValueError(
        f"{name}.distribution is {distribution!r}; with these bounds it can be categorical, int_uniform, "
        "uniform, q_uniform, log_uniform or, above 0, log_uniform_values"
    )
