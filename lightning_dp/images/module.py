"""The LightningModule of the image half: a diffusion model of latents or pixels, given a class or a caption.

The public stage trains it on public images; the private stage starts from those weights (the callback
`WeightsOrigin`) and trains what its adapter chooses. The autoencoder is frozen in both.

Shapes: B images, C channels of side S, c latent channels of side s, V variants, K noise draws, R = B·K rows.
"""

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_dp.adapters.adapter import Adapter
from lightning_dp.adapters.lora import BASE
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.diffusion.prediction import Prediction
from lightning_dp.diffusion.sampler import Sampler
from lightning_dp.diffusion.schedule import NoiseSchedule
from lightning_dp.images.augmentation import Augmentation
from lightning_dp.images.autoencoder import Autoencoder, Pixels
from lightning_dp.images.batch import ImageBatch
from lightning_dp.images.class_gaussians import ClassGaussians
from lightning_dp.images.data.dataset import ImageDataset
from lightning_dp.images.image_sampler import ImageSampler
from lightning_dp.images.pretrained import PretrainedNet
from lightning_dp.images.sample_grid import SampleGrid
from lightning_dp.modules.condition import Condition, TrainingRows
from lightning_dp.modules.diffusion_module import DiffusionModule
from lightning_dp.modules.renamed import renamed
from lightning_dp.nets.image_net import ImageNet
from lightning_dp.privacy.rows import pieces
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
        adapter: what of `net` trains; None is all of it.
        schedule: noise levels; None for those of the net's checkpoint, else `Cosine()`.
        prediction: what `net` predicts; None for that of the net's checkpoint, else `Velocity()`.
        sampler: how samples are drawn; None for `Sampler(num_steps=15)`.
        noise_draws: K ≥ 1 timesteps, noises and variants per image, in one gradient of that image (DPDM's
            noise multiplicity, arXiv 2210.09929, and augmentation multiplicity, arXiv 2204.13650).
        augmentation: variants of an image to draw from; None is the image alone.
        min_snr_gamma: γ of min-SNR weighting, or None.
        label_dropout: share of rows in [0, 1] that are trained without their label or caption, for guidance
            (Ho & Salimans, arXiv 2207.12598).
        guidance_scale: w ≥ 1 of sampling: (1 − w)·f(x, no class) + w·f(x, class); 1 is none.
        max_sampling_rows: images per call of the net while sampling, and of the autoencoder, for memory.
        optimizer: from parameters to an optimizer.
        lr_scheduler: from an optimizer to a scheduler that is stepped once per optimizer step, or None.
        prior, guidance: the old names of `base_denoiser` and `guidance_scale`.

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
        adapter: Adapter | None = None,
        schedule: NoiseSchedule | None = None,
        prediction: Prediction | None = None,
        sampler: Sampler | None = None,
        noise_draws: int = 1,
        augmentation: Augmentation | None = None,
        min_snr_gamma: float | None = None,
        label_dropout: float = 0.1,
        guidance_scale: float = 1.0,
        max_sampling_rows: int = 500,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        prior: ClassGaussians | None = None,
        guidance: float | None = None,
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
            noise_draws=noise_draws,
            min_snr_gamma=min_snr_gamma,
            guidance_scale=weight,
            max_sampling_rows=max_sampling_rows,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            adapter=adapter,
        )
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.text_encoder = own.text_encoder if own else None
        self._pretrained = pretrained
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
        dataset = getattr(self._data(), "train_dataset", None)
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
        told = self._condition(batch, owner=owner, dropped=dropped)
        return TrainingRows(clean=latents[owner, variant], condition=self._under(told))  # (R, c, s, s)

    def _under(self, told: dict[str, Tensor]) -> Condition:
        """What rows are denoised under that the net is told this of."""
        return Condition(net=partial(self.net, **told), base=told["labels"])

    def _condition(self, batch: ImageBatch, *, owner: Tensor, dropped: Tensor) -> dict[str, Tensor]:
        """What the net is told of each row: its image's label, and its caption where there is one."""
        if self.net.num_classes:
            labels = torch.where(dropped, -1, batch["labels"][owner])  # (R,)
        else:
            labels = torch.full_like(owner, -1)  # (R,)
        if "tokens" in batch:
            assert self.net.tokenizer is not None  # see setup
            nothing = self.net.tokenizer([""]).to(owner.device)  # (1, L)
            return {
                "labels": labels,
                "tokens": torch.where(dropped[:, None], nothing, batch["tokens"][owner]),
            }
        if "captions" not in batch:
            return {"labels": labels}
        assert self.text_encoder is not None  # see setup
        states = self.text_encoder(["", *batch["captions"]])  # (1 + B, L, W)
        return {"labels": labels, "states": states[torch.where(dropped, 0, owner + 1)]}  # (R, L, W)

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
        if isinstance(self.net, PretrainedNet) and self.net.class_names not in ((), data.class_names):
            raise ValueError(
                f"the net's class_names are {list(self.net.class_names)}, but the data has "
                f"{list(data.class_names)}: give net.class_names those, in that order, or [] to learn no "
                "classes."
            )
        if not getattr(data, "has_captions", False):
            return
        if self.text_encoder is None and self.net.tokenizer is None:
            raise ValueError(
                f"the images of {data.dataset_id} come with captions, but {type(self.net).__name__} reads "
                "none: take StableDiffusionUNet or a CrossAttentionUNet with text, or set the source's "
                "captions off."
            )
        if getattr(data, "tokenizer", None) != self.net.tokenizer:
            raise ValueError(
                f"data.tokenizer is {data.tokenizer} and that of the net {self.net.tokenizer}, but a caption "
                "has to be the same numbers to both: give both the same, or both none."
            )

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
        nothing = {"labels": torch.full_like(condition["labels"], -1)}
        return self.guided(
            noisy,
            timesteps,
            condition=self._under(condition),
            unconditional=self._under(nothing),
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
        if len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < self.net.num_classes:
            raise ValueError(
                f"labels go from {int(labels.min())} to {int(labels.max())}, but this model knows "
                f"{self.net.num_classes} classes, counted from 0, and −1 for none."
            )
        if captions is not None and self.text_encoder is None and self.net.tokenizer is None:
            raise ValueError(f"{type(self.net).__name__} reads no captions: ask for classes instead.")

        def conditions(part: slice, guided: bool) -> tuple[Condition, Condition]:
            told = {"labels": labels[part].to(self.device)}
            nothing = {"labels": torch.full_like(told["labels"], -1)}
            if captions is not None and self.net.tokenizer is not None:
                told["tokens"] = self.net.tokenizer(captions[part]).to(self.device)  # (b, L)
            elif captions is not None and self.text_encoder is not None:
                told["states"] = self.text_encoder(captions[part])  # (b, L, W)
            return self._under(told), self._under(nothing)

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
        autoencoder = settings.get("autoencoder") or {}
        if "weights" not in autoencoder.get("init_args", {}):
            return settings
        own = {**autoencoder, "init_args": {**autoencoder["init_args"], "weights": None}}
        return {**settings, "autoencoder": own}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what has a file of its own and does not train; keep the sizes of what has none."""
        for name in self._in_other_files():
            del checkpoint["state_dict"][name]
        settings = self.autoencoder.settings()
        configured = checkpoint.get("hyper_parameters", {}).get("autoencoder")
        if settings is not None and configured is not None:
            own = {**configured, "init_args": {**configured["init_args"], "settings": settings}}
            checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], "autoencoder": own}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Complete it by what it left out, so that anything else that is missing is noticed."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        own = {name.removeprefix("net."): value for name, value in state.items() if name.startswith("net.")}
        left = () if self.adapter is None else self.adapter.left_frozen(own)
        # In place: its metadata says what the weights saw.
        for name, value in self._in_other_files(besides=left).items():
            state.setdefault(name, value)

    def _in_other_files(self, *, besides: Collection[str] = ()) -> dict[str, Tensor]:
        whole = [] if self.autoencoder.in_checkpoints else ["autoencoder."]
        whole += ["text_encoder."]
        replaced = set() if self.adapter is None else set(self.adapter.replaced())
        frozen = {
            f"net.{name}"
            for name, parameter in self.net.named_parameters()
            if name.replace(BASE, "") in self._pretrained
            and (not parameter.requires_grad or name in besides)
            and name not in replaced
        }
        return {
            name: value
            for name, value in self.state_dict().items()
            if name in frozen or name.startswith(tuple(whole))
        }

    def _data(self) -> Any:
        return getattr(self.trainer, "datamodule", None)
