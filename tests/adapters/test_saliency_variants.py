"""Other ways to choose, other things to train: each is charged for what it does, and does what it says."""

import json
import math

import pytest
import torch
from adapter_support import copied, fit, moved, small_module
from images.image_support import CLASSES, awake, tiny_module, tiny_net
from torch import Tensor

from lightning_dp.adapters.choices.exponential import Exponential
from lightning_dp.adapters.choices.propose_test_release import ProposeTestRelease
from lightning_dp.adapters.gradient_norms import gradient_norms
from lightning_dp.adapters.lora import LoRA
from lightning_dp.adapters.saliency import SaliencyLoRA
from lightning_dp.adapters.scores.grad_norm import GradNorm
from lightning_dp.adapters.scores.random_score import RandomScore
from lightning_dp.adapters.scores.squared import Squared
from lightning_dp.adapters.scores.vote import Vote
from lightning_dp.adapters.unchosen import rows_of
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.nets.image_net import ImageNet
from lightning_dp.nets.unet import CrossAttentionUNet
from lightning_dp.privacy.accounting import (
    Event,
    ExponentialEvent,
    GaussianEvent,
    StabilityTestEvent,
    epsilon_pld,
)
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.privacy.sampling import PoissonLoader
from lightning_dp.privacy.units import PrivacyUnit

UNITS = 24  # of adapter_support's pictures


def chosen_names(adapter: SaliencyLoRA) -> list[str]:
    return [matrix["name"] for matrix in adapter.selection.report() if matrix["chosen"]]


def released(ledger_path) -> list[Event]:
    return Ledger(ledger_path).events("pictures", unit="record", kind="release")


class Read:
    """How many units the release was made of."""

    def __init__(self) -> None:
        self.units = 0

    def attach(self, monkeypatch) -> "Read":
        own = SaliencyLoRA.norms

        def norms(adapter, module, batches, **options):
            found = own(adapter, module, batches, **options)
            self.units = len(found)
            return found

        monkeypatch.setattr(SaliencyLoRA, "norms", norms)
        return self


# --- other mechanisms ----------------------------------------------------------------------------------


def test_the_exponential_mechanism_pays_for_each_draw(tmp_path, ledger_path):
    adapter = SaliencyLoRA(ratio=0.5, score=Squared(), choice=Exponential(), noise_multiplier=0.5)
    module = small_module(adapter, depth=2)
    trainer = fit(module, tmp_path)
    event = ExponentialEvent(bounded_range=1.0, rounds=4)
    assert released(ledger_path) == [event]
    assert len(chosen_names(adapter)) == 4
    assert adapter.selection.scores.tolist() == adapter.selection.chosen.double().tolist(), "no score is told"
    private = DifferentialPrivacy.of(trainer)
    assert private is not None
    assert private.plan.prior == (event,)
    assert private.plan.epsilon > epsilon_pld([event], 1e-2)
    report = json.loads((tmp_path / "saliency.json").read_text())
    assert (report["choice"], report["noise_multiplier"], report["sensitivity"]) == ("Exponential", 0.5, 1e-4)


def _tested(tmp_path, *, noise_multiplier: float) -> SaliencyLoRA:
    adapter = SaliencyLoRA(
        ratio=0.25, score=Vote(votes=2), choice=ProposeTestRelease(), noise_multiplier=noise_multiplier
    )
    fit(small_module(adapter, depth=2), tmp_path)
    return adapter


def test_a_stable_choice_is_published_as_it_is(tmp_path, ledger_path, monkeypatch):
    monkeypatch.setattr(Vote, "contributions", lambda self, norms, *, number: _ballots(norms, [1, 6]))
    adapter = _tested(tmp_path, noise_multiplier=1.0)  # a gap of 24 votes, of which 1 + 3.7 are asked
    assert [number for number, chosen in enumerate(adapter.selection.chosen.tolist()) if chosen] == [1, 6]
    assert released(ledger_path) == [StabilityTestEvent(noise_multiplier=1.0, failure=1e-4)]


def test_a_choice_that_one_unit_may_change_stops_the_fit_after_its_charge(tmp_path, ledger_path, monkeypatch):
    monkeypatch.setattr(Vote, "contributions", lambda self, norms, *, number: torch.ones_like(norms))
    with pytest.raises(ValueError, match="ProposeTestRelease chose nothing, and the charge stays"):
        _tested(tmp_path, noise_multiplier=1.0)
    assert len(released(ledger_path)) == 1


def _ballots(norms: Tensor, chosen: list[int]) -> Tensor:
    ballots = torch.zeros_like(norms)
    ballots[:, chosen] = 1.0
    return ballots


