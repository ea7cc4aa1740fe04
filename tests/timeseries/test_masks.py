"""Tasks as masks: what they hide, how often, and that evaluation hides the same each time."""

import pytest
import torch

from lightning_dp.timeseries.masks import (
    BlackoutImputation,
    Forecast,
    Interpolation,
    Mask,
    Mixture,
    PointImputation,
    StepImputation,
    StrideImputation,
    SubSequenceImputation,
    Synthesis,
    kind_of,
)

L, C = 96, 7
TASKS = [
    Forecast(24),
    Forecast((24, 72)),
    StepImputation((0.1, 0.5)),
    PointImputation(0.5),
    PointImputation((0.1, 0.5)),
    SubSequenceImputation(0.5),
    BlackoutImputation(0.5),
    StrideImputation((4, 8)),
    Interpolation(4),
    Synthesis(),
    Mixture([Forecast(24), Synthesis()]),
]


def draw(task: Mask, windows: int = 500, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return task.draw(windows, length=L, num_channels=C, generator=generator)


def runs(mask: torch.Tensor) -> torch.Tensor:
    """(B, C) how many separate stretches of True each column has."""
    before = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=1)
    return (mask & ~before).sum(dim=1)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_every_task_keeps_the_interface(task):
    mask = draw(task)
    assert mask.shape == (500, L, C)
    assert mask.dtype == torch.bool
    assert mask.any(dim=(1, 2)).all()
    assert task.draw(0, length=L, num_channels=C).shape == (0, L, C)
    assert torch.equal(mask, draw(task))
    mask[0] = False  # memory of its own: a shared row would change the others
    assert mask[1:].any(dim=(1, 2)).all()
    assert 0 < len(str(task)) < 60


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_training_draws_from_torchs_global_generator(task):
    torch.manual_seed(3)
    first = task.draw(50, length=L, num_channels=C)
    again = task.draw(50, length=L, num_channels=C)
    torch.manual_seed(3)
    assert torch.equal(first, task.draw(50, length=L, num_channels=C))
    fixed = isinstance(task, Interpolation | Synthesis) or str(task) == "forecast 24 steps"
    assert torch.equal(first, again) == fixed


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_evaluation_hides_the_same_whatever_the_batch(task):
    state = torch.get_rng_state()
    whole = task.draw_fixed(range(40), length=L, num_channels=C)
    parts = [task.draw_fixed(torch.tensor([i]), length=L, num_channels=C)[0] for i in reversed(range(40))]
    assert torch.equal(whole, torch.stack(parts[::-1]))
    assert torch.equal(torch.get_rng_state(), state)  # training goes on as if nobody had looked


def test_windows_and_seeds_have_masks_of_their_own():
    task = BlackoutImputation(0.5)
    masks = [task.draw_fixed(range(200), length=L, num_channels=C, seed=seed) for seed in (0, 1, 2**40)]
    first_steps = [mask[:, :, 0].int().argmax(dim=1) for mask in masks]
    for steps in first_steps:
        assert len(steps.unique()) > 40  # of 49 places
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_a_forecast_hides_the_last_steps():
    mask = draw(Forecast(24))
    assert not mask[:, :72].any()
    assert mask[:, 72:].all()


def test_end_blocks_have_a_length_of_their_own_in_each_window():
    mask = draw(Forecast((24, 72)), 2000)
    length = mask[:, :, 0].sum(dim=1)
    assert (mask == (torch.arange(L) >= L - length[:, None])[:, :, None]).all()
    assert set(length.tolist()) == set(range(24, 73))
    assert length.float().mean().item() == pytest.approx(48, abs=1)


@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_steps_are_missing_independently_in_all_channels_at_once(ratio):
    mask = draw(StepImputation(ratio), 1000)
    assert (mask == mask[:, :, :1]).all()
    steps = mask[:, :, 0].float()
    assert steps.mean().item() == pytest.approx(ratio, abs=0.006)
    assert (steps[:, 1:] * steps[:, :-1]).mean().item() == pytest.approx(ratio**2, abs=0.01)
    of_window = draw(StepImputation((0.1, 0.5)), 1000)[:, :, 0].float().mean(dim=1)
    assert of_window.mean().item() == pytest.approx(0.3, abs=0.01)
    assert of_window.std().item() > 0.1  # one ratio per window, from .1 to .5


