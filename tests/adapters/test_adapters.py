"""Every adapter trains exactly what it says, and what it adds is clipped exactly."""

import copy

import pytest
import torch
from adapter_support import copied, fit, moved, small_module
from follow_steps import sites_of
from torch import Tensor, nn

from lightning_dp.adapters.adapter import Adapter, train_only
from lightning_dp.adapters.attention import Attention
from lightning_dp.adapters.biases import Biases
from lightning_dp.adapters.embedder import Embedder
from lightning_dp.adapters.full import Full
from lightning_dp.adapters.lora import LoRA
from lightning_dp.adapters.matching import Matching
from lightning_dp.adapters.modulation import ModulationOnly
from lightning_dp.adapters.norm_affine import AddedAffine, NormAffine
from lightning_dp.adapters.output_head import OutputHead
from lightning_dp.adapters.public_start import load_weights
from lightning_dp.adapters.saliency import SaliencyLoRA
from lightning_dp.adapters.several import Several
from lightning_dp.nets.conditioning.adaln_zero import AdaLNZero
from lightning_dp.nets.conditioning.dp_aware_adaln_zero import DPAwareAdaLNZero
from lightning_dp.nets.image_dit import ImageDiT
from lightning_dp.nets.series_dit import SeriesDiT
from lightning_dp.nets.unet import CrossAttentionUNet, UNet
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import Flat
from lightning_dp.privacy.clipping.loop import Loop
from lightning_dp.privacy.clipping.materialised import Materialised

QKV = {f"blocks.0.attention.qkv.lora_{ab}.{part}.weight" for part in "qkv" for ab in "AB"}
OUT = {f"blocks.0.attention.out.lora_{ab}.default.weight" for ab in "AB"}
MODULATION = {"blocks.0.modulation.linear", "final.modulation.linear"}
ENCODERS = {"timestep.inner", "timestep.outer", "context.inner", "context.outer"}


def _net(*, channel_independent: bool = True) -> SeriesDiT:
    torch.manual_seed(0)
    net = SeriesDiT(
        AdaLNZero(),
        length=12,
        num_channels=2,
        num_covariates=1,
        patch_size=4,
        hidden_size=8,
        depth=1,
        num_heads=2,
        channel_independent=channel_independent,
    )
    for parameter in net.parameters():
        # Zero initialisation would leave most gradients 0 and the comparison empty.
        nn.init.normal_(parameter, std=0.3)
    return net


def _trainable(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def _with_parameters(layers: set[str]) -> set[str]:
    return {
        name for name, _ in _net().named_parameters() if any(name.startswith(f"{layer}.") for layer in layers)
    }


def _losses(net: nn.Module, x: Tensor) -> Tensor:
    """(rows,), a function of its own row each."""
    target = (torch.arange(12) >= 8)[:, None].expand_as(x) & (x == x)
    out = net(
        x,
        (x[:, 0, 0] * 10).long() % 100,
        context=x.cos(),
        visible=(~target).float(),
        target=target,
        profile=x.sin(),
        covariates=x[..., :1],
    )
    return torch.where(target, out - x, 0.0).square().flatten(1).sum(dim=1)


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        (Full(), {name for name, _ in _net().named_parameters()}),
        (ModulationOnly(), _with_parameters(MODULATION)),
        (ModulationOnly(encoders=True), _with_parameters(MODULATION | ENCODERS)),
        (Biases(), {name for name, _ in _net().named_parameters() if name.endswith(".bias")}),
        (OutputHead(), _with_parameters({"final"})),
        (Embedder(), _with_parameters({"context"})),
        (Matching(patterns=[r"qkv\.weight$", "^skip"]), {"blocks.0.attention.qkv.weight", "skip.weight"}),
        (Attention(), _with_parameters({"blocks.0", "context"})),
        (Attention(blocks=[-1], embedder=False), _with_parameters({"blocks.0"})),
        (LoRA(rank=2), QKV | OUT),
        (LoRA(targets=["q", "out"]), OUT | {name for name in QKV if ".q." in name}),
        (Several(adapters=[LoRA(targets=["qkv"]), OutputHead()]), QKV | _with_parameters({"final"})),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Adapter) else "",
)
def test_exactly_the_choice_trains_and_nothing_else_moves(adapter, expected):
    net = _net()
    adapter.apply(net)
    assert _trainable(net) == expected
    facts = adapter.facts()
    assert facts["trainable_parameters"] == sum(p.numel() for p in net.parameters() if p.requires_grad)

    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # LoRA's A has a gradient once B has moved
        optimizer.zero_grad()
        _losses(net, torch.randn(4, 12, 2)).mean().backward()
        optimizer.step()
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == expected


