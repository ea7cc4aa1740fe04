"""The image half: latent diffusion, its data, its autoencoders and its scores."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
