"""What a writer of reports says beside its plan: mechanisms in words, ε(δ), noise, versions, the total."""

import math
import platform
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lightning_dp.privacy.accounting import (
    Event,
    ExponentialEvent,
    GaussianEvent,
    LaplaceEvent,
    count_releases,
    epsilon_curve,
    event_to_dict,
    events_of_counts,
)
from lightning_dp.privacy.noise import GaussianNoise, NoiseSource
from lightning_dp.privacy.report.document import Code, Composed, CurvePoint, Noise, ReplaceOne, Total
from lightning_dp.privacy.report.typed import to_json
from lightning_dp.privacy.secure_noise import SecureGaussianNoise

DELTAS = tuple(10.0**-power for power in range(11, 0, -1))
"""δ of the curve, beside that of the headline."""

_PACKAGES = ("torch", "lightning", "dp-accounting", "numpy")

NOT_COVERED = (
    "Figures of validation and test rows, baselines among them: they are functions of rows that no ε here "
    "covers, unless those rows are public.",
    "Everything named nonprivate, and plots of real rows: they are computed without noise and stay in the "
    "run folder.",
    "The choice of architecture, hyperparameters and of this run among others, unless it was made without "
    "looking at the private data; runs of a search that were charged are in the data set's total.",
    "The number of units, which is taken for public.",
)

ROWS_READ = (
    "The rows that predictions continue or complete: they were read as they are, and none of their readings "
    "is in the file."
)


def facts_of_end(
    events: Sequence[Event], *, delta: float, epsilon: float, total: Total | None
) -> dict[str, object]:
    """JSON of what takes some tenths of a second, so that no run waits for it before its first step.

    Args:
        events: everything that ε counts.
        delta, epsilon: the headline.
        total: of all runs on the account.
    """
    return {
        "curve": to_json(curve_of(events, delta=delta, epsilon=epsilon)),
        "replace_one": to_json(replace_one(epsilon, delta)),
        "total": to_json(total),
        "code": to_json(code_facts()),
    }


OF_END = ("curve", "replace_one", "total", "code")
"""The fields of `facts_of_end`, which a report of a running run lacks."""


def unit_in_words(name: str, description: str) -> str:
    """What adding or removing one unit means.

    >>> unit_in_words("user", "the whole series of one household")
    'Two train sets are neighbours if one of them has one user more than the other: the whole series of one household.'
    """  # noqa: E501
    return (
        f"Two train sets are neighbours if one of them has one {name} more than the other: "
        f"{description.rstrip('.')}."
    )


def compose(
    events: Iterable[Event], *, released: str, dataset: str, unit: str, runs: Sequence[str]
) -> list[Composed]:
    """Events of one account in words, equal ones added up.

    Args:
        events: what was released.
        released: what they published of the data.
        dataset, unit: of the account.
        runs: that were charged.
    """
    return [
        Composed(
            name=_name(event),
            event=event_to_dict(event),
            released=released,
            dataset=dataset,
            unit=unit,
            runs=tuple(runs),
        )
        for event in events_of_counts(count_releases(list(events)))
    ]


def _name(event: Event) -> str:
    if isinstance(event, GaussianEvent):
        return "Gaussian mechanism" if event.sampling_rate == 1 else "Poisson-sampled Gaussian mechanism"
    if isinstance(event, LaplaceEvent):
        return "Laplace mechanism"
    if isinstance(event, ExponentialEvent):
        return "exponential mechanism"
    return "stability test with Gaussian noise"


def curve_of(events: Sequence[Event], *, delta: float, epsilon: float) -> list[CurvePoint]:
    """ε(δ) at `DELTAS` and at δ, in some tenths of a second: upper bounds on a coarse grid of the loss.

    Args:
        events: everything that was released.
        delta, epsilon: the headline, which is a bound too: at a larger δ ε is no larger.
    """
    deltas = [one for one in DELTAS if one != delta]
    coarse = dict(zip(deltas, epsilon_curve(events, deltas), strict=True))
    least, points = math.inf, []
    for one in sorted([*deltas, delta]):
        # Never above a smaller δ's, so that it is a curve; what the headline rounds up stays rounded up.
        bound = epsilon if one == delta else max(coarse[one], epsilon) if one < delta else coarse[one]
        least = min(least, bound, *([epsilon] if one >= delta else []))
        points.append(CurvePoint(delta=one, epsilon=least))
    return points


def replace_one(epsilon: float, delta: float) -> ReplaceOne | None:
    """The bound for replacing one unit, by group privacy of two; None where it says nothing."""
    if epsilon > 100 or (1 + math.exp(epsilon)) * delta >= 1:
        return None
    return ReplaceOne(epsilon=2 * epsilon, delta=(1 + math.exp(epsilon)) * delta)


def noise_of(source: NoiseSource | type[NoiseSource], *, of: str) -> Noise:
    """A noise source in words.

    Args:
        source: that draws, or its class.
        of: what it is added to.
    """
    kind = source if isinstance(source, type) else type(source)
    generator = "unknown to this package"
    if issubclass(kind, SecureGaussianNoise):
        generator = "every value from bytes of its own of the operating system's generator, on a public grid"
    elif issubclass(kind, GaussianNoise):
        generator = (
            "a generator made afresh in every process from the operating system's entropy, never seeded by "
            "anybody or saved: numpy's SFC64 with 256 bits on CPUs, torch's with 63 bits on other devices"
        )
    return Noise(
        of=of, source=kind.__name__, secure=issubclass(kind, SecureGaussianNoise), generator=generator
    )


@cache
def code_facts() -> Code:
    """Versions of what runs; the commit only where this package lies in a git clone of its own."""
    from lightning_dp import __version__

    commit, changed = _commit()
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed as a package"
    return Code(
        version=__version__,
        git_commit=commit,
        git_changed=changed,
        python=platform.python_version(),
        packages=packages,
    )


def _commit() -> tuple[str | None, bool | None]:
    root = Path(__file__).resolve().parents[3]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        # Installed into an environment inside of somebody's repository, it is not what that holds.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None, None
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "lightning_dp"))
    except (OSError, subprocess.SubprocessError):
        return None, None
