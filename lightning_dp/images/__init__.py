"""The image half: latent diffusion, its data, its autoencoders and its scores."""

from lightning_dp.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
