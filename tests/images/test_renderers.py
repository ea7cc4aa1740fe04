"""Simulators: what is drawn for a class, how far a variation goes, and a run with one of them."""

import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import yaml
from image_support import CLASSES, write_npz

from lightning_dp.cli import main
from lightning_dp.evolution.state import read_state
from lightning_dp.images.evolution.parameters import Choice, Number
from lightning_dp.images.evolution.rendered_shapes import RenderedShapes
from lightning_dp.images.evolution.rendered_text import RenderedText

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
SERIF = str(FONTS / "DejaVuSerif.ttf")
SHAPES = ("circle", "triangle", "square", "bar", "pentagon", "cross", "star")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("mode", ["grey", "rgb"])
@pytest.mark.parametrize("kind", [RenderedText, RenderedShapes])
def test_images_are_of_the_datas_form_and_follow_from_the_parameters(kind, mode):
    api = kind(["0", "1"], size=20, mode=mode) if kind is RenderedText else kind(SHAPES, size=20, mode=mode)
    labels = np.arange(30) % 2
    samples = api.random(labels, rng=rng())
    images = api.render(samples)
    assert images.shape == (30, 1 if mode == "grey" else 3, 20, 20)
    assert images.dtype == np.uint8
    assert (images.reshape(30, -1).max(axis=1) > 60).all(), "something is to be seen"
    assert np.array_equal(images[3:5], api.render(samples[3:5]))
    assert np.array_equal(samples, api.random(labels, rng=rng()))
    assert not np.array_equal(samples, api.random(labels, rng=rng(1)))


@pytest.mark.parametrize("api", [RenderedText(["ab", "c"]), RenderedShapes(["circle square", "star"])])
def test_a_sample_stays_of_its_class_and_nears_it_with_the_degree(api):
    labels = np.arange(400) % 2
    samples = api.random(labels, rng=rng())
    assert set(samples[labels == 0, 0]) == set(api._subjects[0])
    assert set(samples[labels == 1, 0]) == set(api._subjects[1])
    distance = []
    for degree in (0.0, 0.2, 1.0):
        varied = api.vary(samples, labels, degree=degree, rng=rng(1))
        assert set(varied[labels == 1, 0]) == set(api._subjects[1])
        distance.append(abs(varied - samples).mean())
    assert distance[0] == 0 < distance[1] < distance[2]


def test_without_a_class_anything_may_be_drawn():
    api = RenderedText(["ab", "c"])
    assert set(api.random(np.full(100, -1), rng=rng())[:, 0]) == {0, 1, 2}


def test_numbers_stay_within_bounds_and_choices_change_by_chance():
    number = Number(name="x", low=-1, high=1, reach=0.5)
    values = number.random(1000, rng=rng())
    varied = number.vary(values, degree=0.4, rng=rng(1))
    assert abs(varied).max() <= 1
    assert 0.15 < abs(varied - values).max() <= 0.2 + 1e-12
    choice = Choice(name="font", count=5)
    fonts = choice.random(4000, rng=rng())
    changed = (choice.vary(fonts, degree=0.5, rng=rng(1)) != fonts).mean()
    assert changed == pytest.approx(0.5 * 4 / 5, abs=0.03)


def _draws_digits(api: RenderedText) -> list[bool]:
    """For each font whether no two digits look alike, and a 1 is as tall as a 0 and no wider."""
    sound = []
    for font in range(int(api.facts()["fonts"])):
        samples = np.array([[digit, font, 22.0, 0.0, 0.0] for digit in range(10)])
        images = api.render(samples)[:, 0] > 127  # (10, 28, 28)
        flat = images.reshape(10, -1)
        overlap = (flat[:, None] & flat[None]).sum(axis=2) / (flat[:, None] | flat[None]).sum(axis=2)
        np.fill_diagonal(overlap, 0)
        height, width = (
            np.array([np.ptp(np.flatnonzero(i.any(axis=axis))) for i in images]) for axis in (1, 0)
        )
        sound.append(overlap.max() < 0.9 and abs(height[1] - height[0]) <= 2 and width[1] <= width[0])
    return sound


