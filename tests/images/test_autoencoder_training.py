"""Stage one of latent diffusion: LPIPS, the discriminator, KL and VQ autoencoders, and the sizes."""

from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from diffusers import AutoencoderKL, VQModel
from image_support import CLASSES, npz_data, write_npz
from lightning.pytorch import Trainer
from torch import Tensor
from torchmetrics.functional.image.lpips import _LPIPS

from lightning_dp.cli import main
from lightning_dp.images.autoencoder import SmallAutoencoder, TrainableAutoencoder, gaussian_penalty
from lightning_dp.images.autoencoder_training import AutoencoderTraining
from lightning_dp.images.diffusers_autoencoder import DiffusersAutoencoder
from lightning_dp.images.discriminator import PatchDiscriminator, adaptive_weight
from lightning_dp.images.latent_autoencoder import KLAutoencoder, VQAutoencoder
from lightning_dp.images.perceptual import PerceptualLoss
from lightning_dp.images.run import load_module
from lightning_dp.images.saved_autoencoder import SavedAutoencoder

_TINY = {
    "image_channels": 1,
    "num_channels": 2,
    "block_out_channels": (4, 8),
    "attention": (False, True),
    "layers_per_block": 1,
    "norm_groups": 4,
}


@pytest.fixture(scope="module")
def vgg(tmp_path_factory) -> Path:
    """Random features under torchvision's names, without the classifier."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vgg16-397923af.pth"
    features = torchvision.models.vgg16().features
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, path)
    return path


# LPIPS


def test_the_perceptual_loss_is_that_of_torchmetrics(vgg):
    theirs = _LPIPS(pretrained=False, net="vgg", pnet_rand=True, use_dropout=True)
    lines = torch.load(Path(_lines()), map_location="cpu", weights_only=True)
    theirs.load_state_dict(lines, strict=False)
    features = torch.load(vgg, weights_only=True)
    for number in range(1, 6):
        part = getattr(theirs.net, f"slice{number}")
        part.load_state_dict({name: features[f"features.{name}"] for name in part.state_dict()})
    ours = PerceptualLoss(weights=str(vgg))
    x, y = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in (0, 1))
    found = ours(x, y)
    assert found.shape == (2,)
    assert float(found.min()) > 0
    torch.testing.assert_close(found, theirs(x, y).flatten(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours(x, x), torch.zeros(2))
    grey = x[:, :1]
    colour = [part[:, :1].expand(-1, 3, -1, -1) for part in (x, y)]
    torch.testing.assert_close(ours(grey, y[:, :1]), ours(*colour))
    assert not any(p.requires_grad for p in ours.parameters())


def _lines() -> str:
    import torchmetrics

    return str(Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "vgg.pth")


def test_missing_and_wrong_weights_are_refused_in_a_sentence(vgg, tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_DP_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"vgg16-397923af\.pth is missing, and VGG-16's features are never"):
        PerceptualLoss()
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="can't be read as weights"):
        PerceptualLoss(weights=str(tmp_path / "bad.pth"))
    torch.save({"features.0.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"has no features\.0\.bias of a VGG-16"):
        PerceptualLoss(weights=str(tmp_path / "other.pth"))
    with pytest.raises(ValueError, match=r"has no lin0\.model\.1\.weight"):
        PerceptualLoss(weights=str(vgg), linear=str(tmp_path / "other.pth"))
    with pytest.raises(ValueError, match="sees images of 8 pixels"):
        PerceptualLoss(weights=str(vgg))(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))


# the adversary


def test_each_side_moves_its_own_weights_only():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(image_channels=1, width=4, num_layers=1)
    real, decoded = torch.rand(3, 1, 16, 16), torch.rand(3, 1, 16, 16, requires_grad=True)
    discriminator.generator_loss(decoded).backward()
    assert float(decoded.grad.abs().max()) > 0
    assert all(p.grad is None for p in discriminator.parameters())
    decoded.grad = None
    discriminator.own_loss(real, decoded).backward()
    assert decoded.grad is None
    assert all(p.grad is not None for p in discriminator.parameters())


def test_the_hinge_loss_and_the_adaptive_weight_are_those_of_the_papers():
    discriminator = PatchDiscriminator(image_channels=1, width=4, num_layers=1).eval()
    real, decoded = torch.rand(3, 1, 16, 16), torch.rand(3, 1, 16, 16)
    scores = discriminator(real), discriminator(decoded)
    hinge = 0.5 * ((1 - scores[0]).clamp_min(0).mean() + (1 + scores[1]).clamp_min(0).mean())
    torch.testing.assert_close(discriminator.own_loss(real, decoded), hinge)
    torch.testing.assert_close(discriminator.generator_loss(decoded), -scores[1].mean())
    layer = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    weight = adaptive_weight(layer.square().sum(), 2 * layer.sum(), layer=layer)  # ‖(6, 8)‖ / ‖(2, 2)‖
    assert float(weight) == pytest.approx(10 / (8**0.5 + 1e-4), rel=1e-5)
    assert not weight.requires_grad


# autoencoders of latent diffusion


@pytest.mark.parametrize("kind", [KLAutoencoder, VQAutoencoder])
def test_layers_are_those_of_diffusers(kind, tmp_path):
    torch.manual_seed(0)
    model = kind(image_size=16, **_TINY).eval()
    assert model.latent_size(16) == 8
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = model.encode(images)
        assert latents.shape == (3, 2, 8, 8)
        torch.testing.assert_close(model.encode(images[1:2]), latents[1:2])
        decoded = model.decode(latents)
        torch.testing.assert_close(model.decode(latents[1:2]), decoded[1:2])
        model.model.save_pretrained(tmp_path)
        again = {KLAutoencoder: AutoencoderKL, VQAutoencoder: VQModel}[kind].from_pretrained(tmp_path)
        torch.testing.assert_close(again.decode(latents).sample, decoded)
    with pytest.raises(ValueError, match="image_size is 16, but the images have a side of 32"):
        model.latent_size(32)
    with pytest.raises(ValueError, match="image_size is 15, which 2 levels can't halve 1 times"):
        kind(image_size=15, **_TINY)
    with pytest.raises(ValueError, match="attention has 1 entries and block_out_channels 2"):
        kind(image_size=16, **{**_TINY, "attention": (True,)})
    with pytest.raises(ValueError, match="norm_groups is 3, which does not divide the width 4"):
        kind(image_size=16, **{**_TINY, "norm_groups": 3})


def test_a_folder_of_diffusers_vq_model_loads(tmp_path):
    torch.manual_seed(0)
    saved = VQAutoencoder(image_size=16, **{**_TINY, "image_channels": 3}).eval().model
    saved.save_pretrained(tmp_path)
    model = DiffusersAutoencoder(str(tmp_path)).eval()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = model.encode(images)
        assert (model.num_channels, latents.shape) == (2, (2, 2, 8, 8))
        torch.testing.assert_close(model.decode(latents), saved(images).sample)


def test_the_penalty_is_the_divergence_over_the_pixels():
    mean, log_variance = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    divergence = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    found = gaussian_penalty(mean, log_variance, num_values=3 * 16 * 16)
    torch.testing.assert_close(found, divergence.sum() / 2 / 768)


@pytest.mark.parametrize("kind", [KLAutoencoder, VQAutoencoder, SmallAutoencoder])
def test_all_terms_train_and_the_error_falls(kind, vgg, tmp_path):
    torch.manual_seed(0)
    if kind is SmallAutoencoder:
        autoencoder: TrainableAutoencoder = SmallAutoencoder(image_size=16, widths=(4,))
    else:
        autoencoder = kind(image_size=16, **_TINY)
    training = AutoencoderTraining(
        autoencoder,
        penalty_weight=1.0 if kind is VQAutoencoder else 1e-6,
        perceptual=PerceptualLoss(weights=str(vgg)),
        discriminator=PatchDiscriminator(image_channels=1, width=4, num_layers=1),
        discriminator_start=3,
        optimizer=lambda p: torch.optim.AdamW(p, lr=5e-3),
    )
    before = {name: p.detach().clone() for name, p in training.named_parameters()}
    data = npz_data(write_npz(tmp_path / "data", size=16), public=True, size=16)
    images = data.train_dataset.__getitems__(range(20))["images"]
    start = _error(training, images)
    trainer = _trainer(tmp_path, steps=8)
    trainer.fit(training, datamodule=data)
    assert trainer.global_step == 8  # batches, though two networks stepped
    assert _error(training, images) < start
    changed = {name for name, p in training.named_parameters() if not torch.equal(p, before[name])}
    frozen = {name for name, p in training.named_parameters() if name.startswith("perceptual.")}
    assert frozen
    assert not changed & frozen
    for part in ("autoencoder.", "discriminator.", "autoencoder.latent_std"):
        assert any(name.startswith(part) for name in changed), part
    trainer.save_checkpoint(tmp_path / "ae.ckpt")
    saved = torch.load(tmp_path / "ae.ckpt", weights_only=True)["state_dict"]
    assert not any(name.startswith("perceptual.") for name in saved)
    checkpoint = {"state_dict": saved}
    training.on_load_checkpoint(checkpoint)
    training.load_state_dict(checkpoint["state_dict"])


def _error(training: AutoencoderTraining, images: Tensor) -> float:
    with torch.no_grad():
        return float((training.autoencoder.reconstruct(images).images - images).abs().mean())


def _trainer(folder: Path, *, steps: int) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


# from stage to stage


def test_the_next_stage_reads_the_sizes_from_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "data", size=16)
    data = {
        "class_path": "lightning_dp.images.data.image_data.ImageData",
        "init_args": {
            "source": {
                "class_path": "lightning_dp.images.data.npz.NPZ",
                "init_args": {"path": str(tmp_path / "data"), "class_names": CLASSES},
            },
            "size": 16,
            "batch_size": 20,
            "public": True,
        },
    }
    tiny = {**_TINY, "image_size": 16, "block_out_channels": [4, 8], "attention": [False, True]}
    first = {
        "class_path": "lightning_dp.images.autoencoder_training.AutoencoderTraining",
        "init_args": {
            "autoencoder": {
                "class_path": "lightning_dp.images.latent_autoencoder.KLAutoencoder",
                "init_args": tiny,
            }
        },
    }
    second = {
        "class_path": "lightning_dp.images.module.LatentDiffusion",
        "init_args": {
            "autoencoder": {
                "class_path": "lightning_dp.images.saved_autoencoder.SavedAutoencoder",
                "init_args": {"run": "runs/first"},
            },
            "net": {
                "class_path": "lightning_dp.nets.unet.CrossAttentionUNet",
                "init_args": {
                    "in_channels": 2,
                    "size": 8,
                    "num_classes": 3,
                    "block_out_channels": [8],
                    "attention": [True],
                    "norm_groups": 4,
                    "num_heads": 2,
                    "condition_size": 8,
                },
            },
        },
    }
    for name, model in (("first", first), ("second", second)):
        trainer = {"accelerator": "cpu", "devices": 1, "max_steps": 2, "enable_progress_bar": False}
        config = {"data": data, "model": model, "privacy": None, "trainer": trainer}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
        arguments = ["fit", f"--config={name}.yaml", f"--run.dir=runs/{name}", "--run.wandb=disabled"]
        assert main(arguments) == 0
    trained = SavedAutoencoder("runs/first").eval()
    assert isinstance(trained.model, KLAutoencoder)
    images = torch.rand(2, 1, 16, 16)
    latents = trained.encode(images)
    (tmp_path / "runs" / "first").rename(tmp_path / "elsewhere")  # a checkpoint is complete by itself
    module = load_module(tmp_path / "runs" / "second")
    torch.testing.assert_close(module.autoencoder.encode(images), latents)
    with pytest.raises(ValueError, match="is not a file: give the checkpoint of an earlier stage"):
        SavedAutoencoder("runs/first")
    with pytest.raises(ValueError, match="NPZ, which is no TrainableAutoencoder here"):
        SavedAutoencoder("x", settings={"class_path": "lightning_dp.images.data.npz.NPZ", "init_args": {}})


def test_a_run_that_trained_no_autoencoder_is_refused(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": {}}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="holds no configuration of an autoencoder"):
        SavedAutoencoder(str(tmp_path / "x.ckpt"))
