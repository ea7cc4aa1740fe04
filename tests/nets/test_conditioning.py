"""The four operators, and vanilla against DP-aware AdaLN-Zero."""

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_dp.nets.conditioning.adaln_zero import AdaLNZero
from lightning_dp.nets.conditioning.bounded_at_sampling import BoundedAtSampling
from lightning_dp.nets.conditioning.bounds import Bound, ClampSTE, HardClamp, SoftClampBand, Tanh
from lightning_dp.nets.conditioning.dp_aware_adaln_zero import DPAwareAdaLNZero
from lightning_dp.nets.conditioning.modulation import Conditioning, ConditionProjection
from lightning_dp.nets.conditioning.path import condition_parameters
from lightning_dp.nets.dit import DiTBlock
from lightning_dp.nets.series_dit import SeriesDiT

OPERATORS: list[type[Bound]] = [Tanh, SoftClampBand, HardClamp, ClampSTE]
LENGTH, CHANNELS, COVARIATES = 12, 2, 3


def _gradients(x: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(fn(x).sum(), x)
    return gradient


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("limit", [0.3, 1.0, 7.0])
def test_operator_is_bounded_odd_and_starts_as_the_identity(operator, limit):
    bound = operator(limit)
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([0.0, 1e30, -1e30])])
    y = bound(x)
    assert y.abs().max() <= limit
    assert bound(torch.zeros(1)).item() == 0.0
    assert _gradients(torch.zeros(1), bound).item() == 1.0
    torch.testing.assert_close(bound(-x), -y)
    slopes = _gradients(x, bound)
    assert slopes.min() >= 0
    assert slopes.max() <= 1


@pytest.mark.parametrize("operator", OPERATORS[:2])
def test_smooth_operators_have_the_gradient_that_they_claim(operator):
    x = torch.linspace(-2, 2, 41, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(operator(1.0), x)


def test_straight_through_passes_gradients_where_the_hard_clamp_does_not():
    x = torch.tensor([-3.0, 0.2, 3.0])
    assert _gradients(x, HardClamp(1.0)).tolist() == [0.0, 1.0, 0.0]
    assert _gradients(x, ClampSTE(1.0)).tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(HardClamp(1.0)(x), ClampSTE(1.0)(x))


def test_soft_clamp_is_the_identity_below_its_band_and_the_limit_above():
    bound = SoftClampBand(1.0, band=0.2)
    x = torch.tensor([-0.8, 0.5, 0.8, 1.2, 5.0])
    assert torch.equal(bound(x), torch.tensor([-0.8, 0.5, 0.8, 1.0, 1.0]))


@pytest.mark.parametrize("operator", OPERATORS)
def test_operator_refuses_a_limit_that_is_no_bound(operator):
    for limit in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="limit is"):
            operator(limit)


def test_dp_aware_refuses_bad_bounds_by_name():
    with pytest.raises(ValueError, match="c_max is -1"):
        DPAwareAdaLNZero(c_max=-1)
    with pytest.raises(ValueError, match="beta_max is 0"):
        DPAwareAdaLNZero(beta_max=0)


def test_projection_is_exact_inside_bounded_outside_and_differentiable_at_zero():
    project = ConditionProjection(2.0)
    inside, outside = torch.tensor([[0.3, -0.4]]), torch.tensor([[30.0, -40.0]])
    assert torch.equal(project(inside), inside)
    torch.testing.assert_close(project(outside), torch.tensor([[1.2, -1.6]]))
    assert torch.equal(_gradients(torch.zeros(1, 2), project), torch.ones(1, 2))
    assert project(torch.randn(100, 8) * 1e4).norm(dim=-1).max() <= 2.0 * (1 + 1e-6)


def _net(conditioning: Conditioning, *, weights_std: float = 0.0) -> SeriesDiT:
    torch.manual_seed(1)
    net = SeriesDiT(
        conditioning,
        length=LENGTH,
        num_channels=CHANNELS,
        num_covariates=COVARIATES,
        patch_size=4,
        hidden_size=8,
        depth=2,
        num_heads=2,
    )
    # The final layer starts at zero and hides every gradient behind it; give the comparison something to see.
    nn.init.normal_(net.final.linear.weight)
    if weights_std:
        for name, parameter in net.named_parameters():
            if "modulation" in name:
                nn.init.normal_(parameter, std=weights_std)
    return net


def _output_and_gradients(net: SeriesDiT) -> dict[str, Tensor]:
    torch.manual_seed(2)
    series = [torch.randn(5, LENGTH, CHANNELS) for _ in range(4)]
    output = net(
        series[0],
        torch.arange(5) * 100,
        context=series[1],
        visible=(series[2] > 0).float(),
        target=torch.ones(5, LENGTH, CHANNELS, dtype=torch.bool),
        profile=series[3],
        covariates=torch.randn(5, LENGTH, COVARIATES),
    )
    output.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    return {"output": output.detach(), **gradients}