def test_every_known_font_draws_digits():
    digits = [str(digit) for digit in range(10)]
    sound = _draws_digits(RenderedText(digits))
    assert len(sound) >= 15
    assert all(sound)
    # Planted: a font beside them that has other signs in the digits' places.
    assert not any(_draws_digits(RenderedText(digits, fonts=[str(FONTS / "cmsy10.ttf")])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"characters": []}, r"characters is \[\]"),
        ({"characters": ["0", ""]}, "none of it empty"),
        ({"characters": ["0"], "sizes": (0.5, 0.2)}, "sizes is"),
        ({"characters": ["0"], "angle": 200}, "angle is 200"),
        ({"characters": ["0"], "stroke": -1}, "stroke is -1"),
        ({"characters": ["0"], "size": 2}, "size is 2"),
        ({"characters": ["0"], "mode": "L"}, "mode is 'L'"),
        ({"characters": ["0"], "fonts": ["nowhere.ttf"]}, "there is no font"),
        ({"characters": ["0"], "fonts": [__file__]}, "can't be read as a font"),
        ({"characters": ["字"], "fonts": [SERIF]}, "has no '字'"),
        ({"characters": ["字"]}, "no font beside matplotlib"),
    ],
)
def test_text_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        RenderedText(options.pop("characters"), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": []}, "shapes is empty"),
        ({"shapes": ["circle", "ring"]}, "shapes has ring"),
        ({"shapes": [" "]}, "an empty entry"),
        ({"shapes": ["circle"], "radii": (0, 0.5)}, "radii is"),
        ({"shapes": ["circle"], "shift": 0.6}, "shift is 0.6"),
    ],
)
def test_shapes_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        RenderedShapes(options.pop("shapes"), **options)


def test_given_fonts_are_those_that_are_drawn(tmp_path):
    one = RenderedText(["A"], fonts=[SERIF])
    assert one.facts()["fonts"] == 1
    (tmp_path / "some").mkdir()
    for name in ("DejaVuSans.ttf", "DejaVuSerif.ttf"):
        (tmp_path / "some" / name).write_bytes((FONTS / name).read_bytes())
    assert RenderedText(["A"], fonts=[str(tmp_path / "some")]).facts()["fonts"] == 2


def _recipe(folder: Path, **api: object) -> Path:
    """Private pictures of three classes, 8 × 8."""
    write_npz(folder / "mine", train=90)
    source = {"class_path": "lightning_dp.images.NPZ", "init_args": {"path": str(folder / "mine")}}
    source["init_args"]["class_names"] = CLASSES
    config = {
        "data": {"class_path": "lightning_dp.ImageData", "init_args": {"source": source, "size": 8}},
        "task": {"class_path": "lightning_dp.images.ImageTask"},
        "api": {
            "class_path": "lightning_dp.images.RenderedShapes",
            "init_args": {"shapes": ["circle", "square bar", "cross"], "size": 8, **api},
        },
        "embedding": {"class_path": "lightning_dp.images.PixelEmbedding", "init_args": {"side": 4}},
        "generations": {"iterations": 2, "population": 30, "num_samples": 45, "lookahead": 2},
        "privacy": {"noise_multiplier": 1.0, "delta": 1e-3},
        "run": {"dir": str(folder / "run")},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_run_keeps_parameters_writes_images_and_is_resumed_by_its_own_settings_only(tmp_path, capsys):
    assert main(["evolve", f"--config={_recipe(tmp_path)}"]) == 0
    run = tmp_path / "run"
    with np.load(run / "samples" / "train.npz") as content:
        assert content["images"].shape == (45, 8, 8)
    assert read_state(run).population.samples.shape == (30, 7)
    assert json.loads((run / "results.json").read_text())["facts"]["api"] == "RenderedShapes"
    resume = ["evolve", f"--config={run / 'config.yaml'}", f"--run.dir={run}", "--resume=true"]
    assert main(resume) == 0
    capsys.readouterr()
    for change, name in (
        ("--api.init_args.shift=0.1", "api.init_args.shift is 0.1, but the run was started with 0.25"),
        ("--generations.neighbours=2", "generations.neighbours is 2, but the run was started with 1"),
        ("--privacy.noise_multiplier=2", "privacy.noise_multiplier is 2.0"),
    ):
        assert main([*resume, change]) == 2
        error = capsys.readouterr().err
        assert name in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 9}, "give both the same size and mode"),
        ({"mode": "rgb"}, "give both the same size and mode"),
        ({"shapes": ["star", "bar"]}, "knows what to draw for 2 classes, but the data has a class number 2"),
    ],
)
def test_a_renderer_that_does_not_fit_the_data_costs_nothing(tmp_path, capsys, options, message):
    assert main(["evolve", f"--config={_recipe(tmp_path, **options)}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "privacy.json").exists()
