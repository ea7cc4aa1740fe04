"""The LightningModule of the image half: a diffusion model of latents or pixels, given a class or a caption.

The public stage trains it on public images; the private stage starts from those weights (the callback
`WeightsOrigin`) and trains what its adapter chooses. The autoencoder is frozen in both.

Shapes: B images, C channels of side S, c latent channels of side s, V variants, K noise draws, R = B·K rows.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.diffusion.prediction import Prediction
from lightning_dp.diffusion.sampler import Sampler
from lightning_dp.diffusion.schedule import NoiseSchedule
from lightning_dp.images.agreement import check_agreement
from lightning_dp.images.augmentation import Augmentation
from lightning_dp.images.autoencoder import Autoencoder, Pixels
from lightning_dp.images.batch import ImageBatch
from lightning_dp.images.class_gaussians import ClassGaussians
from lightning_dp.images.conditioning import check_asked, told_nothing, told_of_batch, told_when_sampling
from lightning_dp.images.data.dataset import ImageDataset
from lightning_dp.images.image_sampler import ImageSampler
from lightning_dp.images.pretrained import PretrainedNet
from lightning_dp.images.public_weights import (
    leave_out_public_weights,
    put_in_public_weights,
    without_autoencoder_file,
)
from lightning_dp.images.sample_grid import SampleGrid
from lightning_dp.lightning_internals import datamodule_of
from lightning_dp.modules.condition import Condition, TrainingRows
from lightning_dp.modules.diffusion_module import DiffusionModule
from lightning_dp.modules.renamed import renamed
from lightning_dp.nets.image_net import ImageNet
from lightning_dp.privacy.rows import pieces
from lightning_dp.protocols import HasTrainDataset, provides
from lightning_dp.runs.abilities import SampleRequest, SampleWriter, WeightExporter
from lightning_dp.runs.loaded_run import LoadedRun
from lightning_dp.tracking.logged_metrics import LoggedMetrics


class LatentDiffusion(DiffusionModule, ImageSampler, SampleWriter, WeightExporter):
    """Diffusion of an image's latents, given its class, its caption or nothing.

    Args:
        net: predicts the diffusion target of (B, c, s, s); an `ImageDiT`, one of the UNets, or the UNet of a
            public checkpoint (`StableDiffusionUNet`).
        autoencoder: frozen, with public weights; None takes that of the net's checkpoint, or diffuses the
            pixels where there is none.
        base_denoiser: what means and covariances of the classes say, as the denoiser whose output `net`
            corrects; None lets the net say it all.
        schedule: noise levels; None for those of the net's checkpoint, else `Cosine()`.
        prediction: what `net` predicts; None for that of the net's checkpoint, else `Velocity()`.
        sampler: how samples are drawn; None for `Sampler(num_steps=15)`.
        augmentation: variants of an image that its noise draws are of (augmentation multiplicity, arXiv
            2204.13650); None is the image alone.
        label_dropout: share of rows in [0, 1] that are trained without their label or caption, for guidance
            (Ho & Salimans, arXiv 2207.12598).
        guidance_scale: w ≥ 1 of sampling: (1 − w)·f(x, no class) + w·f(x, class); 1 is none.
        max_sampling_rows: images per call of the net while sampling, and of the autoencoder, for memory.
        options: further ones, as of `DiffusionModule`.
        prior: the old name of `base_denoiser`.
        guidance: the old name of `guidance_scale`.

    Raises:
        ValueError: a value is out of range, or net and autoencoder don't fit.
    """

    live_arguments = ("autoencoder", "augmentation", "prior")
    sample_options = ("format", "guidance", "prompt")

    def __init__(
        self,
        net: ImageNet,
        *,
        autoencoder: Autoencoder | None = None,
        base_denoiser: ClassGaussians | None = None,
        schedule: NoiseSchedule | None = None,
        prediction: Prediction | None = None,
        sampler: Sampler | None = None,
        augmentation: Augmentation | None = None,
        label_dropout: float = 0.1,
        guidance_scale: float = 1.0,
        max_sampling_rows: int = 500,
        prior: ClassGaussians | None = None,
        guidance: float | None = None,
        **options: Any,
    ) -> None:
        weight = renamed(guidance_scale, guidance, new="guidance_scale", old="guidance", default=1.0)
        base = renamed(base_denoiser, prior, new="base_denoiser", old="prior", default=None)
        for field, value, low, high, usual in (
            ("label_dropout", label_dropout, 0, 1, "0.1 is usual, 0 without guidance"),
            ("guidance_scale", weight, 1, float("inf"), "1 is none, 1.5 to 7 are usual"),
        ):
            if not low <= value <= high:
                raise ValueError(
                    f"LatentDiffusion.{field} is {value}; it has to lie in [{low}, {high}]: {usual}."
                )
        own = net.companions if isinstance(net, PretrainedNet) else None
        if autoencoder is None:
            autoencoder = own.autoencoder if own else Pixels(num_channels=net.in_channels)
        if autoencoder.num_channels != net.in_channels:
            raise ValueError(
                f"the net's in_channels is {net.in_channels} and the autoencoder makes latents of "
                f"{autoencoder.num_channels} channels: give net.in_channels that number."
            )
        # Names before an adapter adds its own: these have a file of their own.
        pretrained = {name for name, _ in net.named_parameters()} if own else set()
        if base is not None:
            base.build(num_classes=net.num_classes, dimension=net.in_channels * net.size**2)
        super().__init__(
            net,
            base_denoiser=base,
            schedule=schedule or (own.schedule if own else None),
            prediction=prediction or (own.prediction if own else None),
            sampler=sampler or Sampler(num_steps=15),
            guidance_scale=weight,
            max_sampling_rows=max_sampling_rows,
            **options,
        )
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.text_encoder = own.text_encoder if own else None
        self.pretrained_names = pretrained
        self.augmentation = augmentation
        self._label_dropout = label_dropout

    def begin_fit_without_privacy(self) -> None:
        """Encode the train set, and fit the base denoiser to it as it is."""
        dataset = self.read_train_set()
        if self.base_denoiser is None:
            return
        if dataset is None:
            raise ValueError(
                "LatentDiffusion.base_denoiser reads the train set of a fit without privacy, but the data "
                "module has no ImageDataset train_dataset: take ImageData, or no base_denoiser."
            )
        parts = torch.arange(len(dataset)).split(self.max_sampling_rows)
        self.base_denoiser.fit_exactly(self, [dataset.__getitems__(part.tolist()) for part in parts])

    def read_train_set(self) -> ImageDataset | None:
        """Encode every train image once, for the releases and for training.

        A private fit calls this when the plan is accepted and the ledger charged. Latents are functions of
        single images and stay inside this process, so they are part of reading the data and no release. A
        private fit encodes as many images at once as a physical batch has, in the fit's precision.

        Returns:
            The train set, which holds latents from now on; None where the data module has none of images.
        """
        data = self._data()
        dataset = data.train_dataset if provides(data, HasTrainDataset) else None
        if not isinstance(dataset, ImageDataset):
            return None
        private = DifferentialPrivacy.of(self.trainer)
        rows = self.max_sampling_rows
        if private is not None:
            rows = min(rows, private.units_at_once * dataset.rows_per_unit)
        with self.forward_precision():
            dataset.encode_with(lambda images: self.encode(images, rows=rows).float().cpu())
        return dataset

    def train(self, mode: bool = True) -> "LatentDiffusion":
        """As usual, but the frozen autoencoder and text encoder stay in evaluation mode."""
        super().train(mode)
        self.autoencoder.eval()
        if self.text_encoder is not None:
            self.text_encoder.eval()
        return self

    # training

    @torch.no_grad()
    def encode(self, images: Tensor, *, rows: int | None = None) -> Tensor:
        """Latents of every variant of each image: (B, C, S, S) in [−1, 1] to (B, V, c, s, s).

        Args:
            images: on any device.
            rows: ≥ 1 images at once; None for `max_sampling_rows`.
        """
        parts = pieces(images, rows or self.max_sampling_rows)
        return torch.cat([torch.stack(self._encode_variants(part.to(self.device)), dim=1) for part in parts])

    def _encode_variants(self, images: Tensor) -> list[Tensor]:
        """Latents (b, c, s, s) of each variant."""
        if self.augmentation is None:
            return [self.autoencoder.encode(images)]
        variants = range(self.augmentation.num_variants)
        return [self.autoencoder.encode(self.augmentation.apply(images, variant=v)) for v in variants]

    def latents(self, batch: ImageBatch) -> Tensor:
        """(B, V, c, s, s) of a batch of the train set, or of one that still holds images."""
        return batch["latents"] if "latents" in batch else self.encode(batch["images"])

    def training_rows(self, batch: ImageBatch) -> TrainingRows:
        """A variant of each image for each of its rows, some of them without their label or caption."""
        latents = self.latents(batch)
        num_images, num_variants = latents.shape[:2]
        device = latents.device
        owner = torch.arange(num_images, device=device).repeat_interleave(self.noise_draws)  # (R,)
        variant = torch.randint(num_variants, (len(owner),), device=device)  # (R,)
        dropped = torch.rand(len(owner), device=device) < self._label_dropout  # (R,)
        told = told_of_batch(self.net, self.text_encoder, batch, owner=owner, dropped=dropped)
        return TrainingRows(clean=latents[owner, variant], condition=self._under(told))  # (R, c, s, s)

    def _under(self, told: dict[str, Tensor]) -> Condition:
        """What rows are denoised under that the net is told this of."""
        return Condition(net=partial(self.net, **told), base=told["labels"])

    def setup(self, stage: str) -> None:
        """Net, autoencoder and data agree on sizes and classes; nothing was charged or read yet."""
        check_agreement(self, self._data())

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """The training loss on the test split: cheap. `lightning-dp evaluate` judges samples."""
        loss = self.per_example_losses(batch).mean()
        self.log("test/loss", loss, batch_size=len(batch["labels"]), sync_dist=True)

    def logged_metrics(self, data: Any) -> LoggedMetrics:
        """The loss; the callback `SampleEvaluation` adds what samples are worth."""
        return super().logged_metrics(data) | LoggedMetrics(test=frozenset({"test/loss"}))

    def configure_callbacks(self) -> list[Callback]:
        """Every test leaves a picture of samples."""
        return [SampleGrid(), *super().configure_callbacks()]

    # sampling

    def denoise(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        *,
        condition: dict[str, Tensor],
        guidance_scale: float | None = None,
    ) -> Tensor:
        """The model's whole prediction, for whatever samples or edits: net, base denoiser and guidance.

        Args:
            noisy: (R, c, s, s).
            timesteps: (R,).
            condition: `labels` (R,) int64, −1 for none, and for a net that reads text `states` (R, L, W).
            guidance_scale: w ≥ 1; None for the module's own.

        Returns:
            (R, c, s, s), as the module's `prediction` reads it.
        """
        return self.guided(
            noisy,
            timesteps,
            condition=self._under(condition),
            unconditional=self._under(told_nothing(condition)),
            guidance_scale=self.guidance_scale if guidance_scale is None else guidance_scale,
        )

    @torch.no_grad()
    def sample(
        self,
        labels: Tensor,
        *,
        captions: Sequence[str] | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """One image per label; free post-processing of the weights.

        Args:
            labels: (n,) int64 in [0, num_classes), −1 for no class. Choose them without looking at private
                labels: how often a class occurs is private too.
            captions: n texts to follow instead of the labels; not those of private images.
            guidance_scale: w ≥ 1; None for the module's own.
            generator: for reproducible draws, on the module's device; None for torch's global one.
            guidance: the old name of `guidance_scale`.

        Returns:
            (n, C, S, S) in [−1, 1].

        Raises:
            ValueError: a label the net does not know, or captions where it reads none.
        """
        weight = renamed(guidance_scale, guidance, new="guidance_scale", old="guidance", default=None)
        check_asked(self.net, self.text_encoder, labels, captions=captions)

        def conditions(part: slice, guided: bool) -> tuple[Condition, Condition]:
            texts = None if captions is None else captions[part]
            told = told_when_sampling(self.net, self.text_encoder, labels[part].to(self.device), texts)
            return self._under(told), self._under(told_nothing(told))

        shape = (self.net.in_channels, self.net.size, self.net.size)
        drawn = self.draws(
            len(labels), conditions=conditions, shape=shape, guidance_scale=weight, generator=generator
        )
        return torch.cat([self.autoencoder.decode(latents).clamp(-1, 1) for _, latents in drawn])

    @property
    def num_classes(self) -> int:
        return int(self.net.num_classes)

    def write_samples(self, request: SampleRequest, *, run: LoadedRun) -> list[str]:
        """A folder of images of every class, or of the prompts."""
        from lightning_dp.images.export import write_images  # late: it reads data modules

        return write_images(self, request, run=run)

    def export_weights(self, out: Path) -> list[str]:
        """As diffusers reads them."""
        from lightning_dp.images.model_export import save_module

        return save_module(self, out=out)

    # what the weights are

    def facts(self) -> dict[str, str | float | int]:
        """Plain names for tables of results."""
        facts: dict[str, str | float | int] = {
            "task": "image synthesis",
            "net": type(self.net).__name__,
            "autoencoder": type(self.autoencoder).__name__,
            "noise_draws": self.noise_draws,
            "guidance": self.guidance_scale,
            "trainable_parameters": sum(p.numel() for p in self.parameters() if p.requires_grad),
        }
        if isinstance(self.net, PretrainedNet):
            facts["pretrained"] = self.net.source
        if self.base_denoiser is not None:
            facts |= self.base_denoiser.facts()
        return {**facts, "adapter": "Full", **super().facts()}

    @classmethod
    def settings_to_load(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return without_autoencoder_file(settings)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what has a file of its own and does not train; keep the sizes of what has none."""
        leave_out_public_weights(checkpoint, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Complete it by what it left out, so that anything else that is missing is noticed."""
        super().on_load_checkpoint(checkpoint)
        put_in_public_weights(checkpoint, self)

    def _data(self) -> Any:
        return datamodule_of(self.trainer)
