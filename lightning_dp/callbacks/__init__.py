"""What hooks into a Lightning trainer: private training, averaged weights, diagnostics."""

from lightning_dp.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
