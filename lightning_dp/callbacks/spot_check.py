"""A check on real batches while training: were the units' gradients measured as they are?

Of one logical batch in n, chosen by the operating system's entropy, and of the very first one, a few units of
one physical batch are run again (`privacy.spot_check`): alone, two beside each other, and collated anew. What
was measured of them must be theirs. Otherwise the step is charged and stopped before anything of it leaves.

Such a stop depends on private values: it shows one bit, and only where the guarantee was broken already.
See docs/spot_check.md.
"""

import copy
import functools
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast, final

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from lightning_dp.callbacks.preflight import shared_by_copies, silent, undisturbed
from lightning_dp.fit.facts import layer_rows_per_unit
from lightning_dp.lightning_internals import datamodule_of
from lightning_dp.privacy.batch_layout import NoLayout
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import ClippingFunction
from lightning_dp.privacy.clipping.observing import Observer, UnitNorms
from lightning_dp.privacy.draws import Draws, RowAlignedRandomness
from lightning_dp.privacy.noise import entropy_bits
from lightning_dp.privacy.preflight import Accepted
from lightning_dp.privacy.ranks import Ranks
from lightning_dp.privacy.row_losses import mean_loss
from lightning_dp.privacy.sampling import PhysicalBatch, PoissonLoader
from lightning_dp.privacy.spot_check import (
    CouldNotRun,
    Disagreement,
    HandedOut,
    NotCut,
    Recording,
    Rerun,
    SecondLook,
    Tolerance,
    cut,
    same_values,
    snapshot,
)

_UNITS = 2
"""Units at random; up to two with the smallest norms join them."""
_LARGEST = 1e30
_READINGS = 8
"""How often a batch is read again before its data set counts as one that gives the same items each time."""

_SAME_FAULTS = frozenset({"batch-norm", "coupling", "not-a-mean", "rows-per-unit", "clipping"})
"""Findings of the preflight that this would be about as well."""

_WHY = {
    "module": "the module can't be copied",
    "batch": "nobody can tell which part of the batch belongs to which unit",
    "draws": "training_step draws random numbers that can't be repeated for one unit",
    "step": "training_step does not run on one unit of the batch alone",
}


