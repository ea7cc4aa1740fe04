"""One account of the ledger as a reader wants it: what is spent, by which runs, and how much may be."""

from collections.abc import Sequence
from typing import Any

from lightning_dp.privacy.accounting import Event, GaussianEvent, epsilon_pld, event_from_dict
from lightning_dp.privacy.ledger.ledger import Ledger
from lightning_dp.privacy.ledger.rows import Entry


def account_of(ledger: Ledger, entries: Sequence[Entry], *, dataset: str, unit: str) -> dict[str, Any]:
    """Everything about one account, ready for JSON but for an infinite ε.

    Args:
        ledger: the ledger.
        entries: all its rows, read once for all accounts.
        dataset, unit: a registered account.
    """
    budget = ledger.budget(dataset, unit=unit)
    own = [entry for entry in entries if (entry.dataset, entry.unit) == (dataset, unit)]
    charges = [entry for entry in own if "event" in entry.detail]
    by_run = ledger.events_by_run(dataset, unit=unit)
    return {
        "dataset": dataset,
        "unit": unit,
        "relation": budget.relation,
        "delta": budget.delta,
        "epsilon": epsilon_pld([event for events in by_run.values() for event in events], budget.delta),
        "accountant": "PLD (dp-accounting)",
        "limit_epsilon": budget.limit_epsilon,
        "filter_epsilon": budget.filter_epsilon,
        "held_epsilon": budget.held_epsilon,
        "last_charge": charges[-1].time if charges else "",
        "runs": [_run(run, events, own, budget.delta) for run, events in by_run.items()],
        "releases": [
            {
                "seq": entry.seq,
                "kind": entry.kind,
                "run": entry.run,
                "time": entry.time,
                "note": entry.detail["note"],
                "event": entry.detail["event"],
                "epsilon": epsilon_pld([event_from_dict(entry.detail["event"])], budget.delta),
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


def _run(run: str, events: Sequence[Event], own: Sequence[Entry], delta: float) -> dict[str, Any]:
    mine = [entry for entry in own if entry.run == run]
    gaussian = [event for event in events if isinstance(event, GaussianEvent)]
    return {
        "run": run,
        "epsilon": epsilon_pld(events, delta),
        "starts": sum(entry.kind == "open" for entry in mine),
        "clean_ends": sum(entry.kind == "close" for entry in mine),
        "charges": len(events),
        "steps": sum(event.steps for event in gaussian),
        "noise_multipliers": sorted({event.noise_multiplier for event in gaussian}),
        "sampling_rates": sorted({event.sampling_rate for event in gaussian}),
        "last_entry": mine[-1].time,
        "facts": {name: value for entry in mine for name, value in entry.detail.get("facts", {}).items()},
    }