def _assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("operator", [*OPERATORS, functools.partial(SoftClampBand, band=0.5)])
def test_dp_aware_equals_vanilla_at_initialisation_in_output_and_every_gradient(operator):
    vanilla = _output_and_gradients(_net(AdaLNZero()))
    aware = _output_and_gradients(_net(DPAwareAdaLNZero(c_max=1e3, bound=operator)))
    _assert_equal(vanilla, aware)
    # The comparison is not of zeros only.
    assert vanilla["blocks.0.modulation.linear.weight"].abs().max() > 0
    assert vanilla["final.modulation.linear.weight"].abs().max() > 0


@pytest.mark.parametrize("operator", [SoftClampBand, HardClamp, ClampSTE])
def test_dp_aware_equals_vanilla_away_from_zero_while_no_bound_is_active(operator):
    vanilla = _output_and_gradients(_net(AdaLNZero(), weights_std=0.1))
    limits = dict.fromkeys(("c_max", "gamma_max", "beta_max", "alpha_max"), 1e3)
    aware = _output_and_gradients(_net(DPAwareAdaLNZero(**limits, bound=operator), weights_std=0.1))
    _assert_equal(vanilla, aware)


def test_every_bound_off_is_vanilla_for_any_weights():
    limits = dict.fromkeys(("c_max", "gamma_max", "beta_max", "alpha_max"))
    vanilla = _output_and_gradients(_net(AdaLNZero(), weights_std=3.0))
    _assert_equal(vanilla, _output_and_gradients(_net(DPAwareAdaLNZero(**limits), weights_std=3.0)))


def test_condition_only_and_modulation_only_bound_what_they_say():
    condition = 50 * torch.randn(4, 8)
    off = dict.fromkeys(("gamma_max", "beta_max", "alpha_max"))

    def steer(conditioning: Conditioning) -> tuple[nn.Module, list]:
        module = conditioning.build(6, condition_size=8, sublayers=2, gated=True)
        nn.init.normal_(module.linear.weight, std=5.0)
        return module, module(condition)

    module, steering = steer(DPAwareAdaLNZero(c_max=1.5, **off))
    assert module.project(condition).norm(dim=-1).max() <= 1.5 * (1 + 1e-6)
    assert max(s.shift.abs().max() for s in steering) > 1
    module, steering = steer(DPAwareAdaLNZero(c_max=None, gamma_max=0.5, beta_max=0.25, alpha_max=0.125))
    assert isinstance(module.project, nn.Identity)
    for s in steering:
        assert (s.scale - 1).abs().max() <= 0.5
        assert s.shift.abs().max() <= 0.25
        assert s.gate.abs().max() <= 0.125


@pytest.mark.parametrize("operator", [*OPERATORS, functools.partial(SoftClampBand, band=1.0)])
@pytest.mark.parametrize("limit", [1.05, 2.0])
def test_literal_form_starts_at_one_within_its_bound_and_still_learns(operator, limit):
    conditioning = DPAwareAdaLNZero(gamma_max=limit, bound=operator, literal=True)
    module = conditioning.build(6, condition_size=8, sublayers=2, gated=True)
    for s in module(torch.randn(3, 8)):
        torch.testing.assert_close(s.scale, torch.ones(3, 1, 6), rtol=0, atol=1e-6)
        assert s.shift.abs().max() == 0
        assert s.gate.abs().max() == 0
    # As wide as 1 + γ is at its start, so that the two forms begin alike.
    literal, residual = _output_and_gradients(_net(conditioning)), _output_and_gradients(_net(AdaLNZero()))
    torch.testing.assert_close(literal["output"], residual["output"])
    assert literal["blocks.1.modulation.linear.weight"].abs().max() > 0
    # γ itself gets a gradient; where nothing bounds it, the same as in the other form.
    assert literal["final.modulation.linear.bias"][:8].abs().max() > 0


def test_literal_form_without_a_bound_on_gamma_starts_as_vanilla_in_every_gradient():
    vanilla = _output_and_gradients(_net(AdaLNZero()))
    literal = _output_and_gradients(_net(DPAwareAdaLNZero(gamma_max=None, literal=True)))
    for name, value in vanilla.items():
        torch.testing.assert_close(literal[name], value)


