"""A report as headings, lines and tables of text: what the page and the Markdown file both show.

Neither of them reads the report itself, so they can't say different things.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any

from lightning_dp.privacy.report.document import Composed, PrivacyReport

_KINDS = {
    "fit": "a training run",
    "evolution": "a run of Private Evolution",
    "export": "exported weights",
    "samples": "synthetic samples",
    "synthesis": "synthetic series",
    "predictions": "predictions",
    "public weights": "public weights",
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns and rows of text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One heading with what stands below it, in this order.

    Attributes:
        title: the heading.
        curve: whether ε(δ) is drawn here, where pictures can be.
        lines: names with what they are.
        table: or None.
        points: sentences of a list.
    """

    title: str
    curve: bool = False
    lines: tuple[tuple[str, str], ...] = ()
    table: Table | None = None
    points: tuple[str, ...] = ()


def title_of(report: PrivacyReport) -> str:
    """The heading of the whole."""
    what = _KINDS.get(report.kind or "", "a run")
    return f"Privacy report of {what}" + (f" on {report.dataset}" if report.dataset else "")


def headline_of(report: PrivacyReport) -> str:
    """ε, δ and unit in one line.

    >>> headline_of(PrivacyReport(epsilon_spent=7.99612, delta=1e-5, unit="window"))
    'ε = 7.997 at δ = 1e-05 per window'
    """
    text = f"ε = {bound(report.headline)}"
    if math.isinf(report.headline) or report.delta is None:
        return text
    return f"{text} at δ = {number(report.delta)}" + (f" per {report.unit}" if report.unit else "")


def summary_of(report: PrivacyReport) -> tuple[str, ...]:
    """What the headline means, in sentences."""
    said = [report.unit_in_words, report.statement, report.note]
    if report.unit_declared is False:
        said.append("Nobody declared what a unit is: this was assumed.")
    if math.isinf(report.headline) and not report.note:
        said.append("Nothing about the training data is protected.")
    if report.status not in (None, "finished"):
        said.append(f"The run is {report.status}.")
    return tuple(one for one in said if one)


def sections_of(report: PrivacyReport) -> tuple[Section, ...]:
    """All that comes after the headline; a section without content is left out."""
    found = (
        _guarantee(report),
        _curve(report),
        _composition(report),
        _sampling(report),
        _total(report),
        Section(title="Not covered", points=report.not_covered or ()),
        _earlier(report),
        _accepted(report),
        _checked(report),
        _ledger(report),
        _code(report),
        _files(report),
        Section(title="Further fields", lines=tuple(_flat(report.other))),
    )
    return tuple(one for one in found if one.curve or one.lines or one.table or one.points)


def number(value: float | None) -> str:
    """A number for people: four digits, ∞, or "undefined"."""
    if value is None:
        return "undefined"
    return "∞" if math.isinf(value) else f"{value:.4g}"


def bound(value: float | None) -> str:
    """An upper bound for people: four digits, never below the value.

    >>> bound(8.00001), bound(8.0), bound(12345.6), bound(math.inf)
    ('8.001', '8', '12350', '∞')
    """
    if value is None or math.isinf(value) or value == 0:
        return number(value)
    digits = 3 - math.floor(math.log10(value))
    # Of the decimal that Python shows, so that 8.0 stays 8 whatever its binary fraction is.
    rounded = Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_CEILING)
    return f"{rounded.normalize():f}"


def _lines(*pairs: tuple[str, Any]) -> tuple[tuple[str, str], ...]:
    """Those that have a value, as text."""
    return tuple((name, _text(value)) for name, value in pairs if value is not None)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_text(one)}" for name, one in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_text, value)) or "none"
    return "none" if value is None else str(value)


def _guarantee(report: PrivacyReport) -> Section:
    replace = report.replace_one
    return Section(
        title="Guarantee",
        lines=_lines(
            ("Neighbouring train sets", report.relation),
            ("Unit", report.unit_description),
            ("Units in the train set", report.num_units),
            *(
                (f"ε per {unit}, at the end of the plan", bound(epsilon))
                for unit, epsilon in (report.epsilon_of_unit or {}).items()
            ),
            (
                "Replacing one unit",
                replace and f"at most ε = {bound(replace.epsilon)} at δ = {bound(replace.delta)}",
            ),
            ("Accountant", report.accountant),
            ("By Rényi composition, as a check", report.epsilon_rdp and bound(report.epsilon_rdp)),
        ),
    )


def _curve(report: PrivacyReport) -> Section:
    if not report.curve:
        return Section(title="")
    rows = tuple((number(point.delta), bound(point.epsilon)) for point in report.curve)
    return Section(title="ε at other δ", curve=True, table=Table(columns=("δ", "ε"), rows=rows))


