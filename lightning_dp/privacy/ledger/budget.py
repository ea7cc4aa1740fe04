"""Limits: what an account has spent, what running leases hold, and whether a charge still fits."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_dp.privacy.accounting import Event, count_releases, releases
from lightning_dp.privacy.ledger.errors import BudgetExceeded
from lightning_dp.privacy.ledger.filter import filter_epsilon_of_counts
from lightning_dp.privacy.ledger.replay import Account, Replay
from lightning_dp.privacy.units import is_coarser


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The account of one data set and unit.

    Attributes:
        dataset, unit, relation, delta: the registered facts.
        limit_epsilon: no charge may take the filter above it; None is no limit.
        filter_epsilon: ε of all charges by the filter, valid also where later runs were chosen after
            looking at earlier ones; None without a limit.
        held_epsilon: the same with the plans that running leases have not drawn yet.
        runs: ids of the runs that opened a lease, in order.
    """

    dataset: str
    unit: str
    relation: str
    delta: float | None
    limit_epsilon: float | None
    filter_epsilon: float | None
    held_epsilon: float | None
    runs: tuple[str, ...]


def budget_of(replay: Replay, key: tuple[str, str]) -> Budget:
    """Facts, limit and the filter's figures of one account."""
    account = replay.accounts[key]
    spent = held = None
    if account.limit is not None:
        undrawn = undrawn_plans(replay, key, run=None, lease=None)
        spent = filter_epsilon(account.counts, account)
        held = filter_epsilon(account.counts + undrawn, account) if undrawn else spent
    return Budget(
        dataset=key[0],
        unit=key[1],
        relation=account.relation,
        delta=account.delta,
        limit_epsilon=account.limit,
        filter_epsilon=spent,
        held_epsilon=held,
        runs=tuple(account.runs),
    )


def filter_epsilon(counts: Counter[Event], account: Account) -> float:
    """The filter's ε of some releases at the account's δ and limit; 0 for none."""
    assert account.limit is not None
    if not any(counts.values()):
        return 0.0
    return filter_epsilon_of_counts(counts, account.known_delta, account.limit)


def undrawn_plans(
    replay: Replay, key: tuple[str, str], *, run: str | None, lease: str | None
) -> Counter[Event]:
    """What running leases of other runs have planned and not yet reserved."""
    total: Counter[Event] = Counter()
    held = replay.held.get(key, {})
    for name in [name for name, record in held.items() if not (+record.undrawn and record.is_running())]:
        del held[name]  # nothing will come of it: not asked for again at each charge
    for name, record in held.items():
        if name != lease and record.run != run:
            total += record.undrawn
    return total


def check_coarser_limits(replay: Replay, key: tuple[str, str]) -> None:
    """Raise BudgetExceeded where a coarser unit of the same data has a limit that charges here would pass by.

    What finer units lose is no part of a coarser unit's account, because nobody can say how many of them
    one user has.
    """
    dataset, unit = key
    for (name, coarser), account in replay.accounts.items():
        if (
            name != dataset
            or account.limit is None
            or unit in account.beside
            or not is_coarser(coarser, unit)
        ):
            continue
        spent = filter_epsilon(account.counts, account)
        raise BudgetExceeded(
            f"Data set {dataset!r} has a limit of ε = {account.limit:g} per {coarser}, and a charge per "
            f"{unit} would lose more about a {coarser} than that limit sees: train with the unit {coarser}, "
            f"or let the data's owner allow it and say why: lightning-dp ledger allow {dataset} --unit "
            f"{coarser} --finer {unit} --reason WHY",
            limit_epsilon=account.limit,
            spent_epsilon=spent,
            needed_epsilon=float("inf"),
            steps_left=0,
        )


def check_budget(
    replay: Replay, key: tuple[str, str], events: Sequence[Event], *, run: str, lease: str
) -> None:
    """Raise BudgetExceeded where `events` would pass the limit together with all else, or pass by another."""
    check_coarser_limits(replay, key)
    account = replay.accounts[key]
    limit = account.limit
    if limit is None or not events:
        return
    held = undrawn_plans(replay, key, run=run, lease=lease)

    def epsilon(extra: Counter[Event]) -> float:
        return filter_epsilon(account.counts + held + extra, account)

    needed = epsilon(count_releases(events))
    if needed <= limit:
        return
    single, number = releases(events[-1])
    low, high = 0, number  # the largest number that fits is in [low, high)
    while high - low > 1:
        middle = (low + high) // 2
        if epsilon(Counter({single: middle})) <= limit:
            low = middle
        else:
            high = middle
    spent = filter_epsilon(account.counts, account)
    others = f"; with the plans of running leases {epsilon(Counter()):.4g}" if held else ""
    raise BudgetExceeded(
        f"The budget of data set {key[0]!r} ({key[1]}) does not cover this: ε would be {needed:.4g} at "
        f"δ={account.delta:g} by the Rényi filter, the limit is {limit:g}, spent is {spent:.4g} by "
        f"{len(account.runs)} run(s){others}. {low} of the {number} step(s) would fit. Nothing was charged "
        "and no private row may be read. Take fewer steps or more noise, or let the data's owner raise the "
        f"limit: lightning-dp ledger set-limit {key[0]} --unit {key[1]} --epsilon E",
        limit_epsilon=limit,
        spent_epsilon=spent,
        needed_epsilon=needed,
        steps_left=low,
    )
