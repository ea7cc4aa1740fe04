"""Stable Diffusion class models on a tiny checkpoint: private steps, captions, export, errors."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from follow_steps import sites_of
from huggingface_hub import ModelCard
from image_support import CLASSES, pictures, tiny_module
from lightning.pytorch import Trainer
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from sd_support import write_checkpoint
from torch import Tensor

from lightning_dp.adapters.attention import Attention
from lightning_dp.adapters.dylora import DyLoRA, use_rank
from lightning_dp.adapters.lora import LoRA
from lightning_dp.adapters.norm_affine import NormAffine
from lightning_dp.adapters.saliency import SaliencyLoRA
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.cli import main
from lightning_dp.diffusion.prediction import Velocity
from lightning_dp.diffusion.sampler import Sampler
from lightning_dp.images.data.image_data import ImageData
from lightning_dp.images.data.npz import NPZ
from lightning_dp.images.data.parquet import Parquet
from lightning_dp.images.lora_export import save_lora
from lightning_dp.images.module import LatentDiffusion
from lightning_dp.images.run import load_module
from lightning_dp.images.stable_diffusion import StableDiffusionUNet
from lightning_dp.nets.unet import CrossAttentionUNet
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import Flat
from lightning_dp.privacy.clipping.loop import Loop

# diffusers' own use of numpy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

RECIPE = Path(__file__).parents[2] / "conf" / "experiment" / "stable_diffusion.yaml"
_TEMPLATE = "a photo of a {class}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-sd")


@pytest.fixture
def copied(checkpoint, tmp_path) -> Path:
    """One that a test may damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copied"))


def _net(checkpoint: Path, **options) -> StableDiffusionUNet:
    return StableDiffusionUNet(str(checkpoint), **{"class_names": CLASSES, **options})


def _module(checkpoint: Path, **options) -> LatentDiffusion:
    """Its steps are large, so that what a step changed can be seen."""
    torch.manual_seed(0)
    return LatentDiffusion(
        options.pop("net", None) or _net(checkpoint),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
        **{"adapter": LoRA(rank=2, scale=6.0), "sampler": Sampler(num_steps=3), **options},
    )


def _colour(count: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    images, labels = pictures(count, size=16, seed=seed)
    return np.stack([images, images // 2, 255 - images], axis=-1), labels


def _write_npz(folder: Path, *, train: int = 30) -> Path:
    folder.mkdir(parents=True)
    for seed, (split, count) in enumerate((("train", train), ("test", 12))):
        images, labels = _colour(count, seed=seed)
        np.savez(folder / f"{split}.npz", images=images, labels=labels)
    return folder


def _write_parquet(folder: Path, captions: list[str | None]) -> Path:
    encoded = []
    for image in _colour(len(captions))[0]:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="png")
        encoded.append(file.getvalue())
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table({"image": encoded, "text": captions}), folder / "train-0.parquet")
    return folder


def _data(source, **options) -> ImageData:
    return ImageData(source, size=16, mode="rgb", **options)


def _fit(folder: Path, module: LatentDiffusion, data: ImageData, *, steps: int = 1) -> Trainer:
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            DifferentialPrivacy(
                noise_multiplier=4.0, delta=1e-3, expected_batch_size=10, physical_batch_size=6
            )
        ],
    )
    trainer.fit(module, datamodule=data)
    return trainer


