"""A unit adds at most the declared sensitivity, whatever its gradient; norms are those of plain autograd."""

import math

import pytest
import torch
from images.image_support import CLASSES, awake, npz_data, tiny_module, tiny_net
from torch import Tensor

from lightning_dp.adapters.gradient_norms import gradient_norms
from lightning_dp.adapters.lora import LoRA
from lightning_dp.adapters.saliency import SaliencyLoRA
from lightning_dp.adapters.scores.grad_norm import GradNorm
from lightning_dp.adapters.scores.public_score import PublicScore
from lightning_dp.adapters.scores.random_score import RandomScore
from lightning_dp.adapters.scores.squared import Squared
from lightning_dp.adapters.scores.vote import Vote
from lightning_dp.adapters.selection import Selection
from lightning_dp.nets.unet import CrossAttentionUNet, UNet

NUMBER = 3
NORMS = torch.tensor([[3.0, 4.0, 0.0, 12.0], [0.1, 0.2, 0.2, 0.0], [0, 0, 0, 0], [1e38, 1e-38, 1.0, 2.0]])


@pytest.mark.parametrize(
    ("score", "sensitivity"),
    [
        (GradNorm(max_norm=2.0), 2.0),
        (Squared(max_norm=2.0), 4.0),
        (Vote(), math.sqrt(NUMBER)),
        (Vote(votes=2), math.sqrt(2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_sensitivity_is_a_bound_and_is_reached(score, sensitivity):
    generator = torch.Generator().manual_seed(0)
    wild = torch.rand(500, 8, generator=generator, dtype=torch.float64).pow(8) * 1e3
    alone = 1e9 * torch.eye(8, dtype=torch.float64)  # all of a gradient in one matrix
    added = score.contributions(torch.cat([wild, alone]), number=NUMBER).norm(dim=1)
    assert score.sensitivity(number=NUMBER) == pytest.approx(sensitivity)
    assert added.max() == pytest.approx(sensitivity, rel=1e-12)
    assert score.contributions(NORMS.double(), number=NUMBER).isfinite().all()


def test_what_a_unit_adds():
    five = NORMS[:1].double()  # of length 13
    torch.testing.assert_close(GradNorm(max_norm=1.0).contributions(five, number=1), five / 13)
    torch.testing.assert_close(Squared(max_norm=26.0).contributions(five, number=1), five**2)
    torch.testing.assert_close(Squared(max_norm=6.5).contributions(five, number=1), (five / 2) ** 2)
    ballots = Vote().contributions(NORMS[:3].double(), number=2)
    assert ballots.tolist() == [[0, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("make", [GradNorm, Squared])
def test_scores_refuse_an_impossible_bound(make):
    with pytest.raises(ValueError, match=r"max_norm is -1"):
        make(max_norm=-1)


def test_public_saliency_is_of_data_that_says_so(tmp_path):
    with pytest.raises(ValueError, match="does not say it is public"):
        PublicScore(npz_data(tmp_path))


NETS = {
    "dit": lambda: tiny_net(depth=2),
    "unet": lambda: UNet(
        in_channels=1, size=8, num_classes=3, block_out_channels=(8, 8), attention=(False, True), head_size=4
    ),
    "cross": lambda: CrossAttentionUNet(
        in_channels=1,
        size=8,
        num_classes=3,
        block_out_channels=(8, 8),
        attention=(False, True),
        num_heads=2,
        condition_size=6,
    ),
}


def _batch(units: int, *, rows_per_unit: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    rows = units * rows_per_unit
    images = torch.rand(rows, 1, 8, 8, generator=generator) * 2 - 1
    return {"images": images, "labels": torch.arange(rows) % len(CLASSES)}


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_norms_are_those_of_plain_autograd(kind):
    """Per unit of two rows with three noise draws each, and per matrix, fused ones apart."""
    adapter = SaliencyLoRA(ratio=1.0)
    module = tiny_module(net=awake(NETS[kind]()), adapter=adapter)
    awake(module.net)  # the low-rank pairs as well: a later choice starts from trained ones
    matrices, before = adapter.selection.matrices, {n: p.clone() for n, p in module.named_parameters()}
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    batch = _batch(4, rows_per_unit=2)

    torch.manual_seed(5)
    found = gradient_norms(module, matrices, [batch], rows_per_unit=2, noise_draws=3)
    assert {name for name, parameter in module.named_parameters() if parameter.requires_grad} == trainable
    assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())
    assert module.noise_draws == 1

    module.noise_draws = 3
    weights = [module.net.get_parameter(f"{m.path}.base_layer.weight").requires_grad_() for m in matrices]
    torch.manual_seed(5)
    losses = module.per_example_losses(batch).unflatten(0, (-1, 2)).mean(dim=1)  # (U,)
    for unit, loss in enumerate(losses):
        gradients = torch.autograd.grad(loss, weights, retain_graph=True)
        for column, (matrix, gradient) in enumerate(zip(matrices, gradients, strict=True)):
            part = gradient.chunk(3)["qkv".index(matrix.part)] if matrix.part else gradient
            assert matrix.size == part.numel()
            assert found[unit, column] == pytest.approx(float(part.norm()), rel=1e-4)
    assert len(matrices) >= 8
    # A single token, such as a class, has all attention, whatever the query: no gradient there.
    idle = {m.name for m, norm in zip(matrices, found.max(dim=0).values, strict=True) if norm == 0}
    assert all(name.endswith(("attn2.to_q", "attn2.to_k")) for name in idle)


def test_a_unit_whose_gradient_is_not_finite_adds_nothing():
    adapter = SaliencyLoRA(ratio=1.0)
    module = tiny_module(net=awake(tiny_net()), adapter=adapter)
    batch = _batch(3, rows_per_unit=1)
    batch["images"][1] = float("nan")
    found = gradient_norms(module, adapter.selection.matrices, [batch], rows_per_unit=1, noise_draws=1)
    assert found[1].tolist() == [0] * 4
    assert (found[[0, 2]] > 0).all()


def test_normalised_by_size_is_the_root_mean_square():
    adapter = SaliencyLoRA(ratio=0.5, targets=".*", size_normalised=True)
    plain = SaliencyLoRA(ratio=0.5, targets=".*")
    module, batch = tiny_module(net=awake(tiny_net()), adapter=adapter), _batch(3, rows_per_unit=1)
    plain._selection = adapter._selection
    norms = []
    for one in (adapter, plain):
        torch.manual_seed(0)
        norms.append(one.norms(module, [batch], rows_per_unit=1))
    sizes = torch.tensor([matrix.size for matrix in adapter.selection.matrices])
    assert len(set(sizes.tolist())) > 1
    torch.testing.assert_close(norms[0], norms[1] * (sizes.double().mean() / sizes).sqrt())


def _selection(*, ratio: float, pieces: str) -> Selection:
    return Selection(LoRA().candidates(tiny_net(depth=3)), ratio=ratio, pieces=pieces)


@pytest.mark.parametrize(("ratio", "number"), [(0.01, 1), (0.1, 1), (0.3, 4), (0.5, 6), (0.7, 8), (1.0, 12)])
def test_the_share_with_the_highest_scores_is_chosen(ratio, number):
    selection = _selection(ratio=ratio, pieces="matrices")
    assert not selection.made
    assert selection.number == number
    scores = torch.tensor([3.0, -1, 5, 2, 8, 1, 0, -4, 11, 7, 6, 4])
    selection.choose(scores)
    assert selection.scores.tolist() == scores.tolist()
    best = sorted(scores.tolist(), reverse=True)[:number]
    assert sorted(scores[selection.chosen].tolist(), reverse=True) == best


def test_whole_layers_are_chosen_by_the_sum_of_their_matrices():
    selection = _selection(ratio=0.3, pieces="layers")
    scores = torch.tensor([9.0, 0, 0, 0, 3, 3, 3, 3, 8, 1, 1, 0])
    selection.choose(scores)
    chosen = [matrix["name"] for matrix in selection.report() if matrix["chosen"]]
    assert chosen == [f"blocks.1.attention.{part}" for part in ("q", "k", "v", "out")]
    assert selection.number == 4


def test_chance_follows_the_seed():
    chosen = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        scores = RandomScore().scores(matrices=40, number=4, norms=lambda *_, **__: torch.zeros(0, 40))
        chosen.append(scores.topk(4).indices.tolist())
    assert chosen[0] == chosen[1] != chosen[2]