@final
class SpotCheck:
    """What `DifferentialPrivacy` asks to look at a batch twice; its calls are in the order of a step.

    Args:
        one_in: n ≥ 1, logical batches of which one is looked at in the mean; 0 looks at none.
    """

    def __init__(self, one_in: int) -> None:
        if isinstance(one_in, bool) or not isinstance(one_in, int) or one_in < 0:
            raise ValueError(
                f"privacy.spot_check is {one_in!r}; it is one logical batch in how many that is checked, a "
                "whole number of at least 1, or 0 for none"
            )
        self._one_in = one_in
        self._entropy = random.Random()
        self._undo: Callable[[], None] | None = None
        self._batch: _Batch | None = None
        self._forget()

    def _forget(self) -> None:
        self._chosen = 0
        self._not_checked: set[str] = set()
        self._answered_for: list[str] = []
        self._found: Disagreement | None = None
        self._whole_was_taken = True
        self._wanted: tuple[str, ...] = ()
        self._items_vary = False

    def to_dict(self) -> dict[str, Any]:
        """For the privacy report; nothing in it depends on a value in the data.

        `batches` counts the logical batches that were chosen, on the first rank; `not_checked` says what of
        the module or the layout of its batches stood in the way; `accepted` lists findings of the preflight
        that somebody answers for and that leave nothing to look for.
        """
        return {
            "one_in": self._one_in or None,
            "batches": self._chosen,
            "not_checked": sorted(self._not_checked),
            "accepted": self._answered_for,
        }

    def start(
        self,
        engine: ClippingEngine,
        *,
        function: ClippingFunction,
        max_grad_norm: float,
        loader: PoissonLoader,
        rows_per_unit: int,
        accepted: Collection[Accepted],
    ) -> None:
        """Before the engine is attached to the module of a fit.

        Somebody who answers for `accepted`, that units see each other or are measured wrongly, has answered
        for what would be found here.
        """
        self._forget()
        self._answered_for = sorted({one.finding.code for one in accepted} & _SAME_FAULTS)
        self._entropy.seed(entropy_bits())
        self._engine, self._spare = engine, copy.deepcopy(engine)
        self._spare.know(engine.sites)  # which grow as training goes on
        self._function, self._bound = function, max_grad_norm
        self._loader, self._rows_per_unit = loader, rows_per_unit

    def begin(self, trainer: Trainer, module: LightningModule, part: PhysicalBatch) -> None:
        """Before a physical batch: perhaps choose it."""
        self.leave()
        first, self._whole_was_taken = self._whole_was_taken, part.last
        if first and not self._answered_for:
            # Not every n-th batch: whoever could tell which are looked at could leave those alone.
            self._wanted = ()
            if self._one_in and not self._chosen:
                self._wanted = ("first", "last")
            elif self._one_in and not self._entropy.randrange(self._one_in):
                self._wanted = (self._entropy.choice(("first", "last")),)
            self._chosen += bool(self._wanted)
        if ("first" in self._wanted and first) or ("last" in self._wanted and part.last):
            self._batch = _Batch(part)
            self._watch(trainer, module, self._batch)

    def _watch(self, trainer: Trainer, module: LightningModule, batch: "_Batch") -> None:
        """Note what the engine measures, and how the step begins and what it draws."""
        before = self._engine.observe(batch.note)
        batch.then = before
        own = module.__dict__.get("training_step")
        step = module.training_step

        def undo() -> None:
            if own is None:
                module.__dict__.pop("training_step", None)
            else:
                module.__dict__["training_step"] = own

        @functools.wraps(step)
        def watched(*args: Any, **kwargs: Any) -> Any:
            undo()
            self._undo = None
            given = args[0] if args else kwargs["batch"]
            more = args[1:], {key: value for key, value in kwargs.items() if key != "batch"}
            shared = shared_by_copies(trainer, module, cast(Any, self._loader))
            try:
                again: nn.Module | None = silent(snapshot(module, keep=shared))
            except Exception:  # whatever the module's parts raise when they are copied
                again = None
                self._leave_unchecked("module")
            try:
                batch.given = copy.deepcopy(given)  # a step may write into its batch
            except Exception:
                again = None
                self._leave_unchecked("batch")
            if again is not None:
                batch.rerun = Rerun(
                    again,
                    loss=lambda copied, rows: _loss(trainer, copied, rows, *more),
                    device=trainer.strategy.root_device,
                    keep=shared,
                )
            with ExitStack() as stack:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
                stack.enter_context(batch.recording)
                return step(*args, **kwargs)

        module.__dict__["training_step"] = watched
        self._undo = undo

    def look(self, trainer: Trainer, module: LightningModule, norms: Tensor) -> None:
        """After the engine collected a physical batch: run units of it again, where it was chosen.

        Args:
            norms: (U,) as measured.
        """
        batch, self._batch = self._batch, None
        if batch is None:
            return
        self._engine.observe(batch.then)
        totals = norms.detach().double().cpu()
        weights = torch.tensor(batch.part.weights)
        # Beyond the bound plain autograd may overflow where the batch, whose loss is a mean, did not.
        real = torch.nonzero((weights > 0) & (totals < _LARGEST)).flatten().tolist()
        if not real or batch.rerun is None:
            return
        units = self._entropy.sample(real, min(_UNITS, len(real)))
        units += [unit for unit in _least(totals, batch.norms, real=real) if unit not in units]
        with undisturbed(trainer):
            tolerance = Tolerance.of(
                half=batch.recording.half,
                device=trainer.strategy.root_device,
                norms=totals[real],
                max_grad_norm=self._bound,
            )
            found = self._look(trainer, module, batch, units=units, totals=totals, tolerance=tolerance)
        if found is not None:
            self._found = found

    def settle(self, ranks: Ranks, *, step: int) -> None:
        """Once a step is charged, before anything of it is released; a finding of one rank stops all.

        Raises:
            RuntimeError: what was found.
        """
        if not self._one_in or not ranks.most(int(self._found is not None)):
            return
        found = self._found
        raise RuntimeError(
            f"the spot check stopped step {step} before anything of it left: "
            + ("another rank says why" if found is None else _sentence(found, engine=self._engine))
        )

    def leave(self) -> None:
        """Leave module and engine as they are without a check. Safe to call at any time."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()
        batch, self._batch = self._batch, None
        if batch is not None:
            self._engine.observe(batch.then)

    def _look(
        self,
        trainer: Trainer,
        module: LightningModule,
        batch: "_Batch",
        *,
        units: list[int],
        totals: Tensor,
        tolerance: Tolerance,
    ) -> Disagreement | None:
        assert batch.rerun is not None
        num_units = len(batch.part.weights)
        read = functools.partial(self._read_again, trainer, module)
        example = self._example(batch, units[0], read)

        layout = self._engine.sites.layout

        def pick(some: Sequence[int]) -> Any:
            if example is not None:
                return cut(batch.given, some, num_units=num_units, example=example)
            if layout is None:
                raise NotCut
            return layout.pick(batch.given, some, num_units=num_units)

        try:
            pick(units[:1])
        except (NotCut, NoLayout):
            self._leave_unchecked("batch")
            return None
        look = SecondLook(
            batch.rerun,
            pick=pick,
            units=units,
            tolerance=tolerance,
        )
        found = self._compare(module, batch, look, num_units=num_units, totals=totals)
        if found is None and example is not None and not self._items_vary:
            found = self._collated_anew(batch, look, pick(units[:1]), example, read)
        return found

    def _compare(
        self, module: LightningModule, batch: "_Batch", look: SecondLook, *, num_units: int, totals: Tensor
    ) -> Disagreement | None:
        assert batch.rerun is not None
        rows = layer_rows_per_unit(self._rows_per_unit, module)
        if batch.recording.can_be_handed_out:
            handed: list[HandedOut] = []

            def own(some: Sequence[int]) -> Draws:
                usual = frozenset({1, self._rows_per_unit, rows})
                handed.append(HandedOut(batch.recording, some, num_units=num_units, rows=usual))
                return handed[-1]

            try:
                found = look.compare(batch.norms, totals=totals, draws=own)
                if found is None or all(one.certain for one in handed):
                    return found
            except CouldNotRun:
                pass  # perhaps for the draws
        # Which draw was whose is not known: the whole batch once more, with the same draws for every row.
        lined: list[RowAlignedRandomness] = []

        def same(_: Sequence[int] = ()) -> Draws:
            lined.append(RowAlignedRandomness())
            return lined[-1]

        try:
            seen = batch.rerun.measured(
                batch.given,
                draws=same(),
                engine=self._spare,
                function=self._function,
                num_units=num_units,
                rows_per_unit=rows,
            )
            found = look.compare(seen.norms, draws=same)
        except CouldNotRun:
            self._leave_unchecked("step")
            return None
        if any(one.foreign for one in lined):
            self._leave_unchecked("draws")
            return None
        return found

    def _example(self, batch: "_Batch", unit: int, read: Callable[[Sequence[int]], Any]) -> Any | None:
        """The batch of one unit as collation makes it; None where its item can't be read here."""
        try:
            return read([batch.part.indices[unit]])
        except Exception:  # a file that is open in worker processes only, for one
            return None

    def _collated_anew(
        self,
        batch: "_Batch",
        look: SecondLook,
        alone: Any,
        example: Any,
        read: Callable[[Sequence[int]], Any],
    ) -> Disagreement | None:
        """Whether collation or a transfer hook makes something else of a unit alone."""
        if same_values(alone, example):
            return None
        try:
            found = look.same(alone, example, draws=RowAlignedRandomness)
        except CouldNotRun:
            return None
        if found is None:  # padding, for one
            return None
        for _ in range(_READINGS):
            if not same_values(read(batch.part.indices), batch.given):
                self._items_vary = True  # augmented anew each time: nothing can be said
                return None
        return found

    def _read_again(self, trainer: Trainer, module: LightningModule, indices: Sequence[int]) -> Any:
        """A batch of some units as training_step would get it."""
        batch = trainer.precision_plugin.convert_input(self._loader.collated(indices))
        datamodule = datamodule_of(trainer)
        for name, more in (
            ("on_before_batch_transfer", ()),
            ("transfer_batch_to_device", (trainer.strategy.root_device,)),
            ("on_after_batch_transfer", ()),
        ):
            own = datamodule is None or not is_overridden(name, datamodule)
            batch = getattr(module if own else datamodule, name)(batch, *more, 0)
        return batch

    def _leave_unchecked(self, code: str) -> None:
        if code not in self._not_checked:
            rank_zero_warn(f"the spot check of private batches could not look at one: {_WHY[code]}")
        self._not_checked.add(code)


