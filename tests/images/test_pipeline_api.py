"""Pipeline folders of diffusers as the API of Private Evolution: real folders, tiny, with random weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    UNet2DModel,
)
from image_support import CLASSES, write_npz
from pipeline_support import write_ddpm, write_dit
from sd_support import write_checkpoint

from lightning_dp.cli import main
from lightning_dp.evolution.state import read_state
from lightning_dp.images.evolution.diffusers_api import DiffusersPipelineAPI
from lightning_dp.images.evolution.pipeline_kinds import _edit

PUBLIC = "random numbers of a seed"
LABELS = np.arange(6) % 3
PROMPTS = ["a bright", "a dark", "ph"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    work = tmp_path_factory.mktemp("pipelines")
    return {
        "ddpm": write_ddpm(work / "ddpm"),
        "dit": write_dit(work / "dit"),
        "sd": write_checkpoint(work / "sd"),
    }


OPTIONS: dict[str, dict] = {
    "ddpm": {},
    "dit": {"classes": [3, 999, 0], "guidance": 4.0},
    "sd": {"prompts": PROMPTS},
}
SIDES = {"ddpm": 8, "dit": 16, "sd": 16}


def api_of(folders: dict[str, Path], kind: str, **options) -> DiffusersPipelineAPI:
    options = {"public": PUBLIC, "num_steps": 5, "images_at_once": 4, **OPTIONS[kind], **options}
    return DiffusersPipelineAPI(str(folders[kind]), **options)


@pytest.mark.parametrize("kind", OPTIONS)
def test_samples_are_drawn_varied_by_degree_and_seen_at_the_datas_size(folders, kind):
    api = api_of(folders, kind, size=6, mode="grey")
    samples = api.random(LABELS, rng=np.random.default_rng(0))
    side = SIDES[kind]
    assert samples.shape == (6, 3, side, side)
    assert samples.dtype == np.uint8
    assert np.array_equal(samples, api.random(LABELS, rng=np.random.default_rng(0)))
    assert not np.array_equal(samples, api.random(LABELS, rng=np.random.default_rng(1)))
    assert api.render(samples).shape == (6, 1, 6, 6)
    assert api.render(samples).dtype == np.uint8

    def vary(degree: float, seed: int = 0) -> np.ndarray:
        return api.vary(samples, LABELS, degree=degree, rng=np.random.default_rng(seed)).astype(float)

    assert np.array_equal(vary(0.0), samples)
    assert vary(0.6).shape == samples.shape
    assert np.array_equal(vary(0.6), vary(0.6))
    assert not np.array_equal(vary(0.6), vary(0.6, seed=1))
    assert not np.array_equal(vary(0.01), samples), "a step at least"


def test_small_degrees_stay_near(folders):
    """Of pixels, without an autoencoder whose random weights lose all: noise grows with the degree."""
    api = api_of(folders, "ddpm", num_steps=20)
    rng = np.random.default_rng(0)
    samples = rng.integers(100, 156, (6, 3, 8, 8)).astype(np.uint8)
    distance = [
        abs(
            api.vary(samples, LABELS, degree=degree, rng=np.random.default_rng(0)) - samples.astype(float)
        ).mean()
        for degree in (0.05, 0.3, 1.0)
    ]
    assert distance[0] < distance[1] < distance[2]
    assert distance[0] < 20


@pytest.mark.parametrize("kind", ["dit", "sd"])
def test_a_class_is_asked_for_by_its_condition(folders, kind):
    api = api_of(folders, kind)
    same = np.zeros(2, dtype=int)
    first = api.random(same, rng=np.random.default_rng(0)).astype(float)
    other = api.random(same + 1, rng=np.random.default_rng(0)).astype(float)
    assert not np.array_equal(first, other)
    samples = first.astype(np.uint8)
    varied = [api.vary(samples, same + one, degree=0.8, rng=np.random.default_rng(0)) for one in (0, 1)]
    assert not np.array_equal(*varied)


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler]
)
def test_the_true_answer_leads_back_from_any_degree(scheduler):
    """Noised and denoised by a model that knows the clean image: the arithmetic of starts and orders."""
    made = scheduler()
    clean = torch.rand(3, 1, 4, 4, dtype=torch.float64) * 2 - 1
    signal = made.alphas_cumprod.double()
    calls = []

    def knows(noisy, time):
        calls.append(float(time))
        number = int(time.round())
        at = signal[number]
        if scheduler is HeunDiscreteScheduler:  # scaled to the same form before it is shown
            sigma = ((1 - at) / at).sqrt()
            return (noisy * (sigma**2 + 1).sqrt() - clean) / sigma
        return (noisy - at.sqrt() * clean) / (1 - at).sqrt()

    for degree, least in ((0.1, 1), (0.5, 5), (1.0, 10)):
        calls.clear()
        edited = _edit(
            clean,
            knows,
            scheduler=made,
            num_steps=10,
            degree=degree,
            generator=torch.Generator().manual_seed(0),
        )
        assert len(calls) >= least
        assert max(calls) <= 1000 * degree + 1
        assert (edited - clean).abs().max() < 0.15


def test_a_label_without_a_condition_is_refused(folders):
    unlabelled = np.full(2, -1)
    rng = np.random.default_rng(0)
    for kind, labels, message in (
        ("dit", np.array([0, 3]), "classes has 3 entries, but the data has a class number 3"),
        ("sd", np.array([0, 3]), "prompts has 3 entries, but the data has a class number 3"),
        ("sd", unlabelled, "prompts has 3 entries, but the data has no classes"),
        ("dit", unlabelled, "classes has 3 entries, but the data has no classes"),
    ):
        with pytest.raises(ValueError, match=message):
            api_of(folders, kind).random(labels, rng=rng)
    with pytest.raises(ValueError, match="classes has 0 entries"):
        api_of(folders, "dit", classes=[]).random(np.array([0]), rng=rng)
    assert len(api_of(folders, "dit", classes=[]).random(unlabelled, rng=rng)) == 2
    assert len(api_of(folders, "sd", prompts=["ph"]).random(unlabelled, rng=rng)) == 2
    assert len(api_of(folders, "ddpm").random(unlabelled, rng=rng)) == 2


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("ddpm", {"public": "yes"}, "say in words which public data"),
        ("ddpm", {"prompts": ["a"]}, "prompts is given, but DDPMPipeline needs none"),
        ("ddpm", {"classes": [1]}, "classes is given, but DDPMPipeline needs none"),
        ("ddpm", {"num_steps": 0}, "num_steps is 0"),
        ("ddpm", {"mode": "L"}, "mode is 'L'"),
        ("ddpm", {"size": 0}, "size is 0"),
        ("dit", {"prompts": ["a"]}, "prompts is given, but DiTPipeline needs none"),
        ("dit", {"classes": [1000]}, "classes has 1000"),
        ("dit", {"guidance": 0.5}, "guidance is 0.5"),
        ("sd", {"prompts": []}, "prompts is empty"),
        ("sd", {"classes": [1]}, "classes is given, but StableDiffusionPipeline"),
    ],
)
def test_options_that_do_not_fit_the_pipeline(folders, kind, options, message):
    with pytest.raises(ValueError, match=message):
        api_of(folders, kind, **options)


def _changed(folder: Path, to: Path, **index: object) -> Path:
    shutil.copytree(folder, to)
    path = to / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **index}))
    return to


def test_a_folder_that_is_not_whole_or_not_only_weights_is_refused(folders, tmp_path):
    def refused(folder: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            DiffusersPipelineAPI(str(folder), public=PUBLIC)

    ddpm = folders["ddpm"]
    refused(tmp_path / "nowhere", "is not a folder")
    refused(tmp_path, "model_index.json is missing")
    # Code of the folder's own, in both places that diffusers has for it.
    own = _changed(ddpm, tmp_path / "own", _class_name=["pipeline", "Mine"])
    (own / "pipeline.py").write_text("raise SystemExit('it ran')")
    refused(own, "which is no pipeline of diffusers")
    part = _changed(ddpm, tmp_path / "part", unet=["mine", "Mine"])
    (part / "unet" / "mine.py").write_text("raise SystemExit('it ran')")
    refused(part, "takes its unet, a Mine, from 'mine'")
    refused(_changed(ddpm, tmp_path / "os", unet=["os", "system"]), "from 'os'")
    # Pickles in the place of safetensors.
    pickled = _changed(ddpm, tmp_path / "pickled")
    weights = pickled / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(UNet2DModel.from_pretrained(ddpm / "unet").state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    refused(pickled, "can't be loaded")
    # Half of the weights: diffusers would make up the rest.
    half = _changed(ddpm, tmp_path / "half")
    from safetensors.torch import load_file, save_file

    state = load_file(half / "unet" / weights.name)
    save_file({name: state[name] for name in list(state)[::2]}, half / "unet" / weights.name)
    refused(half, "lack")
    # An export of a private run.
    private = _changed(ddpm, tmp_path / "private")
    (private / "privacy.json").write_text("{}")
    refused(private, "trained on private data")
    refused(
        _changed(ddpm, tmp_path / "other", _class_name="ConsistencyModelPipeline"), "neither a DDPMPipeline"
    )


def test_pickles_are_loaded_where_nobody_says_otherwise(folders, tmp_path, monkeypatch):
    """The planted fault: without the rule the pickled folder of above would be taken."""
    from lightning_dp.images.evolution import pipeline_folder

    pickled = _changed(folders["ddpm"], tmp_path / "pickled")
    weights = pickled / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(
        UNet2DModel.from_pretrained(folders["ddpm"] / "unet").state_dict(), weights.with_suffix(".bin")
    )
    weights.unlink()
    load = pipeline_folder.load_weights
    monkeypatch.setattr(pipeline_folder, "load_weights", lambda kind, folder, safetensors: load(kind, folder))
    assert DiffusersPipelineAPI(str(pickled), public=PUBLIC)


def test_a_run_keeps_the_pipelines_own_size(folders, tmp_path):
    source = {"class_path": "lightning_dp.images.NPZ"}
    source["init_args"] = {"path": str(write_npz(tmp_path / "mine", train=60)), "class_names": CLASSES}
    config = {
        "data": {"class_path": "lightning_dp.ImageData", "init_args": {"source": source, "size": 8}},
        "task": {"class_path": "lightning_dp.images.ImageTask"},
        "api": {
            "class_path": "lightning_dp.images.DiffusersPipelineAPI",
            "init_args": {
                "path": str(folders["sd"]),
                "public": PUBLIC,
                "size": 8,
                "mode": "grey",
                "prompts": PROMPTS,
                "num_steps": 2,
            },
        },
        "embedding": {"class_path": "lightning_dp.images.PixelEmbedding", "init_args": {"side": 4}},
        "generations": {"iterations": 1, "population": 6, "num_samples": 9, "lookahead": 1},
        "privacy": {"noise_multiplier": 1.0, "delta": 1e-3},
        "run": {"dir": str(tmp_path / "run")},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config))
    assert main(["evolve", f"--config={tmp_path / 'recipe.yaml'}"]) == 0
    assert read_state(tmp_path / "run").population.samples.shape == (6, 3, 16, 16)
    with np.load(tmp_path / "run" / "samples" / "train.npz") as content:
        assert content["images"].shape == (9, 8, 8)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["facts"]["pipeline_public"] == PUBLIC
