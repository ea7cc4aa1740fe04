"""What a network is asked to predict, and how x_0 follows from it."""

from abc import ABC, abstractmethod

from torch import Tensor


class Prediction(ABC):
    """One parametrisation.

    Attributes:
        diffusers_name: the `prediction_type` that diffusers' schedulers know it by.
    """

    diffusers_name: str

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, *, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The regression target for x_t = α·clean + σ·noise."""

    @abstractmethod
    def clean(self, output: Tensor, noisy: Tensor, *, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The network's estimate of x_0."""

    @abstractmethod
    def output(self, clean: Tensor, noisy: Tensor, *, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The output that stands for an estimate of x_0: the inverse of `clean`, for σ > 0."""

    @abstractmethod
    def snr_weight(self, snr: Tensor) -> Tensor:
        """What multiplies ‖x̂_0 − x_0‖² in this target's squared error, as a function of α²/σ²."""


class Epsilon(Prediction):
    """ε: the noise (DDPM)."""

    diffusers_name = "epsilon"

    def target(self, clean: Tensor, noise: Tensor, *, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise

    def clean(self, output: Tensor, noisy: Tensor, *, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (noisy - sigma * output) / alpha

    def output(self, clean: Tensor, noisy: Tensor, *, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (noisy - alpha * clean) / sigma

    def snr_weight(self, snr: Tensor) -> Tensor:
        return snr


class Velocity(Prediction):
    """v = α·ε − σ·x_0 (Salimans & Ho, arXiv 2202.00512, app. D). At the noisiest step it is −x_0."""

    diffusers_name = "v_prediction"

    def target(self, clean: Tensor, noise: Tensor, *, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * noise - sigma * clean

    def clean(self, output: Tensor, noisy: Tensor, *, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * noisy - sigma * output

    def output(self, clean: Tensor, noisy: Tensor, *, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha * noisy - clean) / sigma

    def snr_weight(self, snr: Tensor) -> Tensor:
        return snr + 1


class Sample(Prediction):
    """x_0 itself."""

    diffusers_name = "sample"

    def target(self, clean: Tensor, noise: Tensor, *, alpha: Tensor, sigma: Tensor) -> Tensor:
        return clean

    def clean(self, output: Tensor, noisy: Tensor, *, alpha: Tensor, sigma: Tensor) -> Tensor:
        return output

    def output(self, clean: Tensor, noisy: Tensor, *, alpha: Tensor, sigma: Tensor) -> Tensor:
        return clean

    def snr_weight(self, snr: Tensor) -> Tensor:
        return snr.new_ones(()).expand_as(snr)
