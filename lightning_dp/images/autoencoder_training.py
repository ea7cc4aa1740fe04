"""Stage one: training the small autoencoder, on public images."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.images.autoencoder import SmallAutoencoder
from lightning_dp.images.batch import ImageBatch
from lightning_dp.tracking.logged_metrics import LoggedMetrics

_MOMENTUM = 0.02


class AutoencoderTraining(LightningModule):
    """Reconstruction (ℓ1) plus KL(q(z|x) ‖ N(0, 1)), and the statistics that standardise latents.

    It takes public data only, so that whoever uses its weights need not ask where they come from.

    Args:
        autoencoder: what is trained.
        kl_weight: of the KL per latent coordinate against the error per pixel; 1e-4 hardly costs detail.
        optimizer: from parameters to an optimizer.
        lr_scheduler: from an optimizer to a scheduler that is stepped once per optimizer step, or None.
    """

    def __init__(
        self,
        autoencoder: SmallAutoencoder,
        *,
        kl_weight: float = 1e-4,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if kl_weight < 0:
            raise ValueError(f"AutoencoderTraining.kl_weight is {kl_weight}; it can't be negative.")
        self.autoencoder = autoencoder
        self.kl_weight = kl_weight
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
        mean, log_variance = self.autoencoder.moments(images)  # (B, c, s, s) each
        latents = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        error = (self.autoencoder.decode_raw(latents) - images).abs().mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        self._note(mean.detach())
        self.log("nonprivate/train_error", error.detach(), batch_size=len(images), prog_bar=True)
        return error + self.kl_weight * divergence

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self.log("test/psnr", self._psnr(batch["images"]))

    def logged_metrics(self, data: Any) -> LoggedMetrics:
        """The reconstruction's error while training, its PSNR by the test."""
        return LoggedMetrics(train=frozenset({"nonprivate/train_error"}), test=frozenset({"test/psnr"}))

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        scheduler = {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def _psnr(self, images: Tensor) -> Tensor:
        """Peak signal-to-noise ratio in dB, of values in [−1, 1], averaged over the images."""
        decoded = self.autoencoder.decode(self.autoencoder.encode(images)).clamp(-1, 1)
        error = (decoded - images).square().flatten(1).mean(dim=1)  # (B,)
        return (10 * torch.log10(4 / error.clamp_min(1e-8))).mean()

    @torch.no_grad()
    def _note(self, mean: Tensor) -> None:
        """Running mean and deviation of each latent channel."""
        model = self.autoencoder
        dims, rate = (0, 2, 3), max(_MOMENTUM, 1 / (1 + self.global_step))
        model.latent_mean.lerp_(mean.mean(dim=dims)[:, None, None], rate)
        model.latent_std.lerp_(mean.std(dim=dims)[:, None, None].clamp_min(1e-4), rate)
