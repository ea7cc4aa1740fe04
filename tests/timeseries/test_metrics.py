"""Scores against independent computations: numpy loops, torchmetrics, closed forms."""

import math

import numpy as np
import pytest
import scoringrules
import torch
import torchmetrics
from sklearn.metrics import mean_pinball_loss, r2_score

from lightning_dp.timeseries import metrics
from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.metrics import (
    CRPS,
    CRPS_QUANTILES,
    MAE,
    MSE,
    R2,
    Coverage,
    scored_positions,
    scored_scale,
    sum_over_channels,
)

torch.set_num_threads(1)


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    shape = (6, 10, 3)
    values = torch.randn(shape, generator=generator) * 5 + 2
    samples = torch.randn(6, 11, 10, 3, generator=generator) * 4 + 1
    mask = torch.rand(shape, generator=generator) < 0.4
    return values, samples, mask


def crps_by_hand(samples: np.ndarray, values: np.ndarray, mask: np.ndarray) -> float:
    """The protocol's sentence, one scored point and one level at a time."""
    levels = [step / 20 for step in range(1, 20)]
    per_level = []
    for level in levels:
        loss = 0.0
        for b, t, c in zip(*np.nonzero(mask), strict=True):
            ordered = sorted(float(sample) for sample in samples[b, :, t, c])
            place = level * (len(ordered) - 1)
            low = math.floor(place)
            high = min(low + 1, len(ordered) - 1)
            quantile = ordered[low] + (place - low) * (ordered[high] - ordered[low])
            error = float(values[b, t, c]) - quantile
            loss += 2 * (level * error if error >= 0 else (level - 1) * error)
        per_level.append(loss / sum(abs(float(y)) for y in values[mask]))
    return sum(per_level) / len(levels)


def test_the_levels_are_those_of_the_protocol():
    assert len(CRPS_QUANTILES) == 19
    np.testing.assert_allclose(CRPS_QUANTILES, np.arange(1, 20) / 20, rtol=1e-12)


def test_crps_equals_the_computation_by_hand(case):
    values, samples, mask = case
    score = CRPS()
    score.update(samples, values, mask)
    assert float(score.compute()) == pytest.approx(
        crps_by_hand(samples.numpy(), values.numpy(), mask.numpy()), rel=1e-6
    )


def test_crps_of_a_point_forecast_is_its_relative_absolute_error(case):
    values, samples, mask = case
    score = CRPS()
    score.update(samples[:, :1], values, mask)
    error = np.abs(samples[:, 0].numpy() - values.numpy())[mask.numpy()].sum()
    assert float(score.compute()) == pytest.approx(
        error / np.abs(values.numpy())[mask.numpy()].sum(), rel=1e-6
    )


def test_crps_of_many_gaussian_samples_approaches_the_closed_form():
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(4000, 1, 1, generator=generator) + 3
    samples = torch.randn(4000, 400, 1, 1, generator=generator) + 3
    score = CRPS()
    score.update(samples, values, torch.ones_like(values, dtype=torch.bool))
    # E[CRPS(N(0,1), y)] over y ~ N(0,1) is 1/√π; 19 levels instead of the integral leave out both ends.
    expected = 1 / math.sqrt(math.pi) / float(values.abs().mean())
    assert float(score.compute()) == pytest.approx(expected, rel=0.06)


def test_crps_equals_the_pinball_losses_of_scikit_learn(case):
    values, samples, mask = case
    score = CRPS()
    score.update(samples, values, mask)
    truth = values[mask].numpy()
    drawn = samples.movedim(1, -1)[mask].numpy()  # (M, S)
    losses = [
        2 * mean_pinball_loss(truth, np.quantile(drawn, level, axis=1), alpha=level)
        for level in CRPS_QUANTILES
    ]
    assert float(score.compute()) == pytest.approx(np.mean(losses) / np.abs(truth).mean(), rel=1e-5)


