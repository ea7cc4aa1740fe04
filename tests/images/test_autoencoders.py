"""Autoencoders: ours learns and loads, diffusers' load by path, and only public images train one."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from image_support import npz_data, write_npz
from lightning.pytorch import Trainer

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.images.autoencoder import Pixels, SmallAutoencoder
from lightning_dp.images.autoencoder_training import AutoencoderTraining
from lightning_dp.images.diffusers_autoencoder import DiffusersAutoencoder

WEIGHTS = Path(os.environ.get("LIGHTNING_DP_DATA", "/nowhere")) / "weights"


def _small(**options) -> SmallAutoencoder:
    return SmallAutoencoder(
        **{"image_size": 8, "num_channels": 2, "latent_size": 4, "widths": (8,), **options}
    )


def _fit(tmp_path, *, steps: int, public: bool = True, callbacks=()) -> tuple[AutoencoderTraining, Trainer]:
    training = AutoencoderTraining(_small(), optimizer=lambda p: torch.optim.AdamW(p, lr=5e-3))
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(training, datamodule=npz_data(write_npz(tmp_path / "data"), public=public))
    return training, trainer


def test_ours_learns_standardises_and_loads(tmp_path):
    torch.manual_seed(0)
    training, trainer = _fit(tmp_path, steps=150)
    batch = npz_data(tmp_path / "data").train_dataset.__getitems__(range(60))
    model = training.autoencoder
    latents = model.encode(batch["images"]).detach()
    assert latents.shape == (60, 2, 4, 4)
    assert 0.7 < float(latents.std()) < 1.4
    error = (model.decode(latents) - batch["images"]).abs().mean()
    spread = (batch["images"] - batch["images"].mean()).abs().mean()
    assert float(error.detach()) < 0.35 * float(spread)
    path = tmp_path / "ae.ckpt"
    trainer.save_checkpoint(path)
    loaded = _small(weights=str(path))
    assert torch.equal(loaded.encode(batch["images"]), latents)
    with pytest.raises(ValueError, match="holds an autoencoder of other settings"):
        _small(weights=str(path), num_channels=3)
    with pytest.raises(ValueError, match="is not a file"):
        _small(weights=str(tmp_path / "none.ckpt"))
    (tmp_path / "bad.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="can't be read as a checkpoint"):
        _small(weights=str(tmp_path / "bad.ckpt"))


def test_private_images_train_no_autoencoder(tmp_path):
    with pytest.raises(ValueError, match="trained on public images"):
        _fit(tmp_path, steps=1, public=False)
    privacy = DifferentialPrivacy(noise_multiplier=4.0, delta=1e-3, expected_batch_size=12)
    with pytest.raises(ValueError, match="trained on public images"):
        _fit(tmp_path, steps=1, callbacks=[privacy])


@pytest.mark.parametrize("size", [7, 8])
def test_an_image_is_encoded_and_decoded_by_itself(size):
    torch.manual_seed(0)
    model, images = _small(image_size=size), torch.rand(3, 1, size, size) * 2 - 1
    latents = model.encode(images)
    decoded = model.decode(latents)
    assert decoded.shape == images.shape
    torch.testing.assert_close(model.encode(images[1:2]), latents[1:2])
    torch.testing.assert_close(model.decode(latents[1:2]), decoded[1:2])


def test_pixels_are_the_identity():
    model, images = Pixels(num_channels=1), torch.rand(2, 1, 8, 8)
    assert model.decode(model.encode(images)) is images
    assert model.latent_size(28) == 28


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="holds images of 8 pixels at most, not 9"):
        _small(image_size=9)
    with pytest.raises(ValueError, match=r"image_size is 8, but the images have a side of 28"):
        _small().latent_size(28)


@pytest.mark.parametrize("kind", [AutoencoderKL, AutoencoderTiny])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_diffusers_folder(tmp_path, kind, channels):
    torch.manual_seed(0)
    if kind is AutoencoderKL:
        levels = {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        }
        saved = AutoencoderKL(**levels, block_out_channels=(8, 8), norm_num_groups=4, scaling_factor=0.5)
    else:
        blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
        saved = AutoencoderTiny(
            **blocks, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8)
        )
    saved.save_pretrained(tmp_path)
    model = DiffusersAutoencoder(str(tmp_path), image_channels=channels).eval()
    assert model.latent_size(16) == 8
    assert model.num_channels == 4
    images = torch.rand(2, channels, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = model.encode(images)
        assert latents.shape == (2, 4, 8, 8)
        assert model.decode(latents).shape == images.shape
        if kind is AutoencoderKL and channels == 3:
            torch.testing.assert_close(latents, saved.eval().encode(images).latent_dist.mode() * 0.5)
    with pytest.raises(ValueError, match="can't divide by 2"):
        model.latent_size(9)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        DiffusersAutoencoder(str(tmp_path))
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match="describes a UNet2DModel"):
        DiffusersAutoencoder(str(tmp_path))
    with pytest.raises(ValueError, match="must name TAESD's encoder"):
        DiffusersAutoencoder(str(tmp_path / "taesd_encoder.safetensors"))


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="needs TAESD's weights: set LIGHTNING_DP_DATA")
@pytest.mark.parametrize(("name", "channels", "least_psnr"), [("taesd", 4, 21.0), ("taesd3", 16, 26.0)])
def test_taesd_reconstructs(name, channels, least_psnr):
    """A smooth picture with an edge, as coloured image: wrong layers would give noise."""
    model = DiffusersAutoencoder(str(WEIGHTS / f"{name}_encoder.safetensors")).eval()
    assert model.num_channels == channels
    x, y = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64))
    picture = np.stack([np.where(x**2 + y**2 < 0.4, 0.7, -0.4), 0.6 * x, 0.6 * y])[None]
    images = torch.from_numpy(picture).float()
    with torch.no_grad():
        decoded = model.decode(model.encode(images)).clamp(-1, 1)
    psnr = 10 * torch.log10(4 / (decoded - images).square().mean())
    assert float(psnr) > least_psnr
