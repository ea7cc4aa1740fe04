"""What the means and covariances of classes say of an image, as the denoiser that a network starts from.

A normal distribution of each class is the most that a few noisy sums can say of it, and the best denoiser of
a normal distribution is linear and known. A network whose output is added to it has only to learn what is
not normal, and one of zeros already samples from these distributions. The sums are two paid releases: on
60,000 images they are worth more than their ε spent on gradients.

Shapes: C classes, d = channels · side² latents, r directions, R rows; entry C is that of no class.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn

from lightning_dp.diffusion.base_denoiser import BaseDenoiser
from lightning_dp.images.batch import ImageBatch
from lightning_dp.privacy.grouped_moments import GroupedSecondMoments, GroupedSums, GroupSums
from lightning_dp.privacy.preparation import Preparation
from lightning_dp.privacy.release import Mechanism, Value
from lightning_dp.privacy.release_cost import ReleaseCost
from lightning_dp.privacy.units import PrivacyUnit

_SHARE_OF_MEANS = 0.4
_LARGEST_DIMENSION = 4096


@final
class ClassGaussians(BaseDenoiser[Tensor]):
    """E[x_0 | x_t] if latents of a class were normal, with r directions and an equal rest in all others.

    Guarantee: in a private fit, mean and covariance of all classes are two Gaussian releases, charged with
    the run they belong to. In a fit without privacy they are those of the train set.

    Noisy covariances are cleaned: a direction counts only where its variance stands out of the noise, and
    with the share of it that is signal (the spiked model: Benaych-Georges & Nadakuditi 2011, theorem 2.1).

    Args:
        rank: r ≥ 1, the most directions of a class. What the others have together is known from the trace;
            the network makes of it what an image has there.
        floor: > 0, smallest standard deviation along a direction, in latents.
        noise_multiplier: σ > 0 of both releases together; or
        budget_share: share in (0, 1) of the target ε that both alone would cost, at the same δ. Give one of
            the two; neither is a share of a half.
        mean_radius: root mean square of a latent above which an image counts as less, > 0.
        spread_radius: the same for the distance of an image from the mean of its class.
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor
    rest: Tensor

    def __init__(
        self,
        *,
        rank: int = 24,
        floor: float = 0.05,
        noise_multiplier: float | None = None,
        budget_share: float | None = None,
        mean_radius: float = 0.8,
        spread_radius: float = 0.5,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"ClassGaussians.rank is {rank}, but it must be at least 1: 24 is usual")
        for field, value in (
            ("floor", floor),
            ("mean_radius", mean_radius),
            ("spread_radius", spread_radius),
        ):
            if not 0 < value < math.inf:
                raise ValueError(f"ClassGaussians.{field} is {value}, but it must be a number above 0")
        self.rank = rank
        self.floor = floor
        self._cost = ReleaseCost(
            type(self).__name__,
            noise_multiplier=noise_multiplier,
            budget_share=budget_share,
            usual_share=0.5,
        )
        self.mean_radius = mean_radius
        self.spread_radius = spread_radius
        self._counts = np.zeros(0)

    def build(self, *, num_classes: int, dimension: int) -> None:
        """Make room for C classes of d latents; called once, by the module that owns it.

        Raises:
            ValueError: d is too large for covariances.
        """
        if dimension > _LARGEST_DIMENSION:
            raise ValueError(
                f"ClassGaussians needs covariances of {dimension} latents, and {_LARGEST_DIMENSION} are the "
                "most: take an autoencoder with smaller latents, or no base denoiser"
            )
        self.num_classes, self.dimension = num_classes, dimension
        rank = min(self.rank, dimension)
        self.register_buffer("mean", torch.zeros(num_classes + 1, dimension))
        self.register_buffer("basis", torch.zeros(num_classes + 1, dimension, rank))
        self.register_buffer("variances", torch.zeros(num_classes + 1, rank))
        self.register_buffer("rest", torch.full((num_classes + 1,), self.floor**2))

    def clean(self, noisy: Tensor, known: Tensor, *, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x_t].

        Args:
            noisy: (R, c, s, s) x_t = α·x_0 + σ·ε.
            known: (R,) int64 labels in [−1, C), −1 for no class.
            alpha: (R or 1, 1, 1, 1).
            sigma: (R or 1, 1, 1, 1).
        """
        rows = torch.where(known < 0, self.num_classes, known)  # (R,)
        a, s = alpha.flatten(1), sigma.flatten(1)  # (R or 1, 1)
        mean = self.mean[rows]  # (R, d)
        away = noisy.flatten(1) - a * mean  # (R, d)
        # Along a direction of variance λ: α·λ/(α²·λ + σ²) of the way. Directions of the other classes count
        # 0, so that two products do for all rows.
        elsewhere = self._gain(self.rest[rows, None], a, s)  # (R, 1)
        gain = self._gain(self.variances[rows], a, s) - elsewhere  # (R, r)
        across = self.basis.permute(1, 0, 2).flatten(1)  # (d, (C+1)·r)
        own = nn.functional.one_hot(rows, self.num_classes + 1).to(gain.dtype)  # (R, C+1)
        weights = (own[:, :, None] * gain[:, None]).flatten(1)  # (R, (C+1)·r)
        found = mean + elsewhere * away + (weights * (away @ across)) @ across.T
        return found.view_as(noisy)

    @staticmethod
    def _gain(variance: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * variance / (alpha.square() * variance + sigma.square())

    def preparations(
        self, module: Any, *, unit: PrivacyUnit, target_epsilon: float | None, delta: float
    ) -> list[Preparation]:
        """The two releases, in order.

        Args:
            module: the `LatentDiffusion` that encodes images.
            unit, target_epsilon, delta: of the fit.
        """
        together = self._cost.noise_multiplier(target_epsilon=target_epsilon, delta=delta)
        # Gaussian releases compose by 1/σ² = Σ 1/σᵢ².
        means, spreads = (together / math.sqrt(share) for share in (_SHARE_OF_MEANS, 1 - _SHARE_OF_MEANS))
        return list(self._releases(module, rows_per_unit=unit.rows_per_unit, means=means, spreads=spreads))

    def fit_exactly(self, module: Any, batches: Iterable[ImageBatch]) -> None:
        """Means and covariances without noise, for a fit without privacy."""
        kept = list(batches)
        first, second = self._releases(module, rows_per_unit=1, means=1.0, spreads=1.0)
        self.set_means(first.mechanism.answer(first.mechanism.sums(first.values(kept))))
        moments = second.mechanism.answer(second.mechanism.sums(second.values(kept)))
        self.set_covariances(moments, noise=0.0)

    def _releases(
        self, module: Any, *, rows_per_unit: int, means: float, spreads: float
    ) -> tuple["ClassMeans", "ClassCovariances"]:
        """Both, in order, with noise multipliers of these sizes."""
        shape: dict[str, int] = {"num_groups": self.num_classes + 1, "dimension": self.dimension}
        mean_norm, spread_norm = (
            radius * math.sqrt(self.dimension) for radius in (self.mean_radius, self.spread_radius)
        )
        sums = GroupedSums(noise_multiplier=means, max_norm=mean_norm, **shape)
        products = GroupedSecondMoments(noise_multiplier=spreads, max_norm=spread_norm, **shape)
        return (
            ClassMeans(self, module, sums, rows_per_unit=rows_per_unit),
            ClassCovariances(self, module, products, rows_per_unit=rows_per_unit),
        )

    def set_means(self, answer: GroupSums) -> None:
        """Keep noisy means; a class of hardly any images gets that of all."""
        counts, sums = answer
        everything = sums.sum(axis=0) / max(1.0, counts.sum())
        means = np.where(counts[:, None] > 1, sums / np.maximum(counts, 1.0)[:, None], everything)
        means[-1] = everything
        self._counts = np.maximum(counts, 0.0)
        self.mean.copy_(torch.from_numpy(means))

    def set_covariances(self, moments: np.ndarray, *, noise: float) -> None:
        """Keep the directions that stand out of the noise.

        Those of a class are its own; where its noise hides the others, it takes those that all classes have
        together.

        Args:
            moments: (C+1, d, d) noisy sums of the products of differences from their group's mean.
            noise: standard deviation of an entry off the diagonal.
        """
        counts, means = self._counts, self.mean.double().cpu().numpy()
        total = max(1.0, counts.sum())
        within = moments.sum(axis=0) / total
        within_noise = noise * math.sqrt(len(moments)) / total
        away = means - means[-1]
        between = (away * counts[:, None]).T @ away / total
        for entry in range(self.num_classes + 1):
            if entry == self.num_classes or counts[entry] <= 1:  # that of all images
                covariance = within + between
                found = self._directions(covariance, noise=within_noise)
            else:
                covariance = moments[entry] / counts[entry]
                own = self._directions(covariance, noise=noise / counts[entry])
                others = np.eye(self.dimension) - own.vectors @ own.vectors.T
                shared = self._directions(others @ within @ others, noise=within_noise)
                # Their shape is that of all classes, how much there is of it is the class's own.
                left = (np.trace(covariance) - own.variances.sum()) / np.trace(others @ within @ others)
                variances = np.concatenate([own.variances, max(0.0, left) * shared.variances])
                largest = np.argsort(-variances, kind="stable")
                vectors = np.concatenate([own.vectors, shared.vectors], axis=1)
                found = _Directions(variances[largest], vectors[:, largest])
            rank = min(self.variances.shape[1], len(found.variances))
            variances, vectors = found.variances[:rank], found.vectors[:, :rank]
            self.variances[entry], self.basis[entry] = 0.0, 0.0
            self.variances[entry, :rank] = torch.from_numpy(variances.copy())
            self.basis[entry, :, :rank] = torch.from_numpy(vectors.copy())
            rest = (np.trace(covariance) - variances.sum()) / max(1, self.dimension - rank)
            self.rest[entry] = max(rest, self.floor**2)

    def _directions(self, covariance: np.ndarray, *, noise: float) -> "_Directions":
        """Those whose variance stands out, the largest first."""
        values, vectors = np.linalg.eigh(covariance)
        variances = _signal(values[::-1], edge=noise * math.sqrt(self.dimension))
        kept = int((variances > self.floor**2).sum())
        return _Directions(variances[:kept], vectors[:, ::-1][:, :kept])

    def facts(self) -> dict[str, str | float | int]:
        """Plain names for tables of results."""
        return {"prior": type(self).__name__}


class _Directions(NamedTuple):
    """Variances (r,), and unit vectors (d, r)."""

    variances: np.ndarray
    vectors: np.ndarray


def _signal(values: np.ndarray, *, edge: float) -> np.ndarray:
    """Variance along eigenvectors of a noisy covariance, 0 within the noise.

    Noise alone has eigenvalues up to 2·edge. A true one of λ > edge shows up as λ + edge²/λ, along a
    direction that has 1 − edge²/λ² of it.
    """
    clear = values > 2 * edge
    root = np.sqrt(np.where(clear, values**2 - 4 * edge**2, 0.0))
    true = np.where(clear, (values + root) / 2, 1.0)
    return np.where(clear, true - edge**2 / true, 0.0)


class _Moments(Preparation[Value]):
    """What both releases have in common: how a unit is read."""

    def __init__(
        self, prior: ClassGaussians, module: Any, mechanism: Mechanism[Value], *, rows_per_unit: int
    ) -> None:
        self._prior, self._module, self._mechanism = prior, module, mechanism
        self._rows_per_unit = rows_per_unit

    @property
    def mechanism(self) -> Mechanism[Value]:
        return self._mechanism

    def _groups_and_latents(self, batches: Iterable[ImageBatch], *, centred: bool) -> np.ndarray:
        """(N, λ, 1 + d) fp32: an image's group, C for none, and its latents or their way from the mean."""
        prior, found = self._prior, []
        for batch in batches:
            vectors = self._module.latents(batch)[:, 0].flatten(1).cpu()  # (B, d), the image as it is
            labels = batch["labels"] if prior.num_classes else torch.full_like(batch["labels"], -1)
            groups = torch.where(labels < 0, prior.num_classes, labels).cpu()  # (B,)
            if centred:
                vectors = vectors - prior.mean.cpu()[groups]
            rows = torch.cat([groups[:, None].to(vectors.dtype), vectors], dim=1)
            found.append(rows.unflatten(0, (-1, self._rows_per_unit)).numpy())
        if not found:
            return np.zeros((0, self._rows_per_unit, 1 + prior.dimension), dtype=np.float32)
        return np.concatenate(found)


@final
class ClassMeans(_Moments[GroupSums]):
    """The release of counts and sums."""

    def values(self, batches: Iterable[ImageBatch]) -> np.ndarray:
        return self._groups_and_latents(batches, centred=False)

    def apply(self, answer: GroupSums) -> None:
        self._prior.set_means(answer)


@final
class ClassCovariances(_Moments[np.ndarray]):
    """The release of second moments around the means that were released before."""

    def values(self, batches: Iterable[ImageBatch]) -> np.ndarray:
        return self._groups_and_latents(batches, centred=True)

    def apply(self, answer: np.ndarray) -> None:
        mechanism = self._mechanism
        noise = mechanism.noise_multiplier * mechanism.sensitivity / math.sqrt(2)  # off the diagonal
        self._prior.set_covariances(answer, noise=noise)
