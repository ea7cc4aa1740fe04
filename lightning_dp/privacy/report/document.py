"""What a privacy report says, as one typed object: JSON is it, HTML and Markdown are made of it.

Fields have the names that they have in `privacy.json`. Those that runs of an older version did not write are
optional, and what other programs add is kept under `other`, so that nothing is lost between reading and
writing: `PrivacyReport.of(content).to_dict() == content`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Self, get_type_hints

from lightning_dp.privacy.accounting import count_releases, event_from_dict
from lightning_dp.privacy.report.typed import about, read, to_json

SCHEMA = "privacy-report-1"
"""Form of the reports that this version writes; a report without one is of an older version."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One point of ε(δ)."""

    delta: float = field(metadata=about("δ in (0, 1)"))
    epsilon: float = field(metadata=about("an upper bound on ε at this δ; inf where there is none"))


@dataclass(frozen=True, kw_only=True)
class Composed:
    """One mechanism that ε counts."""

    name: str = field(metadata=about("the mechanism's name in the literature"))
    event: dict[str, Any] = field(
        metadata=about("its parameters: σ or another scale, sampling rate q, steps")
    )
    released: str = field(metadata=about("what it published of the data"))
    dataset: str = field(metadata=about("the data set whose account was charged"))
    unit: str = field(metadata=about("the unit of that account"))
    runs: tuple[str, ...] = field(
        metadata=about("the runs that were charged; of earlier fits of the same weights too")
    )


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Where noise came from."""

    of: str = field(metadata=about("what it was added to"))
    source: str = field(metadata=about("the class that drew it"))
    secure: bool = field(
        metadata=about("whether neither a generator's state nor low bits of floats may tell of the data")
    )
    generator: str = field(metadata=about("where its random bits came from"))


@dataclass(frozen=True, kw_only=True)
class Code:
    """What ran."""

    version: str = field(metadata=about("of lightning-dp"))
    git_commit: str | None = field(metadata=about("of lightning-dp's own clone, where it ran from one"))
    git_changed: bool | None = field(metadata=about("whether files of that clone differed from the commit"))
    python: str = field(metadata=about("version of Python"))
    packages: dict[str, str] = field(
        metadata=about("versions of the packages that training and accounting rest on")
    )


@dataclass(frozen=True, kw_only=True)
class Total:
    """All runs on one account of the ledger, when the report was written."""

    dataset: str = field(metadata=about("of the account"))
    unit: str = field(metadata=about("of the account"))
    epsilon: float = field(
        metadata=about("ε for one unit of everything charged to the account: an upper bound")
    )
    delta: float = field(metadata=about("δ of that ε"))
    runs: int = field(metadata=about("how many runs the account knows, this one included"))
    entry: int = field(metadata=about("the ledger's last entry that is counted"))
    limit_epsilon: float | None = field(metadata=about("the account's limit; null where nobody set one"))


@dataclass(frozen=True, kw_only=True)
class ReplaceOne:
    """What the same weights mean for replacing a unit instead of adding or removing it."""

    epsilon: float = field(metadata=about("2ε: a replacement is one removal and one addition"))
    delta: float = field(metadata=about("(1 + e^ε)·δ"))


@dataclass(frozen=True, kw_only=True)
class PrivacyReport:
    """Everything that a privacy report says; see the page docs/privacy_report.md for an example."""

    schema: str | None = field(metadata=about("form of the report; older reports have none"), default=None)
    kind: str | None = field(
        metadata=about(
            "what it speaks of: fit, evolution, export, samples, synthesis, predictions, public weights"
        ),
        default=None,
    )
    status: str | None = field(metadata=about("running, interrupted or finished"), default=None)
    statement: str | None = field(metadata=about("what may be claimed, in a sentence or two"), default=None)
    note: str | None = field(metadata=about("what is special about it"), default=None)
    dataset: str | None = field(metadata=about("the ledger's name of the private data"), default=None)
    run: str | None = field(metadata=about("id of the run in the ledger"), default=None)
    # the guarantee
    epsilon_spent: float | None = field(
        metadata=about("ε at δ of everything charged; inf without privacy"), default=None
    )
    delta: float | None = field(metadata=about("δ of it"), default=None)
    unit: str | None = field(metadata=about("what is protected: record, window or user"), default=None)
    unit_description: str | None = field(metadata=about("one unit, in words"), default=None)
    unit_declared: bool | None = field(
        metadata=about("false where nobody said what the unit is"), default=None
    )
    unit_in_words: str | None = field(
        metadata=about("what adding or removing one unit means here"), default=None
    )
    num_units: int | None = field(metadata=about("N, units in the train set; taken for public"), default=None)
    relation: str | None = field(metadata=about("which train sets are neighbours"), default=None)
    replace_one: ReplaceOne | None = field(metadata=about("the bound for replacing one unit"), default=None)
    epsilon: float | None = field(
        metadata=about("ε at the end of the plan; of a table, what was spent"), default=None
    )
    epsilon_rdp: float | None = field(
        metadata=about("the same by Rényi composition, as a check"), default=None
    )
    epsilon_of_unit: dict[str, float | None] | None = field(
        metadata=about("ε of each unit at the end of the plan; null where it is undefined"), default=None
    )
    accountant: str | None = field(metadata=about("how ε was computed"), default=None)
    curve: tuple[CurvePoint, ...] | None = field(
        metadata=about("ε(δ), upper bounds, δ ascending, the headline among them"), default=None
    )
    # what it is of
    composition: tuple[Composed, ...] | None = field(
        metadata=about("the mechanisms that ε composes, one by one, where each was charged"), default=None
    )
    mechanisms: tuple[dict[str, Any], ...] | None = field(
        metadata=about("the same for programs, from which readers compute ε again"), default=None
    )
    prior_releases: tuple[dict[str, Any], ...] | None = field(
        metadata=about("releases of the run before its first step"), default=None
    )
    mechanism: str | None = field(
        metadata=about("of a Private Evolution: its one mechanism in words"), default=None
    )
    noise_multiplier: float | None = field(metadata=about("σ of training"), default=None)
    max_grad_norm: float | None = field(
        metadata=about("C, bound on a unit's contribution to a step"), default=None
    )
    sampling: str | None = field(metadata=about("how batches were drawn"), default=None)
    sampling_rate: float | None = field(metadata=about("q, a unit's chance to be in one batch"), default=None)
    expected_batch_size: float | None = field(metadata=about("units in an average batch"), default=None)
    steps_charged: int | None = field(
        metadata=about("steps that were charged, lost ones included"), default=None
    )
    num_steps: int | None = field(
        metadata=about("steps that were planned; of a table, steps of the sampler"), default=None
    )
    noise: tuple[Noise, ...] | None = field(metadata=about("where the noise came from"), default=None)
    code: Code | None = field(metadata=about("versions of what ran"), default=None)
    # the ledger
    ledger_seq: int | None = field(
        metadata=about("the ledger's entry after which it was written"), default=None
    )
    ledger_hash: str | None = field(metadata=about("of that entry"), default=None)
    ledger_proof: dict[str, Any] | None = field(
        metadata=about("the ledger's end at that time, signed"), default=None
    )
    ledger_elsewhere: bool | None = field(
        metadata=about("whether it is not the default ledger"), default=None
    )
    content: str | None = field(
        metadata=about("whether the data's content was compared with what was known"), default=None
    )
    total: Total | None = field(metadata=about("all runs on the data set when it was written"), default=None)
    # what else there is to know
    weights_seen: tuple[dict[str, Any], ...] | None = field(
        metadata=about("what earlier fits of the same weights saw, and how it is counted"), default=None
    )
    accepted_findings: tuple[dict[str, Any], ...] | None = field(
        metadata=about("checks that somebody answers for by privacy.accept, with the reasons"), default=None
    )
    spot_check: dict[str, Any] | None = field(
        metadata=about("units that were run again alone while training"), default=None
    )
    audit: dict[str, Any] | None = field(metadata=about("what canaries in the gradients found"), default=None)
    not_covered: tuple[str, ...] | None = field(
        metadata=about("what this ε says nothing about"), default=None
    )
    checks: dict[str, str] | None = field(
        metadata=about("what the run's report was compared with when this was made of it"), default=None
    )
    weights_of: str | None = field(metadata=about("the run whose weights were tested here"), default=None)
    files: dict[str, str] | None = field(
        metadata=about("SHA-256 of each file that it speaks of"), default=None
    )
    file: str | None = field(metadata=about("of a table: its name"), default=None)
    sha256: str | None = field(metadata=about("of a table: its SHA-256"), default=None)
    unsigned: str | None = field(metadata=about("why nobody signed it"), default=None)
    signature: dict[str, str] | None = field(
        metadata=about("public key and Ed25519 signature of all the rest"), default=None
    )
    other: dict[str, Any] = field(metadata=about("what the writer added"), default_factory=dict)
    order: tuple[str, ...] = field(metadata=about("fields in the order of the file"), default=())

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """The report that a JSON object is.

        Raises:
            ValueError: it is of a newer form, a field is of another type, or fields contradict each other.
        """
        check_schema_name(content)
        known = get_type_hints(cls)
        named = {name: value for name, value in content.items() if name in known and name not in _OWN}
        report = cls(
            **{name: read(value, known[name], where=name) for name, value in named.items()},
            other={name: value for name, value in content.items() if name not in named},
            order=tuple(content),
        )
        report._check()
        return report

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, for `of` to read back."""
        return {
            name: self.other[name] if name in self.other else to_json(getattr(self, name))
            for name in self.order
        }

    @property
    def headline(self) -> float:
        """ε that it claims, at `delta`; ∞ without privacy."""
        value = self.epsilon if self.epsilon_spent is None else self.epsilon_spent
        assert value is not None
        return value

    def _check(self) -> None:
        if self.epsilon_spent is None and self.epsilon is None:
            raise ValueError("epsilon_spent is missing, so it claims no ε")
        if self.composition is not None:
            composed = count_releases([event_from_dict(one.event) for one in self.composition])
            if composed != count_releases([event_from_dict(one) for one in self.mechanisms or ()]):
                raise ValueError("composition and mechanisms don't list the same releases")
        if self.curve is not None:
            self._check_curve(self.curve)
        if self.total is not None and self.total.delta == self.delta and self.total.epsilon < self.headline:
            raise ValueError(
                f"total says ε = {self.total.epsilon:.6g} for all runs, less than the {self.headline:.6g} of "
                "this one"
            )

    def _check_curve(self, curve: tuple[CurvePoint, ...]) -> None:
        for before, after in pairwise(curve):
            if not before.delta < after.delta or before.epsilon < after.epsilon:
                raise ValueError("curve is not that of an ε(δ): δ must rise and ε must not")
        if self.headline not in [point.epsilon for point in curve if point.delta == self.delta]:
            raise ValueError(f"curve doesn't hold ε = {self.headline:.6g} at delta = {self.delta}")


_OWN = ("other", "order")


def fields_in_words() -> dict[str, str]:
    """Every field of a report with its one line."""
    return {
        one.name: one.metadata["about"] for one in dataclasses.fields(PrivacyReport) if one.name not in _OWN
    }


def check_schema_name(content: Mapping[str, Any]) -> None:
    """Raise ValueError where a report is of a form that this version doesn't know."""
    schema = content.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise ValueError(
            f"schema is {schema!r}, and this version reads {SCHEMA!r} and what was before it: update "
            "lightning-dp"
        )
