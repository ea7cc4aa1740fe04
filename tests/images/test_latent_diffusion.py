"""The module of the image half: losses of single images, private fits, public starts, sampling."""

from functools import partial

import numpy as np
import pytest
import torch
from follow_steps import sites_of
from image_support import CLASSES, awake, npz_data, pictures, tiny_module, tiny_net, write_npz
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_dp.adapters.modulation import ModulationOnly
from lightning_dp.adapters.saliency import SaliencyLoRA
from lightning_dp.adapters.scores.random_score import RandomScore
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.callbacks.weights_origin import WeightsOrigin
from lightning_dp.diffusion.sampler import Sampler
from lightning_dp.images.augmentation import Flip, Shift
from lightning_dp.images.autoencoder import Autoencoder, Pixels, SmallAutoencoder
from lightning_dp.images.class_gaussians import ClassGaussians
from lightning_dp.images.data.dataset import to_floats
from lightning_dp.images.data.image_data import ImageData
from lightning_dp.images.module import LatentDiffusion
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import Flat
from lightning_dp.privacy.clipping.loop import Loop
from lightning_dp.privacy.ledger import LedgerError
from lightning_dp.privacy.rows import is_followed


class Watched(Pixels):
    """Half the contrast, and a memory of the images that were encoded."""

    def __init__(self) -> None:
        super().__init__(num_channels=1)
        self.seen: list[bytes] = []

    def encode(self, images: Tensor) -> Tensor:
        if not is_followed(images):
            self.seen += [image.numpy().tobytes() for image in images]
        return images / 2

    def decode(self, latents: Tensor) -> Tensor:
        return latents * 2


def _trainer(folder, *, steps: int, callbacks=()) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


def _private() -> DifferentialPrivacy:
    """So much noise that accounting is quick."""
    return DifferentialPrivacy(
        noise_multiplier=4.0, delta=1e-3, expected_batch_size=12, physical_batch_size=5
    )


def _real_images(data: ImageData) -> list[bytes]:
    return [image.numpy().tobytes() for image in to_floats(data.train_dataset.pixels.get(np.arange(60)))]


def _batch(count: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "images": torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1,
        "labels": torch.arange(count) % len(CLASSES),
    }


