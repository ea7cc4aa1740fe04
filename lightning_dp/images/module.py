"""The LightningModule of the image half: a class-conditional diffusion model of latents or pixels.

Ordinary Lightning code: training_step returns the mean of per-example losses, and a callback makes it
private. The public stage trains it on public images; the private stage starts from those weights (the
callback `WeightsOrigin`) and trains what its adapter chooses. The autoencoder is frozen in both.

Shapes: B images, C channels of side S, c latent channels of side s, V variants, K noise draws, R = B·K rows.
"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import Tensor

from lightning_dp.adapters.adapter import Adapter
from lightning_dp.diffusion.objective import draw_timesteps, per_example_loss
from lightning_dp.diffusion.prediction import Prediction, Velocity
from lightning_dp.diffusion.sampler import Sampler
from lightning_dp.diffusion.schedule import Cosine, NoiseSchedule
from lightning_dp.images.augmentation import Augmentation
from lightning_dp.images.autoencoder import Autoencoder, Pixels
from lightning_dp.images.batch import ImageBatch
from lightning_dp.images.data.dataset import ImageDataset
from lightning_dp.images.sample_grid import SampleGrid
from lightning_dp.nets.image_net import ImageNet
from lightning_dp.privacy.preparation import Preparation
from lightning_dp.privacy.units import PrivacyUnit

_FROZEN = "autoencoder."


class LatentDiffusion(LightningModule):
    """Diffusion of an image's latents, given its class or nothing.

    Args:
        net: predicts the diffusion target of (B, c, s, s); an `ImageDiT` or one of the UNets.
        autoencoder: frozen, with public weights; None diffuses the pixels.
        adapter: what of `net` trains; None is all of it.
        schedule: noise levels; None for `Cosine()`.
        prediction: what `net` predicts; None for `Velocity()`.
        sampler: how samples are drawn; None for `Sampler(num_steps=15)`.
        noise_draws: K ≥ 1 timesteps, noises and variants per image, in one gradient of that image (DPDM's
            noise multiplicity, arXiv 2210.09929, and augmentation multiplicity, arXiv 2204.13650).
        augmentation: variants of an image to draw from; None is the image alone.
        min_snr_gamma: γ of min-SNR weighting, or None.
        label_dropout: share of rows in [0, 1] that are trained without their label, for guidance (Ho &
            Salimans, arXiv 2207.12598).
        guidance: w ≥ 1 of sampling: (1 − w)·f(x, no class) + w·f(x, class); 1 is none.
        max_sampling_rows: images per call of the net while sampling, for memory.
        optimizer: from parameters to an optimizer.
        lr_scheduler: from an optimizer to a scheduler that is stepped once per optimizer step, or None.

    Raises:
        ValueError: a value is out of range, or net and autoencoder don't fit.
    """

    def __init__(
        self,
        net: ImageNet,
        *,
        autoencoder: Autoencoder | None = None,
        adapter: Adapter | None = None,
        schedule: NoiseSchedule | None = None,
        prediction: Prediction | None = None,
        sampler: Sampler | None = None,
        noise_draws: int = 1,
        augmentation: Augmentation | None = None,
        min_snr_gamma: float | None = None,
        label_dropout: float = 0.1,
        guidance: float = 1.0,
        max_sampling_rows: int = 500,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        for field, value, low, high, usual in (
            ("noise_draws", noise_draws, 1, float("inf"), "1 to 16 are usual"),
            ("label_dropout", label_dropout, 0, 1, "0.1 is usual, 0 without guidance"),
            ("guidance", guidance, 1, float("inf"), "1 is none, 1.5 to 7 are usual"),
            ("max_sampling_rows", max_sampling_rows, 1, float("inf"), "as many as fit memory"),
        ):
            if not low <= value <= high:
                raise ValueError(
                    f"LatentDiffusion.{field} is {value}; it has to lie in [{low}, {high}]: {usual}."
                )
        autoencoder = Pixels(num_channels=net.in_channels) if autoencoder is None else autoencoder
        if autoencoder.num_channels != net.in_channels:
            raise ValueError(
                f"the net's in_channels is {net.in_channels} and the autoencoder makes latents of "
                f"{autoencoder.num_channels} channels: give net.in_channels that number."
            )
        # As in the time-series half: under LightningCLI a checkpoint holds the configuration.
        from_config = _given_hyperparameters.get() is not None
        self.save_hyperparameters(ignore=None if from_config else _LIVE_ARGUMENTS)
        self.net = net
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        # A checkpoint may lack the autoencoder, where its weights have a file of their own.
        self.strict_loading = autoencoder.in_checkpoints
        self.adapter = adapter
        self.schedule = Cosine() if schedule is None else schedule
        self.prediction = prediction or Velocity()
        self.sampler = sampler or Sampler(num_steps=15)
        self.noise_draws = noise_draws
        self.augmentation = augmentation
        self.min_snr_gamma = min_snr_gamma
        self._label_dropout = label_dropout if net.num_classes else 1.0
        self.guidance = guidance
        self.max_sampling_rows = max_sampling_rows
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        if adapter is not None:
            adapter.apply(net)

    @property
    def rows_per_example(self) -> int:
        """Rows that the net's layers see for one row of the data set; consecutive."""
        return self.noise_draws * self.net.rows_per_example

    def preparations(
        self, *, unit: PrivacyUnit, target_epsilon: float | None, delta: float
    ) -> list[Preparation]:
        """What the adapter has to learn about the data before the first step."""
        if self.adapter is None:
            return []
        return self.adapter.preparations(self, unit=unit, target_epsilon=target_epsilon, delta=delta)

    def on_fit_start(self) -> None:
        if self.adapter is not None:
            self.adapter.begin_fit(self)

    def train(self, mode: bool = True) -> "LatentDiffusion":
        """As usual, but the frozen autoencoder stays in evaluation mode."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    # training

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents of every variant of each image: (B, C, S, S) in [−1, 1] to (B, V, c, s, s)."""
        if self.augmentation is None:
            return self.autoencoder.encode(images)[:, None]
        variants = range(self.augmentation.num_variants)
        encoded = [self.autoencoder.encode(self.augmentation.apply(images, variant=v)) for v in variants]
        return torch.stack(encoded, dim=1)

    def per_example_losses(self, batch: ImageBatch) -> Tensor:
        """(B,) losses, each a function of its own image, its own noise and the weights only."""
        latents = batch["latents"] if "latents" in batch else self.encode(batch["images"])
        num_images, num_variants = latents.shape[:2]
        draws, device = self.noise_draws, latents.device
        owner = torch.arange(num_images, device=device).repeat_interleave(draws)  # (R,), rows consecutive
        variant = torch.randint(num_variants, (len(owner),), device=device)  # (R,)
        clean = latents[owner, variant]  # (R, c, s, s)
        dropped = torch.rand(len(owner), device=device) < self._label_dropout  # (R,)
        labels = torch.where(dropped, -1, batch["labels"][owner])  # (R,)
        timesteps = draw_timesteps(
            num_images, draws=draws, num_steps=self.schedule.num_steps, device=device
        )  # (R,)
        alpha, sigma = self.schedule.alpha_sigma(timesteps, ndim=4)  # (R, 1, 1, 1)
        noise = torch.randn_like(clean)  # (R, c, s, s)
        output = self.net(alpha * clean + sigma * noise, timesteps, labels=labels)
        losses = per_example_loss(
            output,
            self.prediction.target(clean, noise, alpha=alpha, sigma=sigma),
            mask=torch.ones_like(clean),
            snr=(alpha / sigma).square().flatten(),
            prediction=self.prediction,
            min_snr_gamma=self.min_snr_gamma,
        )  # (R,)
        return losses.unflatten(0, (-1, draws)).mean(dim=1)  # (B,)

    def setup(self, stage: str) -> None:
        """Net, autoencoder and data agree on sizes and classes; nothing was charged or read yet."""
        data = self._data()
        if not hasattr(data, "size"):
            return
        latent_size = self.autoencoder.latent_size(data.size)
        if latent_size != self.net.size:
            raise ValueError(
                f"the net's size is {self.net.size}, but images of {data.size} pixels have latents of side "
                f"{latent_size}: give net.size that number."
            )
        if 0 < self.net.num_classes < data.num_classes:
            raise ValueError(
                f"the net's num_classes is {self.net.num_classes}, but the data has {data.num_classes} "
                "classes: give net.num_classes that number, or 0 to learn no classes."
            )

    def on_train_start(self) -> None:
        """Encode every train image once.

        Only here: the plan is accepted and the ledger charged. Latents are functions of single images and
        stay inside this process, so they are part of reading the data and no release. A batch that was
        fetched ahead still holds images, and is encoded when it is trained on.
        """
        dataset = getattr(self._data(), "train_dataset", None)
        if isinstance(dataset, ImageDataset):
            dataset.encode_with(lambda images: self.encode(images.to(self.device)).cpu())

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        loss = self.per_example_losses(batch).mean()
        self.log("nonprivate/train_loss", loss.detach(), batch_size=len(batch["labels"]), prog_bar=True)
        return loss

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """The training loss on the test split: cheap. `lightning-dp evaluate` judges samples."""
        loss = self.per_example_losses(batch).mean()
        self.log("test/loss", loss, batch_size=len(batch["labels"]))

    def configure_callbacks(self) -> list[Callback]:
        """Every test leaves a picture of samples."""
        return [SampleGrid()]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    # sampling

    @torch.no_grad()
    def sample(
        self, labels: Tensor, *, guidance: float | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """One image per label; free post-processing of the weights.

        Args:
            labels: (n,) int64 in [0, num_classes), −1 for no class. Choose them without looking at private
                labels: how often a class occurs is private too.
            guidance: w ≥ 1; None for the module's own.
            generator: for reproducible draws, on the module's device; None for torch's global one.

        Returns:
            (n, C, S, S) in [−1, 1].

        Raises:
            ValueError: a label the net does not know.
        """
        if len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < self.net.num_classes:
            raise ValueError(
                f"labels go from {int(labels.min())} to {int(labels.max())}, but this model knows "
                f"{self.net.num_classes} classes, counted from 0, and −1 for none."
            )
        weight = self.guidance if guidance is None else guidance
        side = (self.net.in_channels, self.net.size, self.net.size)
        pieces = []
        for part in labels.to(self.device).split(self.max_sampling_rows):
            noise = torch.randn(len(part), *side, generator=generator, device=self.device)  # (b, c, s, s)

            def denoise(noisy: Tensor, timesteps: Tensor, part: Tensor = part) -> Tensor:
                output = self.net(noisy, timesteps, labels=part)  # (b, c, s, s)
                if weight == 1:
                    return output
                plain = self.net(noisy, timesteps, labels=torch.full_like(part, -1))  # (b, c, s, s)
                return plain + weight * (output - plain)

            latents = self.sampler.sample(
                denoise, noise, schedule=self.schedule, prediction=self.prediction, generator=generator
            )  # (b, c, s, s)
            pieces.append(self.autoencoder.decode(latents).clamp(-1, 1))
        return torch.cat(pieces)

    # what the weights are

    def facts(self) -> dict[str, str | float | int]:
        """Plain names for tables of results."""
        facts: dict[str, str | float | int] = {
            "task": "image synthesis",
            "net": type(self.net).__name__,
            "autoencoder": type(self.autoencoder).__name__,
            "noise_draws": self.noise_draws,
            "guidance": self.guidance,
            "trainable_parameters": sum(p.numel() for p in self.parameters() if p.requires_grad),
        }
        return {**facts, **(self.adapter.facts() if self.adapter is not None else {"adapter": "Full"})}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out an autoencoder that has a file of its own."""
        if not self.autoencoder.in_checkpoints:
            names = [name for name in checkpoint["state_dict"] if name.startswith(_FROZEN)]
            for name in names:
                del checkpoint["state_dict"][name]

    def _data(self) -> Any:
        return getattr(self.trainer, "datamodule", None)


_LIVE_ARGUMENTS = [
    "net",
    "autoencoder",
    "adapter",
    "schedule",
    "prediction",
    "sampler",
    "augmentation",
    "optimizer",
    "lr_scheduler",
]
