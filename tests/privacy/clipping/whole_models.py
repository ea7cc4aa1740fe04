"""Tiny configurations of models nobody here wrote, each with a per-row loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Case:
    """A model, inputs for `rows` rows and the loss of each row."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    loss: Loss


def _rows(tensor: Tensor) -> Tensor:
    return tensor.square().flatten(1).mean(dim=1)


def images(size: int, channels: int = 3) -> Callable[[int], Any]:
    return lambda rows: torch.randn(rows, channels, size, size)


def _plain(model: nn.Module, x: Any) -> Tensor:
    return _rows(model(x))


def _timm(name: str, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=3, **config)

    return build


def _timm_mixer() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_classes=3, img_size=16, patch_size=4, num_blocks=2, embed_dim=16)


_TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "num_heads": 2, "depth": 2}


def _group_norm(channels: int, **_: Any) -> nn.Module:
    return nn.GroupNorm(2, channels)


def _torchvision_resnet() -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3, norm_layer=lambda c: nn.GroupNorm(8, c))


def _torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=3)


def _torchvision_convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=3)


def _transformer_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _dit() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_num_groups=2,
    ).eval()  # training drops labels at random


def _labelled(rows: int) -> Any:
    return torch.randn(rows, 4, 8, 8), torch.randint(0, 1000, (rows,)), torch.randint(0, 10, (rows,))


def _dit_loss(model: nn.Module, x: Any) -> Tensor:
    sample, time, label = x
    return _rows(model(sample, timestep=time, class_labels=label).sample)


def _unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def _unet_loss(model: nn.Module, x: Any) -> Tensor:
    return _rows(model(x[0], x[1]).sample)


def _unet_condition() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=12,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def _unet_condition_lora() -> nn.Module:
    from peft import LoraConfig

    unet: Any = _unet_condition()
    unet.requires_grad_(False)
    targets = ["to_k", "to_q", "to_v", "to_out.0", "conv1"]
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=targets))
    return unet


def _conditioned(rows: int) -> Any:
    return torch.randn(rows, 4, 8, 8), torch.randint(0, 1000, (rows,)), torch.randn(rows, 5, 12)


def _unet_condition_loss(model: nn.Module, x: Any) -> Tensor:
    return _rows(model(x[0], x[1], encoder_hidden_states=x[2]).sample)


def _autoencoder() -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )


def _autoencoder_loss(model: Any, x: Any) -> Tensor:
    posterior = model.encode(x).latent_dist
    return _rows(model.decode(posterior.mode()).sample - x) + _rows(posterior.logvar)


def _pixart() -> nn.Module:
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        cross_attention_dim=16,
        caption_channels=12,
        norm_num_groups=2,
        use_additional_conditions=False,
    )


def _pixart_loss(model: nn.Module, x: Any) -> Tensor:
    none = {"resolution": None, "aspect_ratio": None}
    return _rows(model(x[0], encoder_hidden_states=x[2], timestep=x[1], added_cond_kwargs=none).sample)


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(**_TEXT, num_attention_heads=2, intermediate_size=16, **_NO_DROPOUT))


_TEXT = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "max_position_embeddings": 12}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _tokens(rows: int) -> Any:
    return torch.randint(0, 20, (rows, 7))


def _logits(model: nn.Module, x: Any) -> Tensor:
    return _rows(model(x).logits)


def _distilbert() -> nn.Module:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    return DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=20,
            dim=8,
            n_layers=2,
            n_heads=2,
            hidden_dim=16,
            max_position_embeddings=12,
            dropout=0.0,
            attention_dropout=0.0,
            seq_classif_dropout=0.0,
        )
    )


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=12, use_cache=False, **none)
    )


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            **_TEXT, num_attention_heads=2, num_key_value_heads=1, intermediate_size=16, use_cache=False
        )
    )


def _llama_lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(_llama(), config)  # type: ignore[arg-type]


def _t5_encoder() -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, dropout_rate=0.0)
    )


def _hidden(model: nn.Module, x: Any) -> Tensor:
    return _rows(model(x).last_hidden_state)


def _clip_vision() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
    )


def _clip_loss(model: nn.Module, x: Any) -> Tensor:
    return _rows(model(x).pooler_output)


CASES: dict[str, Case] = {
    "timm ViT": Case(_timm("vit_tiny_patch16_224", **_TINY), images(16), _plain),
    "timm ViT with LayerScale and pooling": Case(
        _timm("vit_tiny_patch16_224", init_values=0.1, class_token=False, global_pool="avg", **_TINY),
        images(16),
        _plain,
    ),
    "timm EVA02": Case(_timm("eva02_tiny_patch14_224", **_TINY), images(16), _plain),
    "timm MLP-Mixer": Case(_timm_mixer, images(16), _plain),
    "timm ConvNeXt": Case(
        _timm("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)), images(32), _plain
    ),
    "timm ResNet with GroupNorm": Case(
        _timm("resnet18", layers=(1, 1, 1, 1), norm_layer=_group_norm), images(32), _plain
    ),
    "timm CaiT": Case(_timm("cait_xxs24_224", **_TINY), images(16), _plain),
    "torchvision ResNet with GroupNorm": Case(_torchvision_resnet, images(32), _plain),
    "torchvision ViT": Case(_torchvision_vit, images(16), _plain),
    "torchvision ConvNeXt": Case(_torchvision_convnext, images(16), _plain),
    "torch TransformerEncoder": Case(_transformer_encoder, lambda rows: torch.randn(rows, 5, 8), _plain),
    "diffusers DiT": Case(_dit, _labelled, _dit_loss),
    "diffusers UNet2D": Case(_unet, _labelled, _unet_loss),
    "diffusers UNet2DCondition": Case(_unet_condition, _conditioned, _unet_condition_loss),
    "diffusers UNet2DCondition with LoRA": Case(_unet_condition_lora, _conditioned, _unet_condition_loss),
    "diffusers AutoencoderKL": Case(_autoencoder, images(16), _autoencoder_loss),
    "diffusers PixArt": Case(_pixart, _conditioned, _pixart_loss),
    "transformers BERT, tied": Case(_bert, _tokens, _logits),
    "transformers DistilBERT": Case(_distilbert, _tokens, _logits),
    "transformers GPT-2, tied": Case(_gpt2, _tokens, _logits),
    "transformers Llama": Case(_llama, _tokens, _logits),
    "transformers Llama with LoRA": Case(_llama_lora, _tokens, _logits),
    "transformers T5 encoder": Case(_t5_encoder, _tokens, _hidden),
    "transformers CLIP vision": Case(_clip_vision, images(16), _clip_loss),
}