@pytest.mark.parametrize("autoencoder", [None, "small"])
def test_a_loss_depends_on_its_own_image_alone(autoencoder):
    net = tiny_net()
    if autoencoder:
        autoencoder = SmallAutoencoder(image_size=8, num_channels=2, latent_size=4, widths=(4,))
        net = tiny_net(in_channels=2, size=4, patch_size=2)
    module = tiny_module(
        net=awake(net), autoencoder=autoencoder, noise_draws=2, augmentation=Shift(flip=True)
    )
    batch, other = _batch(), _batch()
    other["images"][1:] = -other["images"][1:]
    other["labels"][1:] = 2 - other["labels"][1:]

    def loss_and_gradient(of: dict[str, Tensor]) -> list[Tensor]:
        torch.manual_seed(0)
        module.zero_grad()
        losses = module.per_example_losses(of)
        losses[0].backward()
        return [losses.detach(), *(p.grad for p in module.net.parameters())]

    before, after = loss_and_gradient(batch), loss_and_gradient(other)
    assert len(before[0]) == 6
    assert not torch.allclose(before[0][1:], after[0][1:])  # so the change does reach the others
    torch.testing.assert_close(before[0][0], after[0][0], rtol=1e-5, atol=0)
    for mine, theirs in zip(before[1:], after[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


def test_a_step_returns_the_losses_of_its_rows():
    module = tiny_module(net=awake(tiny_net()), noise_draws=3)
    module.log = lambda *args, **kwargs: None
    torch.manual_seed(1)
    losses = module.per_example_losses(_batch())  # (6,)
    torch.manual_seed(1)
    step = module.training_step(_batch(), 0)
    torch.testing.assert_close(step["losses"], losses.repeat_interleave(3))
    torch.testing.assert_close(step["loss"], losses.mean())


def test_clipping_per_image_with_several_noise_draws_is_exact():
    module = tiny_module(net=awake(tiny_net()), noise_draws=3, augmentation=Flip())

    def clipped(engine: ClippingEngine) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(0)
        batch = _batch()
        engine.know(sites_of(module, lambda: module.per_example_losses(batch), units=6))
        engine.attach(module, function=Flat(), max_grad_norm=0.2)
        try:
            engine.expect(unit_weights=torch.ones(6), rows_per_unit=module.rows_per_example)
            module.per_example_losses(_batch()).mean().backward()
            return engine.collect(), engine.take()
        finally:
            engine.detach()

    (norms, sums), (true_norms, true_sums) = clipped(BookKeeping()), clipped(Loop())
    assert module.rows_per_example == 3
    torch.testing.assert_close(norms, true_norms, rtol=1e-4, atol=0)
    assert all(name.startswith("net.") for name in sums)
    for name, true in true_sums.items():
        torch.testing.assert_close(sums[name], true, rtol=1e-3, atol=1e-5)


def test_a_private_fit_encodes_once_and_trains_what_the_adapter_says(tmp_path):
    data = npz_data(write_npz(tmp_path / "data"))
    real = _real_images(data)
    autoencoder = Watched()
    module = tiny_module(autoencoder=autoencoder, adapter=ModulationOnly(), augmentation=Flip())
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    _trainer(tmp_path, steps=3, callbacks=[_private()]).fit(module, datamodule=data)
    assert {autoencoder.seen.count(image) for image in real} == {1}
    batch = data.train_dataset.__getitems__([0])
    images = data.train_dataset.pixels.get([0]).astype("float32") / 127.5 - 1
    torch.testing.assert_close(batch["latents"][0, 0], torch.from_numpy(images[0] / 2))
    torch.testing.assert_close(batch["latents"][0, 1], torch.from_numpy(images[0] / 2).flip(-1))
    changed = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all("modulation" in name for name in changed)
    assert module.facts()["adapter"] == "ModulationOnly"


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("private", [True, False])
def test_releases_and_training_read_the_same_latents(tmp_path, private, num_workers):
    data, autoencoder = npz_data(write_npz(tmp_path / "data"), num_workers=num_workers), Watched()
    module = tiny_module(
        autoencoder=autoencoder,
        base_denoiser=ClassGaussians(rank=4, noise_multiplier=3.0),
        adapter=SaliencyLoRA(ratio=0.5, rank=2, score=None if private else RandomScore()),
    )
    callbacks = [DifferentialPrivacy(target_epsilon=3, delta=1e-2, expected_batch_size=12)] if private else []
    _trainer(tmp_path, steps=3, callbacks=callbacks).fit(module, datamodule=data)
    assert {autoencoder.seen.count(image) for image in _real_images(data)} == {1}


def test_nothing_is_encoded_before_the_ledger_is_charged(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(tmp_path / "file" / "ledger.sqlite"))
    data, autoencoder = npz_data(write_npz(tmp_path / "data")), Watched()
    real = set(_real_images(data))
    with pytest.raises((LedgerError, OSError)):
        _trainer(tmp_path, steps=1, callbacks=[_private()]).fit(
            tiny_module(autoencoder=autoencoder), datamodule=data
        )
    assert not real & set(autoencoder.seen)


def test_a_private_stage_starts_from_a_public_one_and_from_no_other(tmp_path):
    """Autoencoder statistics included; weights that saw images nobody called public are refused."""

    def module() -> LatentDiffusion:
        autoencoder = SmallAutoencoder(image_size=8, num_channels=1, latent_size=4, widths=(4,))
        return tiny_module(net=tiny_net(size=4, patch_size=2), autoencoder=autoencoder)

    def fit(name: str, *, public: bool, callbacks: list) -> LatentDiffusion:
        fitted = module()
        with torch.no_grad():
            fitted.autoencoder.latent_std.fill_(0.5)
        trainer = _trainer(tmp_path / name, steps=1, callbacks=callbacks)
        data = npz_data(write_npz(tmp_path / name / "data"), public=public)
        data.dataset_id = name
        trainer.fit(fitted, datamodule=data)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        return fitted

    public = fit("open", public=True, callbacks=[WeightsOrigin()])
    fit("secret", public=False, callbacks=[WeightsOrigin()])
    private, data = module(), npz_data(write_npz(tmp_path / "mine"))
    start = WeightsOrigin(start_from=str(tmp_path / "open.ckpt"))
    _trainer(tmp_path, steps=1, callbacks=[start, _private()]).fit(private, datamodule=data)
    for name, value in public.autoencoder.state_dict().items():
        assert torch.equal(private.autoencoder.state_dict()[name], value), name
    start = WeightsOrigin(start_from=str(tmp_path / "secret.ckpt"))
    trainer = _trainer(tmp_path, steps=1, callbacks=[start, _private()])
    with pytest.raises(ValueError, match="have seen secret without privacy"):
        trainer.fit(module(), datamodule=data)


def test_sampling_has_the_right_shape_range_and_guidance():
    module = tiny_module(net=awake(tiny_net()), max_sampling_rows=4).eval()
    labels = torch.tensor([0, 1, 2, -1, 0])

    def sample(guidance: float) -> Tensor:
        return module.sample(labels, guidance_scale=guidance, generator=torch.Generator().manual_seed(0))

    plain, strong = sample(1.0), sample(3.0)
    assert plain.shape == (5, 1, 8, 8)
    assert float(plain.abs().max()) <= 1
    assert torch.equal(plain, sample(1.0))
    assert torch.allclose(plain[3], strong[3], atol=1e-4)  # without a class there is nothing to strengthen
    assert not torch.allclose(plain[0], strong[0], atol=1e-3)
    with pytest.raises(ValueError, match="labels go from 0 to 3, but this model knows 3 classes"):
        module.sample(torch.tensor([0, 3]))


def test_a_net_without_classes_trains_on_labelled_images():
    module = tiny_module(net=awake(tiny_net(num_classes=0)))
    assert bool(module.per_example_losses(_batch()).isfinite().all())
    assert module.sample(torch.full((2,), -1)).shape == (2, 1, 8, 8)


def test_it_learns_what_the_classes_look_like(tmp_path):
    """Not private: after some steps the samples of 'bright' are brighter than those of 'dark'."""
    torch.manual_seed(0)
    module = tiny_module(net=tiny_net(hidden_size=32), label_dropout=0.0)
    data = npz_data(write_npz(tmp_path, train=300))
    _trainer(tmp_path, steps=150).fit(module, datamodule=data)
    samples = module.eval().sample(
        torch.tensor([0] * 8 + [1] * 8), generator=torch.Generator().manual_seed(0)
    )
    bright, dark = samples[:8].mean(), samples[8:].mean()
    assert float(bright - dark) > 0.5


@pytest.mark.parametrize("augmentation", [Flip(), Shift(), Shift(flip=True)])
def test_variants_are_of_single_images_and_the_first_is_the_image(augmentation):
    images = _batch(3)["images"]
    seen = []
    for variant in range(augmentation.num_variants):
        whole = augmentation.apply(images, variant=variant)
        assert whole.shape == images.shape
        assert torch.equal(whole[1:2], augmentation.apply(images[1:2], variant=variant))
        assert all(not torch.equal(whole, other) for other in seen)
        seen.append(whole)
    assert torch.equal(seen[0], images)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="in_channels is 1 and the autoencoder makes latents of 2"):
        tiny_module(autoencoder=SmallAutoencoder(image_size=8, num_channels=2, latent_size=4, widths=(4,)))
    with pytest.raises(ValueError, match="noise_draws is 0"):
        tiny_module(noise_draws=0)
    with pytest.raises(ValueError, match=r"guidance_scale is 0\.5"):
        tiny_module(guidance_scale=0.5)
    data = npz_data(write_npz(tmp_path))
    with pytest.raises(
        ValueError, match="the net's size is 16, but images of 8 pixels have latents of side 8"
    ):
        _trainer(tmp_path, steps=1).fit(tiny_module(net=tiny_net(size=16)), datamodule=data)
    with pytest.raises(ValueError, match="num_classes is 2, but the data has 3 classes"):
        _trainer(tmp_path, steps=1).fit(tiny_module(net=tiny_net(num_classes=2)), datamodule=data)


def test_the_autoencoder_is_frozen_and_stays_in_evaluation_mode():
    autoencoder: Autoencoder = SmallAutoencoder(image_size=8, num_channels=1, latent_size=4, widths=(4,))
    module: LatentDiffusion = tiny_module(net=tiny_net(size=4, patch_size=2), autoencoder=autoencoder)
    module.train()
    assert module.net.training
    assert not autoencoder.training
    assert not any(p.requires_grad for p in autoencoder.parameters())


def test_whatever_samples_or_denoises_includes_the_prior():
    """A net of zeros says what the prior says, alone, under guidance and from the first step to the last."""
    images, labels = pictures(60)
    clean = torch.from_numpy(images[:, None].astype(np.float32) / 127.5 - 1)
    module = tiny_module(
        base_denoiser=ClassGaussians(rank=4), guidance_scale=3.0, sampler=Sampler(num_steps=5)
    )
    module.base_denoiser.fit_exactly(module, [{"images": clean, "labels": torch.from_numpy(labels)}])
    with torch.no_grad():
        for parameter in module.net.parameters():
            parameter.zero_()

    def alone(noisy, timesteps, *, guidance):
        alpha, sigma = module.schedule.alpha_sigma(timesteps, ndim=4)
        told = torch.arange(6) % 3
        of_class, of_all = (
            module.prediction.output(
                module.base_denoiser.clean(noisy, label, alpha=alpha, sigma=sigma),
                noisy,
                alpha=alpha,
                sigma=sigma,
            )
            for label in (told, torch.full((6,), -1))
        )
        return of_all + guidance * (of_class - of_all)

    noisy = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = {"labels": torch.arange(6) % 3}
    for guidance in (1.0, 3.0):
        for step in (0, 500, 999):
            steps = torch.full((6,), step)
            found = module.denoise(noisy, steps, condition=condition, guidance_scale=guidance)
            torch.testing.assert_close(found, alone(noisy, steps, guidance=guidance))
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    drawn = module.sample(condition["labels"], generator=generators[0])
    noise = torch.randn(6, 1, 8, 8, generator=generators[1])
    expected = module.sampler.sample(
        partial(alone, guidance=3.0), noise, schedule=module.schedule, prediction=module.prediction
    )
    torch.testing.assert_close(drawn, expected.clamp(-1, 1))