def _least(totals: Tensor, norms: Mapping[str, Tensor], *, real: list[int]) -> list[int]:
    """The units with the smallest norm, of all parameters and of one: what was lost in rounding is small."""
    found = {real[int(totals[real].argmin())]: None}
    shares = [value[real].double().cpu() / value[real].double().cpu().median() for value in norms.values()]
    if shares:
        smallest = torch.stack(shares).nan_to_num(nan=1.0).amin(dim=0)  # (real units,)
        found[real[int(smallest.argmin())]] = None
    return list(found)


class _Batch:
    """A physical batch that is looked at."""

    def __init__(self, part: PhysicalBatch) -> None:
        self.part = part
        self.recording = Recording()
        self.given: Any = None
        self.rerun: Rerun | None = None
        self.norms: dict[str, Tensor] = {}
        self.then: Observer | None = None

    def note(self, seen: UnitNorms) -> None:
        """Keep what the engine shows, and show it to who looked before."""
        self.norms = dict(seen.norms)
        if self.then is not None:
            self.then(seen)


def _loss(
    trainer: Trainer, module: nn.Module, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    assert isinstance(module, LightningModule)
    module.trainer = trainer  # which copies forget
    with trainer.precision_plugin.train_step_context():
        return mean_loss(module.training_step(batch, *args, **kwargs))


def _sentence(found: Disagreement, *, engine: ClippingEngine) -> str:
    name = type(engine).__name__
    if found.kind == "engine":
        return (
            f"what {name} measured of a unit's gradient in '{found.place}' is not what the unit has alone, "
            "so clipping does not bound it; set another privacy.clipping_engine, build the layer from "
            "torch.nn's, or freeze it"
        )
    if found.kind == "coupling":
        return (
            f"what a unit contributes (by '{found.place}', for one) depends on the others of its batch, so "
            "clipping does not bound it; in training_step compute every row from itself alone, and return "
            "the mean of per-row losses"
        )
    return (
        f"collation or a transfer hook makes something else of a unit in a batch than of the unit alone "
        f"(which changes the gradient of '{found.place}', for one); take statistics of the batch out of "
        "collate_fn and the hooks"
    )