def _everything(module: LatentDiffusion) -> dict[str, Tensor]:
    """Parameters and buffers, those included that no checkpoint holds."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: value.detach().clone() for name, value in named}


def _batch(count: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(count, 3, 16, 16, generator=generator) * 2 - 1
    return {"images": images, "labels": torch.arange(count) % (len(CLASSES) + 1) - 1}


# what is read from the folder


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_latents_and_prompts_are_the_checkpoints_own(tmp_path, prediction_type):
    folder = write_checkpoint(tmp_path / "own", prediction_type=prediction_type)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    module = _module(folder, adapter=None)
    torch.testing.assert_close(module.schedule.alphas_cumprod, pipeline.scheduler.alphas_cumprod)
    assert isinstance(module.prediction, Velocity) == (prediction_type == "v_prediction")
    images = _batch()["images"]
    latents = pipeline.vae.encode(images).latent_dist.mode() * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(module.encode(images)[:, 0], latents)
    assert module.net.size == 8
    prompts = [_TEMPLATE.replace("{class}", name) for name in CLASSES]
    states, empty = pipeline.encode_prompt(
        prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    torch.testing.assert_close(module.net.prompts, torch.cat([states, empty[:1]]))
    assert not torch.allclose(states[0], states[1])


def test_a_label_is_its_prompt_and_none_is_the_empty_one(checkpoint):
    net = _net(checkpoint)
    noisy, timesteps = torch.randn(4, 4, 8, 8), torch.tensor([5, 300, 700, 999])
    labels = torch.tensor([0, 1, 2, -1])
    texts = [*(_TEMPLATE.replace("{class}", name) for name in CLASSES), ""]
    states = net.companions.text_encoder(texts)
    torch.testing.assert_close(
        net(noisy, timesteps, labels=labels), net(noisy, timesteps, labels=-labels, states=states)
    )


# private steps


@pytest.mark.parametrize(
    ("adapter", "trained", "captioned"),
    [
        (LoRA(rank=2), "lora_", False),
        (Attention(), ".attentions.", True),
        (NormAffine(), "norm", True),
        (SaliencyLoRA(ratio=0.25, rank=2, noise_multiplier=4.0), "lora_", False),
    ],
    ids=["LoRA", "Attention", "NormAffine", "SaliencyLoRA"],
)
def test_one_private_step_changes_the_adapter_and_not_one_bit_else(
    checkpoint, tmp_path, adapter, trained, captioned
):
    texts = [f"a {'dark' if number % 2 else 'bright'} photo" for number in range(20)]
    if captioned:
        source = Parquet(str(_write_parquet(tmp_path / "mine", texts)), caption_column="text")
    else:
        source = NPZ(str(_write_npz(tmp_path / "mine")), class_names=CLASSES)
    data = _data(source)
    module = _module(checkpoint, adapter=adapter, net=_net(checkpoint, class_names=source.class_names))
    before = _everything(module)
    assert any(name.startswith("text_encoder.") for name in before)
    assert any(name.startswith("autoencoder.") for name in before)
    _fit(tmp_path / "run", module, data)
    after = _everything(module)
    assert before.keys() == after.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    weights = {name for name, p in module.named_parameters() if p.requires_grad}
    assert weights
    assert changed - {name for name in changed if "saliency" in name or "selection" in name} == weights
    assert all(name.startswith("net.unet.") and trained in name for name in weights)
    if captioned:
        item = data.train_dataset[3]
        assert item["captions"] == [texts[3]]
        assert "latents" in item
        assert data.privacy_unit().description == "one image of mine with its label and caption"
    else:  # a pair that was not chosen adds nothing, and is not in the file
        assert 2 * save_lora(module, out=tmp_path / "lora") == len(weights)


@pytest.mark.parametrize("captions", [None, ["dark", "", "a bright dark thing", "dark dark", "x", "photo"]])
def test_clipping_per_image_is_exact(checkpoint, captions):
    module = _module(checkpoint, noise_draws=2)
    with torch.no_grad():  # B starts at 0, where A has no gradient
        for name, parameter in module.net.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    batch = _batch() if captions is None else {**_batch(), "captions": captions}

    def clipped(engine: ClippingEngine) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(0)
        engine.know(sites_of(module, lambda: module.per_example_losses(batch), units=6))
        engine.attach(module, function=Flat(), max_grad_norm=0.01)
        try:
            weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
            engine.expect(unit_weights=weights, rows_per_unit=module.rows_per_example)
            module.per_example_losses(batch).mean().backward()
            return engine.collect(), engine.take()
        finally:
            engine.detach()

    (norms, sums), (true_norms, true_sums) = clipped(BookKeeping()), clipped(Loop())
    assert float(true_norms.min()) > 0.01  # else nothing is clipped
    torch.testing.assert_close(norms, true_norms, rtol=1e-4, atol=0)
    assert sums.keys() == true_sums.keys()
    assert all("lora_" in name for name in sums)
    for name, true in true_sums.items():
        torch.testing.assert_close(sums[name], true, rtol=1e-3, atol=1e-6)


def test_a_loss_depends_on_its_own_caption_alone(checkpoint):
    module = _module(checkpoint, adapter=None, label_dropout=0.0)

    def losses(*captions: str) -> Tensor:
        torch.manual_seed(0)
        return module.per_example_losses({**_batch(3), "captions": list(captions)}).detach()

    base = losses("dark", "bright", "photo")
    other = losses("dark", "a", "b")
    torch.testing.assert_close(base[0], other[0])
    assert not torch.allclose(base[1:], other[1:])
    module._label_dropout = 1.0
    torch.testing.assert_close(losses("dark", "bright", "photo"), losses("", "", ""))


# from a fit on the command line to diffusers


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory) -> Path:
    """A short private run of the recipe, in bf16, as a user makes one."""
    folder = tmp_path_factory.mktemp("stable_diffusion")
    for seed, (split, count) in enumerate((("train", 30), ("test", 12))):
        for number, (image, label) in enumerate(zip(*_colour(count, seed=seed), strict=True)):
            path = folder / "mine" / split / CLASSES[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    settings = {
        "data.init_args.source.init_args.path": folder / "mine",
        "data.init_args.size": 16,
        "model.init_args.net.init_args.path": checkpoint,
        "model.init_args.net.init_args.size": 8,
        "model.init_args.net.init_args.class_names": f"[{', '.join(CLASSES)}]",
        "model.init_args.adapter.init_args.rank": 2,
        "model.init_args.adapter.init_args.scale": 6.0,
        "model.init_args.sampler.init_args.num_steps": 3,
        "model.init_args.guidance_scale": 2.0,
        "model.init_args.optimizer.init_args.lr": 0.1,
        "privacy.target_epsilon": "null",
        "privacy.noise_multiplier": 4.0,
        "privacy.delta": 1e-3,
        "privacy.expected_batch_size": 10,
        "trainer.max_steps": 2,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "run.wandb": "disabled",
        "run.dir": folder / "run",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTNING_DP_LEDGER", str(folder / "ledger.sqlite"))
        options = [f"--{name}={value}" for name, value in settings.items()]
        assert main(["fit", f"--config={RECIPE}", *options]) == 0
    return folder / "run"


def test_a_checkpoint_holds_what_trained_and_nothing_of_it_may_be_missing(run, tmp_path):
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["state_dict"]
    assert all("lora_" in name for name in saved["state_dict"])
    assert all(bool(value.isfinite().all()) for value in saved["state_dict"].values())
    module = load_module(run)
    for name, value in saved["state_dict"].items():
        assert torch.equal(module.state_dict()[name], value)
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    del saved["state_dict"][next(iter(saved["state_dict"]))]
    torch.save(saved, moved / "checkpoints" / "last.ckpt")
    with pytest.raises(RuntimeError, match="Missing key"):
        load_module(moved)


def test_a_run_is_resumed_from_what_trained(run, tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(run.parent / "ledger.sqlite"))
    resumed = Path(shutil.copytree(run, tmp_path / "resumed"))
    options = [f"--run.dir={resumed}", "--ckpt_path=last", "--trainer.max_steps=3"]
    before = load_module(run).state_dict()
    assert main(["fit", f"--config={run / 'config.yaml'}", *options]) == 0
    after = load_module(resumed).state_dict()
    with pytest.raises(ValueError, match="what the ledger was charged for this run costs"):
        load_module(run)  # the folder that was copied no longer says all that its run has spent
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "lora_" in name}


def test_saved_lora_loads_in_diffusers_and_draws_the_same(run, checkpoint, tmp_path, capsys):
    assert main(["export", str(run), "--output", str(tmp_path / "lora")]) == 0
    assert "pytorch_lora_weights.safetensors (32 layers)" in capsys.readouterr().out
    report = json.loads((tmp_path / "lora" / "privacy.json").read_text())
    assert report["epsilon_spent"] < 8
    assert report["kind"] == "export"
    assert "pytorch_lora_weights.safetensors" in report["files"]
    card = ModelCard.load(tmp_path / "lora" / "README.md").data.to_dict()
    assert (card["library_name"], card["privacy"]["epsilon"]) == ("diffusers", report["epsilon_spent"])
    assert main(["verify", str(tmp_path / "lora"), "--no-ledger"]) == 0
    assert "Its pages show what it says." in capsys.readouterr().out
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    module = load_module(run)
    noisy, timesteps = torch.randn(3, 4, 8, 8), torch.tensor([20, 500, 900])
    states = module.net.prompts[:3]

    def theirs() -> Tensor:
        with torch.no_grad():
            return pipeline.unet(noisy, timesteps, encoder_hidden_states=states).sample

    with torch.no_grad():
        ours = module.net(noisy, timesteps, labels=torch.arange(3))
    public = theirs()
    pipeline.load_lora_weights(tmp_path / "lora")
    torch.testing.assert_close(theirs(), ours, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(public, ours, atol=1e-2)

    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing"
    )
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    images = pipeline(
        [_TEMPLATE.replace("{class}", name) for name in CLASSES],
        latents=noise,
        num_inference_steps=3,
        guidance_scale=2.0,
        output_type="pt",
    ).images
    drawn = module.sample(torch.arange(3), generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close((drawn + 1) / 2, images, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_dylora_is_exported_at_the_rank_in_use(checkpoint, tmp_path, rank):
    module = _module(checkpoint, adapter=DyLoRA(rank=4, scale=6.0)).eval()
    with torch.no_grad():
        for name, parameter in module.net.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    use_rank(module.adapter, rank)
    save_lora(module, out=tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, local_files_only=True)
    pipeline.load_lora_weights(tmp_path)
    noisy, timesteps = torch.randn(3, 4, 8, 8), torch.tensor([20, 500, 900])
    with torch.no_grad():
        theirs = pipeline.unet(noisy, timesteps, encoder_hidden_states=module.net.prompts[:3]).sample
        ours = module.net(noisy, timesteps, labels=torch.arange(3))
        use_rank(module.adapter, 4)
        whole = module.net(noisy, timesteps, labels=torch.arange(3))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole, ours, atol=1e-2)


def test_only_lora_of_a_pipelines_unet_is_exported(run, checkpoint, tmp_path, capsys):
    with pytest.raises(ValueError, match="trained a ImageDiT, which diffusers has no pipeline for"):
        save_lora(tiny_module(), out=tmp_path / "out")
    with pytest.raises(ValueError, match="which are no LoRA weights"):
        save_lora(_module(checkpoint, adapter=Attention()), out=tmp_path / "out")
    with pytest.raises(ValueError, match="still at its start"):
        save_lora(_module(checkpoint), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    report = json.loads((moved / "privacy.json").read_text())
    (moved / "privacy.json").write_text(json.dumps({**report, "run": "another"}))
    assert main(["export", str(moved), "--output", str(tmp_path / "out")]) == 2
    assert "doesn't cover them" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_classes_and_prompts_are_sampled_and_evaluated(run, tmp_path, capsys):
    assert main(["sample", str(run), "--num", "4", "--output", str(tmp_path / "classes"), "--seed", "1"]) == 0
    assert len(list((tmp_path / "classes" / "train" / "dark").iterdir())) == 1
    prompts = ["--prompt", "a dark photo", "--prompt", "b"]
    out = tmp_path / "prompts"
    assert main(["sample", str(run), "--num", "3", "--output", str(out), "--seed", "1", *prompts]) == 0
    assert len(list((out / "train" / "0").iterdir())) == 2
    assert json.loads((out / "about.json").read_text())["prompts"] == ["a dark photo", "b"]
    assert (out / "privacy.json").is_file()
    arguments = ["evaluate", str(run), "--samples", "100", "--epochs", "1", "--parts", "cnn"]
    assert main(arguments) == 0
    metrics = json.loads((run / "results.json").read_text())["metrics"]
    assert 0 <= metrics["test/accuracy_cnn"] <= 100


def test_a_class_prompt_given_as_text_draws_the_same(run):
    module = load_module(run)

    def drawn(labels: list[int], captions: list[str] | None) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        return module.sample(torch.tensor(labels), captions=captions, generator=generator)

    texts = [_TEMPLATE.replace("{class}", name) for name in CLASSES[:2]]
    torch.testing.assert_close(drawn([0, 1], None), drawn([-1, -1], texts))
    assert not torch.allclose(drawn([0, 1], None), drawn([-1, -1], None), atol=1e-2)
    with pytest.raises(ValueError, match="ImageDiT reads no captions"):
        tiny_module().sample(torch.tensor([0]), captions=["dark"])


# what is refused


def _edit(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _without(path: Path, part: str) -> None:
    weights = load_file(path)
    del weights[next(name for name in weights if part in name)]
    save_file(weights, path, metadata={"format": "pt"})


_UNET = Path("unet") / "diffusion_pytorch_model.safetensors"
_TEXT = Path("text_encoder") / "model.safetensors"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), r"path=.*copied is not a folder: give the checkpoint's own"),
        (lambda f: (f / "model_index.json").unlink(), r"model_index\.json is missing: give a whole"),
        (lambda f: (f / "model_index.json").write_text("{"), r"model_index\.json is not JSON"),
        (
            lambda f: _edit(f / "model_index.json", unet=["diffusers", "UNet2DModel"]),
            r"whose unet is UNet2DModel; it has to be a UNet2DConditionModel",
        ),
        (
            lambda f: _edit(f / "model_index.json", text_encoder=None),
            r"whose text_encoder is missing; it has to be a CLIPTextModel",
        ),
        (lambda f: (f / "unet" / "config.json").unlink(), r"unet/config\.json is missing"),
        (lambda f: (f / _UNET).unlink(), r"the weights of .*unet can't be loaded"),
        (lambda f: (f / _UNET).write_bytes(b"short"), r"the weights of .*unet can't be loaded"),
        (lambda f: _without(f / _UNET, "to_q"), r"the weights of .*unet lack .*to_q.*copy the folder again"),
        (lambda f: (f / _TEXT).write_bytes(b"short"), r"the weights of .*text_encoder can't be loaded"),
        (lambda f: _without(f / _TEXT, "fc1"), r"the weights of .*text_encoder lack .*fc1"),
        (lambda f: shutil.rmtree(f / "tokenizer"), r"tokenizer has neither tokenizer\.json nor vocab\.json"),
        (lambda f: shutil.rmtree(f / "vae"), r"vae has no config\.json"),
        (lambda f: shutil.rmtree(f / "scheduler"), r"scheduler_config\.json is missing"),
        (
            lambda f: _edit(f / "scheduler" / "scheduler_config.json", prediction_type="flow"),
            r"prediction_type is 'flow'; it has to be one of epsilon, v_prediction, sample",
        ),
        (
            lambda f: _edit(f / "scheduler" / "scheduler_config.json", beta_schedule="bumpy"),
            r"the scheduler's configuration can't be followed .*bumpy",
        ),
    ],
)
def test_a_folder_that_is_none_is_one_sentence(copied, damage, message):
    damage(copied)
    with pytest.raises(ValueError, match=message) as caught:
        _net(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 9}, r"has 9 channels in and 4 out: inpainting"),
        ({"cross_attention_dim": 8}, r"attends to text of width 8, and text_encoder/ makes 16"),
        ({"class_embed_type": "timestep"}, r"sets class_embed_type to 'timestep', a further condition"),
    ],
)
def test_unets_of_other_kinds_are_refused(copied, options, message):
    config = UNet2DConditionModel.load_config(copied / "unet", local_files_only=True)
    UNet2DConditionModel.from_config(config, **options).save_pretrained(copied / "unet")
    with pytest.raises(ValueError, match=message):
        _net(copied)


def test_what_does_not_fit_the_data_is_refused_before_it_is_read(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"template is 'a photo', in which \{class\} does not occur"):
        _net(checkpoint, template="a photo")
    data = _data(NPZ(str(_write_npz(tmp_path / "mine")), class_names=CLASSES))
    swapped = _net(checkpoint, class_names=[CLASSES[1], CLASSES[0], CLASSES[2]])
    with pytest.raises(
        ValueError, match=r"class_names are \['dark', 'bright', 'stripes'\], but the data has"
    ):
        _fit(tmp_path, _module(checkpoint, net=swapped), data)
    with pytest.raises(
        ValueError, match="the net's size is 4, but images of 16 pixels have latents of side 8"
    ):
        _fit(tmp_path, _module(checkpoint, net=_net(checkpoint, size=4)), data)
    captioned = Parquet(str(_write_parquet(tmp_path / "texts", ["a"] * 12)), caption_column="text")
    levels = {"block_out_channels": (8,), "attention": (True,), "norm_groups": 4, "condition_size": 8}
    deaf = LatentDiffusion(CrossAttentionUNet(in_channels=3, size=16, num_classes=0, **levels))
    with pytest.raises(ValueError, match="come with captions, but CrossAttentionUNet reads none"):
        _fit(tmp_path, deaf, _data(captioned))
