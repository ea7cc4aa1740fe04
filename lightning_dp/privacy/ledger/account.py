"""One account of the ledger as a reader wants it: what is spent, by which runs, and how much may be."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning_dp.privacy.accounting import (
    COARSE_INTERVAL,
    Event,
    ExponentialEvent,
    GaussianEvent,
    LaplaceEvent,
    count_releases,
    epsilon_pld,
    event_from_dict,
    events_of_counts,
)
from lightning_dp.privacy.ledger.budget import budget_of
from lightning_dp.privacy.ledger.errors import LedgerError
from lightning_dp.privacy.ledger.ledger import Ledger
from lightning_dp.privacy.ledger.replay import Replay
from lightning_dp.privacy.ledger.rows import Entry
from lightning_dp.privacy.ledger.totals import Totals
from lightning_dp.privacy.report.document import Total

_EXACT = 2
"""Different mechanisms that a list composes as they are; more are first rounded."""

_MOST = 8
"""Different mechanisms that are left of those that are rounded."""

_PLD, _ROUNDED = "PLD", "PLD of rounded mechanisms"


def total_of(replay: Replay, key: tuple[str, str], *, totals: Totals) -> dict[str, Any]:
    """One account in figures that cost nothing however many runs there are; ready for JSON but for ∞.

    `epsilon` is never below what was spent. Of many different mechanisms each is counted as one that reveals
    a little more, and `rounded` is true: `account_of` has the exact figure.
    """
    account, budget = replay.accounts[key], budget_of(replay, key)
    counts = +account.counts
    epsilon, rounded = 0.0, False
    if counts:
        delta = account.known_delta
        rounded = len(counts) > _EXACT and not totals.knows(counts, delta, how=_PLD)

        def compute() -> float:
            events = events_of_counts(_rounded(counts) if rounded else counts)
            return epsilon_pld(events, delta, **({"interval": COARSE_INTERVAL} if rounded else {}))

        epsilon = totals.epsilon(counts, delta, how=_ROUNDED if rounded else _PLD, compute=compute)
    return {
        "dataset": key[0],
        "unit": key[1],
        "other_names": [name for name, target in replay.aliases.items() if target == key[0]],
        "relation": account.relation,
        "delta": account.delta,
        "epsilon": epsilon,
        "rounded": rounded,
        "accountant": "PLD (dp-accounting)",
        "limit_epsilon": budget.limit_epsilon,
        "filter_epsilon": budget.filter_epsilon,
        "held_epsilon": budget.held_epsilon,
        "last_charge": account.last_charge,
        "num_runs": len(account.runs),
    }


def total_for_report(
    ledger: Ledger, *, dataset: str, unit: str, delta: float, events: Sequence[Event], epsilon: float
) -> Total | None:
    """What all runs on an account cost at this moment, quickly: an upper bound.

    Args:
        ledger: of the run that reports it.
        dataset, unit: the account.
        delta: of the report's ε; the total is stated at the same.
        events: everything that the report's own ε counts.
        epsilon: that ε.

    Returns:
        None where the ledger can't be read.
    """
    try:
        replay = ledger.replay()
        account = replay.account(dataset, unit)
    except LedgerError:
        return None
    counts = +account.counts
    total = epsilon
    if counts != count_releases(events):
        composed = events_of_counts(_rounded(counts) if len(counts) > _EXACT else counts)
        total = max(epsilon, epsilon_pld(composed, delta, interval=COARSE_INTERVAL))
    return Total(
        dataset=dataset,
        unit=unit,
        epsilon=total,
        delta=delta,
        runs=len(account.runs),
        entry=replay.seq,
        limit_epsilon=account.limit,
    )


def _rounded(counts: Mapping[Event, int]) -> Counter[Event]:
    """The same number of releases of at most as many mechanisms, none of which reveals less than its own."""
    for digits in (2, 1):
        total: Counter[Event] = Counter()
        for event, number in counts.items():
            total[_worse(event, digits)] += number
        if len(total) <= _MOST:
            break
    return total


def _worse(event: Event, digits: int) -> Event:
    """A mechanism of rounder numbers: less noise, more units a step."""
    if isinstance(event, GaussianEvent):
        return replace(
            event,
            noise_multiplier=_to(event.noise_multiplier, digits, math.floor),
            sampling_rate=min(1.0, _to(event.sampling_rate, digits, math.ceil)),
        )
    if isinstance(event, LaplaceEvent):
        return replace(event, noise_multiplier=_to(event.noise_multiplier, digits, math.floor))
    if isinstance(event, ExponentialEvent):
        return replace(event, bounded_range=_to(event.bounded_range, digits, math.ceil))
    return event


def _to(value: float, digits: int, way: Any) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
    return float(
        min(value, way(value / unit) * unit) if way is math.floor else max(value, way(value / unit) * unit)
    )


def account_of(ledger: Ledger, entries: Sequence[Entry], *, dataset: str, unit: str) -> dict[str, Any]:
    """Everything about one account, ready for JSON but for an infinite ε.

    Args:
        ledger: the ledger.
        entries: all its rows, read once for all accounts.
        dataset, unit: a registered account.
    """
    replay = ledger.replay()
    budget = budget_of(replay, (dataset, unit))
    delta = budget.delta if budget.delta is not None else math.nan
    own = [entry for entry in entries if (entry.dataset, entry.unit) == (dataset, unit)]
    charges = [entry for entry in own if "event" in entry.detail]
    of_run: dict[str, list[Entry]] = {}
    for entry in own:
        of_run.setdefault(entry.run, []).append(entry)
    by_run = ledger.events_by_run(dataset, unit=unit)
    totals = ledger.totals()

    def epsilon(events: Sequence[Event]) -> float:
        counts = count_releases(events)
        if not counts:
            return 0.0
        return totals.epsilon(
            counts, delta, how=_PLD, compute=lambda: epsilon_pld(events_of_counts(counts), delta)
        )

    found = {
        "dataset": dataset,
        "unit": unit,
        "relation": budget.relation,
        "other_names": [name for name, target in replay.aliases.items() if target == dataset],
        "delta": budget.delta,
        "epsilon": epsilon([event for events in by_run.values() for event in events]),
        "accountant": "PLD (dp-accounting)",
        "limit_epsilon": budget.limit_epsilon,
        "filter_epsilon": budget.filter_epsilon,
        "held_epsilon": budget.held_epsilon,
        "last_charge": charges[-1].time if charges else "",
        "runs": [_run(run, events, of_run, epsilon(events)) for run, events in by_run.items()],
        "releases": [
            {
                "seq": entry.seq,
                "kind": entry.kind,
                "run": entry.run,
                "time": entry.time,
                "note": entry.detail["note"],
                "event": entry.detail["event"],
                "epsilon": epsilon([event_from_dict(entry.detail["event"])]),
            }
            for entry in charges
            if entry.kind != "reserve"
        ],
        "overrides": [
            {"seq": entry.seq, "run": entry.run, "time": entry.time, "reason": entry.detail["reason"]}
            for entry in own
            if entry.kind == "override"
        ],
        "limits": [
            {"seq": entry.seq, "time": entry.time, **entry.detail} for entry in own if entry.kind == "limit"
        ],
    }
    totals.save()
    return found


def _run(run: str, events: Sequence[Event], own: Mapping[str, list[Entry]], epsilon: float) -> dict[str, Any]:
    mine = own[run]
    gaussian = [event for event in events if isinstance(event, GaussianEvent)]
    return {
        "run": run,
        "epsilon": epsilon,
        "starts": sum(entry.kind == "open" for entry in mine),
        "clean_ends": sum(entry.kind == "close" for entry in mine),
        "charges": len(events),
        "steps": sum(event.steps for event in gaussian),
        "noise_multipliers": sorted({event.noise_multiplier for event in gaussian}),
        "sampling_rates": sorted({event.sampling_rate for event in gaussian}),
        "last_entry": mine[-1].time,
        "facts": {name: value for entry in mine for name, value in entry.detail.get("facts", {}).items()},
    }
