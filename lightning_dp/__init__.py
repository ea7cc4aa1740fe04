"""Conditional diffusion models on private data, as PyTorch Lightning experiments.

What is listed in `__init__.pyi` is public and is imported when it is first used; `lightning_dp.timeseries`,
`images`, `nets`, `adapters`, `diffusion`, `callbacks`, `evolution`, `privacy` and `strategies` have more.
"""

from lightning_dp.extras import attach

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = attach(__name__, __file__)
