"""The training loss, one number per example, in which no example sees another.

Shapes: B rows, then any dimensions.
"""

import torch
from torch import Tensor

from lightning_dp.diffusion.prediction import Prediction


def draw_timesteps(num_examples: int, *, draws: int, num_steps: int, device: torch.device | str) -> Tensor:
    """Uniform integer timesteps, spread over each example's own draws.

    Draw k of an example falls in the k-th of `draws` equal parts of [0, num_steps), shifted by one uniform
    offset per example: each is uniform on its own, and their average has less variance. Examples stay
    independent.

    Returns:
        (num_examples · draws,) int64, the draws of one example consecutive.
    """
    offset = torch.rand(num_examples, 1, device=device)
    parts = torch.arange(draws, device=device) / draws  # (draws,)
    fractions = (offset + parts) % 1.0  # (num_examples, draws)
    return (fractions * num_steps).long().clamp_(max=num_steps - 1).flatten()


def per_example_loss(
    output: Tensor,
    target: Tensor,
    *,
    mask: Tensor,
    snr: Tensor,
    prediction: Prediction,
    min_snr_gamma: float | None = None,
) -> Tensor:
    """Mean squared error over each example's own masked positions.

    Args:
        output: (B, …) of the network.
        target: (B, …) from `Prediction.target`.
        mask: (B, …) bool or float weights ≥ 0; positions outside neither count nor get a gradient.
        snr: (B,) α²/σ² of each row.
        prediction: the parametrisation of `output`, for the weighting.
        min_snr_gamma: γ of min-SNR weighting (arXiv 2303.09556, eq. 8): the weight of ‖x̂_0 − x_0‖² is
            min(SNR, γ), whatever is predicted; None leaves the plain error of the target.

    Returns:
        (B,) fp32; 0 for an example with an empty mask.
    """
    mask = mask.float()
    # where, not a product: whatever stands at a position that doesn't count, NaN included, must not reach
    # the sum.
    error = torch.where(mask > 0, output.float() - target.float(), 0.0)  # (B, …)
    total = mask.flatten(1).sum(dim=1)  # (B,)
    loss = (mask * error.square()).flatten(1).sum(dim=1) / torch.where(total > 0, total, 1.0)  # (B,)
    if min_snr_gamma is not None:
        loss = loss * snr.clamp(max=min_snr_gamma) / prediction.snr_weight(snr)  # (B,)
    return loss
