"""A sweep file in W&B's schema, read and checked. The same file goes to `wandb sweep` unchanged."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, Literal, get_args

import yaml

from lightning_dp.sweeps.parameters import Choice, Parameter, Path, grid, read_parameters

Method = Literal["grid", "random", "bayes"]
Goal = Literal["minimize", "maximize"]

_KEYS = {
    *("name", "description", "project", "entity", "program", "method", "metric", "parameters"),
    *("command", "early_terminate", "run_cap"),
}
_MACROS = {
    *("${env}", "${interpreter}", "${program}", "${args}", "${args_no_equals}", "${args_no_hyphens}"),
    *("${args_no_boolean_flags}", "${args_json}"),
}
_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")  # W&B's default


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What trials are judged by: a name in results.json or metrics.csv, and which way is better."""

    name: str
    goal: Goal


@dataclass(frozen=True, kw_only=True)
class EarlyTermination:
    """W&B's `hyperband`: of trials that have logged the metric min_iter · etaⁱ times, the best 1/eta go on.

    Attributes:
        min_iter: ≥ 1.
        eta: ≥ 2.
    """

    min_iter: int
    eta: int


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What the file says.

    Attributes:
        name: of the sweep; the file's where it gives none.
        method: grid, random or bayes.
        metric: what to judge by, or None.
        parameters: leaf → what it may be.
        command: of a trial, with W&B's macros.
        program: for `${program}`.
        run_cap: most trials, or None.
        early_terminate: when hopeless trials end, or None.
    """

    name: str
    method: Method
    metric: Metric | None
    parameters: Mapping[Path, Parameter]
    command: tuple[str, ...]
    program: str | None = None
    run_cap: int | None = None
    early_terminate: EarlyTermination | None = None

    def points(self) -> Iterator[dict[Path, Any]]:
        """Every point of a grid."""
        return grid(self.parameters)

    def with_overrides(self, overrides: Mapping[str, Any]) -> "Sweep":
        """The sweep with parameters fixed, or for a list of values of one of its own, with other values."""
        parameters = dict(self.parameters)
        names = {".".join(path): path for path in parameters}
        for name, value in overrides.items():
            path = names.get(name, (name,))
            several = path in parameters and isinstance(value, list)
            parameters[path] = Choice(values=tuple(value) if several else (value,))
        return replace(self, parameters=parameters)

    def fingerprint(self) -> str:
        """A text that is equal where the trials are."""
        return json.dumps(
            {
                "method": self.method,
                "metric": repr(self.metric),
                "parameters": {".".join(path): repr(leaf) for path, leaf in self.parameters.items()},
                "command": self.command,
                "program": self.program,
            }
        )


def read_sweep(file: FilePath) -> Sweep:
    """Read and check a sweep file.

    Raises:
        ValueError: the file can't be read, or says something that W&B's schema does not know.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{file} can't be read as a sweep: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is no sweep: it must be a mapping with method, parameters and command")
    if unknown := sorted(map(str, set(content) - _KEYS)):
        raise ValueError(f"{file} has {', '.join(unknown)}; a sweep knows {', '.join(sorted(_KEYS))}")
    method = content.get("method")
    if method not in get_args(Method):
        raise ValueError(f"{file}: method is {method!r}; it must be grid, random or bayes")
    metric = _metric(content.get("metric"), file=file)
    early = _early(content.get("early_terminate"), file=file)
    if metric is None and (method == "bayes" or early):
        raise ValueError(f"{file}: method bayes and early_terminate need a metric with name and goal")
    run_cap = content.get("run_cap")
    if run_cap is not None and not (isinstance(run_cap, int) and run_cap >= 1):
        raise ValueError(f"{file}: run_cap is {run_cap!r}; it must be a whole number of at least 1")
    try:
        parameters = read_parameters(content.get("parameters"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    sweep = Sweep(
        name=str(content.get("name") or file.stem),
        method=method,  # type: ignore[arg-type]
        metric=metric,
        parameters=parameters,
        command=_command(content.get("command"), content.get("program"), file=file),
        program=content.get("program"),
        run_cap=run_cap,
        early_terminate=early,
    )
    if method == "grid":
        next(sweep.points())
    return sweep


def _metric(content: Any, *, file: FilePath) -> Metric | None:
    if content is None:
        return None
    if not isinstance(content, dict) or not content.get("name") or set(content) - {"name", "goal"}:
        raise ValueError(f"{file}: metric is {content!r}; it must have a name and a goal")
    goal = content.get("goal", "minimize")
    if goal not in get_args(Goal):
        raise ValueError(f"{file}: metric.goal is {goal!r}; it must be minimize or maximize")
    return Metric(name=content["name"], goal=goal)


def _early(content: Any, *, file: FilePath) -> EarlyTermination | None:
    if content is None:
        return None
    if not isinstance(content, dict) or content.get("type") != "hyperband":
        raise ValueError(f"{file}: early_terminate.type must be hyperband, not {content!r}")
    if unknown := sorted(set(content) - {"type", "min_iter", "max_iter", "s", "eta"}):
        raise ValueError(f"{file}: early_terminate has {', '.join(unknown)}, which hyperband does not know")
    eta = content.get("eta", 3)
    # W&B's other spelling: s brackets that end at max_iter.
    first = content.get("min_iter") or (content.get("max_iter", 0) // eta ** content.get("s", 1))
    if not (isinstance(first, int) and first >= 1 and isinstance(eta, int) and eta >= 2):
        raise ValueError(
            f"{file}: early_terminate needs eta ≥ 2 and min_iter ≥ 1, or max_iter and s with max_iter ≥ eta^s"
        )
    return EarlyTermination(min_iter=first, eta=eta)


def _command(content: Any, program: Any, *, file: FilePath) -> tuple[str, ...]:
    if content is None and program is None:
        raise ValueError(f"{file} has neither command nor program, so a trial has nothing to run")
    parts = [str(part) for part in (content or _COMMAND)]
    for part in parts:
        if re.fullmatch(r"\$\{[^:}]*\}", part) and part not in _MACROS:
            raise ValueError(f"{file}: command has {part}; its macros are {', '.join(sorted(_MACROS))}")
    if "${program}" in parts and program is None:
        raise ValueError(f"{file}: command has ${{program}}, and no program is given")
    return tuple(parts)