def test_literal_form_is_refused_where_its_bound_cannot_hold_its_start():
    for options in ({}, {"gamma_max": 0.5}, {"gamma_max": 1.1, "tightness": 0.9}):
        with pytest.raises(ValueError, match=r"literal is true and gamma_max times tightness"):
            DPAwareAdaLNZero(literal=True, **options)
    with pytest.raises(ValueError, match=r"bounded\.literal is true"):
        BoundedAtSampling(DPAwareAdaLNZero(gamma_max=2.0, literal=True))


@pytest.mark.parametrize("operator", [*OPERATORS, functools.partial(SoftClampBand, band=1.0)])
def test_an_operator_undoes_itself(operator):
    bound = operator(1.5)
    for value in (-1.49, -0.4, 0.0, 1.0, 1.4):
        x = torch.tensor([bound.inverse(value)], dtype=torch.float64)
        assert bound(x).item() == pytest.approx(value, abs=1e-12)
        assert _gradients(x, bound).item() > 0
    with pytest.raises(ValueError, match=r"limit is 1\.5, which a start at 1\.5"):
        bound.inverse(1.5)


# Numpy's own evaluation of the paper's equations, in float64.
NUMPY_BOUNDS: dict[type[Bound], Callable[[np.ndarray, float], np.ndarray]] = {
    Tanh: lambda x, m: m * np.tanh(x / m),
    SoftClampBand: lambda x, m: np.where(
        np.abs(x) <= 0.9 * m,
        x,
        np.sign(x) * np.where(np.abs(x) >= 1.1 * m, m, np.abs(x) - (np.abs(x) - 0.9 * m) ** 2 / (0.4 * m)),
    ),
    HardClamp: lambda x, m: np.clip(x, -m, m),
    ClampSTE: lambda x, m: np.clip(x, -m, m),
}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("literal", [False, True])
def test_a_block_is_the_paper_s_equations(operator, literal):
    """ĉ, (γ, β, α) = B(Wĉ + b), v = γ⊙LN(x) + β and y = x + α⊙F(v), against numpy to 1e-12."""
    torch.manual_seed(5)
    hidden, limits = 8, {"gamma_max": 1.3, "beta_max": 0.7, "alpha_max": 0.4}
    conditioning = DPAwareAdaLNZero(c_max=0.9, bound=operator, literal=literal, **limits)
    block = DiTBlock(hidden, num_heads=2, mlp_ratio=2.0, condition_size=6, conditioning=conditioning).double()
    nn.init.normal_(block.modulation.linear.weight, std=1.5)
    nn.init.normal_(block.modulation.linear.bias, std=0.5)
    x, condition = torch.randn(4, 5, hidden).double(), 3 * torch.randn(4, 6).double()

    c = condition.numpy()
    c = c / (1 + np.exp(-c))  # after the SiLU
    c = c * np.minimum(1, 0.9 / np.linalg.norm(c, axis=1, keepdims=True))
    weight, bias = (p.detach().numpy() for p in block.modulation.linear.parameters())
    raw = (c @ weight.T + bias).reshape(4, 2, 3, 1, hidden)
    kinds = [NUMPY_BOUNDS[operator](raw[:, :, k], m) for k, m in enumerate(limits.values())]
    y = x.numpy()
    for sublayer, part in enumerate((block.attention, block.feed_forward)):
        gamma, beta, alpha = (kind[:, sublayer] for kind in kinds)  # each (B, 1, D)
        u = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
        v = (gamma if literal else 1 + gamma) * u + beta
        y = y + alpha * part(torch.from_numpy(v)).detach().numpy()
    np.testing.assert_allclose(block(x, condition).detach().numpy(), y, rtol=0, atol=1e-12)
    projected = block.modulation.project(torch.from_numpy(c) * 7)
    assert projected.norm(dim=1).max() <= 0.9 + 1e-12


