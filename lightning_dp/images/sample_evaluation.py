"""What a fit's samples are worth, measured by its own test, so that a sweep can judge by it."""

from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_dp.images.data.image_data import ImageData
from lightning_dp.images.evaluation import Evaluation, Part, measure
from lightning_dp.images.export import balanced_labels, draw
from lightning_dp.images.image_sampler import ImageSampler
from lightning_dp.lightning_internals import datamodule_of
from lightning_dp.tracking.logged_metrics import LoggedMetrics


@final
class SampleEvaluation(Callback):
    """At the end of a test: samples, measured as `lightning-dp evaluate` does, logged as `test/…`.

    Samples are free post-processing of the weights, and are compared with the test split; what
    `memorisation` reads of train images is `nonprivate/…`.

    Args:
        parts, num_samples, distance_samples, epochs, seed: as of `Evaluation`.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        *,
        parts: tuple[Part, ...] = ("cnn",),
        num_samples: int = 10_000,
        distance_samples: int = 5_000,
        epochs: int = 10,
        seed: int = 0,
    ) -> None:
        self.evaluation = Evaluation(
            parts=parts,
            num_samples=num_samples,
            distance_samples=distance_samples,
            epochs=epochs,
            seed=seed,
        )

    def logged_metrics(self, module: LightningModule, data: Any) -> LoggedMetrics:
        """What is measured."""
        return LoggedMetrics(test=self.evaluation.metrics())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse before anything is charged what can't be measured at the end."""
        if stage in ("fit", "test"):
            module, _ = _parts(trainer, pl_module)
            self.evaluation.check(num_classes=module.num_classes)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        measured = self._measure(trainer, pl_module) if trainer.is_global_zero else {}
        measured = trainer.strategy.broadcast(measured)
        for name in sorted(self.evaluation.metrics()):
            pl_module.log(name, measured[name])

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        module, data = _parts(trainer, pl_module)
        number = module.num_classes
        wanted = balanced_labels(self.evaluation.num_samples, num_classes=number)
        samples = draw(module, wanted, seed=self.evaluation.seed)
        with torch.inference_mode(False), torch.enable_grad():  # classifiers are trained
            return measure(samples, wanted.numpy(), num_classes=number, data=data, evaluation=self.evaluation)


def _parts(trainer: Trainer, module: LightningModule) -> tuple[ImageSampler, ImageData]:
    data = datamodule_of(trainer)
    for what, kind in ((module, ImageSampler), (data, ImageData)):
        if not isinstance(what, kind):
            raise ValueError(
                f"SampleEvaluation measures samples of an ImageSampler against an ImageData, and the fit "
                f"has a {type(what).__name__}: leave it out."
            )
    return module, data  # type: ignore[return-value]
