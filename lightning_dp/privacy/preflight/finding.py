"""What preflight found, and which of it somebody answers for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

CODES: Mapping[str, str] = {
    "nothing-trains": "no trainable parameter; the one finding that nobody can accept",
    "batch-norm": "a layer that mixes the examples of a batch or keeps statistics of them",
    "coupling": "what one unit contributes depends on other units",
    "not-a-mean": "the loss is no mean over rows",
    "remembers": "a step leaves something of its data behind for later steps",
    "seeded": "a step draws by a seed that others can know",
    "rows-per-unit": "the rows of the batch are not those of its units",
    "clipping": "the clipping engine does not give the clipped sum of this model",
    "not-finite": "one broken unit spoils more than its own contribution",
    "fails": "training_step does not run on made-up units",
    "unchecked": "nothing could be tried, because no made-up units are known or they don't work",
    "private-monitor": "something is chosen or steered by a metric of private rows",
    "logger": "what is logged may leave this machine by a logger that doesn't keep private statistics back",
    "delta": "δ above 1 / number of units",
}
"""Every code and what it stands for."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that would break the guarantee.

    Attributes:
        code: one of `CODES`.
        place: module path, field or method; `problem` goes on from it.
        problem: what is wrong there.
        fix: what to do, as an imperative.
        can_be_accepted: False where training would only fail later, after it was paid for.
        among_units: whether it is about units of one batch, and nothing where each has a batch of its own.
    """

    code: str
    place: str
    problem: str
    fix: str
    can_be_accepted: bool = True
    among_units: bool = False

    def __post_init__(self) -> None:
        assert self.code in CODES

    def __str__(self) -> str:
        return f"[{self.code}] {self.place} {self.problem}; {self.fix}."


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A finding that somebody answers for.

    Attributes:
        finding: what was found.
        reason: why it is harmless here, in the words of whoever accepted it.
    """

    finding: Finding
    reason: str

    def __str__(self) -> str:
        """For the ledger."""
        found = self.finding
        return f"preflight {found.code}: {found.place} {found.problem}; accepted: {self.reason}"

    def to_dict(self) -> dict[str, str]:
        """For the privacy report."""
        return {
            "code": self.finding.code,
            "place": self.finding.place,
            "problem": self.finding.problem,
            "reason": self.reason,
        }


def check_accept(accept: Mapping[str, str]) -> None:
    """Raise ValueError unless `accept` gives reasons for codes that exist and may be accepted."""
    choices = [code for code in CODES if code != "nothing-trains"]
    for code, reason in accept.items():
        if code not in choices:
            raise ValueError(f"privacy.accept names {code!r}; it must be one of {', '.join(choices)}")
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(
                f"privacy.accept.{code} is {reason!r}; say why it is harmless here, because the reason goes "
                "into the ledger and the privacy report"
            )


def settle(findings: Iterable[Finding], *, accept: Mapping[str, str]) -> list[Accepted]:
    """The findings that `accept` gives a reason for.

    Args:
        findings: everything that was found.
        accept: code → reason.

    Raises:
        ValueError: the others, all of them in one message; or `accept` itself is wrong.
    """
    accepted, left = answered(findings, accept=accept)
    if left:
        lines = [str(finding) for finding in left]
        # A step that fails on made-up units may do so on private ones: better ones are the way out.
        example = next((one.code for one in left if one.can_be_accepted and one.code != "fails"), None)
        if all(one.among_units for one in left):
            lines.append(
                "Any step can train with each unit in a batch of its own, which is slow: "
                "privacy.clipping_engine=lightning_dp.OneByOne."
            )
        if example is not None:
            lines.append(
                f"Where it is harmless, say why: --privacy.accept.{example}='…' on the command line, "
                f'accept={{"{example}": "…"}} in Python; the reason goes into the ledger and the report.'
            )
        raise ValueError("\n".join(lines))
    return accepted


def answered(
    findings: Iterable[Finding], *, accept: Mapping[str, str]
) -> tuple[list[Accepted], list[Finding]]:
    """The findings that `accept` gives a reason for, and the others; each once.

    Raises:
        ValueError: `accept` itself is wrong.
    """
    check_accept(accept)
    accepted, left = [], []
    for finding in dict.fromkeys(findings):
        if finding.code in accept and finding.can_be_accepted:
            accepted.append(Accepted(finding=finding, reason=accept[finding.code]))
        else:
            left.append(finding)
    return accepted, left