def test_crps_of_many_samples_approaches_scoringrules(case):
    values, _, mask = case
    generator = torch.Generator().manual_seed(2)
    samples = torch.randn(6, 400, 10, 3, generator=generator) * 4 + 1
    score = CRPS()
    score.update(samples, values, mask)
    drawn, truth = samples.movedim(1, -1)[mask].numpy(), values[mask].numpy()
    exact = scoringrules.crps_ensemble(truth, drawn).sum() / np.abs(truth).sum()
    # 19 levels instead of the integral over all of them.
    assert float(score.compute()) == pytest.approx(exact, rel=0.06)


def test_crps_sum_is_the_crps_of_the_summed_channels(case):
    values, samples, mask = case
    mask = mask | (torch.arange(10) % 2 == 0)[None, :, None]
    summed, total, scored = sum_over_channels(samples, values, mask=mask)
    assert scored.any()
    assert not scored.all()
    assert torch.equal(scored[..., 0], mask[..., 0] & mask[..., 1] & mask[..., 2])
    score = CRPS()
    score.update(summed, total, scored)
    by_hand = crps_by_hand(summed.numpy(), total.numpy(), scored.numpy())
    assert float(score.compute()) == pytest.approx(by_hand, rel=1e-6)


def test_coverage_equals_counting_with_numpys_quantiles(case):
    values, samples, mask = case
    score = Coverage((0.5, 0.8))
    for rows in (slice(0, 1), slice(1, 6)):
        score.update(samples[rows], values[rows], mask[rows])
    drawn, truth = samples.movedim(1, -1)[mask].numpy(), values[mask].numpy()
    expected = [
        ((np.quantile(drawn, low, axis=1) <= truth) & (truth <= np.quantile(drawn, 1 - low, axis=1))).mean()
        for low in (0.25, 0.1)
    ]
    assert score.compute().tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="levels is"):
        Coverage((1.0,))


@pytest.mark.parametrize(
    ("ours", "theirs"), [(MSE, torchmetrics.MeanSquaredError), (MAE, torchmetrics.MeanAbsoluteError)]
)
def test_errors_equal_torchmetrics_on_the_scored_points(case, ours, theirs):
    values, samples, mask = case
    score, reference = ours(), theirs()
    for rows in (slice(0, 1), slice(1, 6)):  # unequal batches: the mean is over points, not over batches
        score.update(samples[rows, 0], values[rows], mask[rows])
    reference.update(samples[:, 0][mask], values[mask])
    assert float(score.compute()) == pytest.approx(float(reference.compute()), rel=1e-6)


def test_r2_is_scikit_learn_s_of_the_scored_values_with_a_mean_for_each_channel(case):
    values, samples, _ = case
    whole = torch.zeros(6, 10, 3, dtype=torch.bool)
    whole[:, 4:] = True  # as many of each channel: scikit-learn knows no gaps
    metric = R2(3)
    for rows in (slice(0, 2), slice(2, 6)):
        metric.update(samples.mean(dim=1)[rows], values[rows], whole[rows])
    truth, forecast = values[:, 4:].flatten(0, 1), samples.mean(dim=1)[:, 4:].flatten(0, 1)
    expected = r2_score(truth.double(), forecast.double(), multioutput="variance_weighted")
    assert metric.compute().item() == pytest.approx(expected, rel=1e-6)


def test_r2_of_channel_means_is_zero_and_levels_of_channels_explain_nothing(case):
    values, _, mask = case
    values = values + torch.tensor([0.0, 100.0, -50.0])
    means = torch.stack([values[..., c][mask[..., c]].mean() for c in range(3)])
    metric = R2(3)
    metric.update(means.expand_as(values), values, mask)
    assert metric.compute().item() == pytest.approx(0, abs=1e-5)
    metric.update(torch.full_like(values, torch.nan), values, torch.zeros_like(mask))  # nothing to score
    assert metric.compute().item() == pytest.approx(0, abs=1e-5)
    constant = R2(3)
    assert constant.compute().isnan()
    constant.update(values, torch.full_like(values, 0.1), mask)
    assert constant.compute().isnan()


def test_only_targets_that_were_observed_are_scored():
    observed = torch.tensor([[[True], [True], [False], [False]]])
    target = torch.tensor([[[True], [False], [True], [False]]])
    batch = Batch(
        values=torch.zeros(1, 4, 1), observed=observed, target=target, covariates=torch.zeros(1, 4, 0)
    )
    assert scored_positions(batch)[0, :, 0].tolist() == [True, False, False, False]


