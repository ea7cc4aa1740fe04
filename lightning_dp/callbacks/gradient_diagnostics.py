"""What clipping does to each unit's gradient, split into θ_cond and θ_other. Reads, never changes training.

All of it is raw statistics of the training data, which no ε covers: names begin with `nonprivate/`, files
stay in the run folder, and W&B gets neither unless `run.share_nonprivate` is set. For numbers that may be
shown to anyone, run it on public or simulated data with `privacy: null`.

`RUN/diagnostics.json` (norms are of unclipped per-unit gradients; "partition" is all, cond or other)::

    nonprivate, mode ("private" or "public"), max_grad_norm, clipping_function, every_n_steps,
    first_step, last_step, observed_steps, units (pooled), units_not_finite, units_kept,
    partitions.<partition>
        parameters, mean, quantiles {p50 … p99}, tail_ratio (p99 / p50),
        ecdf {share [], norm []}, tail_index, tail_index_within_steps
            {alpha, low, high, interval, k, n, threshold, alpha_half_k, alpha_twice_k} or null
    paths.<path> {parameters, mean, largest}: share of ‖g‖² that a `ConditionPath` has, or other (θ_other), in
        the mean over units and over the units beyond their step's p99; {} where there is no θ_cond
    layers.<path> {mean, largest}: the same of a layer
    clip_fraction, eta {mean, p10 … p99}, cond_share {mean, clipped, not_clipped} or null
    bias [{step, units, gradient, <partition> {norm, unbiased_square}}]: ‖E[clip g] − E[g]‖ in a batch of
        that many units, its square without what chance adds, and ‖E[g]‖ as gradient
    steps {step [], clip_fraction [], eta_mean [], cond_share [], <partition> {p50 [] … p99 []}}
"""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast, final

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.callbacks.gradient_record import GradientRecord, squares_of
from lightning_dp.callbacks.preflight import silent, undisturbed
from lightning_dp.fit.facts import layer_rows_per_unit, run_folder
from lightning_dp.lightning_internals import datamodule_of
from lightning_dp.nets.conditioning.path import condition_paths
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.functions import ClippingFunction, Flat
from lightning_dp.privacy.clipping.observing import UnitNorms
from lightning_dp.privacy.clipping.sites import Sites
from lightning_dp.privacy.clipping.trees import tensors
from lightning_dp.privacy.follow_rows import follow_rows
from lightning_dp.privacy.report import replace_text
from lightning_dp.privacy.row_losses import mean_loss
from lightning_dp.protocols import TakesPrivateImages, provides, rows_per_unit_of
from lightning_dp.tracking import gradient_figures
from lightning_dp.tracking.gradient_statistics import unbiased_square
from lightning_dp.tracking.logged_metrics import LoggedMetrics

FILE = "diagnostics.json"


