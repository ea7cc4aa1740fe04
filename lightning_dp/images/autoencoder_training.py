"""Stage one: training an autoencoder, on public images."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.images.autoencoder import Reconstruction, TrainableAutoencoder
from lightning_dp.images.batch import ImageBatch
from lightning_dp.images.discriminator import PatchDiscriminator, adaptive_weight
from lightning_dp.images.perceptual import PerceptualLoss
from lightning_dp.lightning_internals import made_from_config
from lightning_dp.tracking.logged_metrics import LoggedMetrics

_MOMENTUM = 0.02
_PERCEPTUAL = "perceptual."


class AutoencoderTraining(LightningModule):
    """Reconstruction plus a penalty of the latents, and the statistics that standardise latents.

    The reconstruction is ℓ1 per value of a pixel, plus LPIPS, plus what a discriminator makes of it, weighed
    by the gradients in the decoder's last layer, as in latent diffusion (arXiv 2112.10752, appendix G). There
    autoencoder and discriminator take turns; here both step at once, each by its own loss, so that
    `trainer.max_steps` counts batches.

    It takes public data only, so that whoever uses its weights need not ask where they come from.

    Args:
        autoencoder: what is trained.
        penalty_weight: of the latents' penalty. For a KL, summed over the latents against an error summed
            over the pixels, 1e-6 is usual and 3e-4 hardly costs detail; for a codebook 1.
        perceptual: LPIPS on a network that is at hand, or None for ℓ1 alone.
        perceptual_weight: of LPIPS against ℓ1.
        discriminator: the adversary, or None.
        discriminator_weight: of the adversary's part, beside the ratio of gradients: .5 is usual, .75 for VQ.
        discriminator_start: ≥ 0, steps before it plays.
        optimizer: from parameters to an optimizer, of autoencoder and discriminator alike.
        lr_scheduler: from an optimizer to a scheduler that is stepped once per optimizer step, or None.
    """

    def __init__(
        self,
        autoencoder: TrainableAutoencoder,
        *,
        penalty_weight: float = 1e-6,
        perceptual: PerceptualLoss | None = None,
        perceptual_weight: float = 1.0,
        discriminator: PatchDiscriminator | None = None,
        discriminator_weight: float = 0.5,
        discriminator_start: int = 50_000,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        for field, value in (
            ("penalty_weight", penalty_weight),
            ("perceptual_weight", perceptual_weight),
            ("discriminator_weight", discriminator_weight),
            ("discriminator_start", discriminator_start),
        ):
            if value < 0:
                raise ValueError(f"AutoencoderTraining.{field} is {value}; it can't be negative.")
        # Under LightningCLI a checkpoint holds the configuration: the next stage reads the sizes from it.
        from_config = made_from_config()
        self.save_hyperparameters(ignore=None if from_config else _LIVE_ARGUMENTS)
        self.autoencoder = autoencoder
        self.penalty_weight = penalty_weight
        self.perceptual = perceptual
        self.perceptual_weight = perceptual_weight
        self.discriminator = discriminator
        self.discriminator_weight = discriminator_weight
        self.discriminator_start = discriminator_start
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler

    def setup(self, stage: str) -> None:
        """Refuse data that is not public, and DP-SGD, which would not cover the statistics kept here."""
        if stage != "fit":
            return
        private = DifferentialPrivacy.of(self.trainer) is not None
        data: Any = getattr(self.trainer, "datamodule", None)
        if private or getattr(data, "public", False) is not True:
            raise ValueError(
                "the autoencoder is trained on public images, without privacy: set 'privacy: null', and "
                "data.public to true if these images may be shown to anyone"
            )

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        images = batch["images"]
        found = self.autoencoder.reconstruct(images)
        self.autoencoder.note(found.latents.detach(), rate=max(_MOMENTUM, 1 / (1 + self.global_step)))
        error = (found.images - images).abs().mean()
        self.log("nonprivate/train_error", error.detach(), batch_size=len(images), prog_bar=True)
        if self.perceptual is not None:
            error = error + self.perceptual_weight * self.perceptual(images, found.images).mean()
        loss = error + self.penalty_weight * found.penalty
        if self.discriminator is None or self.global_step < self.discriminator_start:
            return loss
        return loss + self._adversarial(self.discriminator, images, found, error=error)

    def _adversarial(
        self, discriminator: PatchDiscriminator, images: Tensor, found: Reconstruction, *, error: Tensor
    ) -> Tensor:
        """The decoder's part and the discriminator's own, neither of which reaches the other's weights."""
        fooled = discriminator.generator_loss(found.images)
        weight = adaptive_weight(error, fooled, layer=self.autoencoder.last_layer())
        return self.discriminator_weight * weight * fooled + discriminator.own_loss(images, found.images)

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self.log("test/psnr", self._psnr(batch["images"]))

    def logged_metrics(self, data: Any) -> LoggedMetrics:
        """The reconstruction's error while training, its PSNR by the test."""
        return LoggedMetrics(train=frozenset({"nonprivate/train_error"}), test=frozenset({"test/psnr"}))

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        if self.lr_scheduler is None:
            return optimizer
        scheduler = {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out LPIPS, which has files of its own."""
        for name in [name for name in checkpoint["state_dict"] if name.startswith(_PERCEPTUAL)]:
            del checkpoint["state_dict"][name]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Complete it by what it left out."""
        own = {name: value for name, value in self.state_dict().items() if name.startswith(_PERCEPTUAL)}
        for name, value in own.items():
            checkpoint["state_dict"].setdefault(name, value)

    def _psnr(self, images: Tensor) -> Tensor:
        """Peak signal-to-noise ratio in dB, of values in [−1, 1], averaged over the images."""
        decoded = self.autoencoder.decode(self.autoencoder.encode(images)).clamp(-1, 1)
        error = (decoded - images).square().flatten(1).mean(dim=1)  # (B,)
        return (10 * torch.log10(4 / error.clamp_min(1e-8))).mean()


_LIVE_ARGUMENTS = ["autoencoder", "perceptual", "discriminator", "optimizer", "lr_scheduler"]