def test_norms_of_any_kind_belong_to_biases():
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv1d(2, 2, 1), nn.GroupNorm(1, 2))
    Biases().apply(net)
    assert _trainable(net) == {"0.bias", "1.weight", "1.bias", "2.bias", "3.weight", "3.bias"}
    Biases(norms=False).apply(net)
    assert _trainable(net) == {"0.bias", "1.bias", "2.bias", "3.bias"}


def test_norms_train_as_they_are_and_those_without_an_affine_map_get_one():
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GroupNorm(2, 4, affine=False), nn.RMSNorm(4))
    twice = nn.LayerNorm(4, elementwise_affine=False)
    net.extend([twice, nn.Linear(4, 4), twice])
    net.double()
    x = torch.randn(3, 4, dtype=torch.float64)
    before = net(x)
    NormAffine().apply(net)
    assert torch.equal(net(x), before)
    assert net[4] is net[6]
    added = {f"{place}.{kind}" for place in (2, 4) for kind in ("weight", "bias")}
    assert _trainable(net) == {"1.weight", "1.bias", "3.weight"} | added
    with pytest.raises(ValueError, match="finds nothing to train in Linear"):
        NormAffine().apply(nn.Linear(2, 2))
    norm = AddedAffine(nn.GroupNorm(2, 4, affine=False))
    theirs = nn.GroupNorm(2, 4)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    norm.load_state_dict(theirs.state_dict())
    image = torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(norm(image), theirs(image))


def test_norms_that_got_an_affine_map_start_from_weights_without_one():
    public, net = _net(), _net()
    NormAffine().apply(net)
    assert {name.rpartition(".")[0] for name in _trainable(net)} == {
        "blocks.0.attention_norm",
        "blocks.0.feed_forward_norm",
        "final.norm",
    }
    with torch.no_grad():
        net.final.linear.weight.zero_()
        net.final.norm.weight.fill_(3.0)
    loaded = load_weights(net, public.state_dict())
    assert set(loaded) == set(public.state_dict())
    assert torch.equal(net.final.linear.weight, public.final.linear.weight)
    assert net.final.norm.weight.eq(3.0).all()


def test_a_fresh_lora_changes_no_output_and_keeps_the_first_weights():
    net, x = _net(), torch.randn(4, 12, 2)
    expected = _losses(net, x)
    weight = net.blocks[0].attention.qkv.weight
    LoRA(rank=3, scale=6.0, targets=r".*\.qkv").apply(net)
    torch.testing.assert_close(_losses(net, x), expected, rtol=0, atol=0)
    layer = net.blocks[0].attention.qkv
    assert layer.base_layer.weight is weight
    with torch.no_grad():
        for part in "qkv":
            layer.lora_B[part].weight.normal_()
    z = torch.randn(2, 8)
    low_rank = [z @ layer.lora_A[part].weight.T @ layer.lora_B[part].weight.T for part in "qkv"]
    torch.testing.assert_close(layer(z), layer.base_layer(z) + 2.0 * torch.cat(low_rank, dim=1))