@final
class GradientDiagnostics(Callback):
    """Per-unit ‖g‖, ‖g_cond‖, ‖g_other‖ over training, and what clipping at C does to them.

    In a private fit the norms are those that its engine computes anyway. With `privacy: null` an engine of
    its own goes over the batch once more, on observed steps, before the step and with the random draws that
    the step will use; nothing is clipped or noised in training itself. Two runs can so be compared at no
    privacy cost, on data that is public.

    η is ‖clip(g)‖ / ‖g‖, for flat clipping min(1, C / ‖g‖); a unit is clipped if any factor is below 1. ρ of
    two runs (arXiv 2602.22610, diagnostics) is the ratio of their p99, over all parameters or over θ_cond:
    `lightning-dp report A B --gradients FILE`. The share of each path of the condition is printed at the end.
    Cost: a private fit's norms about 6 % of an observed step on a CPU; a public fit's one clipped pass for
    each observed step; a bias one ordinary pass more, and in a private fit a clipped one as well.

    Args:
        every_n_steps: ≥ 1 optimizer steps from one observation to the next.
        bias_every_n_steps: ≥ 1 optimizer steps from one measurement of ‖E[clip g] − E[g]‖ to the next, on
            the step's first physical batch; None measures none.
        max_grad_norm: C > 0 of a fit without privacy; a private fit's own C counts there.
        clipping_function: of a fit without privacy; None for `Flat()`.
        max_units: ≥ 1,000 unit gradients that are kept for distributions and tails; more are thinned at
            random. Quantiles over steps use all of them.

    Raises:
        ValueError: an argument is out of range, or DifferentialPrivacy comes before this callback.
    """

    def __init__(
        self,
        *,
        every_n_steps: int = 1,
        bias_every_n_steps: int | None = 50,
        max_grad_norm: float = 1.0,
        clipping_function: ClippingFunction | None = None,
        max_units: int = 100_000,
    ) -> None:
        for name, count, least in (
            ("every_n_steps", every_n_steps, 1),
            ("bias_every_n_steps", bias_every_n_steps, 1),
            ("max_units", max_units, 1_000),
        ):
            if count is not None and count < least:
                raise ValueError(f"GradientDiagnostics.{name} is {count}, but it must be at least {least}")
        if not 0 < max_grad_norm < float("inf"):
            raise ValueError(
                f"GradientDiagnostics.max_grad_norm is {max_grad_norm}, but a bound is a number above 0"
            )
        self.every_n_steps = every_n_steps
        self.bias_every_n_steps = bias_every_n_steps
        self.max_grad_norm = max_grad_norm
        self.clipping_function = clipping_function or Flat()
        self.max_units = max_units

    def logged_metrics(self, module: LightningModule, data: Any) -> LoggedMetrics:
        """Of observed steps, whatever the module; there is more where a part of it takes the condition."""
        names = ("clip_fraction", "eta_mean", "all_p50", "all_p99")
        return LoggedMetrics(train=frozenset(f"nonprivate/gradient_{name}" for name in names))

    # what is observed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._private = DifferentialPrivacy.of(trainer)
        if self._private is not None and callbacks.index(self._private) < callbacks.index(self):
            raise ValueError(
                "GradientDiagnostics comes after DifferentialPrivacy in the trainer's callbacks and would "
                "run the model while a batch is being clipped; put it before"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._folder = run_folder(trainer)
        names = {name for name, parameter in pl_module.named_parameters() if parameter.requires_grad}
        paths = {str(path): own & names for path, own in condition_paths(pl_module).items() if own & names}
        cond = set().union(*paths.values())
        self._partitions = {"all": names}
        if cond and cond != names:
            self._partitions |= {"cond": cond, "other": names - cond}
        self._paths = {**paths, "other": names - cond} if cond else {}
        self._path_of = {name: path for path, own in self._paths.items() for name in own}
        self._record = GradientRecord(tuple(self._partitions), max_units=self.max_units)
        self._seen: list[UnitNorms] = []
        self._sites: Sites | None = None
        self._at = -1  # the step that `_seen` belongs to
        if self._private is not None:
            self._bound = self._private.max_grad_norm
            self._function = self._private.clipping_function
            rows = self._private.facts.rows_per_unit
        else:
            self._bound, self._function = self.max_grad_norm, self.clipping_function
            rows = rows_per_unit_of(datamodule_of(trainer))
        self._rows_per_unit, self._layer_rows_per_unit = rows, layer_rows_per_unit(rows, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        first = step != self._at  # of the step's physical batches
        if first:
            self._at = step
            self._seen = []
        observed = step % self.every_n_steps == 0
        biased = self.bias_every_n_steps is not None and step % self.bias_every_n_steps == 0
        if first and (biased or (observed and self._private is None)):
            self._probe(trainer, pl_module, batch, batch_idx, observed=observed, biased=biased)
        if self._private is not None:
            self._private.clipping_engine.observe(self._seen.append if observed else None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._at or not self._seen:
            return
        latest = self._record.add(
            self._at,
            self._unit_arrays(self._seen),
            layers=squares_of(self._seen, lambda name: name.rpartition(".")[0]),
            paths=squares_of(self._seen, self._path_of.get),
        )
        self._seen = []
        if latest:
            pl_module.log_dict({f"nonprivate/gradient_{name}": value for name, value in latest.items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if hasattr(self, "_record"):
            self._write(trainer)

    # one more pass

    def _probe(
        self,
        trainer: Trainer,
        module: LightningModule,
        batch: Any,
        batch_idx: int,
        *,
        observed: bool,
        biased: bool,
    ) -> None:
        """Norms and clipped sum of this batch from an engine of its own, the ordinary gradient beside it."""
        units = len(next(tensors(batch))) // self._rows_per_unit
        if units < 2:  # as is a private fit's padding
            return
        parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        before = {name: parameter.grad for name, parameter in parameters.items()}
        seen: list[UnitNorms] = []
        engine = BookKeeping()
        engine.know(self._sites_of(trainer, module, batch, batch_idx, units=units))
        engine.attach(module, function=self._function, max_grad_norm=self._bound)
        try:
            engine.observe(seen.append)
            engine.expect(unit_weights=torch.ones(units), rows_per_unit=self._layer_rows_per_unit)
            with _same_draws(module), engine.stepping():
                _loss(trainer, module, batch, batch_idx).backward()
            engine.collect()
            clipped = engine.take()
        finally:
            engine.detach()
            for name, parameter in parameters.items():
                parameter.grad = before[name]
        if observed and self._private is None:
            self._seen += seen
        if biased:
            with _same_draws(module):
                loss = _loss(trainer, module, batch, batch_idx)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            mean = {n: g.float() for n, g in zip(parameters, found, strict=True) if g is not None}
            if all(gradient.isfinite().all() for gradient in mean.values()):
                self._note_bias(clipped, mean=mean, seen=seen[0], units=units)

    def _sites_of(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int, *, units: int
    ) -> Sites:
        """Where units are: as a private fit knows, else from following this batch's step once."""
        if self._private is not None:
            return self._private.clipping_engine.sites
        if self._sites is None:
            with undisturbed(trainer):
                self._sites = follow_rows(
                    module,
                    lambda again, rows: _loss(trainer, cast(LightningModule, silent(again)), rows, batch_idx),
                    batch,
                    num_units=units,
                )
        return self._sites

    def _note_bias(
        self, clipped: dict[str, Tensor], *, mean: dict[str, Tensor], seen: UnitNorms, units: int
    ) -> None:
        removed = {
            name: float((clipped[name] / units - gradient).double().square().sum())
            for name, gradient in mean.items()
        }
        per_unit = {
            name: ((1 - seen.factors[name]) * norms).double().square().cpu().numpy()
            for name, norms in seen.norms.items()
        }
        row: dict[str, Any] = {
            "step": self._at,
            "units": units,
            "gradient": float(sum(g.double().square().sum() for g in mean.values())) ** 0.5,
        }
        for partition, names in self._partitions.items():
            norm = sum(removed[name] for name in names if name in removed) ** 0.5
            squares = sum((per_unit[name] for name in names if name in per_unit), np.zeros(units))
            row[partition] = {
                "norm": norm,
                "unbiased_square": unbiased_square(norm, unit_squares=squares),
            }
        self._record.bias.append(row)

    def _unit_arrays(self, seen: list[UnitNorms]) -> dict[str, np.ndarray]:
        """Of the units with a weight: a norm for each partition, the clipped norm, the least factor."""
        pieces = []
        for batch in seen:
            present = batch.weights > 0
            squares = {name: norm.double().square() for name, norm in batch.norms.items()}
            none = torch.zeros(len(present), dtype=torch.float64, device=present.device)
            arrays = {
                partition: sum((squares[n] for n in names if n in squares), none).sqrt()
                for partition, names in self._partitions.items()
            }
            kept = sum((squares[n] * batch.factors[n].double().square() for n in squares), none)
            factors = torch.stack([*batch.factors.values()]) if batch.factors else none[None] + 1
            arrays |= {"clipped_norm": kept.sqrt(), "factor": factors.min(dim=0).values}
            pieces.append({name: value[present].cpu().numpy() for name, value in arrays.items()})
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    # the files

    def _write(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or not self._record.steps["step"]:
            return
        sizes = {name: p.numel() for name, p in trainer.lightning_module.named_parameters()}
        counts = {part: sum(sizes[n] for n in names) for part, names in self._partitions.items()}
        found = self._record.summary(counts)
        for path, shares in found["paths"].items():
            shares["parameters"] = sum(sizes[name] for name in self._paths[path])
        report = {
            "nonprivate": "raw statistics of the training data; no ε covers them",
            "mode": "public" if self._private is None else "private",
            "max_grad_norm": self._bound,
            "clipping_function": type(self._function).__name__,
            "every_n_steps": self.every_n_steps,
            **found,
        }
        if report["paths"]:
            print(shares_text(report))
        folder = self._folder
        (folder / "plots").mkdir(parents=True, exist_ok=True)
        replace_text(folder / FILE, json.dumps(report, allow_nan=False) + "\n")
        for name, draw in (
            ("ecdf", gradient_figures.norms_ecdf),
            ("ccdf", gradient_figures.norms_ccdf),
            ("quantiles", gradient_figures.norms_over_steps),
        ):
            path = folder / "plots" / f"gradient_{name}.png"
            draw({"": report}).savefig(path)
            for logger in trainer.loggers:
                if provides(logger, TakesPrivateImages):
                    logger.log_nonprivate_image(f"gradient_{name}", path)


def shares_text(report: dict[str, Any]) -> str:
    """Which share of ‖g‖² each path of the condition has, for the console."""
    shares = [f"{path} {100 * own['mean']:.1f} %" for path, own in report["paths"].items()]
    note = " (raw private statistics: no ε covers them)" if report["mode"] == "private" else ""
    return f"share of ‖g‖² by path of the condition{note}: {', '.join(shares)}"


def _loss(trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> Tensor:
    with torch.enable_grad(), trainer.precision_plugin.train_step_context():
        result: Tensor = mean_loss(module.training_step(batch, batch_idx))
        return result


@contextmanager
def _same_draws(module: LightningModule) -> Iterator[None]:
    """Random generators go back to where they were, and nothing is logged: the step itself comes later."""
    device = module.device
    python, numpy = random.getstate(), np.random.get_state()
    silenced = ("log", "log_dict")
    for name in silenced:
        module.__dict__[name] = _say_nothing
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for name in silenced:
            del module.__dict__[name]
        random.setstate(python)
        np.random.set_state(numpy)


def _say_nothing(*_: Any, **__: Any) -> None:
    pass
