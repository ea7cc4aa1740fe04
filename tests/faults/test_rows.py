"""P23, P25: operators that mix units, each planted in a step and named with its line; honest ones pass.

Nothing here compares lengths or values: the step of one batch is followed operator by operator.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp.privacy.follow_rows import follow_rows
from lightning_dp.privacy.rows import UnitsMixed

UNITS, TOKENS, WIDTH = 6, 4, 4
"""The batch is (UNITS, TOKENS, WIDTH)."""


class Net(nn.Module):
    """One layer, and tables that are as long as a batch or a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("seen", torch.zeros(TOKENS, WIDTH))
        self.register_buffer("table", torch.ones(UNITS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def rows(z: Tensor) -> Tensor:
    """(R, …) → (R,)."""
    return z.flatten(1).square().mean(dim=1)


Step = Callable[[Net, Tensor], Tensor]


def follow(step: Step, *, rows_per_unit: int = 1) -> None:
    batch = torch.randn(UNITS * rows_per_unit, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    follow_rows(Net(), step, batch, num_units=UNITS)


# --- units are mixed ---------------------------------------------------------------------------------------


def mean_over_units(net: Net, x: Tensor) -> Tensor:
    return rows(net(x - x.mean(dim=0)))


def divided_by_the_largest(net: Net, x: Tensor) -> Tensor:
    return rows(net(x / x.abs().max()))


def normalised_with_the_batch(net: Net, x: Tensor) -> Tensor:
    return rows(net(F.batch_norm(x.movedim(2, 1), None, None, training=True).movedim(1, 2)))


def softmax_over_units(net: Net, x: Tensor) -> Tensor:
    return rows(net(x).softmax(dim=0))


def norm_over_units(net: Net, x: Tensor) -> Tensor:
    return rows(F.normalize(net(x), dim=0))


def flipped_units(net: Net, x: Tensor) -> Tensor:
    return rows(net(x + x.flip(0)))


def rolled_units(net: Net, x: Tensor) -> Tensor:
    return rows(net(x + x.roll(1, dims=0)))


def permuted_units(net: Net, x: Tensor) -> Tensor:
    return rows(net(x + x[torch.randperm(len(x))]))


def summed_up_to_a_unit(net: Net, x: Tensor) -> Tensor:
    return rows(net(x.cumsum(dim=0)))


def sorted_units(net: Net, x: Tensor) -> Tensor:
    return rows(net(x.sort(dim=0).values))


def ranked_units(net: Net, x: Tensor) -> Tensor:
    losses = rows(net(x))
    return losses.topk(3).values


def median_of_units(net: Net, x: Tensor) -> Tensor:
    losses = rows(net(x))
    return losses * (losses >= losses.median())


def first_unit_for_all(net: Net, x: Tensor) -> Tensor:
    return rows(net(x + x[0]))


def differences_of_units(net: Net, x: Tensor) -> Tensor:
    return rows(net(x)[1:] - net(x)[:-1])


def repeated_one_after_the_other(net: Net, x: Tensor) -> Tensor:
    return rows(net(x.repeat(2, 1, 1)))


def views_one_after_the_other(net: Net, x: Tensor) -> Tensor:
    return rows(net(torch.cat([x, 0.5 * x])))


def similarities(net: Net, x: Tensor) -> Tensor:
    z = net(x).flatten(1)
    return rows(z @ z.T)


def contracted_over_units(net: Net, x: Tensor) -> Tensor:
    return rows(net(x @ torch.einsum("bti,btj->ij", x, x)))


def distances(net: Net, x: Tensor) -> Tensor:
    z = net(x).flatten(1)
    return rows(torch.cdist(z, z))


def folded_into_pairs(net: Net, x: Tensor) -> Tensor:
    pairs = x.reshape(len(x) // 2, 2, TOKENS, WIDTH)
    return rows(net(pairs).mean(dim=1))


def units_read_as_tokens(net: Net, x: Tensor) -> Tensor:
    return rows(net(x.reshape(TOKENS, len(x), WIDTH).movedim(0, 1)))


def attention_over_units(net: Net, x: Tensor) -> Tensor:
    z = net(x).transpose(0, 1)
    return rows(F.scaled_dot_product_attention(z, z, z).transpose(0, 1))


def filtered_along_units(net: Net, x: Tensor) -> Tensor:
    z = net(x).permute(2, 1, 0)
    return rows(F.avg_pool1d(z, 3, stride=1, padding=1).permute(2, 1, 0))


def counted_in_the_batch(net: Net, x: Tensor) -> Tensor:
    told = (x > 0).float()
    return (net(x).square() * told).sum() / told.sum()


def weighed_by_the_total(net: Net, x: Tensor) -> Tensor:
    losses = rows(net(x))
    return losses * losses.detach() / losses.detach().sum()


def chosen_by_a_mask(net: Net, x: Tensor) -> Tensor:
    return rows(net(x[x[:, 0, 0] > 0]))


def remembered_in_a_buffer(net: Net, x: Tensor) -> Tensor:
    net.seen.lerp_(x.mean(dim=0), 0.1)
    return rows(net(x - net.seen))


def added_to_a_buffer(net: Net, x: Tensor) -> Tensor:
    net.seen += 0.1 * x.mean(dim=0)
    return rows(net(x - net.seen))


MIXES = [
    mean_over_units,
    divided_by_the_largest,
    normalised_with_the_batch,
    softmax_over_units,
    norm_over_units,
    flipped_units,
    rolled_units,
    permuted_units,
    summed_up_to_a_unit,
    sorted_units,
    ranked_units,
    median_of_units,
    first_unit_for_all,
    differences_of_units,
    repeated_one_after_the_other,
    views_one_after_the_other,
    similarities,
    contracted_over_units,
    distances,
    folded_into_pairs,
    units_read_as_tokens,
    attention_over_units,
    filtered_along_units,
    counted_in_the_batch,
    weighed_by_the_total,
    chosen_by_a_mask,
    remembered_in_a_buffer,
    added_to_a_buffer,
]


def check_named(step: Step) -> None:
    """The step raises UnitsMixed with a line of the step itself."""
    with pytest.raises(UnitsMixed) as error:
        follow(step)
    here = re.match(rf"{Path(__file__).name}:(\d+)", error.value.place)
    assert here, f"names {error.value.place}"
    first = step.__code__.co_firstlineno
    last = max(line for _, _, line in step.__code__.co_lines() if line is not None)
    assert first < int(here[1]) <= last, f"names {error.value.place}"


@pytest.mark.parametrize("step", MIXES, ids=lambda step: step.__name__)
def test_what_mixes_units_is_named_with_its_line(step):
    check_named(step)


def largest_loss(net: Net, x: Tensor) -> Tensor:
    return rows(net(x)).max()


def first_loss(net: Net, x: Tensor) -> Tensor:
    return rows(net(x))[0]


@pytest.mark.parametrize("step", [largest_loss, first_loss], ids=lambda step: step.__name__)
def test_a_loss_of_one_unit_is_refused(step):
    with pytest.raises(UnitsMixed, match="one unit's part"):
        follow(step)


# --- Python reads what came from units ---------------------------------------------------------------------


def if_any(net: Net, x: Tensor) -> Tensor:
    scale = 2.0 if (x > 1).any() else 1.0
    return rows(net(x)) * scale


def if_the_largest(net: Net, x: Tensor) -> Tensor:
    scale = 2.0 if max(x.flatten()) > 1 else 1.0
    return rows(net(x)) * scale


def by_item(net: Net, x: Tensor) -> Tensor:
    scale = math.exp(-x.abs().mean().item())
    return rows(net(x)) * scale


def beyond_a_threshold(net: Net, x: Tensor) -> Tensor:
    scale = 2.0 if float(x.max()) > 100 else 1.0  # which no made-up unit is
    return rows(net(x)) * scale


def below_a_threshold(net: Net, x: Tensor) -> Tensor:
    scale = 2.0 if x.min().item() < -100 else 1.0
    return rows(net(x)) * scale


def by_float(net: Net, x: Tensor) -> Tensor:
    scale = 1 + float(x.square().sum())
    return rows(net(x)) / scale


def by_int(net: Net, x: Tensor) -> Tensor:
    longest = int((x > -9).sum(dim=1).max())
    return rows(net(x)) / longest


def by_list(net: Net, x: Tensor) -> Tensor:
    scale = 2.0 if sum(x[:, 0, 0].tolist()) > 0 else 1.0
    return rows(net(x)) * scale


def by_numpy(net: Net, x: Tensor) -> Tensor:
    scale = 2.0 if x.numpy().mean() > 0 else 1.0
    return rows(net(x)) * scale


def by_equality(net: Net, x: Tensor) -> Tensor:
    scale = 2.0 if torch.equal(x, x.abs()) else 1.0
    return rows(net(x)) * scale


def by_how_many_differ(net: Net, x: Tensor) -> Tensor:
    scale = len(x.sign().unique())
    return rows(net(x)) * scale


READS = [
    if_any,
    if_the_largest,
    by_item,
    beyond_a_threshold,
    below_a_threshold,
    by_float,
    by_int,
    by_list,
    by_numpy,
    by_equality,
    by_how_many_differ,
]


@pytest.mark.parametrize("step", READS, ids=lambda step: step.__name__)
def test_what_python_reads_of_units_is_named_with_its_line(step):
    check_named(step)


# --- honest ------------------------------------------------------------------------------------------------


def softmax_of_a_row(net: Net, x: Tensor) -> Tensor:
    return rows(net(x).softmax(dim=-1))


def attention_of_a_row(net: Net, x: Tensor) -> Tensor:
    z = net(x)
    return rows(F.scaled_dot_product_attention(z, z, z))


def time_first(net: Net, x: Tensor) -> Tensor:
    return net(x.transpose(0, 1)).square().mean(dim=(0, 2))


def folded_rows(net: Net, x: Tensor) -> Tensor:
    return rows(net(x.flatten(0, 1)).unflatten(0, x.shape[:2]))


def permuted_time(net: Net, x: Tensor) -> Tensor:
    return rows(net(x[:, torch.randperm(TOKENS)]))


def flipped_time(net: Net, x: Tensor) -> Tensor:
    return rows(net(x.flip(1)).cumsum(dim=1))


def picked_in_each_row(net: Net, x: Tensor) -> Tensor:
    z = net(x)
    return z[torch.arange(len(z)), z.detach().square().mean(dim=2).argmax(dim=1)].square().mean(dim=1)


def best_of_each_row(net: Net, x: Tensor) -> Tensor:
    return net(x).flatten(1).topk(3, dim=1).values.square().mean(dim=1)


def with_dropout(net: Net, x: Tensor) -> Tensor:
    return rows(F.dropout(net(x), 0.3))


def drawn_for_each_row(net: Net, x: Tensor) -> Tensor:
    time = torch.rand(len(x), 1, 1)
    return rows(net(x + time * torch.randn(len(x), TOKENS, WIDTH)))


def zeros_for_each_row(net: Net, x: Tensor) -> Tensor:
    start = torch.zeros(len(x), 1, WIDTH)
    return rows(net(torch.cat([start, x], dim=1)))


def a_row_several_times(net: Net, x: Tensor) -> Tensor:
    return rows(net(x.repeat_interleave(2, dim=0)))


def scaled_by_its_own(net: Net, x: Tensor) -> Tensor:
    return rows(net(x / (1 + x.abs().amax(dim=(1, 2), keepdim=True))))


def masked_mean_of_a_row(net: Net, x: Tensor) -> Tensor:
    told = (x > 0).float()
    return (net(x).square() * told).sum(dim=(1, 2)) / told.sum(dim=(1, 2)).clamp(min=1)


def a_loss_that_is_written_down(net: Net, x: Tensor) -> Tensor:
    losses = rows(net(x))
    print(math.log(losses.mean().item()), losses.tolist(), losses.detach().numpy())
    return losses


def a_mean_over_all(net: Net, x: Tensor) -> Tensor:
    return rows(net(x)).mean()


HONEST = [
    softmax_of_a_row,
    attention_of_a_row,
    time_first,
    folded_rows,
    permuted_time,
    flipped_time,
    picked_in_each_row,
    best_of_each_row,
    with_dropout,
    drawn_for_each_row,
    zeros_for_each_row,
    a_row_several_times,
    scaled_by_its_own,
    masked_mean_of_a_row,
    a_loss_that_is_written_down,
    a_mean_over_all,
]


@pytest.mark.parametrize("step", HONEST, ids=lambda step: step.__name__)
@pytest.mark.parametrize("rows_per_unit", [1, 3])
def test_what_keeps_units_apart_passes(step, rows_per_unit):
    follow(step, rows_per_unit=rows_per_unit)