def test_what_is_not_scored_has_no_influence(case):
    values, samples, mask = case
    poisoned_values = torch.where(mask, values, torch.nan)
    poisoned_samples = torch.where(mask[:, None], samples, torch.inf)
    for score, clean, poisoned in (
        (MSE(), samples[:, 0], poisoned_samples[:, 0]),
        (MAE(), samples[:, 0], poisoned_samples[:, 0]),
        (CRPS(), samples, poisoned_samples),
    ):
        score.update(clean, values, mask)
        expected = float(score.compute())
        score.reset()
        score.update(poisoned, poisoned_values, mask)
        assert float(score.compute()) == expected


def test_a_scored_prediction_that_is_nan_is_not_hidden(case):
    values, samples, mask = case
    samples[:, :, :, 0] = torch.nan
    for score, prediction in ((MSE(), samples[:, 0]), (CRPS(), samples)):
        score.update(prediction, values, mask)
        assert math.isnan(score.compute())


def test_crps_does_not_depend_on_batches_or_chunks(case, monkeypatch):
    values, samples, mask = case
    whole, parts = CRPS(), CRPS()
    whole.update(samples, values, mask)
    monkeypatch.setattr(metrics, "_QUANTILE_CHUNK", 40)
    for row in range(len(values)):
        parts.update(samples[row : row + 1], values[row : row + 1], mask[row : row + 1])
    assert float(parts.compute()) == pytest.approx(float(whole.compute()), rel=1e-9)


def test_states_of_two_processes_add_up(case):
    values, samples, mask = case
    whole, first, second = CRPS(), CRPS(), CRPS()
    whole.update(samples, values, mask)
    first.update(samples[:2], values[:2], mask[:2])
    second.update(samples[2:], values[2:], mask[2:])
    first.merge_state(second)
    assert float(first.compute()) == pytest.approx(float(whole.compute()), rel=1e-9)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_scored_gives_nan():
    nothing = torch.zeros(1, 4, 1, dtype=torch.bool)
    mse, crps = MSE(), CRPS()
    mse.update(torch.zeros(1, 4, 1), torch.zeros(1, 4, 1), nothing)
    crps.update(torch.zeros(1, 3, 4, 1), torch.zeros(1, 4, 1), nothing)
    assert math.isnan(mse.compute())
    assert math.isnan(crps.compute())


def test_wrong_shapes_and_masks_are_refused(case):
    values, samples, mask = case
    with pytest.raises(ValueError, match=r"\(B, L, C\)"):
        MSE().update(samples, values, mask)
    with pytest.raises(ValueError, match=r"\(B, L, C\)"):
        CRPS().update(samples.movedim(1, -1), values, mask)
    with pytest.raises(ValueError, match="must be bool"):
        MAE().update(values, values, mask.long())


def test_the_scale_of_errors_is_that_of_what_is_scored(case):
    """In parts of any size, with gaps, around a mean that is large beside the deviation."""
    values, _, mask = case
    values = values + torch.tensor([0.0, 1e4, 0.0])
    values[..., 2] = 7.3  # never changes
    observed = torch.rand(values.shape, generator=torch.Generator().manual_seed(1)) < 0.9
    batch = Batch(values=values, observed=observed, target=mask, covariates=values[..., :0])
    whole = {name: field.split([1, 0, 3, 2]) for name, field in batch.items()}
    mean, deviation = scored_scale([Batch(**{n: f[part] for n, f in whole.items()}) for part in range(4)])
    scored = np.where(mask & observed, values.double(), np.nan)
    np.testing.assert_allclose(mean, np.nanmean(scored, axis=(0, 1)), rtol=1e-6)
    np.testing.assert_allclose(deviation[:2], np.nanstd(scored, axis=(0, 1))[:2], rtol=1e-5)
    assert deviation[2] == 1
    nothing = Batch(**{**batch, "target": torch.zeros_like(mask)})
    assert [x.tolist() for x in scored_scale([nothing])] == [[0.0] * 3, [1.0] * 3]
