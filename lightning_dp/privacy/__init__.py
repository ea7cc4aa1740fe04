"""Plan, sampling, clipping, noise, accounting and ledger; knows nothing of Lightning."""

from lightning_dp.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