@pytest.mark.parametrize("operator", OPERATORS)
def test_gradient_of_the_scale_weights_obeys_its_bound_per_example(operator):
    """‖∇W_γ‖ ≤ c_max · ‖Σ_τ u_τ ⊙ δv_τ‖, and equality with the stated outer product."""
    torch.manual_seed(3)
    hidden, c_max = 8, 0.7
    block = DiTBlock(
        hidden,
        num_heads=2,
        mlp_ratio=2.0,
        condition_size=6,
        conditioning=DPAwareAdaLNZero(c_max=c_max, bound=operator),
    ).double()
    nn.init.normal_(block.modulation.linear.weight, std=1.0)
    x, condition = torch.randn(4, 5, hidden).double(), 3 * torch.randn(4, 6).double()

    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = output
            if output.requires_grad:
                output.retain_grad()

        return hook

    def keep_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["v"] = inputs[0]
        inputs[0].retain_grad()

    block.attention_norm.register_forward_hook(keep("u"))
    block.attention.register_forward_pre_hook(keep_input)
    block.modulation.project.register_forward_hook(keep("c"))
    block.modulation.linear.register_forward_hook(keep("raw"))
    for example in range(len(x)):
        block.zero_grad()
        block(x[example : example + 1], condition[example : example + 1]).square().sum().backward()
        # γ of the attention sublayer: the first `hidden` rows of W.
        weight_gradient = block.modulation.linear.weight.grad[:hidden]
        correlation = (seen["u"] * seen["v"].grad).sum(dim=1).squeeze(0)  # (D,)
        raw = seen["raw"][0, :hidden].detach()
        slope = _gradients(raw, operator(1.0))
        expected = torch.outer(slope * correlation, seen["c"][0].detach())
        torch.testing.assert_close(weight_gradient, expected)
        assert weight_gradient.norm() > 0
        assert weight_gradient.norm() <= c_max * correlation.norm() * (1 + 1e-9)
        torch.testing.assert_close(seen["c"].norm(), torch.tensor(c_max).double(), rtol=1e-6, atol=0)


def test_bounds_hold_under_autocast():
    torch.manual_seed(4)
    module = DPAwareAdaLNZero(c_max=1.0).build(16, condition_size=32, sublayers=2, gated=True)
    nn.init.normal_(module.linear.weight, std=10.0)
    condition = 1e3 * torch.randn(4, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        steering = module(condition)
        half = module.project(1e3 * torch.randn(64, 32, dtype=torch.float16))
    assert module.project(condition).norm(dim=-1).max() <= 1 + 1e-6
    # A half-precision sum of these squares would overflow.
    assert half.dtype == torch.float16
    assert half.float().norm(dim=-1).max() <= 1 + 2**-10
    for s in steering:
        for value, limit in ((s.scale - 1, 1.0), (s.shift, 1.0), (s.gate, 1.0)):
            assert torch.isfinite(value).all()
            assert value.abs().max() <= limit
    sum(s.shift.float().sum() for s in steering).backward()
    assert torch.isfinite(module.linear.weight.grad).all()


def test_weights_of_one_recipe_load_under_another():
    vanilla = _net(AdaLNZero(), weights_std=1.0)
    _net(DPAwareAdaLNZero(c_max=1.0)).load_state_dict(vanilla.state_dict())


def test_bounds_at_sampling_train_like_vanilla_and_sample_like_bounded():
    bounded = DPAwareAdaLNZero(c_max=0.5, gamma_max=0.2, beta_max=0.2, alpha_max=0.2)
    nets = {
        "vanilla": _net(AdaLNZero(), weights_std=1.0),
        "bounded": _net(bounded, weights_std=1.0),
        "control": _net(BoundedAtSampling(bounded), weights_std=1.0),
    }
    for net in nets.values():
        net.load_state_dict(nets["vanilla"].state_dict())
    torch.manual_seed(0)
    condition = torch.randn(4, nets["vanilla"].timestep.outer.out_features)

    def steered(name: str, *, training: bool) -> Tensor:
        module = nets[name].blocks[0].modulation.train(training)
        return torch.cat([part for steering in module(condition) for part in steering], dim=-1)

    assert not torch.equal(steered("vanilla", training=True), steered("bounded", training=True))
    assert torch.equal(steered("control", training=True), steered("vanilla", training=True))
    assert torch.equal(steered("control", training=False), steered("bounded", training=False))
    for name in ("vanilla", "control"):
        nets[name].zero_grad()
        steered(name, training=True).square().sum().backward()
    found, expected = (nets[n].blocks[0].modulation.linear.weight.grad for n in ("control", "vanilla"))
    assert torch.equal(found, expected)


def test_tightness_multiplies_every_limit():
    tight = DPAwareAdaLNZero(c_max=4.0, gamma_max=3.0, beta_max=2.0, alpha_max=None, tightness=0.5)
    assert (tight.c_max, tight.gamma_max, tight.beta_max, tight.alpha_max) == (2.0, 1.5, 1.0, None)
    with pytest.raises(ValueError, match="tightness is 0"):
        DPAwareAdaLNZero(tightness=0.0)


def test_the_condition_path_of_a_series_net():
    names = {name for name, _ in _net(AdaLNZero(), weights_std=1.0).named_parameters()}
    cond = condition_parameters(_net(AdaLNZero(), weights_std=1.0))
    ways = ("timestep.", "context.", "embed_known.", "skip.", "gains.")
    assert cond == {n for n in names if n.startswith(ways) or ".modulation." in n}
    assert 0 < len(cond) < len(names)
