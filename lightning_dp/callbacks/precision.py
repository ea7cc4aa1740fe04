"""The precision of a fit, for forwards that Lightning does not call itself."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning.pytorch import LightningModule


def forward_precision(module: LightningModule) -> AbstractContextManager[Any]:
    """What Lightning puts around a training step's forward, such as autocast; nothing outside of a fit.

    Backwards stay outside of it, as they do in training: an engine's norms and sums are fp32.
    """
    try:
        trainer = module.trainer
    except RuntimeError:  # Lightning's, where no trainer has the module
        return nullcontext()
    return trainer.precision_plugin.forward_context()
