"""What is used of Lightning's private API, in one place."""

from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters


def made_from_config() -> bool:
    """Whether the module whose `__init__` runs is made by LightningCLI, or from a checkpoint that it wrote.

    Then `save_hyperparameters` keeps the configuration, from which all parts can be made again.
    """
    return _given_hyperparameters.get() is not None
