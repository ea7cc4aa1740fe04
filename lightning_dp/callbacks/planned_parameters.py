"""That a step trains what was planned: the parameters which are clipped and noised, and no others."""

from typing import final

from lightning.pytorch import LightningModule, Trainer
from torch import nn

_FIX = (
    "which parameters are clipped and noised is fixed when training starts: set requires_grad and build all "
    "layers in __init__, setup or configure_model, and make each stage a fit of its own"
)


@final
class PlannedParameters:
    """The trainable parameters of a module as they are when training starts."""

    def __init__(self, module: LightningModule) -> None:
        self._planned = _trainable(module)

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        """Raise RuntimeError if the module or its optimizer has come to train anything else."""
        now = _trainable(module)
        for name in self._planned.keys() | now.keys():
            planned, current = self._planned.get(name), now.get(name)
            if planned is current:
                continue
            what = "joined those that train" if planned is None else "was replaced"
            what = "is not trained any more" if current is None else what
            raise RuntimeError(f"the parameter '{name}' {what} after training had started; {_FIX}")
        if len(trainer.optimizers) != 1:
            raise RuntimeError(
                f"there are {len(trainer.optimizers)} optimizers after training had started; {_FIX}"
            )
        known = {id(parameter) for parameter in now.values()}
        for group in trainer.optimizers[0].param_groups:
            for parameter in group["params"]:
                if id(parameter) not in known and (parameter.requires_grad or parameter.grad is not None):
                    raise RuntimeError(
                        f"a parameter of shape {tuple(parameter.shape)} that is none of "
                        f"{type(module).__name__}'s joined the optimizer, so its gradient would be neither "
                        f"clipped nor noised; {_FIX}"
                    )


def _trainable(module: LightningModule) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
