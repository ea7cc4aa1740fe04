"""What a private fit may say of weights that have seen data before it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_dp.callbacks.weights_seen import Origin
from lightning_dp.privacy.accounting import Event, epsilon_pld
from lightning_dp.privacy.ledger import Ledger, LedgerError


@dataclass(frozen=True, kw_only=True)
class Before:
    """What weights went through before a fit.

    Attributes:
        events: what earlier private runs of these weights charged to the fit's own account; the fit's ε
            is that of these and its own together.
        runs: that charged these.
        report: for the privacy report, JSON-ready but for an infinite ε: every other account with its ε,
            every data set that somebody answers for.
    """

    events: tuple[Event, ...] = ()
    runs: tuple[str, ...] = ()
    report: list[dict[str, Any]] = field(default_factory=list)


def check_public_start(statement: object) -> None:
    """Raise ValueError unless a statement about earlier weights is one in words, or None."""
    if statement is not None and (not isinstance(statement, str) or len(statement.split()) < 2):
        raise ValueError(
            f"privacy.public_start is {statement!r}; say in words which public data the weights come from"
        )


def account_for(
    origins: Sequence[Origin], *, ledger: Ledger, dataset: str, unit: str, run: str, public_start: str | None
) -> Before:
    """Add up what the weights of a private fit have seen, or refuse where no ε could be stated.

    Args:
        origins: what the weights have seen.
        ledger: of the fit.
        dataset, unit: the account that the fit is charged to.
        run: the fit's own id; a resumed one has been here before and is not counted again.
        public_start: why what they saw without privacy holds nothing private, or None.

    Raises:
        ValueError: they saw private data without privacy, or by a run that this ledger did not pay for.
    """
    report: list[dict[str, Any]] = []
    runs: list[str] = []
    for origin in origins:
        if origin.ledger is not None:
            if origin.run != run and _paid(origin, ledger=ledger):
                runs.append(origin.run)
            continue
        if origin.dataset and ledger.is_same(origin.dataset, dataset):
            raise ValueError(
                f"the weights of this module were trained on {dataset}, the data of this private fit, "
                "without privacy, so its ε would be ∞: start from other weights"
            )
        statement = origin.statement or (public_start if not origin.public else None) or ""
        if not origin.public and not statement:
            raise ValueError(
                f"the weights of this module were trained on {origin.dataset or 'data that nobody recorded'} "
                "without privacy, so the ε of what follows would be ∞: start from other weights, or say why "
                "that data is public by privacy.public_start='…' or an attribute public = True of its data "
                "module"
            )
        report.append({"dataset": origin.dataset, "public": origin.public, "statement": statement})
    if not runs:
        return Before(report=report)
    events: tuple[Event, ...] = ()
    own: tuple[str, ...] = ()
    for (name, its_unit), (delta, charged) in ledger.charges_of(runs).items():
        spent = [event for one in charged.values() for event in one]
        entry: dict[str, Any] = {"dataset": name, "unit": its_unit, "delta": delta, "runs": list(charged)}
        if (name, its_unit) == (dataset, unit):
            events, own = tuple(spent), tuple(charged)
        report.append({**entry, "epsilon": epsilon_pld(spent, delta)})
    return Before(events=events, runs=own, report=report)


def _paid(origin: Origin, *, ledger: Ledger) -> bool:
    assert origin.ledger is not None
    seq, digest = origin.ledger
    try:
        held = bool(origin.run) and ledger.contains(int(seq), str(digest))
    except LedgerError:
        held = False
    if not held:
        raise ValueError(
            f"the weights of this module were trained privately on {origin.dataset or 'some data'} by run "
            f"{origin.run or 'unknown'}, and the ledger {ledger.path} has no entry of that run: use the "
            "ledger that paid for them"
        )
    return True
