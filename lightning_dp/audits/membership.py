"""Was this unit trained on? By the losses of the finished model alone, in bands of timesteps.

A black-box attack: the adversary has the weights at the end and candidates, half of which were trained on. A
diffusion model's loss is low where it knows a unit, most at middle timesteps (Carlini et al. 2023, arXiv
2301.13188, Sec. 5.2; Matsumoto et al. 2023, arXiv 2302.03262). Under DP it shows little: what it shows is
stated with the same bounds as everything else. With shadow models, each of another half, the score is how
unusual a loss is for models that never saw the unit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor

from lightning_dp.audits.canary_data import CanaryData
from lightning_dp.audits.white_box import Scores, Setting, private_fit
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.privacy.audit.counts import hold_out
from lightning_dp.privacy.audit.likelihood_ratio import offline_ratio
from lightning_dp.privacy.noise import entropy_bits
from lightning_dp.privacy.preflight import copies
from lightning_dp.protocols import HasNet, provides

_BANDS = ((0.0, 1.0, "all t"), (0.0, 0.33, "early t"), (0.33, 0.67, "middle t"), (0.67, 1.0, "late t"))


@dataclass(frozen=True, kw_only=True)
class Membership:
    """What is attacked beside the setting of the fit.

    Attributes:
        draws: timesteps and noises per candidate, over which losses are averaged.
        shadows: models of other halves, 0 or at least 2; each is one more fit.
        outliers: whether candidates are made extreme: floating-point values 8 times as far from 0.
    """

    draws: int = 64
    shadows: int = 0
    outliers: bool = False

    def __post_init__(self) -> None:
        if self.shadows == 1 or self.shadows < 0:
            raise ValueError(f"--shadows is {self.shadows}; it is 0, or 2 and more to know what is usual")


def attack_losses(
    module: LightningModule,
    data: LightningDataModule,
    *,
    setting: Setting,
    membership: Membership,
    privacy: DifferentialPrivacy,
    progress: Callable[[str, int, int], None] = lambda what, step, steps: None,
) -> list[Scores]:
    """Train on a random half of the candidates, and guess which ones.

    Args:
        module: of the recipe; it is copied. It has `per_example_losses(batch)` and a `net` that is called
            with (noisy, timesteps, …), as both families of this project do.
        data: of the recipe, set up, for shapes and collation.
        setting: of the fit; its `canaries` are the candidates.
        membership: of the attack.
        privacy: of the recipe.
        progress: told which fit it is, the step and the number of steps.

    Raises:
        ValueError: the module has no such losses.
    """
    attacked: object = module
    if not (hasattr(attacked, "per_example_losses") and provides(attacked, HasNet)):
        raise ValueError(
            f"{type(module).__name__} has no per_example_losses(batch) and net, so its losses at timesteps "
            "can't be attacked: take --kind white-box"
        )
    source = CanaryData(data, num_others=setting.others, num_canaries=setting.canaries)
    if membership.outliers:
        source.change_canaries(_far_out)
    rng = np.random.default_rng(entropy_bits())
    members, confidences = [], []
    for number in range(1 + membership.shadows):
        present = rng.random(setting.canaries) < 0.5
        fitted = copies.copied(module, with_weights=True)
        name = f"shadow {number}" if number else "the run"
        chosen = source.only(present)
        private_fit(fitted, chosen, setting=setting, privacy=privacy, progress=progress, name=name)
        members.append(present)
        confidences.append(_confidences(fitted, source, draws=membership.draws))
    event = setting.event
    found = []
    for band, (_, _, name) in enumerate(_BANDS):
        values = np.stack([own[band] for own in confidences])  # (1 + s, m)
        scores = values[0]
        if membership.shadows:
            scores = offline_ratio(values[0], values[1:], trained_on=np.stack(members[1:]))
        null, canary = hold_out(scores[~members[0]], scores[members[0]])
        found.append(Scores(adversary=f"loss, {name}", null=null, canary=canary, event=event))
    return found


@torch.no_grad()
def _confidences(module: LightningModule, source: CanaryData, *, draws: int) -> list[np.ndarray]:
    """By band, (m,) minus the mean loss of each candidate; the same draws for every model."""
    batch = source.candidates()
    device = next(module.parameters()).device
    batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    seen: list[Tensor] = []
    hook = module.net.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda net, given: seen.append(given[1].detach())
    )
    before, module.noise_draws = module.noise_draws, 1  # type: ignore[assignment]
    losses, times = [], []
    with torch.random.fork_rng():
        for draw in range(draws):
            torch.manual_seed(draw)
            own = module.per_example_losses(batch)  # type: ignore[operator]  # (m · rows,)
            losses.append(own.double().cpu().numpy())
            times.append(seen.pop().double().cpu().numpy())
    hook.remove()
    module.noise_draws = before
    rows = len(losses[0]) // source.num_candidates
    fits = -np.stack(losses)  # (draws, m · rows)
    when = np.stack(times) / module.schedule.num_steps  # type: ignore[union-attr]
    bands = []
    for low, high, _ in _BANDS:
        inside = (when >= low) & (when < high)
        mean = (fits * inside).sum(axis=0) / np.maximum(1, inside.sum(axis=0))
        bands.append(mean.reshape(-1, rows).mean(axis=1))
    return bands


def _far_out(item: dict[str, Any]) -> dict[str, Any]:
    return {
        name: 8 * value if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in item.items()
    }