def _composition(report: PrivacyReport) -> Section:
    if not report.composition:
        return Section(title="")
    return Section(
        title="Mechanisms that ε composes",
        table=Table(
            columns=("Mechanism", "Noise", "q", "Times", "Released", "Charged to", "Runs"),
            rows=tuple(map(_row, report.composition)),
        ),
    )


def _row(one: Composed) -> tuple[str, ...]:
    event = one.event
    noise = [f"{_SYMBOLS.get(name, name)} = {_text(event[name])}" for name in event if name not in _NOT_NOISE]
    times = event.get("steps", event.get("rounds", 1))
    return (
        one.name,
        ", ".join(noise),
        _text(event.get("sampling_rate", 1)),
        _text(times),
        one.released,
        f"{one.dataset}, per {one.unit}",
        ", ".join(run[:8] for run in one.runs),
    )


_SYMBOLS = {"noise_multiplier": "σ", "bounded_range": "η"}
_NOT_NOISE = ("type", "steps", "rounds", "sampling_rate")


def _sampling(report: PrivacyReport) -> Section:
    steps = None if report.steps_charged is None else f"{report.steps_charged:,}"
    if steps and report.kind in ("fit", "evolution") and report.num_steps is not None:
        steps += f" of {report.num_steps:,} planned"
    return Section(
        title="Sampling and noise",
        lines=_lines(
            ("Sampler", report.sampling),
            ("Sampling rate q", report.sampling_rate),
            ("Units in an average batch", report.expected_batch_size),
            ("Noise multiplier σ", report.noise_multiplier),
            ("Bound on a unit's contribution C", report.max_grad_norm),
            ("Mechanism", report.mechanism),
            ("Steps charged", steps),
            *(
                (f"Noise of {one.of}", f"{one.source}{', secure' if one.secure else ''}: {one.generator}")
                for one in report.noise or ()
            ),
        ),
    )


def _total(report: PrivacyReport) -> Section:
    total = report.total
    if total is None:
        return Section(title="")
    return Section(
        title="All runs on this data set, when this was written",
        lines=_lines(
            ("Account", f"{total.dataset}, per {total.unit}"),
            ("ε of everything charged", f"{bound(total.epsilon)} at δ = {number(total.delta)}, or less"),
            ("Runs", total.runs),
            ("Up to ledger entry", total.entry),
            ("Limit", "none" if total.limit_epsilon is None else number(total.limit_epsilon)),
        ),
    )


def _earlier(report: PrivacyReport) -> Section:
    return Section(
        title="What the weights had seen before",
        points=tuple(_text(one) for one in report.weights_seen or ()),
    )


def _accepted(report: PrivacyReport) -> Section:
    return Section(
        title="Findings that somebody answers for",
        points=tuple(_text(one) for one in report.accepted_findings or ()),
    )


def _checked(report: PrivacyReport) -> Section:
    return Section(
        title="Checks while training, and audit",
        lines=_lines(
            *_audit(report.audit),
            *(
                (f"Spot check, {name.replace('_', ' ')}", value)
                for name, value in (report.spot_check or {}).items()
            ),
            ("Compared, when this was made of the run", report.checks),
        ),
    )


def _audit(audit: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    """Each figure on a line of its own; those of a second estimator after it."""
    for name, value in (audit or {}).items():
        if isinstance(value, Mapping):
            yield from ((f"{title}, {name.replace('_', ' ')}", one) for title, one in _audit(value))
        else:
            yield f"Audit, {name.replace('_', ' ')}", value


def _ledger(report: PrivacyReport) -> Section:
    signature = report.signature or {}
    return Section(
        title="Ledger and signature",
        lines=_lines(
            ("Run", report.run),
            ("Ledger entry", report.ledger_seq),
            ("Hash of that entry", report.ledger_hash),
            ("Another ledger than the default one", report.ledger_elsewhere),
            ("Content of the data", report.content),
            ("Signed by key", signature.get("public_key")),
            ("Signature", signature.get("signature")),
            ("Unsigned", report.unsigned),
        ),
    )


def _code(report: PrivacyReport) -> Section:
    code = report.code
    if code is None:
        return Section(title="")
    changed = " and changes" if code.git_changed else ""
    return Section(
        title="Code",
        lines=_lines(
            ("lightning-dp", code.version + (f", commit {code.git_commit}{changed}" * bool(code.git_commit))),
            ("Python", code.python),
            *code.packages.items(),
        ),
    )


def _files(report: PrivacyReport) -> Section:
    files = dict(report.files or {})
    if report.file is not None and report.sha256 is not None:
        files[report.file] = report.sha256
    if not files:
        return Section(title="")
    shown = list(files.items())[:_MOST_FILES]
    more = len(files) - len(shown)
    return Section(
        title="Files",
        table=Table(columns=("File", "SHA-256"), rows=tuple(shown)),
        points=(f"And {more:,} more, listed in privacy.json.",) if more else (),
    )


_MOST_FILES = 20


def _flat(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        yield name, _text(value)
