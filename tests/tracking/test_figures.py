"""Figures draw what they are given, and say what is wrong where they can't."""

import io
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from lightning_dp.tracking.figures import forecast_fan, quality_against_epsilon, training_curve
from lightning_dp.tracking.palette import DARK_GROUND, method_styles

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


def test_a_single_missing_step_is_seen(fan):
    """A line through one point is no line: it once left gaps of one step without any visible prediction."""
    fan["target"] = torch.zeros(B, L, C, dtype=torch.bool)
    fan["target"][0, [5, 9, 10], 0] = True
    samples = fan.pop("samples")
    axis = forecast_fan(samples, **fan, examples=[0], channels=[0], context_hours=None).axes[0]
    dots = [drawn for drawn in axis.get_lines() if drawn.get_marker() == "o"]
    assert [len(drawn.get_xdata()) for drawn in dots] == [1]
    assert dots[0].get_xdata()[0] == 0  # hours from the first missing step
    assert dots[0].get_ydata()[0] == pytest.approx(float(np.median(samples[0, :, 5, 0].numpy())), rel=1e-6)


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


def test_a_method_keeps_its_colour_whatever_the_order_of_rows(rows):
    forward, backward = (quality_against_epsilon(some, metric="CRPS") for some in (rows, rows[::-1]))
    colours = [
        {line.get_label(): line.get_color() for line in figure.legends[0].get_lines()}
        for figure in (forward, backward)
    ]
    drawn = [
        {
            container.get_label(): container[0].get_color()
            for axis in figure.axes
            for container in axis.containers
        }
        for figure in (forward, backward)
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0].values())) == 2
    assert colours[0] == colours[1]


def _light(colour: str) -> np.ndarray:
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _contrast(a: str, b: str) -> float:
    levels = sorted(float(_light(colour) @ [0.2126, 0.7152, 0.0722]) + 0.05 for colour in (a, b))
    return levels[1] / levels[0]


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.clip(to_xyz @ linear, 1e-6, None) / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB.
_DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
}


@pytest.mark.parametrize("shade", ["light", "dark"])
def test_the_palette_can_be_told_apart(shade):
    styles = method_styles("abcdefgh")
    colours = [getattr(style, shade) for style in styles.values()]
    ground = "#ffffff" if shade == "light" else DARK_GROUND
    assert min(_contrast(colour, ground) for colour in colours) >= 3
    assert len({style.marker for style in styles.values()}) == len({s.symbol for s in styles.values()}) == 8
    for deficiency, matrix in _DEFICIENCIES.items():
        seen = [_lab(matrix @ _light(colour)) for colour in colours]
        apart = {(i, j): np.linalg.norm(seen[i] - seen[j]) for i, j in combinations(range(8), 2)}
        assert min(apart.values()) > 10, deficiency
        # As many methods as most comparisons have.
        assert min(distance for (_, j), distance in apart.items() if j < 4) > 20, deficiency
