"""Canaries in the gradients of any private fit, and what its report says of them: `privacy.audit: true`.

m made-up units that are no rows of any batch join the training: each has a direction of its own, and what it
would contribute after clipping, C along it, is added to the clipped sum of a step before noise, with the
sampler's own Poisson coin. A fair coin per canary says at the start whether it takes part at all. From what
each step releases the audit guesses which ones do (Steinke, Nasr & Jagielski 2023, arXiv 2305.08846).

Why no unit loses by it: what is added to a sum is drawn from the operating system's entropy, by N, q and C,
which are public, and never by a row. For every value of it the released sums of neighbouring data sets are
those of the same fit without canaries moved by the same constant, so their divergence is that of the fit
without. N, q, σ and the charges stay what they are; canaries are never counted into N.

What it sees is a step's noise, the sampler's coins and the scale of what is released. What it can't see is
how real units are clipped, for its contributions have their length from the start: `lightning-dp audit`
looks at that, on made-up units.
"""

import math
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from lightning_dp.privacy.audit.counts import Counts
from lightning_dp.privacy.audit.gaussian import mu_lower_bound
from lightning_dp.privacy.audit.guesses import Guesses
from lightning_dp.privacy.audit.one_run import epsilon_one_run
from lightning_dp.privacy.noise import entropy_bits
from lightning_dp.privacy.plan import PrivacyPlan
from lightning_dp.privacy.ranks import Ranks
from lightning_dp.privacy.sampling import PoissonSampler

ALPHA = 0.05
"""Probability that a bound in a report is above the truth."""

COVERS = "noise, sampling coins and scale of what each step releases; not how real units are clipped"

_FEWEST, _MOST, _UNITS_PER_CANARY = 8, 64, 50
_ENTRIES = 64
_SHARE_GUESSED = 4


@final
class AuditCanaries:
    """Of one callback; does nothing unless `wanted`.

    Args:
        wanted: whether fits are audited.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._plan: PrivacyPlan | None = None

    def start(self, plan: PrivacyPlan, ranks: Ranks) -> None:
        """A fit begins: toss for every canary. The first rank does it all, as it adds the noise."""
        self._plan = plan if self._wanted and ranks.is_first else None
        self._where: dict[str, tuple[Tensor, Tensor, Tensor]] | None = None
        self._canaries = max(_FEWEST, min(_MOST, plan.unit.num_units // _UNITS_PER_CANARY))
        self._generator = np.random.default_rng(entropy_bits())
        self._present = self._generator.random(self._canaries) < 0.5
        self._sampler = PoissonSampler(num_units=self._canaries, sampling_rate=plan.sampling_rate)
        self._ratios = np.zeros(self._canaries)
        self._errors = np.zeros(4, dtype=np.int64)  # false positives, nulls, false negatives, canaries
        self._steps = 0

    def add_to(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """The clipped sums of a step with the canaries that its coins chose, changed in place.

        Args:
            sums: by parameter name, before noise, of the first rank.
        """
        if self._plan is None:
            return sums
        if self._where is None:
            self._where = self._directions(sums)
        drawn = np.zeros(self._canaries, dtype=bool)
        drawn[self._sampler.draw()] = True
        self._inside = drawn & self._present
        length = torch.from_numpy(self._inside * self._plan.max_grad_norm).float()
        for name, (entries, owner, values) in self._where.items():
            flat = sums[name].view(-1)
            flat[entries] += (values * length.to(values.device)[owner]).to(flat.dtype)
        return sums

    def look(self, noisy: dict[str, Tensor]) -> None:
        """Score every canary by what a step released; `noisy` is left as it is."""
        if self._plan is None or self._where is None:
            return
        scores = np.zeros(self._canaries)
        for name, (entries, owner, values) in self._where.items():
            parts = noisy[name].reshape(-1)[entries].double() * values
            found = torch.zeros(self._canaries, dtype=torch.float64, device=parts.device)
            scores += found.index_add_(0, owner, parts).cpu().numpy()
        scores /= self._plan.max_grad_norm
        sigma, rate = self._plan.noise_multiplier, self._plan.sampling_rate
        exponent = np.clip((scores - 0.5) / sigma**2, -700, 700)
        out = math.log1p(-rate) if rate < 1 else -math.inf
        self._ratios += np.logaddexp(out, math.log(rate) + exponent)
        above, inside = scores > 0.5, self._inside
        self._errors += [(above & ~inside).sum(), (~inside).sum(), (~above & inside).sum(), inside.sum()]
        self._steps += 1

    def to_dict(self, claimed: float) -> dict[str, Any] | None:
        """The `audit` field of a report; None where nothing was released or nobody asked.

        Args:
            claimed: ε of the report that it stands in.
        """
        if self._plan is None or not self._steps:
            return None
        guessed = max(2, self._canaries // _SHARE_GUESSED)
        guesses = Guesses.of(self._ratios, self._present, guessed=guessed)
        bound = float(epsilon_one_run(guesses, delta=self._plan.delta, alpha=ALPHA))
        return {
            "estimator": "one run (Steinke, Nasr & Jagielski 2023)",
            "n": self._canaries,
            "guessed": guessed,
            "right": int(guesses.right),
            "alpha": ALPHA,
            "bound": bound,
            "claimed": claimed,
            "exceeds": bound > claimed,
            "steps": self._steps,
            "per_step": self._per_step(),
            "covers": COVERS,
        }

    def _per_step(self) -> dict[str, Any] | None:
        """The largest noise multiplier that single steps leave possible; None where they are too few."""
        assert self._plan is not None
        false_positives, nulls, false_negatives, canaries = self._errors
        if not (nulls and canaries):
            return None
        counts = Counts(
            false_positives=np.asarray(false_positives),
            nulls=np.asarray(nulls),
            false_negatives=np.asarray(false_negatives),
            canaries=np.asarray(canaries),
        )
        mu = float(mu_lower_bound(counts, alpha=ALPHA))
        most = 1 / mu if mu > 0 else math.inf
        return {
            "estimator": "Gaussian, canary in the batch or not",
            "n": [int(nulls), int(canaries)],
            "alpha": ALPHA,
            "noise_multiplier_at_most": most,
            "claimed": self._plan.noise_multiplier,
            "exceeds": most < self._plan.noise_multiplier,
        }

    def _directions(self, sums: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """By parameter: (entries, whose they are, ±1/√k), k ≥ 1 entries a canary, none of two canaries.

        Entries are drawn from all trainable values alike.
        """
        sizes = np.array([value.numel() for value in sums.values()])
        total = int(sizes.sum())
        self._canaries_fit(total)
        each = max(1, min(_ENTRIES, total // (4 * self._canaries)))
        chosen = self._generator.choice(total, size=each * self._canaries, replace=False)
        owner = np.repeat(np.arange(self._canaries), each)
        signs = self._generator.choice([-1.0, 1.0], size=len(chosen)) / math.sqrt(each)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        part = np.searchsorted(starts, chosen, side="right") - 1
        where = {}
        for number, (name, value) in enumerate(sums.items()):
            own = part == number
            if own.any():
                where[name] = (
                    torch.from_numpy(chosen[own] - starts[number]).to(value.device),
                    torch.from_numpy(owner[own]).to(value.device),
                    torch.from_numpy(signs[own]).to(value.device),
                )
        return where

    def _canaries_fit(self, total: int) -> None:
        if total < self._canaries:
            raise ValueError(
                f"privacy.audit puts {self._canaries} canaries into gradients of {total} values, and "
                "each needs one of its own: set privacy.audit=false"
            )
