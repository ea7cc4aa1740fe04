"""Every net of the project, with every adapter of conf/adapter and 2 to 12 classes, under the default engine.

Labels are 0, 1, 2, … and as many as units: nothing may take them for places in the batch.
"""

import importlib
import inspect
import itertools
import pkgutil
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
import torch
import yaml
from adapter_support import fit
from images.image_support import awake, tiny_module

import lightning_dp.nets
from lightning_dp.adapters.adapter import Adapter
from lightning_dp.adapters.attention import Attention
from lightning_dp.adapters.saliency import SaliencyLoRA
from lightning_dp.nets.conditioning.adaln_zero import AdaLNZero
from lightning_dp.nets.denoising_net import DenoisingNet
from lightning_dp.nets.image_dit import ImageDiT
from lightning_dp.nets.image_net import ImageNet
from lightning_dp.nets.recurrent import GRU, LSTM
from lightning_dp.nets.series_dit import SeriesDiT
from lightning_dp.nets.series_rnn import SeriesRNN
from lightning_dp.nets.unet import CrossAttentionUNet, UNet
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.functions import Flat
from lightning_dp.privacy.follow_rows import follow_rows

ROOT = Path(__file__).parents[2]
FRAGMENTS = sorted((ROOT / "conf" / "adapter").glob("*.yaml"))
SIZE, LENGTH = 8, 12
LEVELS = {"block_out_channels": (8, 16), "attention": (True, True), "norm_groups": 4}


def image_dit(classes: int) -> ImageNet:
    options = {"hidden_size": 16, "depth": 2, "num_heads": 2, "patch_size": 4}
    return ImageDiT(AdaLNZero(), in_channels=1, size=SIZE, num_classes=classes, **options)


def unet(classes: int) -> ImageNet:
    return UNet(in_channels=1, size=SIZE, num_classes=classes, head_size=8, **LEVELS)


def cross_attention_unet(classes: int) -> ImageNet:
    options = {"condition_size": 8, "num_heads": 2}
    return CrossAttentionUNet(in_channels=1, size=SIZE, num_classes=classes, **options, **LEVELS)


def series_dit(classes: int) -> DenoisingNet:
    options = {"patch_size": 3, "hidden_size": 16, "depth": 2, "num_heads": 2}
    return SeriesDiT(AdaLNZero(), length=LENGTH, num_channels=1, num_covariates=1, **options)


def series_rnn(classes: int) -> DenoisingNet:
    options = {"patch_size": 3, "hidden_size": 16, "depth": 2, "cell": LSTM if classes % 2 else GRU}
    return SeriesRNN(AdaLNZero(), length=LENGTH, num_channels=1, num_covariates=1, **options)


NETS = {
    ImageDiT: image_dit,
    UNet: unet,
    CrossAttentionUNet: cross_attention_unet,
    SeriesDiT: series_dit,
    SeriesRNN: series_rnn,
}
WITHOUT_ATTENTION = "matches none of the linear layers of SeriesRNN"
REFUSED = {
    ("UNet", "modulation"): "finds nothing to train in UNet",
    ("CrossAttentionUNet", "modulation"): "finds nothing to train in CrossAttentionUNet",
    ("SeriesRNN", "attention"): "no part of SeriesRNN is a transformer block",
    **{("SeriesRNN", path.stem): WITHOUT_ATTENTION for path in FRAGMENTS if "lora" in path.stem},
}
"""What an adapter says it is not for, before anything is trained."""

CASES = list(itertools.product(NETS, FRAGMENTS))


def test_all_nets_are_tried():
    for found in pkgutil.walk_packages(lightning_dp.nets.__path__, "lightning_dp.nets."):
        importlib.import_module(found.name)
    left, own = [ImageNet, DenoisingNet], set()
    while left:
        below = left.pop().__subclasses__()
        left += below
        own |= {kind for kind in below if not inspect.isabstract(kind)}
    assert {kind for kind in own if kind.__module__.startswith("lightning_dp.nets.")} == set(NETS)