@pytest.mark.parametrize("choice", [Exponential(), ProposeTestRelease()], ids=lambda c: type(c).__name__)
def test_a_share_of_the_budget_is_what_the_choice_costs(choice):
    adapter = SaliencyLoRA(ratio=0.25, score=GradNorm(), choice=choice, budget_share=0.2)
    module = small_module(adapter, depth=2)
    unit = PrivacyUnit(name="record", num_units=10_000, description="one image")
    (release,) = adapter.preparations(module, unit=unit, target_epsilon=2.0, delta=1e-5)
    assert 0.38 < epsilon_pld([release.mechanism.event], 1e-5) <= 0.4


# --- a sample of the units -----------------------------------------------------------------------------


def units_read(folder, monkeypatch) -> int:
    """Of 24, where six are asked for on average, in two fits together."""
    total = 0
    for number in range(2):
        with monkeypatch.context() as patch:
            read = Read().attach(patch)
            adapter = SaliencyLoRA(ratio=0.5, score=GradNorm(), noise_multiplier=3.0, max_units=6)
            fit(small_module(adapter), folder / str(number), dataset="pictures")
        total += read.units
    return total


def test_a_sample_is_drawn_and_paid_for_at_the_same_rate(tmp_path, ledger_path, monkeypatch):
    assert 1 <= units_read(tmp_path, monkeypatch) <= 27  # 12 on average; beyond are five deviations
    assert released(ledger_path) == [GaussianEvent(noise_multiplier=3.0, sampling_rate=0.25)] * 2


def test_everybody_read_where_a_sample_was_paid_for_is_seen(tmp_path, monkeypatch):
    """Planted: the loader forgets the rate."""
    own = PoissonLoader.in_order
    monkeypatch.setattr(PoissonLoader, "in_order", lambda self, **o: own(self, units_per_batch=256))
    assert units_read(tmp_path, monkeypatch) == 48


def test_a_sample_that_is_read_twice_is_the_same():
    loader = PoissonLoader(list(range(1000)), sampling_rate=0.5)
    sample = loader.in_order(units_per_batch=64, sampling_rate=0.3)
    first, second = (torch.cat(list(sample)).tolist() for _ in range(2))
    assert first == second
    assert 200 < len(first) < 400


def test_units_of_a_sample_are_drawn_independently_and_by_nobodys_seed():
    loader = PoissonLoader(list(range(40)), sampling_rate=0.5)
    draws = []
    for _ in range(300):
        torch.manual_seed(0)
        batches = list(loader.in_order(units_per_batch=7, sampling_rate=0.3))
        assert all(len(batch) == 7 for batch in batches[:-1])
        draws.append([unit for batch in batches for unit in batch.tolist()])
    sizes = torch.tensor([len(draw) for draw in draws]).double()
    assert float(sizes.mean()) == pytest.approx(12, abs=4.5 * math.sqrt(8.4 / 300))
    assert float(sizes.var()) == pytest.approx(8.4, rel=0.45), "planted would be 0: always twelve of them"
    counts = torch.bincount(torch.tensor([unit for draw in draws for unit in draw]), minlength=40).double()
    assert float((counts - 90).abs().max()) < 4.5 * math.sqrt(300 * 0.21)
    assert draws == [sorted(draw) for draw in draws]


def test_fewer_units_than_the_most_are_all_scored(tmp_path, ledger_path, monkeypatch):
    read = Read().attach(monkeypatch)
    fit(small_module(SaliencyLoRA(ratio=0.5, noise_multiplier=3.0, max_units=50_000)), tmp_path)
    assert read.units == UNITS
    assert released(ledger_path) == [GaussianEvent(noise_multiplier=3.0, sampling_rate=1.0)]


# --- what trains ---------------------------------------------------------------------------------------


def unet() -> ImageNet:
    return CrossAttentionUNet(
        in_channels=1,
        size=8,
        num_classes=3,
        block_out_channels=(8, 8),
        attention=(False, True),
        num_heads=2,
        condition_size=6,
    )


@pytest.mark.parametrize("net", [lambda: tiny_net(depth=2), unet], ids=["fused", "unet"])
def test_the_chosen_matrices_themselves_train(tmp_path, net):
    adapter = SaliencyLoRA(ratio=0.5, noise_multiplier=2.0, low_rank=False)
    module = small_module(adapter, net=net())
    before = copied(module)
    fit(module, tmp_path)
    chosen = chosen_names(adapter)
    assert moved(module, before) == {f"net.{name}.weight" for name in chosen}
    assert len(chosen) == round(0.5 * len(adapter.selection.matrices))
    facts = adapter.facts()
    assert facts["trainable_parameters"] == sum(
        module.net.get_parameter(f"{n}.weight").numel() for n in chosen
    )
    assert "lora_rank" not in facts


