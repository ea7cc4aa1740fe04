"""The recurrent denoiser: torch's own recurrences, independent rows, and declared paths."""

import pytest
import torch
from torch import Tensor, nn

from lightning_dp.nets.conditioning.adaln_zero import AdaLNZero
from lightning_dp.nets.conditioning.path import ConditionPath, condition_paths
from lightning_dp.nets.recurrent import GRU, LSTM, RecurrentCell
from lightning_dp.nets.series_net import SeriesNet
from lightning_dp.nets.series_rnn import SeriesRNN

CELLS = {LSTM: nn.LSTM, GRU: nn.GRU}


def _net(cell: type[RecurrentCell], *, channel_independent: bool = True) -> SeriesRNN:
    torch.manual_seed(0)
    sizes = {"length": 12, "num_channels": 2, "num_covariates": 3}
    options = {"patch_size": 3, "hidden_size": 8, "channel_independent": channel_independent}
    net = SeriesRNN(AdaLNZero(), cell=cell, **sizes, **options)
    for parameter in net.parameters():  # nothing at zero, so that every path carries something
        nn.init.normal_(parameter, std=0.3)
    return net


def _inputs(rows: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    series = {name: torch.randn(rows, 12, 2) for name in ("noisy", "context", "visible", "profile")}
    target = torch.ones(rows, 12, 2, dtype=torch.bool)
    return {
        **series,
        "target": target,
        "covariates": torch.randn(rows, 12, 3),
        "timesteps": torch.arange(rows) * 90,
    }


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)
def test_a_cell_is_torchs(cell, reverse):
    torch.manual_seed(0)
    own, theirs = cell(3, 5), CELLS[cell](3, 5, batch_first=True, dtype=torch.float64)
    own.double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(own.inputs.weight)
        theirs.weight_hh_l0.copy_(own.state.weight)
        theirs.bias_ih_l0.copy_(own.inputs.bias)
        theirs.bias_hh_l0.zero_() if own.state.bias is None else theirs.bias_hh_l0.copy_(own.state.bias)
    x = torch.randn(4, 7, 3, dtype=torch.float64)
    expected = theirs(x.flip(1))[0].flip(1) if reverse else theirs(x)[0]
    torch.testing.assert_close(own(x, reverse=reverse), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)
@pytest.mark.parametrize("channel_independent", [True, False])
def test_rows_do_not_depend_on_each_other_and_tokens_on_all(cell, channel_independent):
    net, inputs = _net(cell, channel_independent=channel_independent), _inputs(4)
    together = net(**inputs)
    assert together.shape == (4, 12, 2)
    alone = torch.cat([net(**{k: v[i : i + 1] for k, v in inputs.items()}) for i in range(4)])
    torch.testing.assert_close(together, alone)
    for changed, seen in ((0, -1), (-1, 0)):  # both directions
        noisy = inputs["noisy"].clone()
        noisy[:, changed] += 1
        assert (net(**{**inputs, "noisy": noisy}) - together)[:, seen].abs().min() > 0


def test_sampling_encodes_once_and_asks_for_some_patches():
    net, inputs = _net(GRU), _inputs(3)
    inputs["target"][:, :6] = False
    rest = {name: value for name, value in inputs.items() if name not in ("noisy", "timesteps")}
    noisy, timestep = torch.randn(12, 12, 2), torch.tensor([400])
    repeated = {name: value.repeat_interleave(4, dim=0) for name, value in rest.items()}
    expected = net(noisy, timestep.expand(12), **repeated)
    torch.testing.assert_close(net.denoise(noisy, timestep, known=net.encode(**rest)), expected)


def test_a_fresh_net_predicts_zero_and_learns_in_every_parameter_after_a_step():
    torch.manual_seed(0)
    net = SeriesRNN(AdaLNZero(), length=12, num_channels=2, num_covariates=3, patch_size=3, hidden_size=8)
    inputs = _inputs(4)
    assert net(**inputs).abs().max() == 0
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (net(**inputs) - inputs["noisy"]).square().mean().backward()
        optimizer.step()
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_the_condition_reaches_it_by_the_transformers_paths():
    paths = condition_paths(_net(GRU))
    assert set(paths) == set(ConditionPath) - {ConditionPath.ATTENTION}
    assert paths[ConditionPath.MODULATION] == {
        f"blocks.{block}.modulation.linear.{kind}" for block in (0, 1) for kind in ("weight", "bias")
    }


def test_what_has_no_blocks_is_not_made():
    with pytest.raises(TypeError, match="abstract"):
        SeriesNet(AdaLNZero())
    with pytest.raises(ValueError, match="depth is 0, but SeriesRNN has at least one block"):
        SeriesRNN(AdaLNZero(), length=12, num_channels=1, num_covariates=0, patch_size=3, depth=0)
