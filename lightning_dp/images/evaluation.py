"""What a run's samples are worth: distances, downstream accuracy, memorisation; added to its results.json."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from torch import nn

from lightning_dp.archives import load_npz
from lightning_dp.images.data.image_data import ImageData
from lightning_dp.images.data.pixels import Pixels, shrunk
from lightning_dp.images.downstream import LEAST_SAMPLES, SmallCNN, WideResNet, accuracy, train_classifier
from lightning_dp.images.export import balanced_labels, draw
from lightning_dp.images.features import Inception, available_extractor, available_name
from lightning_dp.images.judges import MLP, ResNet, ResNeXt, WideResNet40
from lightning_dp.images.memorisation import MEMORISATION, memorisation
from lightning_dp.images.metrics import DISTANCES, cached_features, distances, inception_score
from lightning_dp.images.run import load_data, load_module
from lightning_dp.images.sample_grid import grid_of_classes
from lightning_dp.privacy.report import REPORT_NAME, json_ready, replace_text
from lightning_dp.strategies.device import command_device
from lightning_dp.tracking.account import Account, read_account
from lightning_dp.tracking.layout import SAMPLES

Part = Literal[
    "distances",
    "cnn",
    "mlp",
    "wideresnet",
    "wideresnet40",
    "resnet",
    "resnext",
    "memorisation",
    "train_distances",
]
PARTS: tuple[Part, ...] = get_args(Part)
_CLASSIFIERS: dict[str, type[nn.Module]] = {
    "cnn": SmallCNN,
    "mlp": MLP,
    "wideresnet": WideResNet,
    "wideresnet40": WideResNet40,
    "resnet": ResNet,
    "resnext": ResNeXt,
}
_MEMORISATION_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What to measure.

    Attributes:
        parts: `distances` to the test split, accuracy of a classifier trained on samples (`cnn`, `mlp`,
            `wideresnet`, `wideresnet40`, `resnet`, `resnext`), and `memorisation` and `train_distances`,
            which read private train images and stay `nonprivate/`.
        num_samples: images that are sampled, class-balanced; of a finished set of samples at most so many.
        distance_samples: of them, how many are compared with the test split; features are slow on a CPU.
        epochs: of a classifier.
        guidance: w ≥ 1; None for the module's own.
        num_steps: ≥ 1 steps of the sampler; None for the module's own.
        rank: of a run that trained a `DyLoRA`, which of its ranks to use; None for the largest.
        seed: of sampling and classifiers.
    """

    parts: tuple[Part, ...] = ("distances", "cnn")
    num_samples: int = 10_000
    distance_samples: int = 5_000
    epochs: int = 10
    guidance: float | None = None
    num_steps: int | None = None
    rank: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise ValueError(f"parts are {self.parts}; choose at least one of {', '.join(PARTS)}.")
        for name, value in (
            ("num_samples", self.num_samples),
            ("distance_samples", self.distance_samples),
            ("epochs", self.epochs),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")

    def metrics(self) -> frozenset[str]:
        """The names of what is measured, but for seconds.

        Raises:
            ValueError: distances are wanted, and no weights are at hand to measure them by.
        """
        names = {f"test/accuracy_{name}" for name in _CLASSIFIERS if name in self.parts}
        if "distances" in self.parts:
            extractor = available_name()
            names |= {f"test/{name}" for name in DISTANCES[extractor]}
            names |= {"test/inception_score"} if extractor == Inception.name else set()
        if "train_distances" in self.parts:
            names |= {f"nonprivate/{name}_train" for name in DISTANCES[available_name()]}
        if "memorisation" in self.parts:
            names |= set(MEMORISATION)
        return frozenset(names)

    def check(self, *, num_classes: int) -> None:
        """Raise ValueError where the parts can't be measured of samples of so many classes."""
        self.metrics()
        for name in _CLASSIFIERS:
            if name in self.parts and num_classes == 0:
                raise ValueError(f"the run's samples have no classes, so no {name} can be trained on them.")
            if name in self.parts and self.num_samples < LEAST_SAMPLES:
                raise ValueError(
                    f"num_samples is {self.num_samples}, which can't train a {name}: take {LEAST_SAMPLES} or "
                    "more, 10,000 are usual."
                )


def evaluate_run(run: Path, *, evaluation: Evaluation) -> dict[str, float]:
    """Measure a run and add the metrics to its results.json.

    The test split is what samples are compared with: not one metric but `nonprivate/…` depends on a train
    image other than through the weights.

    Args:
        run: a run folder of `LatentDiffusion`, or one that holds a finished set of samples.
        evaluation: what to measure.

    Returns:
        The metrics, `test/…`, `nonprivate/…` and `seconds/…`.
    """
    account = read_account(run)
    if not account.report:
        load_data(run)  # a folder that is no run at all is called so
        raise ValueError(
            f"{run} has no {REPORT_NAME}, so nobody knows what its samples may claim: put back the report of "
            "the run, or name another folder."
        )
    metrics: dict[str, float] = {}
    data = load_data(run)
    clock = _Clock(metrics)
    samples, labels, num_classes = _samples_of(run, data=data, evaluation=evaluation)
    samples = shrunk(samples, size=data.judged_size)
    clock.note("sampling")
    metrics |= measure(samples, labels, num_classes=num_classes, data=data, evaluation=evaluation)
    names = list(data.class_names[:num_classes])
    if names:
        grid_of_classes(samples, labels, class_names=names, path=run / "plots" / "sample_grid.png")
    _add_to_results(
        run,
        account=account,
        metrics=metrics,
        dataset=data.dataset_id,
        evaluation=evaluation,
        num_samples=len(samples),
        size=samples.shape[-1],
    )
    return metrics


def _samples_of(run: Path, *, data: ImageData, evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray, int]:
    """(N, C, S, S) uint8 and labels (N,), saved or drawn, and how many classes they know."""
    if (run / SAMPLES).is_file():
        for name in ("guidance", "num_steps"):
            if (value := getattr(evaluation, name)) is not None:
                raise ValueError(f"{name} is {value}, but {run} holds samples and no model.")
        content = load_npz(run / SAMPLES, "images", "labels", fix="make the samples again.")
        if set(content) != {"images", "labels"}:
            raise ValueError(f"{run / SAMPLES} lacks images or labels: make the samples again.")
        pixels, labels = (content[name][: evaluation.num_samples] for name in ("images", "labels"))
        samples = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
        return samples, labels, data.num_classes
    module = load_module(run, num_steps=evaluation.num_steps, rank=evaluation.rank)
    # A net may know more classes than the data has: those of its public stage.
    num_classes = min(module.net.num_classes, data.num_classes)
    wanted = balanced_labels(evaluation.num_samples, num_classes=num_classes)
    texts = data.test_dataset.pixels.captions if num_classes == 0 else None
    captions = [texts[row % len(texts)] for row in range(len(wanted))] if texts else None
    samples = draw(module, wanted, captions=captions, guidance=evaluation.guidance, seed=evaluation.seed)
    return samples, wanted.numpy(), num_classes


def measure(
    samples: np.ndarray, labels: np.ndarray, *, num_classes: int, data: ImageData, evaluation: Evaluation
) -> dict[str, float]:
    """The metrics of samples (N, C, S, S) uint8 with labels (N,), at the size at which the data is judged."""
    metrics: dict[str, float] = {}
    samples = shrunk(samples, size=data.judged_size)
    clock = _Clock(metrics)
    evaluation.check(num_classes=num_classes)
    judged = data.judged_pixels("test")
    test, test_labels = _all(judged), judged.labels
    part = samples[: evaluation.distance_samples]
    if {"distances", "train_distances"} & set(evaluation.parts):
        extractor = available_extractor()
        drawn = extractor.features(part)
    if "distances" in evaluation.parts:
        real = cached_features(test, extractor=extractor)
        found = distances(drawn, real, extractor_name=extractor.name)
        metrics |= {f"test/{name}": value for name, value in found.items()}
        if isinstance(extractor, Inception):
            metrics["test/inception_score"] = inception_score(part, extractor=extractor)
        clock.note("distances")
    device = command_device()
    for name, net_fn in _CLASSIFIERS.items():
        if name in evaluation.parts:
            net = train_classifier(
                samples,
                labels,
                net_fn=net_fn,
                num_classes=num_classes,
                epochs=evaluation.epochs,
                seed=evaluation.seed,
                device=device,
            )
            metrics[f"test/accuracy_{name}"] = accuracy(net, test, test_labels, device=device)
            clock.note(name)
    if "memorisation" in evaluation.parts:
        rows = slice(_MEMORISATION_ROWS)
        metrics |= memorisation(samples[rows], train=_all(data.judged_pixels("train")), test=test[rows])
        clock.note("memorisation")
    if "train_distances" in evaluation.parts:
        # Not cached: features of private images leave no file behind.
        train_features = extractor.features(_all(data.judged_pixels("train")))
        found = distances(drawn, train_features, extractor_name=extractor.name)
        metrics |= {f"nonprivate/{name}_train": value for name, value in found.items()}
        clock.note("train_distances")
    return metrics


class _Clock:
    """Seconds between notes, as metrics."""

    def __init__(self, metrics: dict[str, float]) -> None:
        self._metrics = metrics
        self._since = time.perf_counter()

    def note(self, name: str) -> None:
        now = time.perf_counter()
        self._metrics[f"seconds/{name}"] = now - self._since
        self._since = now


def _all(pixels: Pixels) -> np.ndarray:
    return pixels.get(np.arange(len(pixels)))


def _add_to_results(
    run: Path,
    *,
    account: Account,
    metrics: dict[str, float],
    dataset: str,
    evaluation: Evaluation,
    num_samples: int,
    size: int,
) -> None:
    path = run / "results.json"
    report = account.report
    results = (
        json.loads(path.read_text())
        if path.is_file()
        else {
            "method": run.name,
            "dataset": dataset,
            "delta": report.get("delta"),
            "unit": report.get("unit"),
            "epsilon_of_unit": report.get("epsilon_of_unit", {}),
        }
    )
    # Of the weights that were sampled, whatever an earlier result says.
    results |= {
        "epsilon": report["epsilon_spent"],
        "steps": report.get("steps_charged"),
        "ledger": [report.get("ledger_seq"), report.get("ledger_hash")],
        "checks": account.checks,
    }
    results["metrics"] = {**results.get("metrics", {}), **metrics}
    results["evaluation"] = {
        "compared_with": f"the test split of {dataset}",
        "samples": num_samples,
        "size": size,
        "distance_samples": min(evaluation.distance_samples, num_samples),
        "epochs": evaluation.epochs,
        "guidance": evaluation.guidance,
        "num_steps": evaluation.num_steps,
        "seed": evaluation.seed,
    }
    replace_text(path, json.dumps(json_ready(results), indent=2) + "\n")
