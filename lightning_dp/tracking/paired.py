"""Whether two methods differ at equal ε: paired tests over seeds.

A pair is two runs on the same data set and task with the same unit, ε and seed, so that what the seed
decides (initialisation, masks, sampled forecasts) is shared and only the method and the noise differ.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy import stats

from lightning_dp.tracking.results import RunResult, round_epsilon, series_names

MOST_PAIRS = 500
_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Method `first` against `second` at one ε.

    Attributes:
        dataset, task, unit, epsilon: where they were compared.
        first, second: the methods.
        pairs: number of seeds that both have.
        difference: mean of first − second, NaN without a pair.
        interval: its 95 % confidence interval (Student's t), or None for fewer than two pairs.
        p_t, p_wilcoxon: two-sided p values, corrected by Holm over the family; None where undefined.
        note: why a figure is missing, or can't be small.
    """

    dataset: str
    task: str
    unit: str
    epsilon: float
    first: str
    second: str
    pairs: int
    difference: float
    interval: tuple[float, float] | None
    p_t: float | None
    p_wilcoxon: float | None
    note: str


class TooManyPairs(ValueError):
    """More pairs of methods than anybody reads; corrected for all of them, none would be significant."""


def paired_tests(results: Sequence[RunResult], *, metric: str) -> list[PairedTest]:
    """Every pair of methods at every ε that both have; p values corrected over all of them.

    Raises:
        TooManyPairs: there are more than `MOST_PAIRS`.

    Runs without a seed, and runs that are not the only one of their method, ε and seed, can't be paired.
    """
    groups: dict[tuple, dict[str, dict[int, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for result, method in zip(results, series_names(results), strict=True):
        value, epsilon = result.scores.get(metric, math.nan), round_epsilon(result.epsilon)
        if result.seed is None or math.isnan(value) or math.isnan(epsilon):
            continue
        groups[result.dataset, result.task, epsilon, result.unit][method][result.seed].append(value)
    pairs = sum(math.comb(len(methods), 2) for methods in groups.values())
    if pairs > MOST_PAIRS:
        raise TooManyPairs(
            f"{pairs} pairs of methods at equal ε are more than the {MOST_PAIRS} that are tested: give the "
            "folders of the runs that are to be compared"
        )
    found = []
    for (dataset, task, epsilon, unit), methods in sorted(groups.items(), key=lambda item: item[0]):
        single = {
            method: {seed: values[0] for seed, values in of_seed.items() if len(values) == 1}
            for method, of_seed in methods.items()
        }
        for first, second in combinations(sorted(single), 2):
            seeds = sorted(single[first].keys() & single[second].keys())
            differences = np.array([single[first][seed] - single[second][seed] for seed in seeds])
            found.append(
                _test(
                    differences,
                    PairedTest(
                        dataset=dataset,
                        task=task,
                        unit=unit,
                        epsilon=epsilon,
                        first=first,
                        second=second,
                        pairs=len(seeds),
                        difference=float(differences.mean()) if seeds else math.nan,
                        interval=None,
                        p_t=None,
                        p_wilcoxon=None,
                        note="",
                    ),
                )
            )
    p_t, p_wilcoxon = holm([test.p_t for test in found]), holm([test.p_wilcoxon for test in found])
    return [replace(test, p_t=t, p_wilcoxon=w) for test, t, w in zip(found, p_t, p_wilcoxon, strict=True)]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (Holm 1979); None is no test and does not count."""
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for number, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - number)))
        corrected[place] = largest
    return corrected


def _test(differences: np.ndarray, empty: PairedTest) -> PairedTest:
    n = len(differences)
    if n < 2:
        return replace(empty, note="too few: one pair has no spread" if n else "no seed in common")
    if np.all(differences == differences[0]):
        return replace(empty, note="all differences are equal: there is nothing to test")
    t = stats.ttest_1samp(differences, 0.0)
    interval = t.confidence_interval(_CONFIDENCE)
    # With n pairs the signed ranks have 2ⁿ equally likely signs: no two-sided p is below 2 / 2ⁿ.
    least = 2.0 / 2**n
    note = f"few: Wilcoxon's p can't be below {least:.2g}" if least > 1 - _CONFIDENCE else ""
    return replace(
        empty,
        interval=(float(interval.low), float(interval.high)),
        p_t=float(t.pvalue),
        p_wilcoxon=float(stats.wilcoxon(differences).pvalue),
        note=note,
    )
