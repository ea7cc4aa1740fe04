"""How large conditions and modulations get in a run on public data: what the bounds' limits are set by.

The same numbers from private data would be a release, so a private fit is refused.
"""

from typing import Any, final

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.fit.facts import run_folder
from lightning_dp.nets.conditioning.modulation import Modulation
from lightning_dp.nets.conditioning.path import modulation_modules
from lightning_dp.privacy.report import replace_text

FILE = "conditioning_reference.yaml"
_MAX_VALUES = 1_000_000  # what torch.quantile takes, with room


@final
class ConditioningReference(Callback):
    """Writes `RUN/conditioning_reference.yaml`: c_max, gamma_max, … for `DPAwareAdaLNZero`.

    Each is a quantile, over rows, layers (and for γ, β, α coordinates), of what the modulation layers see and
    give in the last steps of a fit, before any bound: of ‖c‖₂ after the activation, and of |γ|, |β|, |α|.
    Run it with `AdaLNZero`, for a bounded condition makes the other three small.

    Args:
        data_is_public: True says that no row of this fit's data is private. The numbers go into configuration
            files that everybody reads; nothing here can check it.
        quantile: in (0, 1).
        last_steps: ≥ 1 optimizer steps at the end of the fit that count.

    Raises:
        ValueError: an argument is out of range, the fit is private, or nothing in the model is modulated.
    """

    def __init__(self, *, data_is_public: bool, quantile: float = 0.99, last_steps: int = 20) -> None:
        if not data_is_public:
            raise ValueError(
                "ConditioningReference.data_is_public is false, and limits measured on private data would be "
                "a release that nobody paid for: measure on public or simulated data"
            )
        if not 0 < quantile < 1:
            raise ValueError(f"ConditioningReference.quantile is {quantile}, but it lies between 0 and 1")
        if last_steps < 1:
            raise ValueError(f"ConditioningReference.last_steps is {last_steps}, but it must be at least 1")
        self.quantile = quantile
        self.last_steps = last_steps

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if DifferentialPrivacy.of(trainer) is not None:
            raise ValueError(
                "ConditioningReference can't be used in a private fit: the limits that it measures would be "
                "a release that nobody paid for; fit on public data with 'privacy: null'"
            )
        if not modulation_modules(pl_module):
            raise ValueError("ConditioningReference finds no modulation layer in the model")
        if trainer.max_steps < 1:
            raise ValueError(
                "ConditioningReference needs trainer.max_steps, to know which steps are the last"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._values: dict[str, list[Tensor]] = {
            name: [] for name in ("c_max", "gamma_max", "beta_max", "alpha_max")
        }
        self._recording = False
        self._handles = []
        for layer in modulation_modules(pl_module):
            assert isinstance(layer, Modulation)
            self._handles.append(layer.activation.register_forward_hook(self._saw_condition))
            self._handles.append(layer.linear.register_forward_hook(self._saw_modulation(layer)))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._recording = trainer.global_step >= trainer.max_steps - self.last_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._recording = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._unhook()
        folder = run_folder(trainer)
        if not trainer.is_global_zero or not self._values["c_max"]:
            return
        limits = {name: self._quantile(pieces) for name, pieces in self._values.items() if pieces}
        heading = (
            f"# {100 * self.quantile:g} % quantiles in the last {self.last_steps} steps of a public run\n"
        )
        replace_text(folder / FILE, heading + yaml.safe_dump(limits, sort_keys=False))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._unhook()

    def _unhook(self) -> None:
        for handle in getattr(self, "_handles", []):
            handle.remove()
        self._handles = []

    def _saw_condition(self, module: nn.Module, args: Any, condition: Tensor) -> None:
        if self._recording:
            self._note("c_max", torch.linalg.vector_norm(condition.detach().float(), dim=-1))

    def _saw_modulation(self, layer: Modulation) -> Any:
        kinds = ("gamma_max", "beta_max", "alpha_max")[: 3 if layer.gated else 2]

        def after(module: nn.Module, args: Any, raw: Tensor) -> None:
            if not self._recording:
                return
            split = raw.detach().float().unflatten(-1, (layer.sublayers, len(kinds), -1))  # (B, S, kinds, D)
            for number, kind in enumerate(kinds):
                self._note(kind, split[..., number, :].abs())

        return after

    def _note(self, name: str, values: Tensor) -> None:
        self._values[name].append(values.flatten().cpu())

    def _quantile(self, pieces: list[Tensor]) -> float:
        values = torch.cat(pieces)
        # An even thinning: neighbours are coordinates of one row, so nothing is preferred.
        values = values[:: -(-len(values) // _MAX_VALUES)]
        return round(float(torch.quantile(values, self.quantile)), 4)