@pytest.mark.parametrize("ratio", [0.125, 0.5])
def test_points_are_missing_independently(ratio):
    mask = draw(PointImputation(ratio), 1000).float()
    assert mask.mean().item() == pytest.approx(ratio, abs=0.003)
    neighbours = (mask[:, 1:] * mask[:, :-1]).mean().item()
    channels = (mask[..., 0] * mask[..., 1]).mean().item()
    assert neighbours == pytest.approx(ratio**2, abs=0.004)
    assert channels == pytest.approx(ratio**2, abs=0.008)


def test_a_sub_sequence_is_one_run_at_a_place_of_its_own_in_each_channel():
    mask = draw(SubSequenceImputation(0.5))
    assert (mask.sum(dim=1) == 48).all()
    assert (runs(mask) == 1).all()
    first = mask.int().argmax(dim=1)  # (B, C)
    assert (first[:, 0] != first[:, 1]).float().mean() > 0.9
    # Uniform over all 49 places, both ends included.
    assert set(first.flatten().tolist()) == set(range(49))
    assert first.float().mean().item() == pytest.approx(24, abs=1)


def test_a_blackout_hides_one_run_of_all_channels_at_once():
    mask = draw(BlackoutImputation(0.5))
    assert (mask.sum(dim=1) == 48).all()
    assert (runs(mask) == 1).all()
    assert (mask == mask[:, :, :1]).all()


def test_a_range_of_ratios_is_drawn_per_window():
    share = draw(BlackoutImputation((0.25, 0.5)), 2000).float().mean(dim=(1, 2))
    assert share.min() == 0.25
    assert share.max() == 0.5
    assert share.mean().item() == pytest.approx(0.375, abs=0.01)


def test_strides_hide_every_second_block():
    mask = draw(StrideImputation(4))
    assert mask.float().mean().item() == 0.5
    assert (runs(mask) == 2).all()
    first = mask[:, 0, 0]
    assert 0.4 < first.float().mean() < 0.6
    assert mask[first][:, :24].all()
    assert not mask[~first][:, :24].any()
    # 4 to 8 blocks: half of them, rounded either way, are missing.
    assert set(runs(draw(StrideImputation((4, 8)), 2000)).flatten().tolist()) == {2, 3, 4}


def test_interpolation_knows_every_spacing_th_step():
    known = (~draw(Interpolation(4))[0, :, 0]).nonzero().flatten()
    assert known.tolist() == list(range(0, L, 4))


def test_a_mixture_keeps_its_weights_and_its_tasks_whole():
    mask = draw(Mixture([Synthesis(), Forecast(24), BlackoutImputation(0.5)], weights=[1, 1, 2]), 4000)
    share = mask.float().mean(dim=(1, 2))
    for size, expected in ((1.0, 0.25), (0.25, 0.25), (0.5, 0.5)):
        assert (share == size).float().mean().item() == pytest.approx(expected, abs=0.03)


def test_kinds_are_told_apart():
    kinds = {str(task): kind_of(draw(task)) for task in TASKS}
    assert kinds.pop("synthesise") == "synthesis"
    assert kinds.pop("forecast 24 steps") == "forecast"
    assert set(kinds.values()) == {"imputation"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Forecast(0), "horizon is 0"),
        (lambda: draw(Forecast(96)), "needs one known step"),
        (lambda: Forecast((24, 12)), "horizon is 12; it must be at least 24"),
        (lambda: draw(Forecast((24, 96))), "needs one known step"),
        (lambda: StepImputation(0.0), "strictly between 0 and 1"),
        (lambda: PointImputation(1.0), "strictly between 0 and 1"),
        (lambda: PointImputation((0.5, 0.1)), "low ≤ high"),
        (lambda: StrideImputation(1), "num_blocks is 1"),
        (lambda: draw(StrideImputation(200)), "use fewer blocks"),
        (lambda: Interpolation(1), "spacing is 1"),
        (lambda: Mixture([]), "tasks is empty"),
        (lambda: Mixture([Synthesis()], weights=[0.0]), "above 0"),
        (lambda: Mixture([Synthesis()], weights=[1.0, 1.0]), "for 1 tasks"),
    ],
)
def test_impossible_tasks_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
