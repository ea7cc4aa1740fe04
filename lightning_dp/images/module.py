"""The LightningModule of the image half: a diffusion model of latents or pixels, given a class or a caption.

Ordinary Lightning code: training_step returns per-row losses and their mean, and a callback makes it
private. The public stage trains it on public images; the private stage starts from those weights (the
callback `WeightsOrigin`) and trains what its adapter chooses. The autoencoder is frozen in both.

Shapes: B images, C channels of side S, c latent channels of side s, V variants, K noise draws, R = B·K rows.
"""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_dp.adapters.adapter import Adapter
from lightning_dp.adapters.lora import BASE
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.callbacks.precision import forward_precision
from lightning_dp.callbacks.selection_report import SelectionReport
from lightning_dp.diffusion.objective import draw_timesteps, per_example_loss
from lightning_dp.diffusion.prediction import Prediction, Velocity
from lightning_dp.diffusion.sampler import Sampler
from lightning_dp.diffusion.schedule import Cosine, NoiseSchedule
from lightning_dp.images.augmentation import Augmentation
from lightning_dp.images.autoencoder import Autoencoder, Pixels
from lightning_dp.images.batch import ImageBatch
from lightning_dp.images.class_gaussians import ClassGaussians
from lightning_dp.images.data.dataset import ImageDataset
from lightning_dp.images.pretrained import PretrainedNet
from lightning_dp.images.sample_grid import SampleGrid
from lightning_dp.lightning_internals import datamodule_of, is_configured_by_cli
from lightning_dp.nets.image_net import ImageNet
from lightning_dp.privacy.preparation import Preparation
from lightning_dp.privacy.rows import pieces
from lightning_dp.privacy.units import PrivacyUnit
from lightning_dp.protocols import HasCaptions, HasImages, HasTrainDataset, Tokenises, provides
from lightning_dp.tracking.logged_metrics import LoggedMetrics


