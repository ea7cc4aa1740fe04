"""From windows of a multichannel series to tokens and back, around any blocks that an AdaLN condition steers.

Shapes: B rows, L time steps, C channels, F covariates, p steps per patch, T = L / p tokens, D hidden width.
Nothing couples rows: per-row gradients are well defined, and channels folded into rows stay beside each
other.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_dp.nets.conditioning.modulation import Conditioning
from lightning_dp.nets.conditioning.path import ConditionPath
from lightning_dp.nets.denoising_net import DenoisingNet
from lightning_dp.nets.dit import FinalLayer
from lightning_dp.nets.embeddings import ContextEncoder, TimestepEmbedding, sinusoids
from lightning_dp.privacy.rows import any_unit


class Known(NamedTuple):
    """What `SeriesNet.encode` hands to `denoise`.

    Attributes:
        tokens: (B, T, D) embedded context, or None where tokens hold x_t alone.
        condition: (B, condition_size) pooled context.
        line: (B, L, W) linear forecast, or None.
        asked: (t,) indices of the tokens whose output is needed.
    """

    tokens: Tensor | None
    condition: Tensor
    line: Tensor | None
    asked: Tensor


def _repeat(x: Tensor | None, copies: int, *, block: int) -> Tensor | None:
    """Repeat every block of consecutive rows in place: rows a b c d, block 2, twice → a b a b c d c d."""
    if x is None or copies == 1:
        return x
    return x.unflatten(0, (-1, block)).repeat_interleave(copies, dim=0).flatten(0, 1)


class SeriesNet(DenoisingNet, ABC):
    """Predicts the diffusion target of a noisy window, given what is known of it.

    A token holds a patch of (x_t, context, visible, profile, covariates). The condition is the timestep
    embedding plus a pooled encoding of the same tokens without x_t. Past the blocks' norms and narrow width
    run a linear map from the whole visible window to the whole output, and x_t itself, each times a learnt
    function of diffusion time alone: the first carries what a linear forecaster knows, the second the fine
    detail of x_t that velocity and noise targets contain.

    With `token_context` and `linear_skip` off, what is known acts through the condition alone, which
    modulates blocks and final layer.

    Args:
        conditioning: how the condition steers the final layer.
        block_fn: from the width of the condition to one block, which maps (B, T, D) and the condition
            (B, condition_size) to (B, T, D), or with `queries` (t,) to the tokens that these count.
        length: L, steps of a window, context and horizon together.
        num_channels: C.
        num_covariates: F, may be 0.
        patch_size: p, steps per token; divides `length`.
        hidden_size: D, even.
        depth: number of blocks.
        condition_size: width of the condition vector; None for D.
        channel_independent: every channel is a row of its own under shared weights, and `rows_per_example`
            becomes C; otherwise a token holds all channels.
        linear_skip: whether these two paths exist.
        token_context: whether a token holds what is known of its own steps, and not x_t alone.
    """

    positions: Tensor

    @abstractmethod
    def __init__(
        self,
        conditioning: Conditioning,
        *,
        block_fn: Callable[[int], nn.Module],
        length: int,
        num_channels: int,
        num_covariates: int,
        patch_size: int,
        hidden_size: int,
        depth: int,
        condition_size: int | None,
        channel_independent: bool,
        linear_skip: bool,
        token_context: bool,
    ) -> None:
        super().__init__()
        if length % patch_size:
            raise ValueError(
                f"patch_size is {patch_size} and length {length}, but patches tile the window: "
                "choose a divisor."
            )
        if depth < 1:
            raise ValueError(f"depth is {depth}, but {type(self).__name__} has at least one block.")
        self.length = length
        self.num_channels = num_channels
        self.num_covariates = num_covariates
        self.patch_size = patch_size
        self.channel_independent = channel_independent
        self.rows_per_example = num_channels if channel_independent else 1
        width = 1 if channel_independent else num_channels  # channels in one row
        num_tokens = length // patch_size
        condition_size = hidden_size if condition_size is None else condition_size
        known_size = patch_size * (3 * width + num_covariates)

        self.timestep = TimestepEmbedding(condition_size)
        self.context = ContextEncoder(known_size, size=condition_size, num_tokens=num_tokens)
        # One linear map of [known, x_t] in two parts, so that sampling computes the larger part once.
        self.embed_known = nn.Linear(known_size, hidden_size) if token_context else None
        self.embed_noisy = nn.Linear(patch_size * width, hidden_size, bias=not token_context)
        self.blocks = nn.ModuleList(block_fn(condition_size) for _ in range(depth))
        self.final = FinalLayer(
            hidden_size,
            output_size=patch_size * width,
            condition_size=condition_size,
            conditioning=conditioning,
        )
        self.register_buffer(
            "positions", sinusoids(torch.arange(num_tokens), size=hidden_size), persistent=False
        )
        self.skip = nn.Linear(length * width, length * width, bias=False) if linear_skip else None
        self.gains = nn.Linear(condition_size, 2) if linear_skip else None
        if self.skip is not None and self.gains is not None:
            nn.init.zeros_(self.skip.weight)
            nn.init.zeros_(self.gains.weight)
            with torch.no_grad():
                self.gains.bias.copy_(torch.tensor([1.0, 0.0]))

    def encode(
        self, *, context: Tensor, visible: Tensor, target: Tensor, profile: Tensor, covariates: Tensor
    ) -> Known:
        # Patches that any row has to predict. The others are left out of the output; which ones they are
        # changes no value that is needed, so rows stay independent.
        asked = any_unit(target.unflatten(1, (-1, self.patch_size)).any(dim=(2, 3)))  # (t,)
        series = torch.stack([context, visible, profile], dim=-1)  # (B, L, C, 3)
        if self.channel_independent:
            # From here on B counts rows of layers, and W is the number of channels in one.
            series = series.transpose(1, 2).flatten(0, 1)[:, :, None]  # (B, L, W, 3)
            covariates = covariates.repeat_interleave(self.num_channels, dim=0)  # (B, L, F)
        tokens = self._patches(torch.cat([series.flatten(2), covariates], dim=-1))  # (B, T, p(3W + F))
        line = None
        if self.skip is not None:
            line = self.skip(series[..., 0].flatten(1)).unflatten(1, (self.length, -1))  # (B, L, W)
        embedded = None if self.embed_known is None else self.embed_known(tokens)  # (B, T, D)
        return Known(embedded, self.context(tokens), line, asked)

    def denoise(self, noisy: Tensor, timesteps: Tensor, *, known: Known) -> Tensor:
        if self.channel_independent:
            channels = self.num_channels
            # A batch of one window too: per-example clipping counts the rows of every layer.
            if len(timesteps) == len(noisy):
                timesteps = timesteps.repeat_interleave(channels, dim=0)  # (B,)
            noisy = noisy.transpose(1, 2).flatten(0, 1)[..., None]  # (B, L, W)
        else:
            channels = 1
        copies = len(noisy) // len(known.condition)
        tokens, context, line = (_repeat(x, copies, block=channels) for x in known[:3])
        assert context is not None
        moment = self.timestep(timesteps)  # (B or 1, condition_size)
        condition = moment + context  # (B, condition_size)
        x = self.embed_noisy(self._patches(noisy)) + self.positions  # (B, T, D)
        if tokens is not None:
            x = x + tokens  # (B, T, D)
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            x = block(
                x, condition, queries=known.asked if i == last else None
            )  # (B, T, D), at last (B, t, D)
        answers = self.final(x, condition)  # (B, t, p·W)
        y = answers.new_zeros(len(x), len(self.positions), answers.shape[-1])  # (B, T, p·W)
        y = y.index_copy(1, known.asked, answers).reshape(noisy.shape)  # (B, L, W)
        if line is not None and self.gains is not None:
            gains = self.gains(nn.functional.silu(moment))[:, :, None, None]  # (B or 1, 2, 1, 1)
            y = y + gains[:, 0] * line + gains[:, 1] * noisy  # (B, L, W)
        if self.channel_independent:
            y = y.squeeze(-1).unflatten(0, (-1, channels)).transpose(1, 2)  # (B, L, C)
        return y

    def condition_modules(self) -> list[nn.Module]:
        """What makes the condition vector."""
        return [self.timestep, self.context]

    def condition_paths(self) -> dict[ConditionPath, list[nn.Module]]:
        """Every way of what is known, diffusion time included, but for the blocks' and final layer's own."""
        ways: dict[ConditionPath, list[nn.Module | None]] = {
            ConditionPath.ENCODER: [*self.condition_modules()],
            ConditionPath.TOKENS: [self.embed_known],
            ConditionPath.SKIP: [self.skip],
            ConditionPath.GAINS: [self.gains],
        }
        return {way: [part for part in parts if part is not None] for way, parts in ways.items()}

    def embedder_modules(self) -> list[nn.Module]:
        """What an attention adapter trains beside the blocks."""
        return [self.context]

    def output_modules(self) -> list[nn.Module]:
        """What an output-head adapter trains."""
        return [self.final]

    def _patches(self, x: Tensor) -> Tensor:
        """(B, L, P) → (B, T, p·P)."""
        return x.unflatten(1, (-1, self.patch_size)).flatten(2)
