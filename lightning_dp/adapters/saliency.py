"""LoRA on the share of attention matrices that matter most: DP-SAPF (arXiv 2605.30312).

Every candidate gets a low-rank pair, whose second matrix is 0; training then moves the chosen pairs alone.
A choice by a private score is one release before training. It is made once, and is part of the network's
state: a resumed fit, a checkpoint and a sampler know it.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lightning_dp.adapters.adapter import Adapter
from lightning_dp.adapters.gradient_norms import gradient_norms
from lightning_dp.adapters.lora import USUAL_TARGETS, LoRA, Pair
from lightning_dp.adapters.scores.grad_norm import GradNorm
from lightning_dp.adapters.scores.score import Denoiser, FreeScore, PrivateScore
from lightning_dp.adapters.selection import NAME, Pieces, Selection
from lightning_dp.privacy.preparation import Preparation
from lightning_dp.privacy.ranks import Ranks
from lightning_dp.privacy.release import VectorSum
from lightning_dp.privacy.release_cost import ReleaseCost
from lightning_dp.privacy.units import PrivacyUnit


@final
class SaliencyLoRA(Adapter):
    """`LoRA`, of which the matrices with the highest score train.

    Guarantee: a private score is one Gaussian release of the sum over units of what each contributes, with
    the score's sensitivity, charged with the run it belongs to.

    Args:
        ratio: share in (0, 1] of the candidates that train.
        rank, scale, targets: as for `LoRA`; `targets` are the candidates.
        score: what says which matrices matter: of the private data (`GradNorm`, `Squared`, `Vote`) or free
            (`RandomScore`, `PublicScore`). None for `GradNorm()`.
        pieces: whether single "matrices" are chosen, or whole "layers": all candidates of an attention.
        size_normalised: whether gradients are measured by their root mean square over a matrix's entries
            rather than by their norm, which favours large matrices.
        noise_multiplier: σ > 0 of the release; or
        budget_share: share in (0, 1) of the target ε that the release alone would cost, at the same δ. Give
            one of the two; neither is a share of a tenth.
        noise_draws: K ≥ 1 timesteps and noises per row for the score; more of them make it less random. Rows
            at once are those of a training step: `privacy.physical_batch_size` units, fewer for a larger K.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        ratio: float,
        rank: int = 4,
        scale: float | None = None,
        targets: str | Sequence[str] = USUAL_TARGETS,
        score: PrivateScore | FreeScore | None = None,
        pieces: Pieces = "matrices",
        size_normalised: bool = False,
        noise_multiplier: float | None = None,
        budget_share: float | None = None,
        noise_draws: int = 1,
    ) -> None:
        super().__init__()
        if not 0 < ratio <= 1:
            raise ValueError(
                f"SaliencyLoRA.ratio is {ratio}, but it is a share in (0, 1]: 0.2 to 0.5 is usual"
            )
        if pieces not in get_args(Pieces):
            raise ValueError(
                f"SaliencyLoRA.pieces is {pieces!r}, but it has to be one of {', '.join(get_args(Pieces))}"
            )
        if noise_draws < 1:
            raise ValueError(f"SaliencyLoRA.noise_draws is {noise_draws}, but it must be at least 1")
        self.ratio = ratio
        self.lora = LoRA(rank=rank, scale=scale, targets=targets)
        self.score = score or GradNorm()
        self.pieces: Pieces = pieces
        self.size_normalised = size_normalised
        self._cost = ReleaseCost(
            type(self).__name__,
            noise_multiplier=noise_multiplier,
            budget_share=budget_share,
            usual_share=0.1,
        )
        self.noise_draws = noise_draws
        self._pairs: list[Pair] = []
        self._selection: Selection | None = None
        self._mechanism: VectorSum | None = None

    def choose(self, module: nn.Module) -> Iterable[nn.Parameter]:
        """All candidates' pairs: an optimizer has to know them before one can choose; see `begin_fit`."""
        matrices = self.lora.candidates(module)
        self._pairs = self.lora.inject(module, matrices)
        self._selection = Selection(matrices, ratio=self.ratio, pieces=self.pieces)
        module.add_module(NAME, self._selection)
        return [weight for pair in self._pairs for weight in pair]

    @property
    def selection(self) -> Selection:
        """The candidates and what was chosen of them."""
        if self._selection is None:
            raise RuntimeError("SaliencyLoRA knows its candidates once it was applied to a network")
        return self._selection

    def preparations(
        self, module: Any, *, unit: PrivacyUnit, target_epsilon: float | None, delta: float
    ) -> list[Preparation]:
        """The release of the scores; none where they are free."""
        if isinstance(self.score, FreeScore):
            return []
        noise_multiplier = self._cost.noise_multiplier(target_epsilon=target_epsilon, delta=delta)
        release = Saliency(
            self, self.score, module, rows_per_unit=unit.rows_per_unit, noise_multiplier=noise_multiplier
        )
        self._mechanism = release.mechanism
        return [release]

    def begin_fit(self, module: Any) -> None:
        """Freeze the pairs that were not chosen.

        Frozen parameters have no gradient: no optimizer moves them, weight decay included, and no clipping
        or noise knows of them.
        """
        selection = self.selection
        if not selection.made:
            if isinstance(self.score, PrivateScore):
                raise ValueError(
                    f"SaliencyLoRA has chosen nothing: {type(self.score).__name__} is a release of a private "
                    "fit, by the module's preparations(). Set 'privacy', or take a free score "
                    "(adapters.scores.random_score.RandomScore) or adapters.lora.LoRA"
                )
            free, norms = self.score, partial(self.norms, module)
            number, count = selection.number, len(selection.matrices)
            selection.choose(
                Ranks().on_first(lambda: free.scores(matrices=count, number=number, norms=norms))
            )
        for pair, chosen in zip(self._pairs, selection.chosen.tolist(), strict=True):
            for weight in pair:
                weight.requires_grad_(chosen)
        self._trainable = sum(weight.numel() for pair in self._chosen_pairs() for weight in pair)

    def norms(self, module: Denoiser, batches: Iterable[Any], *, rows_per_unit: int) -> Tensor:
        """(U, M) gradient norms of the units in `batches`, normalised if asked to."""
        matrices = self.selection.matrices
        found = gradient_norms(
            module, matrices, batches, rows_per_unit=rows_per_unit, noise_draws=self.noise_draws
        )
        if not self.size_normalised:
            return found
        sizes = torch.tensor([matrix.size for matrix in matrices], dtype=torch.float64)
        return found * (sizes.mean() / sizes).sqrt()  # matrices of equal size stay as they are

    def report(self) -> dict[str, Any]:
        paid = self._mechanism
        return {
            "score": type(self.score).__name__,
            "ratio": self.ratio,
            "pieces": self.pieces,
            "size_normalised": self.size_normalised,
            "noise_multiplier": None if paid is None else paid.noise_multiplier,
            "sensitivity": None if paid is None else paid.sensitivity,
            "noise": None if paid is None else paid.noise_multiplier * paid.sensitivity,
            "matrices": self.selection.report(),
        }

    def facts(self) -> dict[str, str | float | int]:
        facts = {
            **super().facts(),
            **self.lora.facts(),
            "adapter": type(self).__name__,
            "saliency_ratio": self.ratio,
            "saliency_score": type(self.score).__name__,
            "saliency_pieces": self.pieces,
        }
        if self._selection is not None and self._selection.made:
            facts["trainable_parameters"] = sum(w.numel() for pair in self._chosen_pairs() for w in pair)
            facts["chosen_matrices"] = int(self._selection.chosen.sum())
        return facts

    def _chosen_pairs(self) -> list[Pair]:
        chosen = self.selection.chosen.tolist()
        return [pair for pair, wanted in zip(self._pairs, chosen, strict=True) if wanted]


