"""Image nets: no image sees another, clipping is exact, both conditionings start equal."""

import pytest
import torch
from follow_steps import sites_of
from image_support import awake
from torch import Tensor

from lightning_dp.nets.conditioning.adaln_zero import AdaLNZero
from lightning_dp.nets.conditioning.dp_aware_adaln_zero import DPAwareAdaLNZero
from lightning_dp.nets.conditioning.path import condition_parameters
from lightning_dp.nets.image_dit import ImageDiT
from lightning_dp.nets.image_net import ImageNet
from lightning_dp.nets.unet import CrossAttentionUNet, UNet
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import Flat
from lightning_dp.privacy.clipping.loop import Loop

_SHAPE = {"in_channels": 2, "size": 8, "num_classes": 3}
_LEVELS = {"block_out_channels": (8, 16), "attention": (False, True), "norm_groups": 4}


def _dit(conditioning=None, **options) -> ImageDiT:
    return ImageDiT(
        conditioning or AdaLNZero(), **_SHAPE, patch_size=4, hidden_size=16, depth=2, num_heads=2, **options
    )


NETS = {
    "dit": _dit,
    "dit, dp-aware": lambda: _dit(DPAwareAdaLNZero(c_max=2.0)),
    "unet": lambda: UNet(**_SHAPE, **_LEVELS, head_size=8),
    "cross-attention unet": lambda: CrossAttentionUNet(**_SHAPE, **_LEVELS, num_heads=2, condition_size=8),
}


def _net(name: str) -> ImageNet:
    torch.manual_seed(0)
    return awake(NETS[name]())


def _inputs(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randn(rows, 2, 8, 8, generator=generator),
        torch.randint(0, 1000, (rows,), generator=generator),
        torch.arange(rows) % 4 - 1,  # −1, no class, among them
    )


@pytest.mark.parametrize("name", NETS)
def test_no_image_sees_another(name):
    net, (noisy, timesteps, labels) = _net(name), _inputs(4)
    together = net(noisy, timesteps, labels=labels)
    assert together.shape == noisy.shape
    for row in range(4):
        one = slice(row, row + 1)
        torch.testing.assert_close(
            net(noisy[one], timesteps[one], labels=labels[one]), together[one], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", NETS)
def test_clipping_is_exact_with_two_rows_per_unit(name):
    net, (noisy, timesteps, labels) = _net(name), _inputs(6)

    def clipped(engine: ClippingEngine) -> tuple[Tensor, dict[str, Tensor]]:
        def loss() -> Tensor:
            return net(noisy, timesteps, labels=labels).square().mean()

        engine.know(sites_of(net, loss, units=3, rows_per_unit=2))
        engine.attach(net, function=Flat(), max_grad_norm=0.1)
        try:
            engine.expect(unit_weights=torch.tensor([1.0, 0.0, 1.0]), rows_per_unit=2)
            net(noisy, timesteps, labels=labels).square().mean().backward()
            return engine.collect(), engine.take()
        finally:
            engine.detach()

    (norms, sums), (true_norms, true_sums) = clipped(BookKeeping()), clipped(Loop())
    assert float(true_norms.min()) > 0.1  # else nothing is clipped
    torch.testing.assert_close(norms, true_norms, rtol=1e-4, atol=0)
    whole = float(torch.stack([s.square().sum() for s in true_sums.values()]).sum().sqrt())
    for parameter, true in true_sums.items():
        assert float((sums[parameter] - true).norm()) <= 1e-5 * whole, parameter


def test_vanilla_equals_dp_aware_at_init_in_output_and_gradient():
    nets = []
    for conditioning in (AdaLNZero(), DPAwareAdaLNZero(c_max=1e3, gamma_max=1.0, beta_max=1.0)):
        torch.manual_seed(0)
        nets.append(_dit(conditioning))
    noisy, timesteps, labels = _inputs(4)
    outputs, gradients = [], []
    for net in nets:
        # The last layer starts at zero; a target makes the gradient flow to it, a weight to what is before.
        with torch.no_grad():
            net.final.linear.weight.fill_(0.01)
        output = net(noisy, timesteps, labels=labels)
        (output - noisy).square().mean().backward()
        outputs.append(output)
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    assert torch.equal(*outputs)
    assert gradients[0].keys() == gradients[1].keys()
    assert float(gradients[0]["final.modulation.linear.weight"].abs().max()) > 0
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NETS)
def test_labels_steer_and_none_is_a_class_of_its_own(name):
    net, (noisy, timesteps, _) = _net(name), _inputs(1)
    outputs = [net(noisy, timesteps, labels=torch.tensor([label])) for label in (-1, 0, 1, 2)]
    for number, output in enumerate(outputs):
        assert all(not torch.allclose(output, other) for other in outputs[:number])


@pytest.mark.parametrize("name", NETS)
def test_roles_are_declared(name):
    net = _net(name)
    conditions = condition_parameters(net)
    assert any("label" in parameter or "class_embedding" in parameter for parameter in conditions)
    assert len(conditions) < len(dict(net.named_parameters()))
    assert all(any(True for _ in head.parameters()) for head in net.output_modules())


def test_a_patch_is_a_square_of_the_image():
    """With everything but the embedding switched off, a token's output depends on its own square alone."""
    net = _dit()
    with torch.no_grad():
        net.final.linear.weight.normal_()
        noisy, timesteps, labels = _inputs(1)
        changed = noisy.clone()
        changed[0, :, 4:, :4] += 1
        difference = net(changed, timesteps, labels=labels) - net(noisy, timesteps, labels=labels)
    assert float(difference[0, :, 4:, :4].abs().min()) > 0
    difference[0, :, 4:, :4] = 0
    assert float(difference.abs().max()) == 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ImageDiT(AdaLNZero(), **_SHAPE, patch_size=3), "patches tile the image"),
        (lambda: ImageDiT(AdaLNZero(), **_SHAPE, patch_size=4, hidden_size=18), "multiple of 4"),
        (lambda: ImageDiT(AdaLNZero(), in_channels=0, size=8, num_classes=3), "in_channels is 0"),
        (lambda: UNet(**_SHAPE, block_out_channels=(8,), attention=(True, False)), "one of each per level"),
        (lambda: UNet(**{**_SHAPE, "size": 7}, **_LEVELS), "can't halve"),
        (lambda: UNet(**_SHAPE, block_out_channels=(8, 10), attention=(False, True)), "does not divide"),
    ],
)
def test_impossible_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
