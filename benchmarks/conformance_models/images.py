"""Nets of images: transformers, timm and torchvision."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from conformance_models.case import Batch, Case, noise, per_row, plain
from conformance_models.text import hidden, of_transformers

_IMAGE = {"image_size": 16, "patch_size": 4, "num_channels": 3}
_BLOCKS = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_LABELS = {"num_labels": 3}


def _pixels(size: int, *, labels: bool = False) -> Callable[[int], Batch]:
    def inputs(rows: int) -> Batch:
        batch = {"pixel_values": torch.randn(rows, 3, size, size)}
        return {**batch, "labels": torch.randint(0, 3, (rows,))} if labels else batch

    return inputs


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return model(**batch).loss


def _boxes(model: nn.Module, batch: Batch) -> Tensor:
    found = model(**batch)
    return per_row(torch.cat([found.logits, found.pred_boxes], dim=-1))


def _segments(model: nn.Module, batch: Batch) -> Tensor:
    return per_row(model(**batch).logits)


def _classifier(model: str, config: str, size: int = 16, **arguments: Any) -> Case:
    build = of_transformers(model, config, **arguments, **_LABELS)
    return Case("transformers", build, _pixels(size, labels=True), _loss)


def _detr() -> nn.Module:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    return DetrForObjectDetection(
        DetrConfig(
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            backbone_config=backbone,
            num_queries=5,
            d_model=8,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            dropout=0.0,
            num_labels=3,
        )
    )


def _swin(**more: Any) -> dict[str, Any]:
    return {
        **_IMAGE,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [2, 1],
        "num_heads": [2, 2],
        "window_size": 4,
        "drop_path_rate": 0.0,
        **_NO_DROPOUT,
        **more,
    }


def _timm(name: str, size: int = 16, most: int = 65, **config: Any) -> Case:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=3, **config)

    return Case("timm", build, noise(3, size, size), plain, most)


def group_norm(channels: int, **_: Any) -> nn.Module:
    return nn.GroupNorm(2, channels)


def _mixer() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_classes=3, img_size=16, patch_size=4, num_blocks=2, embed_dim=16)


def _nf_resnet() -> nn.Module:
    from timm.models.nfnet import NfCfg, NormFreeNet

    return NormFreeNet(
        NfCfg(depths=(1, 1, 1, 1), channels=(16, 16, 32, 32), stem_chs=8, num_features=32), num_classes=3
    )


def _poolformer() -> nn.Module:
    from timm.models.metaformer import GroupNorm1, MetaFormer

    sizes = {"depths": (1, 1), "dims": (8, 16)}
    return MetaFormer(**sizes, num_classes=3, norm_layers=GroupNorm1, layer_scale_init_values=0.1)


def _maxvit() -> nn.Module:
    from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitConvCfg, MaxxVitTransformerCfg

    transformer = MaxxVitTransformerCfg(dim_head=8, window_size=(2, 2), grid_size=(2, 2), rel_pos_type="bias")
    config = MaxxVitCfg(
        embed_dim=(8, 16),
        depths=(1, 1),
        block_type=("M", "M"),
        stem_width=8,
        conv_cfg=MaxxVitConvCfg(block_type="convnext"),
        transformer_cfg=transformer,
    )
    return MaxxVit(config, img_size=16, num_classes=3)


def _with_group_norm(model: nn.Module) -> nn.Module:
    """BatchNorm replaced, as one does before private training."""
    for name, child in model.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            groups = 4 if child.num_features % 4 == 0 else 1
            setattr(model, name, nn.GroupNorm(groups, child.num_features))
        else:
            _with_group_norm(child)
    return model


def _replaced(name: str, size: int = 32, most: int = 40, **config: Any) -> Case:
    def build() -> nn.Module:
        import timm

        return _with_group_norm(timm.create_model(name, num_classes=3, **config))

    return Case("timm", build, noise(3, size, size), plain, most)


def _torchvision(build: Callable[[Any], nn.Module], size: int = 16, most: int = 40) -> Case:
    def made() -> nn.Module:
        import torchvision.models

        return build(torchvision.models)

    return Case("torchvision", made, noise(3, size, size), plain, most)


def _torchvision_convnext(_: Any) -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=3)


def _torchvision_efficientnet(_: Any) -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig

    blocks = [FusedMBConvConfig(1, 3, 1, 8, 8, 1), MBConvConfig(4, 3, 2, 8, 16, 1)]
    return EfficientNet(blocks, dropout=0.0, num_classes=3, last_channel=16, norm_layer=group_norm)


def _torchvision_resnet(_: Any) -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    net = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3, norm_layer=group_norm)
    # Its widths are fixed: two stages are enough, and four are 5 M parameters.
    net.layer3, net.layer4, net.fc = nn.Identity(), nn.Identity(), nn.Linear(128, 3)
    return net


_TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "num_heads": 2, "depth": 2}

IMAGES: dict[str, Case] = {
    "ViT": _classifier("ViTForImageClassification", "ViTConfig", **_IMAGE, **_BLOCKS, **_NO_DROPOUT),
    "DeiT": _classifier("DeiTForImageClassification", "DeiTConfig", **_IMAGE, **_BLOCKS, **_NO_DROPOUT),
    "BEiT": _classifier(
        "BeitForImageClassification",
        "BeitConfig",
        **_IMAGE,
        **_BLOCKS,
        **_NO_DROPOUT,
        drop_path_rate=0.0,
        use_relative_position_bias=True,
    ),
    "BEiT, shared bias and mask token": _classifier(
        "BeitForImageClassification",
        "BeitConfig",
        **_IMAGE,
        **_BLOCKS,
        **_NO_DROPOUT,
        drop_path_rate=0.0,
        use_shared_relative_position_bias=True,
        use_absolute_position_embeddings=True,
    ),
    "Swin": _classifier("SwinForImageClassification", "SwinConfig", **_swin()),
    "Swin, absolute positions": _classifier(
        "SwinForImageClassification", "SwinConfig", **_swin(use_absolute_embeddings=True)
    ),
    "Swin V2": _classifier(
        "Swinv2ForImageClassification", "Swinv2Config", **_swin(pretrained_window_sizes=[0, 0])
    ),
    "ConvNeXt": _classifier(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        num_channels=3,
        patch_size=2,
        num_stages=2,
        hidden_sizes=[8, 16],
        depths=[1, 1],
    ),
    "DINOv2": _classifier(
        "Dinov2ForImageClassification",
        "Dinov2Config",
        image_size=16,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        **_NO_DROPOUT,
    ),
    "SegFormer": Case(
        "transformers",
        of_transformers(
            "SegformerForImageClassification",
            "SegformerConfig",
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[8, 8],
            patch_sizes=[3, 3],
            strides=[2, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            drop_path_rate=0.0,
            classifier_dropout_prob=0.0,
            **_NO_DROPOUT,
            **_LABELS,
        ),
        _pixels(16),
        _segments,
    ),
    "YOLOS": Case(
        "transformers",
        of_transformers(
            "YolosForObjectDetection",
            "YolosConfig",
            image_size=[16, 16],
            patch_size=4,
            num_detection_tokens=5,
            **_BLOCKS,
            **_NO_DROPOUT,
            **_LABELS,
        ),
        _pixels(16),
        _boxes,
    ),
    "DETR": Case("transformers", _detr, _pixels(64), _boxes, 40),
    "CLIP vision": Case(
        "transformers",
        of_transformers("CLIPVisionModel", "CLIPVisionConfig", **_IMAGE, **_BLOCKS),
        _pixels(16),
        hidden,
    ),
    "timm ViT": _timm("vit_tiny_patch16_224", **_TINY),
    "timm ViT, LayerScale and pooling": _timm(
        "vit_tiny_patch16_224", init_values=0.1, class_token=False, global_pool="avg", **_TINY
    ),
    "timm ViT, relative positions": _timm("vit_relpos_small_patch16_224", **_TINY),
    "timm EVA02": _timm("eva02_tiny_patch14_224", **_TINY),
    "timm BEiT": _timm("beit_base_patch16_224", **_TINY),
    "timm BEiT v2": _timm("beitv2_base_patch16_224", **_TINY),
    "timm CaiT": _timm("cait_xxs24_224", **_TINY),
    "timm MLP-Mixer": Case("timm", _mixer, noise(3, 16, 16), plain),
    "timm ConvNeXt": _timm("convnext_atto", size=32, most=40, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)),
    "timm ResNet, GroupNorm": _timm(
        "resnet18", size=32, most=40, layers=(1, 1, 1, 1), norm_layer=group_norm, channels=(8, 8, 16, 16)
    ),
    "timm NF-ResNet, weight standardisation": Case("timm", _nf_resnet, noise(3, 32, 32), plain, 40),
    "timm Swin": _timm(
        "swin_tiny_patch4_window7_224",
        img_size=16,
        patch_size=2,
        window_size=4,
        embed_dim=8,
        depths=(2, 1),
        num_heads=(2, 2),
        drop_path_rate=0.0,
    ),
    "timm Swin V2": _timm(
        "swinv2_tiny_window8_256",
        img_size=16,
        patch_size=2,
        window_size=4,
        embed_dim=8,
        depths=(2, 1),
        num_heads=(2, 2),
        drop_path_rate=0.0,
    ),
    "timm PVT v2": _timm(
        "pvt_v2_b0", size=32, most=40, embed_dims=(8, 8, 8, 8), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)
    ),
    "timm XCiT, GroupNorm": _replaced(
        "xcit_nano_12_p16_224", img_size=32, embed_dim=16, depth=2, num_heads=2
    ),
    "timm MaxViT": Case("timm", _maxvit, noise(3, 16, 16), plain, 40),
    "timm MobileViT, GroupNorm": _replaced("mobilevit_xxs"),
    "timm PoolFormer": Case("timm", _poolformer, noise(3, 32, 32), plain, 40),
    "timm Twins": _replaced(
        "twins_svt_small", img_size=32, depths=(1, 1, 1, 1), embed_dims=(8, 8, 8, 8), num_heads=(1, 1, 2, 2)
    ),
    "torchvision ViT": _torchvision(
        lambda _: _.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=3), most=65
    ),
    "torchvision Swin": _torchvision(
        lambda _: _.SwinTransformer(
            [2, 2], 8, [2, 1], [2, 2], [4, 4], num_classes=3, stochastic_depth_prob=0.0
        ),
        most=65,
    ),
    "torchvision Swin V2": _torchvision(
        lambda _: _.SwinTransformer(
            [2, 2],
            8,
            [2, 1],
            [2, 2],
            [4, 4],
            num_classes=3,
            stochastic_depth_prob=0.0,
            block=_.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=_.swin_transformer.PatchMergingV2,
        ),
        most=65,
    ),
    "torchvision ConvNeXt": _torchvision(_torchvision_convnext),
    "torchvision EfficientNet, GroupNorm": _torchvision(_torchvision_efficientnet),
    "torchvision ResNet, GroupNorm": _torchvision(_torchvision_resnet, size=32),
}