def test_convolutions_are_candidates_where_asked(tmp_path):
    plain, every = (LoRA(targets=".*", convolutions=wanted).candidates(unet()) for wanted in (False, True))
    kinds = {m.path for m in every} - {m.path for m in plain}
    assert "unet.conv_in" in kinds
    assert any("resnets.0.conv1" in path for path in kinds)
    adapter = SaliencyLoRA(
        ratio=1.0, targets=".*(conv_in|conv1|to_q)", convolutions=True, noise_multiplier=2.0
    )
    module = small_module(adapter, net=unet())
    before = copied(module)
    fit(module, tmp_path)
    assert moved(module, before) == {
        f"net.{name}.lora_{ab}.default.weight" for name in chosen_names(adapter) for ab in "AB"
    }
    assert any("conv1" in name for name in chosen_names(adapter))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("low_rank", [True, False])
def test_scores_are_those_of_a_loop_over_single_images(low_rank):
    """Linear and convolutional matrices of a UNet in fp64, summed as DP-SAPF sums them, to 1e-6."""
    adapter = SaliencyLoRA(ratio=1.0, targets=".*", convolutions=True, low_rank=low_rank)
    module = tiny_module(net=awake(unet()), adapter=adapter).double()
    matrices = adapter.selection.matrices
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(4, 1, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1
    batch = {"images": images, "labels": torch.arange(4) % len(CLASSES)}
    torch.manual_seed(5)
    found = gradient_norms(module, matrices, [batch], rows_per_unit=1, noise_draws=2)
    contributions = Squared(max_norm=1.0).contributions(found, number=3).sum(dim=0)

    module.noise_draws = 2
    suffix = ".base_layer.weight" if low_rank else ".weight"
    weights = [module.net.get_parameter(f"{m.path}{suffix}").requires_grad_() for m in matrices]
    torch.manual_seed(5)
    expected = torch.zeros(len(matrices), dtype=torch.float64)
    for loss in module.per_example_losses(batch):
        gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        norms = torch.stack([torch.zeros(()) if g is None else g.double().norm() for g in gradients])
        clipped = norms * min(1.0, 1.0 / float(norms.norm()))
        expected += clipped.square()
    assert len(matrices) > 40
    assert float(expected.max()) > 0
    torch.testing.assert_close(contributions, expected, rtol=1e-6, atol=1e-9)


def test_random_numbers_stand_in_for_what_was_not_chosen(tmp_path):
    adapter = SaliencyLoRA(ratio=0.5, noise_multiplier=2.0, unchosen="random")
    module = small_module(adapter, depth=2)
    before = {matrix.name: rows_of(module.net, matrix).clone() for matrix in adapter.selection.matrices}
    fit(module, tmp_path)
    for matrix in adapter.selection.matrices:
        after, kept = rows_of(module.net, matrix), matrix.name in chosen_names(adapter)
        assert torch.equal(after, before[matrix.name]) == kept
        if not kept:
            assert float(after.std()) == pytest.approx(0.02, rel=0.3)
    again = small_module(SaliencyLoRA(ratio=0.5, noise_multiplier=2.0, unchosen="random"), depth=2)
    again.load_state_dict(module.state_dict())
    again.adapter.begin_fit(again)  # a resumed fit: the same numbers in the same places
    assert all(torch.equal(v, again.state_dict()[name]) for name, v in module.state_dict().items())


# --- without privacy -----------------------------------------------------------------------------------


def test_without_privacy_a_score_without_noise_is_said_to_be_that(tmp_path, ledger_path):
    adapter = SaliencyLoRA(ratio=0.5, score=GradNorm(), without_noise=True)
    module = small_module(adapter, depth=2)
    fit(module, tmp_path, delta=None)
    assert len(chosen_names(adapter)) == 4
    assert not (tmp_path / "saliency.json").exists()
    report = json.loads((tmp_path / "nonprivate" / "saliency.json").read_text())
    assert report["nonprivate"] == "chosen by the train set without noise: ε = ∞"
    assert report["noise"] is None
    assert (tmp_path / "nonprivate" / "plots" / "saliency.png").exists()
    assert adapter.facts()["saliency_choice"] == "without noise, ε = ∞"
    assert not ledger_path.exists()


def test_a_private_fit_never_chooses_without_noise(tmp_path, ledger_path):
    with pytest.raises(ValueError, match=r"without_noise is true in a private fit.*where ε is ∞"):
        fit(small_module(SaliencyLoRA(ratio=0.5, without_noise=True, noise_multiplier=1.0)), tmp_path)
    assert not ledger_path.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"choice": Exponential(), "pieces": "layers"},
            "Exponential, which publishes no sums to choose layers",
        ),
        ({"choice": ProposeTestRelease(), "max_units": 5}, "ProposeTestRelease, which publishes no sums"),
        ({"unchosen": "zero"}, "unchosen is 'zero', but it has to be one of pretrained, random"),
        ({"max_units": 0}, "max_units is 0"),
        ({"score": RandomScore(), "without_noise": True}, "RandomScore has no noise anyway"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SaliencyLoRA(ratio=0.5, **options)


def test_an_impossible_share_of_delta_is_refused():
    with pytest.raises(ValueError, match="failure_share is 1"):
        ProposeTestRelease(failure_share=1)
