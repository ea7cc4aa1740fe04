"""Denoising networks, and how a condition enters them."""

from lightning_dp.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
