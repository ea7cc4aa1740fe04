"""The LightningModule that both halves share, and what a third kind of data builds on."""

from lightning_dp.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
