"""The LightningModule that both halves share, and what a third kind of data builds on."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
