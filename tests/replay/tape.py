"""What one process of a run did: each mechanism's raw input and noisy output, and what could be seen."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.privacy.noise import NoiseSource
from replay.draws import KeyedCoins
from replay.neighbours import Fetches, Slots

PRIVATE_PREFIX = "nonprivate/"


class Interrupted(Exception):
    """The planned end of a process in the middle of its run."""


class Diverged(Exception):
    """The run on D′ released something that the run on D did not."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """Noise added once.

    Attributes:
        kind: "step" of training, or "release" before it.
        step: optimizer steps that were complete by then.
        scale: the noise's standard deviation.
        raw: fp64, before noise: private.
        noisy: after it: public.
    """

    kind: str
    step: int
    scale: float
    raw: Tensor
    noisy: Tensor


@dataclass
class Tape:
    """The record of one process.

    Attributes:
        calls: every addition of noise, in order.
        trained: per physical batch, the step it belongs to, and each row's unit and weight.
        shown: per step, what an observer of the process could see.
    """

    calls: list[Call] = field(default_factory=list)
    trained: list[tuple[int, list[int], list[float]]] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)


class Source:
    """A noise source that writes on the tape; with `frozen` it says again what was said on D.

    Args:
        tape: written on.
        clock: the step that a call belongs to.
        kind: of the mechanism.
        real: the project's own source: used on D.
        frozen: the tape of D: used on D′, in the same order.
    """

    def __init__(
        self,
        tape: Tape,
        clock: "Clock",
        *,
        kind: str,
        real: NoiseSource,
        frozen: Tape | None,
    ):
        self._tape, self._clock, self._kind, self._real, self._frozen = tape, clock, kind, real, frozen

    def standard_normal(self, shape: torch.Size, *, device: torch.device) -> Tensor:
        raise NotImplementedError("noise that does not pass add_to hides its raw input from the harness")

    def add_to(self, sums: Tensor, *, scale: float) -> Tensor:
        raw = sums.detach().to("cpu", torch.float64, copy=True)
        if self._frozen is None:
            noisy = self._real.add_to(sums, scale=scale)
        else:
            position = len(self._tape.calls)
            if position >= len(self._frozen.calls):
                raise Diverged(f"noise is added {position + 1} times, on D {position} times")
            said = self._frozen.calls[position]
            if said.noisy.shape != sums.shape or said.kind != self._kind:
                raise Diverged(f"release {position + 1} has other parts than on D")
            noisy = sums.copy_(said.noisy)
        self._tape.calls.append(
            Call(
                kind=self._kind,
                step=self._clock.step,
                scale=scale,
                raw=raw,
                noisy=noisy.detach().cpu().clone(),
            )
        )
        return noisy


class Clock:
    """Optimizer steps that are complete."""

    step = 0


class Recorder(Callback):
    """Sits last among the callbacks: sets the coins, follows each batch, keeps what can be seen.

    Args:
        tape, clock: of this process.
        slots: the units of the data set.
        fetches: of its view.
        seed: of the harness.
        folder: the run folder; a checkpoint is left there at the end.
        keep_as: where several ranks put their tapes.
        first_step: optimizer steps that earlier processes of the run took.
        interrupt_after: raise `Interrupted` after this step, with a checkpoint left.
    """

    def __init__(
        self,
        tape: Tape,
        clock: Clock,
        *,
        slots: Slots,
        fetches: Fetches,
        seed: int,
        folder: Path,
        keep_as: Path,
        first_step: int,
        interrupt_after: int | None,
    ) -> None:
        self._tape, self._clock, self._slots, self._fetches = tape, clock, slots, fetches
        self._seed, self._folder, self._keep_as = seed, folder, keep_as
        self._first_step, self._interrupt_after = first_step, interrupt_after

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        privacy = _privacy_of(trainer)
        assert privacy._fit is not None
        sampler = privacy._fit.loader._sampler
        keys = [self._slots[index].key for index in sampler._units]
        coins = KeyedCoins(self._seed, keys, first_draw=self._first_step)
        sampler._generator = coins  # type: ignore[assignment]
        self._fetches.draws.end()  # of a release before training
        self._fetches.coins = coins
        self._fetches.keys.clear()
        self._clock.step = self._first_step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        keys = self._fetches.keys.popleft()
        weights = _privacy_of(trainer)._training.part.weights.tolist()
        assert len(keys) == len(weights)
        self._tape.trained.append((self._clock.step, keys, weights))
        self._fetches.draws.begin("train", self._clock.step, keys=keys)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self._gradients = {
            name: None if parameter.grad is None else parameter.grad.clone()
            for name, parameter in pl_module.named_parameters()
        }

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._fetches.draws.end()
        if trainer.global_step == self._clock.step:
            return
        self._clock.step = trainer.global_step
        (optimizer,) = trainer.optimizers
        seen = {
            "step": trainer.global_step,
            "gradient": self._gradients,
            "weight": dict(pl_module.named_parameters()),
            "buffer": dict(pl_module.named_buffers()),
            "optimizer": optimizer.state_dict(),
        }
        self._tape.shown.append(_copied(seen))
        if trainer.global_step == self._interrupt_after:
            trainer.save_checkpoint(self._folder / "interrupted.ckpt")
            raise Interrupted

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {
            name: value
            for name, value in trainer.callback_metrics.items()
            if not name.startswith(PRIVATE_PREFIX)
        }
        self._tape.shown.append(_copied({"steps": trainer.global_step, "metric": metrics}))
        trainer.save_checkpoint(self._folder / "end.ckpt")
        self._keep(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._fetches.draws.end()
        self._keep(trainer)

    def _keep(self, trainer: Trainer) -> None:
        if trainer.world_size > 1:  # else whoever started the fit has the tape itself
            torch.save(vars(self._tape), self._keep_as.with_suffix(f".rank{trainer.global_rank}.pt"))


def _privacy_of(trainer: Trainer) -> DifferentialPrivacy:
    (privacy,) = (c for c in trainer.callbacks if isinstance(c, DifferentialPrivacy))  # type: ignore[attr-defined]
    return privacy


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value
