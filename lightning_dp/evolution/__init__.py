"""Private Evolution: synthetic data by noisy votes, without training."""

from lightning_dp.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
