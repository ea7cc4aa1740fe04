"""Data parallelism for private training: `--trainer.strategy private_ddp`.

The stock strategy averages every rank's raw gradient while backward runs, which no clipping can follow.
Here nothing is exchanged during backward: each rank clips its own units, the DifferentialPrivacy callback
adds up the clipped sums, and noise is drawn once (`privacy.ranks`).
"""

from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import distributed as dist

NAME = "private_ddp"


@final
class PrivateDDP(DDPStrategy):
    """One process a device, no gradient synchronisation of its own.

    Ranks start from rank 0's weights and buffers. Their random numbers differ, as the callback fills each
    rank's generators with entropy of its own.

    Args:
        start_method: `popen` for scripts, `spawn` or `fork` for notebooks and tests.
        process_group_backend: None chooses by device: gloo on a CPU, nccl on GPUs.
    """

    def __init__(
        self, *, start_method: str = "popen", process_group_backend: str | None = None, **parts: Any
    ) -> None:
        # `parts` is what Lightning itself hands to a strategy: accelerator, devices, precision, checkpoints.
        super().__init__(
            start_method=start_method,  # type: ignore[arg-type]
            process_group_backend=process_group_backend,
            **parts,
        )
        self.has_callback = False

    def accept_callback(self) -> None:
        """Called by the callback that does what this strategy leaves out."""
        self.has_callback = True

    def configure_ddp(self) -> None:
        """Instead of wrapping the model: check that somebody else synchronises, and start out equal."""
        if not self.has_callback:
            raise ValueError(
                f"trainer.strategy={NAME} synchronises no gradients by itself: it belongs to private "
                "training; set 'privacy', or use trainer.strategy=ddp to train without it"
            )
        assert isinstance(self.model, LightningModule)
        with torch.no_grad():
            for tensor in [*self.model.parameters(), *self.model.buffers()]:
                dist.broadcast(tensor.data, src=0)


StrategyRegistry.register(
    NAME, PrivateDDP, description="Several processes for private training: clipped sums, noise once."
)