def _collected(engine: ClippingEngine, net: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    engine.know(sites_of(net, lambda: _losses(net, x), units=len(x) // 2, rows_per_unit=2))
    engine.attach(net, function=Flat(), max_grad_norm=0.5)
    try:
        engine.expect(unit_weights=torch.ones(len(x) // 2), rows_per_unit=2)
        _losses(net, x).mean().backward()
        return engine.collect(), engine.take()
    finally:
        engine.detach()


@pytest.mark.parametrize("engine", [BookKeeping, Materialised])
@pytest.mark.parametrize(
    "adapter",
    [LoRA(rank=2, targets=".*"), Biases(), ModulationOnly(), NormAffine()],
    ids=lambda a: type(a).__name__,
)
def test_what_trains_is_clipped_like_the_oracle(engine, adapter):
    net = _net(channel_independent=False)  # the oracle wants the net's rows to be the layers'

    adapter.apply(net)
    for parameter in net.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    x = torch.randn(6, 12, 2)
    norms, sums = _collected(Loop(), net, x)
    found_norms, found_sums = _collected(engine(), net, x)
    assert (norms > 0.5).any()  # something is clipped
    torch.testing.assert_close(found_norms, norms, rtol=1e-5, atol=0)
    scale = max(float(value.norm()) for value in sums.values())
    assert found_sums.keys() == sums.keys() == _trainable(net)
    for name, value in sums.items():
        assert float((found_sums[name] - value).norm()) <= 1e-5 * scale


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OutputHead().apply(nn.Linear(2, 2)), r"no part of Linear has a method output_modules"),
        (lambda: Embedder().apply(nn.Linear(2, 2)), r"no part of Linear has a method embedder_modules"),
        (lambda: ModulationOnly().apply(nn.Linear(2, 2)), "finds nothing to train in Linear"),
        (lambda: LoRA(targets="atention.*").apply(_net()), "matches none of the linear layers"),
        (lambda: Attention().apply(nn.Linear(2, 2)), "no part of Linear is a transformer block"),
        (lambda: Attention(blocks=[1]).apply(_net()), "has 1, but SeriesDiT has 1 transformer blocks"),
        (lambda: Attention(blocks=[]), "empty"),
        (lambda: LoRA(rank=0), "rank is 0"),
        (lambda: LoRA(scale=0.0), "scale is 0.0"),
        (lambda: LoRA(targets="("), "not a regular expression"),
        (lambda: Matching(patterns=["qkv", "typo"]).apply(_net()), "'typo' matches no parameter"),
        (lambda: Matching(patterns=["("]), "not a regular expression"),
        (lambda: Several(adapters=[]), "empty"),
    ],
)
def test_a_choice_that_finds_nothing_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_later_narrowing_freezes_the_rest():
    """What an adapter does whose choice is a paid release."""
    net = _net()
    lora = LoRA(rank=2, targets=".*attention.*")
    pairs = lora.inject(net, lora.candidates(net))
    train_only(net, pairs[-1], chosen_by="Saliency")
    assert _trainable(net) == OUT


# --- image networks ------------------------------------------------------------------------------------

UNET = {
    "in_channels": 1,
    "size": 8,
    "num_classes": 3,
    "block_out_channels": (8, 8),
    "attention": (False, True),
}


def test_attention_of_unets_is_whole_transformers_and_no_convolution_between_them():
    net = CrossAttentionUNet(**UNET, num_heads=2, condition_size=6)
    Attention().apply(net)
    trainable = _trainable(net)
    kinds = ("norm.", "proj_in.", "attn1.to_q", "attn2.to_v", "ff.net.2", "norm3.", "proj_out.")
    for block in ("down_blocks.1.attentions.0", "mid_block.attentions.0", "up_blocks.0.attentions.1"):
        assert all(any(name.startswith(f"unet.{block}.") and k in name for name in trainable) for k in kinds)
    assert "label.weight" in trainable
    assert not any("resnets" in name or "conv_in" in name or "time_embedding" in name for name in trainable)

    plain = UNet(**UNET, head_size=4)
    Attention(embedder=False).apply(plain)
    trainable = _trainable(plain)
    layers = {"group_norm", "to_q", "to_k", "to_v", "to_out.0"}
    inside = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    blocks = {f"unet.{place}.attentions" for place in ("down_blocks.1", "mid_block", "up_blocks.0")}
    assert {name.rpartition(".attentions.")[2][2:] for name in trainable} == inside
    assert {name.rpartition(".attentions.")[0] + ".attentions" for name in trainable} == blocks


def test_transformer_blocks_count_from_the_input_to_the_output():
    net = UNet(**UNET, head_size=4)
    Attention(blocks=[0, -1], embedder=False).apply(net)
    blocks = {name.partition(".attentions.")[0] for name in _trainable(net)}
    assert blocks == {"unet.down_blocks.1", "unet.up_blocks.0"}
    Attention(blocks=[1]).apply(net)
    assert {name.partition(".attentions.")[0] for name in _trainable(net)} == {
        "unet.mid_block",
        "unet.class_embedding.weight",
    }


@pytest.mark.parametrize(
    "adapter",
    [
        Full(),
        Attention(),
        ModulationOnly(),
        Biases(),
        OutputHead(),
        LoRA(),
        NormAffine(),
        SaliencyLoRA(ratio=0.5, noise_multiplier=2.0),
    ],
    ids=lambda adapter: type(adapter).__name__,
)
def test_every_adapter_trains_a_network_with_bounds(adapter, tmp_path):
    """DP-aware conditioning belongs to the net: the adapter trains it, or trains beside it."""
    bounds = DPAwareAdaLNZero(c_max=2.0, gamma_max=0.5, beta_max=0.5, alpha_max=0.5)
    net = ImageDiT(
        bounds, in_channels=1, size=8, num_classes=3, patch_size=4, hidden_size=16, depth=1, num_heads=2
    )
    module = small_module(adapter, net=net)
    before = copied(module)
    fit(module, tmp_path, steps=1)
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert moved(module, before) == trainable
    condition = 100 * torch.randn(5, 16)
    steering = module.net.blocks[0].modulation(condition)
    assert max(part.gate.abs().max() for part in steering) <= 0.5
    assert max((part.scale - 1).abs().max() for part in steering) <= 0.5 + 1e-6
