"""What a check without a fit has to say: a table of parameters and of findings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from torch import nn

from lightning_dp.callbacks.needs import Needs
from lightning_dp.callbacks.preflight import Preflight
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.described import Cost, Described, describe
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.loop import Loop
from lightning_dp.privacy.plan import PrivacyPlan
from lightning_dp.privacy.preflight import Accepted, Finding, answered

_COSTS: tuple[Cost, ...] = ("cheap", "one copy per unit", "loop")
_UNKNOWN = "unknown: the step was not followed to a use of it"


@dataclass(frozen=True, kw_only=True)
class Row:
    """Parameters of one module that are clipped alike.

    Attributes:
        parameters: their names, such as `net.0.{weight,bias}`.
        size: how many numbers they hold.
        rule: by which they are clipped.
        cost: `cheap`, `one copy per unit` or `loop`; None where the rule is unknown.
    """

    parameters: str
    size: int
    rule: str
    cost: str | None


@final
@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What would happen to a private fit; `str` is the report to read.

    Attributes:
        module: name of its class.
        unit: what is protected; None where a refusal came before it was known.
        num_units: N, likewise.
        delta: of the plan, likewise.
        epsilon: ε per unit at the end of the fit; None where the number of steps is not known.
        num_steps: of the fit, likewise.
        refused: settings that a fit refuses, one sentence each.
        findings: of the preflight that nobody answers for.
        accepted: findings that `privacy.accept` answers for.
        rows: how the other trainable parameters are clipped, in the module's order.
        frozen: how many parameters are frozen, and how many numbers they hold.
        unreached: trainable parameters that no trial reached.
        needs: time, memory and data of the fit, where that was asked for and the step runs.
    """

    module: str
    unit: str | None
    num_units: int | None
    delta: float | None
    epsilon: float | None
    num_steps: int | None
    refused: tuple[str, ...]
    findings: tuple[Finding, ...]
    accepted: tuple[Accepted, ...]
    rows: tuple[Row, ...]
    frozen: tuple[int, int]
    unreached: tuple[str, ...]
    needs: Needs | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing was found that nobody answers for."""
        return not self.findings and not self.refused

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ok": self.ok, **asdict(self), "accepted": [one.to_dict() for one in self.accepted]}

    def __str__(self) -> str:
        return "\n".join([*self._head(), "", *self._parameters(), "", *self._found()])

    def _head(self) -> Iterator[str]:
        yield f"module   {self.module}"
        if self.num_units is None:
            yield "unit     unknown: see what is refused below"
            return
        yield f"unit     {self.unit}"
        yield f"N        {self.num_units:,}"
        if self.epsilon is None:
            yield "ε        unknown without the number of steps"
        else:
            yield f"ε        {self.epsilon:.4g} at δ = {self.delta:g} after {self.num_steps:,} steps"
        if self.needs is not None:
            yield from self.needs.lines()

    def _parameters(self) -> Iterator[str]:
        table = [("parameters", "size", "cost", "clipped by")]
        table += [(row.parameters, f"{row.size:,}", row.cost or "?", row.rule) for row in self.rows]
        name, size, cost = (max(len(line[i]) for line in table) for i in range(3))
        for line in table:
            yield f"{line[0]:<{name}}  {line[1]:>{size}}  {line[2]:<{cost}}  {line[3]}"
        if self.frozen[0]:
            yield f"frozen: {self.frozen[0]:,} parameters of {self.frozen[1]:,} numbers"
        if self.unreached:
            yield f"reached by no trial: {', '.join(self.unreached)}"

    def _found(self) -> Iterator[str]:
        for one in self.accepted:
            yield from _lines(one.finding, "accepted", one.reason)
        for sentence in self.refused:
            yield f"[refused] {sentence}"
        for finding in self.findings:
            yield from _lines(finding, "fix", finding.fix)
        number = len(self.findings) + len(self.refused)
        yield f"{number} finding{'' if number == 1 else 's'}" + (
            f", {len(self.accepted)} accepted" if self.accepted else ""
        )


def _lines(finding: Finding, last: str, text: str) -> Iterator[str]:
    yield f"[{finding.code}] {finding.place}"
    yield f"    {'problem':<9}{finding.problem}"
    yield f"    {last:<9}{text}"


def report_of(
    module: nn.Module,
    *,
    plan: PrivacyPlan | None,
    seen: Preflight | None,
    refused: Sequence[str],
    accept: Mapping[str, str],
    engine: ClippingEngine,
    steps_are_given: bool,
    needs: Needs | None = None,
) -> CheckReport:
    """The report of a check.

    Args:
        module: of the fit, as it was given.
        plan: None where a check before it failed.
        seen: None likewise.
        refused: what failed.
        accept: code → reason.
        engine: the fit's.
        steps_are_given: whether the plan's number of steps is the fit's.
        needs: of the fit, where they were measured.
    """
    trial = seen.trial if seen is not None else None
    tried = trial.step.module if trial is not None else module
    trained = {name: p for name, p in tried.named_parameters() if p.requires_grad}
    frozen = [p for p in tried.parameters() if not p.requires_grad]
    described: dict[str, list[Described]] = {}
    unreached: list[str] = []
    if trial is not None:
        described = describe({name: tuple(p.shape) for name, p in trained.items()}, trial.sites)
        unreached = [name for name in trained if name not in described and trial.sites.answers]
    if engine.units_at_once == 1:
        described = {name: [Described("a batch of its own for each unit", "loop")] for name in trained}
        unreached = []
    elif not isinstance(engine, BookKeeping):
        kind: Cost = "loop" if isinstance(engine, Loop) else "one copy per unit"
        described = {name: [Described(f"the engine {type(engine).__name__}", kind)] for name in described}
    sizes = {name: p.numel() for name, p in trained.items() if name not in unreached}
    accepted, findings = answered(seen.findings if seen is not None else (), accept=accept)
    known = plan if steps_are_given else None
    return CheckReport(
        module=type(module).__name__,
        unit=None if plan is None else _unit(plan),
        num_units=None if plan is None else plan.unit.num_units,
        delta=None if plan is None else plan.delta,
        epsilon=None if known is None else known.epsilon,
        num_steps=None if known is None else known.num_steps,
        refused=tuple(refused),
        findings=tuple(findings),
        accepted=tuple(accepted),
        rows=tuple(_rows(sizes, described)),
        frozen=(len(frozen), sum(p.numel() for p in frozen)),
        unreached=tuple(unreached),
        needs=needs,
    )


def _unit(plan: PrivacyPlan) -> str:
    unit = plan.unit
    return f"{unit.name} ({unit.description})" if unit.description else unit.name


def _rows(sizes: Mapping[str, int], described: Mapping[str, list[Described]]) -> Iterator[Row]:
    groups: dict[tuple[str, tuple[Described, ...]], list[str]] = {}
    for name in sizes:
        path, _, _ = name.rpartition(".")
        groups.setdefault((path, tuple(described.get(name, ()))), []).append(name)
    for (path, found), names in groups.items():
        last = ",".join(name.rpartition(".")[2] for name in names)
        yield Row(
            parameters=names[0] if len(names) == 1 else f"{path}{'.' if path else ''}{{{last}}}",
            size=sum(sizes[name] for name in names),
            rule="; ".join(one.rule for one in found) or _UNKNOWN,
            cost=max((one.cost for one in found), key=_COSTS.index, default=None),
        )
