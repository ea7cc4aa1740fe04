"""The series transformer: shapes, independence of rows, and sampling's shortcut."""

import pytest
import torch
from torch import Tensor, nn

from lightning_dp.nets.attention import SelfAttention
from lightning_dp.nets.conditioning.adaln_zero import AdaLNZero
from lightning_dp.nets.conditioning.path import (
    ConditionPath,
    condition_parameters,
    condition_paths,
    modulation_modules,
)
from lightning_dp.nets.embeddings import sinusoids
from lightning_dp.nets.series_dit import SeriesDiT


def _net(
    *,
    channel_independent: bool = True,
    covariates: int = 3,
    linear_skip: bool = True,
    token_context: bool = True,
) -> SeriesDiT:
    torch.manual_seed(0)
    net = SeriesDiT(
        AdaLNZero(),
        length=12,
        num_channels=2,
        num_covariates=covariates,
        patch_size=3,
        hidden_size=8,
        depth=2,
        num_heads=2,
        channel_independent=channel_independent,
        linear_skip=linear_skip,
        token_context=token_context,
    )
    for parameter in net.parameters():  # nothing at zero, so that every path carries something
        nn.init.normal_(parameter, std=0.3)
    return net


def _inputs(rows: int, *, covariates: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(1)
    series = {name: torch.randn(rows, 12, 2) for name in ("noisy", "context", "visible", "profile")}
    target = torch.ones(rows, 12, 2, dtype=torch.bool)
    return {
        **series,
        "target": target,
        "covariates": torch.randn(rows, 12, covariates),
        "timesteps": torch.arange(rows) * 90,
    }


@pytest.mark.parametrize("channel_independent", [True, False])
@pytest.mark.parametrize("covariates", [0, 3])
@pytest.mark.parametrize("linear_skip", [True, False])
@pytest.mark.parametrize("token_context", [True, False])
def test_rows_do_not_depend_on_each_other(channel_independent, covariates, linear_skip, token_context):
    net = _net(
        channel_independent=channel_independent,
        covariates=covariates,
        linear_skip=linear_skip,
        token_context=token_context,
    )
    inputs = _inputs(4, covariates=covariates)
    together = net(**inputs)
    assert together.shape == (4, 12, 2)
    alone = torch.cat([net(**{k: v[i : i + 1] for k, v in inputs.items()}) for i in range(4)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("channel_independent", [True, False])
def test_layers_see_the_promised_rows_of_one_example_side_by_side(channel_independent):
    """Each row's gradient, read off the layers' own rows, is the gradient of that example alone."""
    net = _net(channel_independent=channel_independent)
    inputs = _inputs(3)
    factor = net.rows_per_example
    assert factor == (2 if channel_independent else 1)
    seen: list[Tensor] = []
    for module in net.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, args, output: seen.append(args[0]))
    net(**inputs)
    assert all(len(x) == 3 * factor for x in seen)
    first = [x[:factor].clone() for x in seen]
    seen.clear()
    net(**{name: value[:1] for name, value in inputs.items()})
    for x, y in zip(first, seen, strict=True):
        torch.testing.assert_close(x, y)


def test_channel_independence_means_what_it_says():
    net, inputs = _net(), _inputs(2)
    before = net(**inputs)
    for name in ("noisy", "context", "visible", "profile"):
        inputs[name][..., 1] += 1.0
    after = net(**inputs)
    torch.testing.assert_close(before[..., 0], after[..., 0])
    assert not torch.allclose(before[..., 1], after[..., 1])


@pytest.mark.parametrize("channel_independent", [True, False])
@pytest.mark.parametrize("token_context", [True, False])
def test_encoding_once_for_many_noisy_copies_equals_repeating_everything(channel_independent, token_context):
    net = _net(channel_independent=channel_independent, token_context=token_context)
    inputs = _inputs(3)
    timestep = torch.tensor([400])
    noisy = torch.randn(12, 12, 2)
    rest = {name: value for name, value in inputs.items() if name not in ("noisy", "timesteps")}
    repeated = {name: value.repeat_interleave(4, dim=0) for name, value in rest.items()}
    expected = net(noisy, timestep.expand(12), **repeated)
    torch.testing.assert_close(net.denoise(noisy, timestep, known=net.encode(**rest)), expected)


@pytest.mark.parametrize("channel_independent", [True, False])
def test_leaving_out_patches_that_nobody_asked_for_changes_no_other_value(channel_independent):
    net, inputs = _net(channel_independent=channel_independent), _inputs(3)
    whole = net(**inputs)
    inputs["target"][:, :6] = False
    inputs["target"][1:, :9] = False
    part = net(**inputs)
    torch.testing.assert_close(part[:, 6:], whole[:, 6:])
    alone = net(**{name: value[1:2] for name, value in inputs.items()})
    torch.testing.assert_close(part[1:2, 9:], alone[:, 9:])


def test_a_fresh_net_predicts_zero_and_learns_in_every_parameter_after_a_step():
    torch.manual_seed(0)
    net = SeriesDiT(AdaLNZero(), length=12, num_channels=2, num_covariates=3, patch_size=3, hidden_size=8)
    inputs = _inputs(4)
    assert net(**inputs).abs().max() == 0
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (net(**inputs) - inputs["noisy"]).square().mean().backward()
        optimizer.step()
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def _layers_that_see(net: SeriesDiT, names: set[str]) -> set[str]:
    """Parameters of the linear layers whose input changes with one of these inputs of the net."""
    seen: dict[str, list[Tensor]] = {}
    layers = {path: layer for path, layer in net.named_modules() if isinstance(layer, nn.Linear)}
    for path, layer in layers.items():
        layer.register_forward_hook(lambda _, args, out, path=path: seen.setdefault(path, []).append(args[0]))
    inputs = _inputs(2)
    net(**inputs)
    other = {name: value + 1 if name in names else value for name, value in inputs.items()}
    net(**other)
    for layer in layers.values():
        layer._forward_hooks.clear()
    return {
        f"{path}.{kind}"
        for path, (before, after) in seen.items()
        if not torch.equal(before, after)
        for kind, _ in layers[path].named_parameters()
    }


@pytest.mark.parametrize("token_context", [True, False])
@pytest.mark.parametrize("linear_skip", [True, False])
def test_what_is_declared_of_the_condition_is_what_it_reaches_before_x_t(token_context, linear_skip):
    net = _net(token_context=token_context, linear_skip=linear_skip)
    told = {"context", "visible", "profile", "covariates", "timesteps"}
    measured = _layers_that_see(net, told) - _layers_that_see(net, {"noisy"})
    paths = condition_paths(net)
    assert set().union(*paths.values()) == measured
    by_adaln = {ConditionPath.ENCODER, ConditionPath.MODULATION, ConditionPath.FINAL}
    past_it = {ConditionPath.TOKENS} if token_context else set()
    past_it |= {ConditionPath.SKIP, ConditionPath.GAINS} if linear_skip else set()
    assert set(paths) == by_adaln | past_it


def test_a_path_that_nobody_declared_would_be_seen():
    """The measurement above is not of declarations: a layer that is left out shows."""
    net = _net()
    net.condition_paths = lambda: {ConditionPath.ENCODER: [net.timestep, net.context]}
    told = {"context", "visible", "profile", "covariates", "timesteps"}
    missing = _layers_that_see(net, told) - _layers_that_see(net, {"noisy"}) - condition_parameters(net)
    assert missing == {"embed_known.weight", "embed_known.bias", "skip.weight", "gains.weight", "gains.bias"}


def test_a_parameter_on_two_paths_is_refused():
    net = _net()
    net.condition_paths = lambda: {
        ConditionPath.ENCODER: [net.context],
        ConditionPath.SKIP: [net.context.inner],
    }
    with pytest.raises(ValueError, match="on the paths encoder and skip"):
        condition_paths(net)


def test_condition_by_adaln_alone_reaches_nothing_else():
    """With the modulations' weights at 0 such a net can't tell what it is given."""
    net = _net(token_context=False, linear_skip=False)
    for layer in modulation_modules(net):
        nn.init.zeros_(layer.linear.weight)
    inputs = _inputs(3)
    changed = {
        name: value + 1 if name not in ("noisy", "target") else value for name, value in inputs.items()
    }
    assert torch.equal(net(**inputs), net(**changed))


def test_impossible_nets_are_refused():
    with pytest.raises(ValueError, match="patch_size is 5 and length 12"):
        SeriesDiT(AdaLNZero(), length=12, num_channels=1, num_covariates=0, patch_size=5)
    with pytest.raises(ValueError, match="depth is 0"):
        SeriesDiT(AdaLNZero(), length=12, num_channels=1, num_covariates=0, patch_size=3, depth=0)
    with pytest.raises(ValueError, match="hidden_size is 6 and num_heads 4"):
        SelfAttention(6, num_heads=4)
    with pytest.raises(ValueError, match="size is 3"):
        sinusoids(torch.arange(4), size=3)
