"""Which weights train: the rest of a network stays as it was."""

from lightning_dp.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
