"""Whether a step draws by a seed of its own, so that who reads the code knows the draws.

A batch is trained on twice, from two states of the global generators. Where a generator is in the same state
at the same draw both times, somebody has put it there. A generator that the module keeps, or makes from a
number, is seeded by whoever made it.

Not seen: numpy's generators behind a name that was imported from numpy.random.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

from lightning_dp.privacy.draws import RecordedRandomness
from lightning_dp.privacy.preflight.finding import Finding
from lightning_dp.privacy.preflight.step import HookFailed
from lightning_dp.privacy.preflight.trial import Trial

_SEEDS = (11, 12)


def find_seeds(trial: Trial) -> list[Finding]:
    """Draws that are known beforehand."""
    runs, kept, made = [], set[str](), list[str]()
    for seed in _SEEDS:
        run = RecordedRandomness(seed=seed, watched=True)
        module = trial.step.copy(with_weights=True)
        before = _own_generators(module)
        try:
            with _seeded_generators() as now:
                trial.step.train(trial.units.pick([0, 1]), draws=run, module=module)
        except HookFailed:  # which another check has said
            return []
        made += now
        after = _own_generators(module)
        kept |= {path for path in before if path in after and before[path] != after[path]}
        runs.append(run)
    first, second = runs
    if kept or first.own:
        who = f"the generator '{min(kept)}'" if kept else f"a generator of its own ({min(first.own)})"
        return [_seeded(f"draws from {who}")]
    if made:
        return [_seeded("makes a generator of numpy's from a number (default_rng)")]
    same = [
        operator
        for (operator, _), state, other in zip(first.log, first.states, second.states, strict=False)
        if state == other
    ]
    if same:
        return [_seeded(f"sets torch's seed, so {same[0]} draws the same numbers in every run")]
    for name, ends in (("numpy", 0), ("Python's random", 1)):
        if first.ends[ends] == second.ends[ends]:
            return [_seeded(f"sets the seed of {name}")]
    return []


def _seeded(problem: str) -> Finding:
    return Finding(
        code="seeded",
        place="training_step or one of its hooks",
        problem=f"{problem}: who knows the seed knows the draws, and others' contributions shift with a unit",
        fix="remove the seed and draw from torch's global generator, which a private fit seeds in secret",
    )


def _own_generators(module: nn.Module) -> dict[str, bytes]:
    """Where a module keeps generators of numpy's or Python's, with their states."""
    found = {}
    for path, child in module.named_modules():
        for name, value in vars(child).items():
            state: Any = None
            if isinstance(value, np.random.Generator):
                state = value.bit_generator.state
            elif isinstance(value, np.random.RandomState):
                state = value.get_state()
            elif isinstance(value, random.Random):
                state = value.getstate()
            if state is not None:
                found[f"{path}.{name}".lstrip(".")] = hashlib.sha256(repr(state).encode()).digest()
    return found


@contextmanager
def _seeded_generators() -> Iterator[list[str]]:
    """Notes each generator that numpy is asked for by a seed."""
    made: list[str] = []
    original = np.random.default_rng

    def noted(seed: Any = None) -> np.random.Generator:
        if seed is not None and not isinstance(seed, np.random.Generator):
            made.append("default_rng")
        return original(seed)

    np.random.default_rng = noted
    try:
        yield made
    finally:
        np.random.default_rng = original
