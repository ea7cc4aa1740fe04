"""Nets of diffusers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from conformance_models.case import Batch, Case, Step, per_row


def _of_diffusers(model: str, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import diffusers

        return getattr(diffusers, model)(**arguments)

    return build


def noised(rows: int) -> Batch:
    """Latents, a timestep each, five tokens of a prompt, a pooled prompt and a class."""
    return {
        "x": torch.randn(rows, 4, 8, 8),
        "time": torch.randint(0, 1000, (rows,)),
        "prompt": torch.randn(rows, 5, 12),
        "pooled": torch.randn(rows, 12),
        "label": torch.randint(0, 10, (rows,)),
    }


def _signals(rows: int) -> Batch:
    return {"x": torch.randn(rows, 2, 32), "time": torch.randint(0, 1000, (rows,))}


def _videos(rows: int) -> Batch:
    return {"x": torch.randn(rows, 4, 3, 8, 8), "time": torch.randint(0, 1000, (rows,))}


def _timed(model: nn.Module, batch: Batch) -> Tensor:
    return per_row(model(batch["x"], batch["time"]).sample)


def prompted(model: nn.Module, batch: Batch) -> Tensor:
    """The denoiser's loss under a prompt."""
    return per_row(model(batch["x"], batch["time"], encoder_hidden_states=batch["prompt"]).sample)


def _own_mse(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch["x"], batch["time"]).sample - batch["x"].flip(-1)).square().mean()


def _classified(model: nn.Module, batch: Batch) -> Tensor:
    return per_row(model(batch["x"], timestep=batch["time"], class_labels=batch["label"]).sample)


def _transformer_2d(model: nn.Module, batch: Batch) -> Tensor:
    return per_row(model(batch["x"], encoder_hidden_states=batch["prompt"]).sample)


def _autoencoded(model: Any, batch: Batch) -> Tensor:
    posterior = model.encode(batch["x"]).latent_dist
    return per_row(model.decode(posterior.mode()).sample - batch["x"]) + per_row(posterior.logvar)


def _pixart(model: nn.Module, batch: Batch) -> Tensor:
    none = {"resolution": None, "aspect_ratio": None}
    return per_row(
        model(
            batch["x"],
            encoder_hidden_states=batch["prompt"],
            timestep=batch["time"],
            added_cond_kwargs=none,
        ).sample
    )


def _sd3(model: nn.Module, batch: Batch) -> Tensor:
    return per_row(
        model(
            batch["x"],
            encoder_hidden_states=batch["prompt"],
            pooled_projections=batch["pooled"],
            timestep=batch["time"],
        ).sample
    )


def _flux(model: nn.Module, batch: Batch) -> Tensor:
    patches = batch["x"].flatten(2).transpose(1, 2)  # (R, 64, 4)
    places = torch.zeros(8, 8, 3)
    places[..., 1], places[..., 2] = torch.arange(8)[:, None], torch.arange(8)[None]
    return per_row(
        model(
            patches,
            encoder_hidden_states=batch["prompt"],
            pooled_projections=batch["pooled"],
            timestep=batch["time"] / 1000,
            img_ids=places.reshape(-1, 3),
            txt_ids=torch.zeros(5, 3),
        ).sample
    )


def _sana(model: nn.Module, batch: Batch) -> Tensor:
    return per_row(model(batch["x"], encoder_hidden_states=batch["prompt"], timestep=batch["time"]).sample)


def _case(model: str, step: Step, *, inputs: Any = noised, most: int = 40, **arguments: Any) -> Case:
    return Case("diffusers", _of_diffusers(model, **arguments), inputs, step, most)


_DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "sample_size": 8,
    "patch_size": 2,
    "norm_num_groups": 2,
}
UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
CONDITION = {
    **UNET,
    "attention_head_dim": 4,
    "cross_attention_dim": 12,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def _dit() -> nn.Module:
    net = _of_diffusers("DiTTransformer2DModel", **_DIT, num_embeds_ada_norm=10)()
    for module in net.modules():
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0  # of labels, at random, in training mode
    return net


DIFFUSION: dict[str, Case] = {
    "UNet2D": _case(
        "UNet2DModel",
        _timed,
        **UNET,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ),
    "UNet2D, scalar loss": _case(
        "UNet2DModel",
        _own_mse,
        **UNET,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ),
    "UNet2DCondition": _case("UNet2DConditionModel", prompted, **CONDITION),
    "UNet1D": _case(
        "UNet1DModel",
        _timed,
        inputs=_signals,
        sample_size=32,
        in_channels=2,
        out_channels=2,
        block_out_channels=(32, 32),
        layers_per_block=1,
        norm_num_groups=4,
        extra_in_channels=64,
        down_block_types=("DownBlock1DNoSkip", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1DNoSkip"),
    ),
    "UNet1D, diffuser": _case(
        "UNet1DModel",
        _timed,
        inputs=_signals,
        sample_size=32,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        use_timestep_embedding=True,
        time_embedding_type="positional",
        down_block_types=("DownResnetBlock1D", "DownResnetBlock1D"),
        up_block_types=("UpResnetBlock1D",),
        mid_block_type="MidResTemporalBlock1D",
        out_block_type="OutConv1DBlock",
        act_fn="swish",
    ),
    "DiTTransformer2D": Case("diffusers", _dit, noised, _classified, 40),
    "PixArtTransformer2D": _case(
        "PixArtTransformer2DModel",
        _pixart,
        **_DIT,
        cross_attention_dim=16,
        caption_channels=12,
        use_additional_conditions=False,
    ),
    "Transformer2D": _case(
        "Transformer2DModel",
        _transformer_2d,
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        num_layers=1,
        norm_num_groups=2,
        cross_attention_dim=12,
    ),
    "AutoencoderKL": _case(
        "AutoencoderKL",
        _autoencoded,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ),
    "SD3Transformer2D": _case(
        "SD3Transformer2DModel",
        _sd3,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=8,
        pooled_projection_dim=12,
        pos_embed_max_size=8,
    ),
    "FluxTransformer2D": _case(
        "FluxTransformer2DModel",
        _flux,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=12,
        axes_dims_rope=(2, 2, 4),
    ),
    "SanaTransformer2D": _case(
        "SanaTransformer2DModel",
        _sana,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=12,
        sample_size=8,
        patch_size=1,
        dropout=0.0,
    ),
}