class LatentDiffusion(LightningModule):
    """Diffusion of an image's latents, given its class, its caption or nothing.

    Args:
        net: predicts the diffusion target of (B, c, s, s); an `ImageDiT`, one of the UNets, or the UNet of a
            public checkpoint (`StableDiffusionUNet`).
        autoencoder: frozen, with public weights; None takes that of the net's checkpoint, or diffuses the
            pixels where there is none.
        prior: what means and covariances of the classes say, as the denoiser whose output `net` corrects;
            None lets the net say it all.
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
        guidance: w ≥ 1 of sampling: (1 − w)·f(x, no class) + w·f(x, class); 1 is none.
        max_sampling_rows: images per call of the net while sampling, and of the autoencoder, for memory.
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
        prior: ClassGaussians | None = None,
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
        own = net.companions if isinstance(net, PretrainedNet) else None
        if autoencoder is None:
            autoencoder = own.autoencoder if own else Pixels(num_channels=net.in_channels)
        if autoencoder.num_channels != net.in_channels:
            raise ValueError(
                f"the net's in_channels is {net.in_channels} and the autoencoder makes latents of "
                f"{autoencoder.num_channels} channels: give net.in_channels that number."
            )
        # As in the time-series half: under LightningCLI a checkpoint holds the configuration.
        from_config = is_configured_by_cli()
        self.save_hyperparameters(ignore=None if from_config else _LIVE_ARGUMENTS)
        self.net = net
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.text_encoder = own.text_encoder if own else None
        # Names before an adapter adds its own: these have a file of their own.
        self._pretrained = {name for name, _ in net.named_parameters()} if own else set()
        self.prior = prior
        self.adapter = adapter
        self.schedule = schedule or (own.schedule if own else Cosine())
        self.prediction = prediction or (own.prediction if own else Velocity())
        self.sampler = sampler or Sampler(num_steps=15)
        self.noise_draws = noise_draws
        self.augmentation = augmentation
        self.min_snr_gamma = min_snr_gamma
        self._label_dropout = label_dropout
        self.guidance = guidance
        self.max_sampling_rows = max_sampling_rows
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        if prior is not None:
            prior.build(num_classes=net.num_classes, dimension=net.in_channels * net.size**2)
        if adapter is not None:
            adapter.apply(net)

    @property
    def rows_per_example(self) -> int:
        """Rows that the net's layers see for one row of the data set; consecutive."""
        return self.noise_draws * self.net.rows_per_example

    def preparations(
        self, *, unit: PrivacyUnit, target_epsilon: float | None, delta: float
    ) -> list[Preparation]:
        """What prior and adapter have to learn about the data before the first step."""
        parts = [part for part in (self.prior, self.adapter) if part is not None]
        facts: dict[str, Any] = {"unit": unit, "target_epsilon": target_epsilon, "delta": delta}
        return [one for part in parts for one in part.preparations(self, **facts)]

    def forward_precision(self) -> AbstractContextManager:
        """Around forwards before the first step, as the fit's precision has it."""
        return forward_precision(self)

    def on_fit_start(self) -> None:
        if DifferentialPrivacy.of(self.trainer) is None:
            dataset = self.read_train_set()
            if self.prior is not None:
                if dataset is None:
                    raise ValueError(
                        "LatentDiffusion.prior reads the train set of a fit without privacy, but the data "
                        "module has no ImageDataset train_dataset: take ImageData, or no prior."
                    )
                parts = torch.arange(len(dataset)).split(self.max_sampling_rows)
                self.prior.fit_exactly(self, [dataset.__getitems__(part.tolist()) for part in parts])
        if self.adapter is not None:
            self.adapter.begin_fit(self)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.adapter is not None:
            self.adapter.begin_step(self.global_step)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.adapter is not None:
            self.adapter.mask_gradients()

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

    def per_example_losses(self, batch: ImageBatch) -> Tensor:
        """(B,) losses, each a function of its own image, its own noise and the weights only."""
        latents = self.latents(batch)
        num_images, num_variants = latents.shape[:2]
        draws, device = self.noise_draws, latents.device
        owner = torch.arange(num_images, device=device).repeat_interleave(draws)  # (R,), rows consecutive
        variant = torch.randint(num_variants, (len(owner),), device=device)  # (R,)
        clean = latents[owner, variant]  # (R, c, s, s)
        dropped = torch.rand(len(owner), device=device) < self._label_dropout  # (R,)
        timesteps = draw_timesteps(
            num_images, draws=draws, num_steps=self.schedule.num_steps, device=device
        )  # (R,)
        alpha, sigma = self.schedule.alpha_sigma(timesteps, ndim=4)  # (R, 1, 1, 1)
        noise = torch.randn_like(clean)  # (R, c, s, s)
        condition = self._condition(batch, owner=owner, dropped=dropped)
        noisy = alpha * clean + sigma * noise  # (R, c, s, s)
        output = self._output(noisy, timesteps, condition)
        losses = per_example_loss(
            output,
            self.prediction.target(clean, noise, alpha=alpha, sigma=sigma),
            mask=torch.ones_like(clean),
            snr=(alpha / sigma).square().flatten(),
            prediction=self.prediction,
            min_snr_gamma=self.min_snr_gamma,
        )  # (R,)
        return losses.unflatten(0, (-1, draws)).mean(dim=1)  # (B,)

    def _output(self, noisy: Tensor, timesteps: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The prediction (R, c, s, s) for rows at their timesteps (R,)."""
        output = self.net(noisy, timesteps, **condition)
        if self.prior is None:
            return output
        alpha, sigma = self.schedule.alpha_sigma(timesteps, ndim=4)  # (R, 1, 1, 1)
        clean = self.prior.clean(noisy, condition["labels"], alpha=alpha, sigma=sigma)
        return output + self.prediction.output(clean, noisy, alpha=alpha, sigma=sigma)

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
        if not provides(data, HasImages):
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
        if not (provides(data, HasCaptions) and data.has_captions):
            return
        if self.text_encoder is None and self.net.tokenizer is None:
            raise ValueError(
                f"the images of {data.dataset_id} come with captions, but {type(self.net).__name__} reads "
                "none: take StableDiffusionUNet or a CrossAttentionUNet with text, or set the source's "
                "captions off."
            )
        tokenizer = data.tokenizer if provides(data, Tokenises) else None
        if tokenizer != self.net.tokenizer:
            raise ValueError(
                f"data.tokenizer is {tokenizer} and that of the net {self.net.tokenizer}, but a caption "
                "has to be the same numbers to both: give both the same, or both none."
            )

    def training_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Tensor]:
        """`losses` (R,), one per row that the layers see, those of an example alike; `loss`, their mean."""
        losses = self.per_example_losses(batch)  # (B,)
        loss = losses.mean()
        rows = len(batch["labels"])
        self.log("nonprivate/train_loss", loss.detach(), batch_size=rows, prog_bar=True, sync_dist=True)
        return {"loss": loss, "losses": losses.repeat_interleave(self.rows_per_example)}

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """The training loss on the test split: cheap. `lightning-dp evaluate` judges samples."""
        loss = self.per_example_losses(batch).mean()
        self.log("test/loss", loss, batch_size=len(batch["labels"]), sync_dist=True)

    def logged_metrics(self, data: Any) -> LoggedMetrics:
        """The loss; the callback `SampleEvaluation` adds what samples are worth."""
        return LoggedMetrics(train=frozenset({"nonprivate/train_loss"}), test=frozenset({"test/loss"}))

    def configure_callbacks(self) -> list[Callback]:
        """Every test leaves a picture of samples."""
        return [SampleGrid(), SelectionReport()]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    # sampling

    def denoise(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        *,
        condition: dict[str, Tensor],
        guidance: float | None = None,
    ) -> Tensor:
        """The model's whole prediction, for whatever samples or edits: net, prior and guidance.

        Args:
            noisy: (R, c, s, s).
            timesteps: (R,).
            condition: `labels` (R,) int64, −1 for none, and for a net that reads text `states` (R, L, W).
            guidance: w ≥ 1; None for the module's own.

        Returns:
            (R, c, s, s), as the module's `prediction` reads it.
        """
        weight = self.guidance if guidance is None else guidance
        output = self._output(noisy, timesteps, condition)  # (R, c, s, s)
        if weight == 1:
            return output
        nothing = {"labels": torch.full_like(condition["labels"], -1)}
        plain = self._output(noisy, timesteps, nothing)  # (R, c, s, s)
        return plain + weight * (output - plain)

    @torch.no_grad()
    def sample(
        self,
        labels: Tensor,
        *,
        captions: Sequence[str] | None = None,
        guidance: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One image per label; free post-processing of the weights.

        Args:
            labels: (n,) int64 in [0, num_classes), −1 for no class. Choose them without looking at private
                labels: how often a class occurs is private too.
            captions: n texts to follow instead of the labels; not those of private images.
            guidance: w ≥ 1; None for the module's own.
            generator: for reproducible draws, on the module's device; None for torch's global one.

        Returns:
            (n, C, S, S) in [−1, 1].

        Raises:
            ValueError: a label the net does not know, or captions where it reads none.
        """
        if len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < self.net.num_classes:
            raise ValueError(
                f"labels go from {int(labels.min())} to {int(labels.max())}, but this model knows "
                f"{self.net.num_classes} classes, counted from 0, and −1 for none."
            )
        if captions is not None and self.text_encoder is None and self.net.tokenizer is None:
            raise ValueError(f"{type(self.net).__name__} reads no captions: ask for classes instead.")
        weight = self.guidance if guidance is None else guidance
        side = (self.net.in_channels, self.net.size, self.net.size)
        pieces = []
        for start in range(0, len(labels), self.max_sampling_rows):
            rows = slice(start, start + self.max_sampling_rows)
            condition = {"labels": labels[rows].to(self.device)}
            if captions is not None and self.net.tokenizer is not None:
                condition["tokens"] = self.net.tokenizer(captions[rows]).to(self.device)  # (b, L)
            elif captions is not None and self.text_encoder is not None:
                condition["states"] = self.text_encoder(captions[rows])  # (b, L, W)
            shape = (len(condition["labels"]), *side)
            noise = torch.randn(shape, generator=generator, device=self.device)  # (b, c, s, s)
            latents = self.sampler.sample(
                partial(self.denoise, condition=condition, guidance=weight),
                noise,
                schedule=self.schedule,
                prediction=self.prediction,
                generator=generator,
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
        if isinstance(self.net, PretrainedNet):
            facts["pretrained"] = self.net.source
        if self.prior is not None:
            facts |= self.prior.facts()
        return {**facts, **(self.adapter.facts() if self.adapter is not None else {"adapter": "Full"})}

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
        return datamodule_of(self.trainer)


_LIVE_ARGUMENTS = [
    "net",
    "autoencoder",
    "prior",
    "adapter",
    "schedule",
    "prediction",
    "sampler",
    "augmentation",
    "optimizer",
    "lr_scheduler",
]
