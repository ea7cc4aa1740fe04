"""LoRA on the share of attention matrices that matter most: DP-SAPF (arXiv 2605.30312), and its variants.

Every candidate gets a low-rank pair, whose second matrix is 0; training then moves the chosen pairs alone, or
the chosen matrices themselves. A choice by a private score is one release before training. It is made once,
and is part of the network's state: a resumed fit, a checkpoint and a sampler know it.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lightning_dp.adapters.adapter import Adapter
from lightning_dp.adapters.choices.choice import Choice, ChoiceFacts
from lightning_dp.adapters.choices.noisy_sums import NoisySums
from lightning_dp.adapters.gradient_norms import gradient_norms
from lightning_dp.adapters.lora import USUAL_TARGETS, LoRA
from lightning_dp.adapters.scores.grad_norm import GradNorm
from lightning_dp.adapters.scores.score import Denoiser, FreeScore, PrivateScore
from lightning_dp.adapters.scores.without_noise import exact_scores
from lightning_dp.adapters.selection import NAME, Pieces, Selection
from lightning_dp.adapters.unchosen import Unchosen, randomise
from lightning_dp.privacy.preparation import Preparation
from lightning_dp.privacy.ranks import Ranks
from lightning_dp.privacy.release import Mechanism
from lightning_dp.privacy.release_cost import ReleaseCost
from lightning_dp.privacy.units import PrivacyUnit


@final
class SaliencyLoRA(Adapter):
    """`LoRA`, of which the matrices with the highest score train.

    Guarantee: a choice by a private score is one release of the sum over units of what each contributes, by
    the mechanism of `choice` and with the score's sensitivity, charged with the run it belongs to.

    Args:
        ratio: share in (0, 1] of the candidates that train.
        rank, scale, targets, convolutions: as for `LoRA`; `targets` are the candidates.
        score: what says which matrices matter: of the private data (`GradNorm`, `Squared`, `Vote`) or free
            (`RandomScore`, `PublicScore`). None for `GradNorm()`.
        choice: how matrices are chosen by a private score; None for `NoisySums()`.
        pieces: whether single "matrices" are chosen, or whole "layers": all candidates of an attention.
        size_normalised: whether gradients are measured by their root mean square over a matrix's entries
            rather than by their norm, which favours large matrices.
        noise_multiplier: σ > 0 of the release; or
        budget_share: share in (0, 1) of the target ε that the release alone would cost, at the same δ. Give
            one of the two; neither is a share of a tenth.
        noise_draws: K ≥ 1 timesteps and noises per row for the score; more of them make it less random. Rows
            at once are those of a training step: `privacy.physical_batch_size` units, fewer for a larger K.
        max_units: ≥ 1 units that are scored, on average; of more than that a Poisson sample is drawn, which
            the release is charged as. None scores all.
        low_rank: False trains the chosen matrices themselves, fused ones as one.
        unchosen: what becomes of matrices that are not chosen: "pretrained", or "random" numbers in their
            place.
        without_noise: for fits without privacy alone: choose by the sums as they are. ε is ∞.

    Raises:
        ValueError: an argument is out of range, or two don't go together.
    """

    def __init__(
        self,
        *,
        ratio: float,
        rank: int = 4,
        scale: float | None = None,
        targets: str | Sequence[str] = USUAL_TARGETS,
        convolutions: bool = False,
        score: PrivateScore | FreeScore | None = None,
        choice: Choice | None = None,
        pieces: Pieces = "matrices",
        size_normalised: bool = False,
        noise_multiplier: float | None = None,
        budget_share: float | None = None,
        noise_draws: int = 1,
        max_units: int | None = None,
        low_rank: bool = True,
        unchosen: Unchosen = "pretrained",
        without_noise: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < ratio <= 1:
            raise ValueError(
                f"SaliencyLoRA.ratio is {ratio}, but it is a share in (0, 1]: 0.2 to 0.5 is usual"
            )
        for name, kind, kinds in (("pieces", pieces, Pieces), ("unchosen", unchosen, Unchosen)):
            if kind not in get_args(kinds):
                raise ValueError(
                    f"SaliencyLoRA.{name} is {kind!r}, but it has to be one of {', '.join(get_args(kinds))}"
                )
        for name, value in (("noise_draws", noise_draws), ("max_units", max_units)):
            if value is not None and value < 1:
                raise ValueError(f"SaliencyLoRA.{name} is {value}, but it must be at least 1")
        self.ratio = ratio
        self.lora = LoRA(rank=rank, scale=scale, targets=targets, convolutions=convolutions)
        self.score = score or GradNorm()
        self.choice = choice or NoisySums()
        if not self.choice.by_sums and (pieces != "matrices" or max_units is not None):
            raise ValueError(
                f"SaliencyLoRA.choice is {type(self.choice).__name__}, which publishes no sums to choose "
                "layers by and gains nothing by a sample: leave pieces and max_units out, or take "
                "choices.noisy_sums.NoisySums"
            )
        if without_noise and isinstance(self.score, FreeScore):
            raise ValueError(
                f"SaliencyLoRA.without_noise is true, but {type(self.score).__name__} has no noise anyway: "
                "leave it out"
            )
        self.pieces: Pieces = pieces
        self.size_normalised = size_normalised
        self._cost = ReleaseCost(
            type(self).__name__,
            noise_multiplier=noise_multiplier,
            budget_share=budget_share,
            usual_share=0.1,
        )
        self.noise_draws = noise_draws
        self.max_units = max_units
        self.low_rank = low_rank
        self.unchosen: Unchosen = unchosen
        self.without_noise = without_noise
        self._weights: list[
            tuple[nn.Parameter, ...]
        ] = []  # of each candidate, those that train if it is chosen
        self._selection: Selection | None = None
        self._mechanism: Mechanism[np.ndarray] | None = None
        self._replaced: list[str] = []

    def choose(self, module: nn.Module) -> Iterable[nn.Parameter]:
        """What all candidates train: an optimizer has to know them before one can choose; see `begin_fit`."""
        matrices = self.lora.candidates(module, split=self.low_rank)
        if self.low_rank:
            self._weights = [tuple(pair) for pair in self.lora.inject(module, matrices)]
        else:
            self._weights = [(module.get_parameter(f"{matrix.path}.weight"),) for matrix in matrices]
        self._selection = Selection(matrices, ratio=self.ratio, pieces=self.pieces)
        module.add_module(NAME, self._selection)
        return [weight for own in self._weights for weight in own]

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
        score = self.score
        if isinstance(score, FreeScore):
            return []
        if self.without_noise:
            raise ValueError(
                "SaliencyLoRA.without_noise is true in a private fit, whose choice is a noisy release: leave "
                "it out, or set 'privacy: null', where ε is ∞"
            )
        most = unit.num_units if self.max_units is None else self.max_units

        def make(sigma: float) -> Mechanism[np.ndarray]:
            facts = ChoiceFacts(
                number=self.selection.number,
                dimension=len(self.selection.matrices),
                noise_multiplier=sigma,
                delta=delta,
                sampling_rate=min(1.0, most / unit.num_units),
            )
            return self.choice.mechanism(score, facts)

        plain = isinstance(self.choice, NoisySums) and most >= unit.num_units
        noise_multiplier = self._cost.noise_multiplier(
            target_epsilon=target_epsilon,
            delta=delta,
            event_fn=None if plain else lambda sigma: make(sigma).event,
        )
        self._mechanism = make(noise_multiplier)
        return [Saliency(self, score, module, rows_per_unit=unit.rows_per_unit, mechanism=self._mechanism)]

    def begin_fit(self, module: Any) -> None:
        """Freeze what was not chosen.

        Frozen parameters have no gradient: no optimizer moves them, weight decay included, and no clipping
        or noise knows of them.
        """
        selection = self.selection
        if not selection.made:
            selection.choose(Ranks().on_rank_zero(partial(self._unpaid_scores, module)))
        chosen = selection.chosen.tolist()
        for own, wanted in zip(self._weights, chosen, strict=True):
            for weight in own:
                weight.requires_grad_(wanted)
        self._trainable = self._chosen_size()
        if self.unchosen == "random":
            others = [m for m, wanted in zip(selection.matrices, chosen, strict=True) if not wanted]
            self._replaced = randomise(module.net, others)

    def _unpaid_scores(self, module: Any) -> Tensor:
        """(M,) scores that no release has to pay for: free ones, or any where nothing is private."""
        number, norms = self.selection.number, partial(self.norms, module)
        if isinstance(self.score, FreeScore):
            return self.score.scores(matrices=len(self.selection.matrices), number=number, norms=norms)
        if not self.without_noise or self._mechanism is not None:
            raise ValueError(
                f"SaliencyLoRA has chosen nothing: {type(self.score).__name__} is a release of a private "
                "fit, by the module's preparations(). Set 'privacy', or take a free score "
                "(adapters.scores.random_score.RandomScore) or adapters.lora.LoRA; with 'privacy: null' "
                "without_noise chooses by the train set as it is"
            )
        return exact_scores(self.score, module, norms=norms, number=number, max_units=self.max_units)

    def replaced(self) -> list[str]:
        return self._replaced

    def left_frozen(self, state: Mapping[str, Any]) -> list[str]:
        if self.low_rank or f"{NAME}.chosen" not in state:
            return []  # pairs are in every checkpoint
        chosen = state[f"{NAME}.chosen"].tolist()
        return [
            f"{matrix.path}.weight"
            for matrix, wanted in zip(self.selection.matrices, chosen, strict=True)
            if not wanted
        ]

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
            "choice": type(self.choice).__name__ if paid is not None else None,
            **({"nonprivate": "chosen by the train set without noise: ε = ∞"} if self.without_noise else {}),
            "sampling_rate": None if paid is None else paid.sampling_rate,
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
            "saliency_choice": "without noise, ε = ∞" if self.without_noise else type(self.choice).__name__,
            "saliency_trains": "low-rank pairs" if self.low_rank else "matrices",
            "saliency_unchosen": self.unchosen,
        }
        if not self.low_rank:
            del facts["lora_rank"]
        if self._selection is not None and self._selection.made:
            facts["trainable_parameters"] = self._chosen_size()
            facts["chosen_matrices"] = int(self._selection.chosen.sum())
        return facts

    def _chosen_size(self) -> int:
        chosen = self.selection.chosen.tolist()
        return sum(
            w.numel() for own, wanted in zip(self._weights, chosen, strict=True) if wanted for w in own
        )


@final
class Saliency(Preparation[np.ndarray]):
    """The release of all candidates' scores.

    Args:
        adapter: what it is for.
        score: its score.
        module: whose losses are differentiated.
        rows_per_unit: of the train set.
        mechanism: of the adapter's choice.
    """

    def __init__(
        self,
        adapter: SaliencyLoRA,
        score: PrivateScore,
        module: Denoiser,
        *,
        rows_per_unit: int,
        mechanism: Mechanism[np.ndarray],
    ) -> None:
        self._adapter, self._score, self._module = adapter, score, module
        self._rows_per_unit = rows_per_unit
        self.rows_of_step = max(1.0, adapter.noise_draws / module.noise_draws)
        self._number = adapter.selection.number
        self._mechanism = mechanism

    @property
    def mechanism(self) -> Mechanism[np.ndarray]:
        return self._mechanism

    def values(self, batches: Iterable[Any]) -> np.ndarray:
        """(N, M) what each unit adds."""
        norms = self._adapter.norms(self._module, batches, rows_per_unit=self._rows_per_unit)
        return self._score.contributions(norms, number=self._number).numpy()

    def apply(self, answer: np.ndarray) -> None:
        self._adapter.selection.choose(torch.from_numpy(self._adapter.choice.scores(answer)))