@pytest.mark.parametrize(
    ("kind", "fragment", "classes"),
    [(kind, fragment, 2 + number % 11) for number, (kind, fragment) in enumerate(CASES)],
    ids=lambda value: getattr(value, "stem", getattr(value, "__name__", str(value))),
)
def test_every_adapter_of_every_net_is_clipped_exactly(kind, fragment, classes):
    adapter = adapter_of(fragment)
    net = awake(NETS[kind](classes))
    if words := REFUSED.get((kind.__name__, fragment.stem)):
        with pytest.raises(ValueError, match=words):
            adapter.apply(net)
        return
    check_clipping(net, adapter, classes=classes)


@pytest.mark.parametrize("classes", [3, 12])
@pytest.mark.parametrize("name", ["attention", "full", "lora_embedder"])
def test_labels_that_look_like_places(name, classes):
    net = awake(cross_attention_unet(classes))
    check_clipping(net, adapter_of(ROOT / "conf" / "adapter" / f"{name}.yaml"), classes=classes)


def test_dp_ldms_net_with_its_embedder_is_fitted(tmp_path):
    """Three classes, through the preflight and a step of training."""
    module = tiny_module(net=cross_attention_unet(3), adapter=Attention())
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    assert fit(module, tmp_path, steps=1).global_step == 1
    assert {name for name, value in module.named_parameters() if not torch.equal(value, before[name])} == {
        name for name, value in module.named_parameters() if value.requires_grad
    }


def adapter_of(fragment: Path) -> Adapter:
    """As the fragment has it, but that a choice needs no data: any one trains alike."""
    content = yaml.safe_load(fragment.read_text())["model"]["init_args"]["adapter"]
    if "score" in content.get("init_args", {}):
        content["init_args"]["score"] = {
            "class_path": "lightning_dp.adapters.scores.random_score.RandomScore"
        }
    return made(content)


def made(content: Any) -> Any:
    """What a `class_path` with its `init_args` says, as the command line makes it."""
    if isinstance(content, list):
        return [made(one) for one in content]
    if not isinstance(content, dict) or "class_path" not in content:
        return content
    options = {name: made(value) for name, value in content.get("init_args", {}).items()}
    return locate(content["class_path"])(**options)  # type: ignore[operator]


def check_clipping(net: torch.nn.Module, adapter: Adapter, *, classes: int) -> None:
    """Norms and clipped sum of a batch with every class once are those of its units, one by one."""
    adapter.apply(net)
    if isinstance(adapter, SaliencyLoRA):
        adapter.begin_fit(net)
    for parameter in net.parameters():  # low-rank pairs start at 0
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    batch = batch_of(net, classes)
    parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
    alone = []
    for unit in range(classes):
        one = losses(net, {name: value[unit : unit + 1] for name, value in batch.items()}).sum()
        found = torch.autograd.grad(one, list(parameters.values()), allow_unused=True, materialize_grads=True)
        alone.append(torch.cat([gradient.flatten() for gradient in found]))
    expected = torch.stack(alone)  # (U, P)
    norms = expected.norm(dim=1)
    bound = float(norms.median())
    engine = BookKeeping()
    engine.know(follow_rows(net, losses, batch, num_units=classes))
    engine.attach(net, function=Flat(), max_grad_norm=bound)
    rows = getattr(net, "rows_per_example", 1)
    engine.expect(unit_weights=torch.ones(classes), rows_per_unit=rows, loss_scale=classes)
    losses(net, batch).sum().backward()
    torch.testing.assert_close(engine.collect(), norms, rtol=1e-4, atol=1e-6)
    sums = engine.take()
    clipped = (expected * (bound / norms).clamp(max=1)[:, None]).sum(dim=0)
    found = torch.cat([sums[name].flatten() for name in parameters])
    torch.testing.assert_close(found, clipped, rtol=1e-3, atol=1e-5 * bound)


def batch_of(net: torch.nn.Module, classes: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    timesteps = torch.arange(classes) * 70
    if isinstance(net, ImageNet):
        noisy = torch.randn(classes, 1, SIZE, SIZE, generator=generator)
        return {"noisy": noisy, "timesteps": timesteps, "labels": torch.arange(classes)}
    names = ("noisy", "context", "profile", "covariates")
    series = {name: torch.randn(classes, LENGTH, 1, generator=generator) for name in names}
    whole = torch.ones(classes, LENGTH, 1)
    return {**series, "timesteps": timesteps, "visible": whole, "target": whole.bool()}


def losses(net: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return net(**batch).square().flatten(1).mean(dim=1)  # (B,)
