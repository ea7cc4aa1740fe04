"""Figures draw what they are given, and say what is wrong where they can't."""

import io
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from lightning_dp.tracking.figures import forecast_fan, quality_against_epsilon, training_curve

B, S, L, C, CONTEXT = 4, 20, 30, 2, 20


@pytest.fixture
def fan():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(B, L, C, generator=generator)
    observed = torch.ones(B, L, C, dtype=torch.bool)
    observed[:, 3] = False
    target = (torch.arange(L) >= CONTEXT)[None, :, None].expand(B, L, C)
    return {
        "samples": torch.randn(B, S, L, C, generator=generator),
        "values": values,
        "observed": observed,
        "target": target,
        "baseline": torch.zeros(B, L, C),
        "channel_names": ["load", "heat"],
        "steps_per_day": 24,
    }


@pytest.fixture
def rows():
    return [
        {"method": method, "epsilon": epsilon, "metric": "CRPS", "mean": mean, "se": 0.01}
        for method, level in (("vanilla", 0.5), ("DP-aware", 0.45))
        for epsilon, mean in ((1, level + 0.1), (8, level), (math.inf, level - 0.1))
    ]


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file)
    return file.getvalue()


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def line(axis, label: str):
    return next(drawn for drawn in axis.get_lines() if drawn.get_label() == label)


def test_a_fan_has_a_panel_for_each_example_and_channel(fan):
    figure = forecast_fan(fan.pop("samples"), **fan, unit="kWh", examples=[0, 2, 3], title="Forecast")
    assert len(figure.axes) == 6
    assert [figure.axes[index].get_ylabel() for index in (0, 3)] == ["load (kWh)", "heat (kWh)"]
    assert set(legend(figure)) == {
        "context",
        "truth",
        "median",
        "50 % of samples",
        "90 % of samples",
        "mean of days",
    }
    assert png(figure).startswith(b"\x89PNG")


def test_a_fan_shows_the_median_where_it_was_predicted_and_gaps_where_nothing_was_seen(fan):
    samples = fan.pop("samples")
    figure = forecast_fan(samples, **fan, examples=[2], channels=[1], context_hours=None)
    hours, median = line(figure.axes[0], "median").get_data()
    assert hours[CONTEXT] == 0  # the first predicted step
    assert np.isnan(median[:CONTEXT]).all()
    np.testing.assert_allclose(
        median[CONTEXT:], np.median(samples[2, :, CONTEXT:, 1].numpy(), axis=0), rtol=1e-6
    )
    context = line(figure.axes[0], "context").get_ydata()
    assert np.isnan(context[3])
    assert np.isfinite(np.delete(context[:CONTEXT], 3)).all()
    truth = line(figure.axes[0], "truth").get_ydata()
    np.testing.assert_allclose(truth[CONTEXT:], fan["values"][2, CONTEXT:, 1])


def test_a_fan_can_hide_the_distant_context_and_knows_the_step(fan):
    fan["steps_per_day"] = 48
    figure = forecast_fan(fan.pop("samples"), **fan, context_hours=5)
    hours = line(figure.axes[0], "truth").get_xdata()
    assert hours[0] == -5
    assert hours[1] - hours[0] == 0.5


def test_a_fan_draws_imputations_too(fan):
    fan["target"] = torch.zeros(B, L, C, dtype=torch.bool)
    for example in range(B):
        fan["target"][example, 5 * example : 5 * example + 4] = True
    assert png(forecast_fan(fan.pop("samples").bfloat16(), **fan))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"values": torch.zeros(B, L, 3)}, "samples have shape"),
        ({"target": torch.zeros(B, L, 1)}, "target has shape"),
        ({"channel_names": ["load"]}, "channel_names has 1"),
        ({"examples": [4]}, "examples names 4; there are 4"),
        ({"channels": []}, "channels is empty"),
        ({"examples": [0], "example_names": ["a", "b"]}, "example_names has 2"),
    ],
)
def test_a_fan_of_things_that_do_not_fit_is_refused(fan, change, words):
    arguments = fan | change
    with pytest.raises(ValueError, match=words):
        forecast_fan(arguments.pop("samples"), **arguments)


def test_quality_puts_infinity_behind_a_break(rows):
    figure = quality_against_epsilon(
        [*rows, {"method": "vanilla", "epsilon": 1, "metric": "MSE", "mean": 99.0}],
        metric="CRPS",
        baselines={"mean of days": 0.404, "seasonal naive": 0.406},
        unit_name="household",
        delta=1e-4,
    )
    private, public = figure.axes
    assert legend(figure) == ["vanilla", "DP-aware"]
    assert [label.get_text() for label in private.get_xticklabels()] == ["1", "8"]
    assert [label.get_text() for label in public.get_xticklabels()] == ["∞"]
    assert "household" in private.get_xlabel()
    means = [container[0].get_ydata().tolist() for container in private.containers]
    assert means == [[0.6, 0.5], [0.55, 0.45]]
    assert {text.get_text() for text in public.texts} == {"mean of days", "seasonal naive"}
    # Labels of lines that nearly coincide don't lie on each other.
    low, high = sorted(text.xy[1] for text in public.texts)
    assert high - low > 0.05
    assert private.get_ylim() == public.get_ylim()
    assert private.get_ylim()[0] < 0.34
    assert png(figure).startswith(b"\x89PNG")


def test_quality_is_drawn_with_only_private_or_only_public_rows(rows):
    finite = [row for row in rows if row["epsilon"] != math.inf]
    assert len(quality_against_epsilon(finite, metric="CRPS").axes) == 1
    public = [{"method": "plain", "epsilon": None, "mean": 0.3}]
    figure = quality_against_epsilon(public, metric="CRPS", baselines={"naive": 0.4})
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["∞"]
    assert png(figure)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"method": "a", "epsilon": 1, "metric": "MSE", "mean": 1}, "no row has metric 'CRPS'"),
        ({"method": "a", "mean": 1}, "lacks epsilon"),
        ({"method": "a", "epsilon": 0, "mean": 1}, "must be positive"),
    ],
)
def test_rows_that_cannot_be_drawn_are_refused(row, words):
    with pytest.raises(ValueError, match=words):
        quality_against_epsilon([row], metric="CRPS")


def test_a_training_curve_smooths_and_shows_what_was_spent():
    steps = np.arange(200)
    noisy = np.where(steps % 2, 1.0, 3.0)
    noisy[7] = 1e6  # an outlier: the median ignores it
    figure = training_curve(
        {"loss": (steps, noisy), "validation": ([0, 100], [2.0, math.nan])},
        epsilon=(steps, torch.linspace(0, 8, 200)),
        target_epsilon=8,
    )
    main, spent = figure.axes
    smooth = line(main, "loss").get_ydata()
    assert len(smooth) == 200
    assert smooth.max() <= 3
    assert line(main, "validation").get_xdata().tolist() == [0]
    assert spent.get_ylabel() == "ε spent"
    assert png(figure).startswith(b"\x89PNG")


def test_a_training_curve_without_points_is_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        training_curve({"loss": ([1], [math.nan])})
    with pytest.raises(ValueError, match="must match"):
        training_curve({"loss": ([1, 2], [1.0])})
    with pytest.raises(ValueError, match="smooth is 0"):
        training_curve({"loss": ([1], [1.0])}, smooth=0)