@final
class Saliency(Preparation[np.ndarray]):
    """The release of all candidates' scores.

    Args:
        adapter: what it is for.
        score: its score.
        module: whose losses are differentiated.
        rows_per_unit: of the train set.
        noise_multiplier: σ > 0.
    """

    def __init__(
        self,
        adapter: SaliencyLoRA,
        score: PrivateScore,
        module: Denoiser,
        *,
        rows_per_unit: int,
        noise_multiplier: float,
    ) -> None:
        self._adapter, self._score, self._module = adapter, score, module
        self._rows_per_unit = rows_per_unit
        self.rows_of_step = max(1.0, adapter.noise_draws / module.noise_draws)
        self._number = adapter.selection.number
        self._mechanism = VectorSum(
            noise_multiplier=noise_multiplier,
            max_norm=score.sensitivity(number=self._number),
            dimension=len(adapter.selection.matrices),
        )

    @property
    def mechanism(self) -> VectorSum:
        return self._mechanism

    def values(self, batches: Iterable[Any]) -> np.ndarray:
        """(N, M) what each unit adds."""
        norms = self._adapter.norms(self._module, batches, rows_per_unit=self._rows_per_unit)
        return self._score.contributions(norms, number=self._number).numpy()

    def apply(self, answer: np.ndarray) -> None:
        self._adapter.selection.choose(torch.from_numpy(answer))
