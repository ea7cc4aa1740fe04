"""Finished runs: their account, their module and data, and samples of them."""

from lightning_dp.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
