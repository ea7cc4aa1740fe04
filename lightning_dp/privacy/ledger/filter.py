"""The filter that budgets are held against: valid also where a run is chosen after looking at earlier ones.

Scope: numbers in, numbers out. What is compared with which limit is decided in `budget.py`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lightning_dp.privacy.accounting import (
    Event,
    check_delta,
    count_releases,
    failures,
    rdp_curve,
    rdp_to_epsilon,
)


def _filter_orders() -> tuple[float, ...]:
    # Whole numbers where possible: dp-accounting's fractional orders are slow and may not converge.
    steps = (1 + 0.25 * 2 ** (k / 3) for k in range(40))
    return tuple(sorted({round(a, 2) if a < 8 else float(round(a)) for a in steps}))


ORDERS = _filter_orders()
_ORDERS = np.array(ORDERS)


def filter_epsilon(events: Sequence[Event], delta: float, *, limit_epsilon: float) -> float:
    """The smallest ε for which the ledger's filter admits all `events`; 0 for none.

    Valid when each mechanism is chosen after seeing the earlier outputs, and when runs overlap in
    time: a Rényi filter of one fixed order is (Feldman & Zrnic 2021, arXiv 2008.11193; overlapping
    runs: Haney et al. 2023, arXiv 2309.05901). Taking the best order afterwards is not covered by
    that, so δ is shared over the orders, Σ_α δ_α = δ: the transcripts on which order α is within its
    budget at the end exceed ε by at most δ_α, and every admitted transcript has such an order. The
    shares favour the order that suits Gaussian noise at `limit_epsilon`; the price against
    `epsilon_rdp` is a few per cent. RDP becomes ε by Canonne, Kamath & Steinke 2020, arXiv 2004.00010,
    Prop. 12.

    Args:
        events: charges, in any order.
        delta: in (0, 1).
        limit_epsilon: ≥ 0, the limit that the filter enforces; fixes the shares.
    """
    check_delta(delta)
    return filter_epsilon_of_counts(count_releases(events), delta, limit_epsilon)


def filter_epsilon_of_counts(counts: Mapping[Event, int], delta: float, limit_epsilon: float) -> float:
    """`filter_epsilon` of releases that are counted already, and of checked arguments.

    What tests may fail at comes off δ first (Whitehouse et al. 2023, arXiv 2203.05481, Thm 1).
    """
    if not any(counts.values()):
        return 0.0
    delta -= failures(counts)
    if delta <= 0:
        return float("inf")
    with np.errstate(over="ignore", invalid="ignore"):
        rdp = sum(number * rdp_curve(single, ORDERS) for single, number in counts.items() if number)
        # The order at which Gaussian noise, whose RDP is a multiple of the order, may use the most.
        gaussian = 1 + np.geomspace(0.25, 2048, num=500)
        best = gaussian[np.argmax((limit_epsilon - rdp_to_epsilon(delta, gaussian)) / gaussian)]
        distance = np.abs(np.log2((_ORDERS - 1) / (best - 1)))
        shares = 2.0 ** (-4 * distance)
        epsilons = rdp + rdp_to_epsilon(delta * shares / shares.sum(), _ORDERS)
    return max(0.0, float(np.nanmin(epsilons)))
