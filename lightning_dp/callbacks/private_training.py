"""One private step, in the order in which it happens: begin, losses, backward, collect, release.

`DifferentialPrivacy` calls these from Lightning's hooks. A logical batch, which is one Poisson sample, comes
as one or more physical ones: all but `release` happen once for each of these.
"""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_dp.callbacks.audit_canaries import AuditCanaries
from lightning_dp.callbacks.followed_batches import FollowedBatches
from lightning_dp.callbacks.logical_batches import LogicalBatches
from lightning_dp.callbacks.norm_statistics import NormStatistics
from lightning_dp.callbacks.planned_parameters import PlannedParameters
from lightning_dp.callbacks.private_step import PrivateStep
from lightning_dp.callbacks.spot_check import SpotCheck
from lightning_dp.fit.facts import FitFacts
from lightning_dp.privacy.charging import StepCharges
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import ClippingFunction
from lightning_dp.privacy.noise import NoiseSource
from lightning_dp.privacy.plan import PrivacyPlan
from lightning_dp.privacy.preflight import Accepted
from lightning_dp.privacy.randomness import SecretRandomness
from lightning_dp.privacy.ranks import Ranks
from lightning_dp.privacy.sampling import PhysicalBatch, PoissonLoader

_WATCHED_FIRST, _WATCHED_EVERY = 3, 32  # steps whose operators are watched: it makes small steps slower


@final
@dataclass(frozen=True, kw_only=True)
class Part:
    """What is known of a physical batch when it begins.

    Attributes:
        batch: indices and weights of its units.
        weights: (U,) 0 for units that only fill the batch.
        rows_per_unit: λ ≥ 1 rows of the batch a unit.
        layer_rows_per_unit: ≥ λ, rows that layers see of a unit.
    """

    batch: PhysicalBatch
    weights: Tensor
    rows_per_unit: int
    layer_rows_per_unit: int

    @property
    def examples(self) -> int:
        """Rows of the batch."""
        return len(self.weights) * self.rows_per_unit

    @property
    def rows(self) -> int:
        """Rows that layers see."""
        return len(self.weights) * self.layer_rows_per_unit


@final
class PrivateTraining:
    """Clips, adds noise once a step and sets what the optimizer reads; made in `on_train_start`.

    Args:
        trainer: of the fit.
        module: of the fit; the clipping engine and the step around its `training_step` are hooked onto it.
        facts: of the fit.
        engine: the fit's, not attached.
        function: how norms become factors.
        loader: tells which units each physical batch holds.
        charges: pays for each step before anything of it is released.
        randomness: of the fit, begun.
        spot_check: looks at some batches twice.
        audit: adds canaries to the clipped sums, where they are wanted, and looks for them in the release.
        accepted: findings of the preflight that the user answers for.

    Attributes:
        part: the latest physical batch.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        *,
        facts: FitFacts,
        engine: ClippingEngine,
        function: ClippingFunction,
        loader: PoissonLoader,
        charges: StepCharges,
        randomness: SecretRandomness,
        spot_check: SpotCheck,
        audit: AuditCanaries,
        accepted: Collection[Accepted],
    ) -> None:
        self._facts, self._loader, self._charges = facts, loader, charges
        self._engine, self._function, self._bound = engine, function, facts.plan.max_grad_norm
        self._randomness, self._spot_check, self._audit = randomness, spot_check, audit
        self._logical = LogicalBatches(trainer)
        self._followed = FollowedBatches(engine, loader=loader, accepted=accepted)
        spot_check.start(
            engine,
            function=function,
            max_grad_norm=self._bound,
            loader=loader,
            rows_per_unit=facts.rows_per_unit,
            accepted=accepted,
        )
        self.part: Part | None = None
        self._is_open = False  # a batch has begun and its backward has not ended
        self._attach(module)
        self._parameters = PlannedParameters(module)
        self._norms = NormStatistics()
        self._step = PrivateStep(
            module,
            around=self._around_step,
            inside=engine.stepping,
            check=self._check_losses,
            follow=partial(self._follow, trainer, module),
            learn=partial(self._learn, trainer, module),
        )

    # 1. a physical batch begins

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Tell the engine which units the physical batch holds, and Lightning whether a step follows."""
        batch = self._loader.pending.popleft()
        self._is_open = True
        self._logical.begin_part(last=batch.last)
        self._parameters.check(trainer, module)
        self._randomness.check("a hook between two steps")
        self._randomness.advance()
        self.part = Part(
            batch=batch,
            weights=torch.tensor(batch.weights),
            rows_per_unit=self._facts.rows_per_unit,
            layer_rows_per_unit=self._facts.layer_rows_per_unit(module),
        )
        self._expect(self.part)
        self._spot_check.begin(trainer, module, batch)

    def _expect(self, part: Part) -> None:
        self._engine.expect(
            unit_weights=part.weights, rows_per_unit=part.layer_rows_per_unit, loss_scale=part.rows
        )

    # 2. its training_step, inside of `PrivateStep`

    def _follow(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        """Perhaps follow this batch, once all hooks before its step have run."""
        if not self._is_open or self.part is None:
            return  # somebody else looks at the step, before its batch begins
        with self._paid_if_it_stops():
            if self._followed.look(trainer, module, batch, self.part.batch):
                self._attach_anew(module)

    def _around_step(self) -> AbstractContextManager[Any]:
        self._randomness.check("a hook before training_step")
        taken = self._charges.taken
        if taken < _WATCHED_FIRST or taken % _WATCHED_EVERY == 0:
            return self._randomness.watching("training_step")
        return nullcontext()

    def _learn(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        """This batch takes a branch that none took before which was followed."""
        assert self.part is not None
        with self._paid_if_it_stops():
            anew = self._followed.follow(trainer, module, batch, self.part.batch, seed=None)
        if anew and self._engine.pending:
            raise RuntimeError(
                "a later part of a logical batch takes a branch of training_step that no batch took before; "
                "give made-up units that take it (synthetic_items), or set a larger "
                "privacy.physical_batch_size"
            )
        if anew:
            self._attach_anew(module)
        else:
            self._expect(self.part)

    @contextmanager
    def _paid_if_it_stops(self) -> Iterator[None]:
        """Charge the step of a batch whose following stops the fit, as that says something of the batch."""
        try:
            yield
        except RuntimeError:
            self._charges.take()
            raise

    def _attach_anew(self, module: LightningModule) -> None:
        assert self.part is not None
        observer = self._engine.observe(None)
        self._engine.detach()
        self._attach(module)
        self._engine.observe(observer)
        self._expect(self.part)

    def _attach(self, module: LightningModule) -> None:
        self._engine.attach(module, function=self._function, max_grad_norm=self._bound)

    def _check_losses(self, number: int) -> None:
        """Losses are one a row, or one a row of the data set where `rows_per_example` rows belong to it."""
        if not self._is_open or self.part is None:
            return  # as in `_follow`
        if number not in (self.part.examples, self.part.rows):
            raise RuntimeError(
                f"training_step returned {number} losses for a batch of {self.part.rows} rows: return one a "
                "row, in the order of the batch, and let collate_fn keep the rows of every unit"
            )

    # 3. its backward

    def unscale(self, trainer: Trainer, loss: Tensor) -> None:
        """Undo the division of the loss by the number of rows, and Lightning's by accumulate_grad_batches.

        In half precision a unit's gradient would else be rounded by how many others there are.

        Raises:
            RuntimeError: the loss is a mean in a precision that can't hold the number of rows.
        """
        assert self.part is not None
        rows = self.part.rows
        factor = trainer.accumulate_grad_batches * rows
        if rows > 2 / torch.finfo(loss.dtype).eps:
            raise RuntimeError(
                f"the loss of {rows} rows is a mean in {loss.dtype}, which can't hold that number, so "
                "each unit's gradient depends on how many others there are: return the rows' losses (R,), or "
                "take their mean in fp32"
            )
        loss.register_hook(lambda gradient: gradient * factor)

    def collected(self) -> None:
        """Right after the backward: it was the batch's first, and nobody seeded a generator meanwhile."""
        self._logical.collect()
        self._randomness.check("training_step or its backward")

    def collect(self, trainer: Trainer, module: LightningModule) -> None:
        """Add the physical batch's clipped gradients to the sums."""
        assert self.part is not None
        norms = self._engine.collect()
        self._is_open = False
        self._spot_check.look(trainer, module, norms)
        self._norms.add(norms, weights=self.part.weights, bound=self._bound)

    # 4. the logical batch ends in a step

    def release(
        self,
        trainer: Trainer,
        module: LightningModule,
        *,
        plan: PrivacyPlan,
        noise: NoiseSource,
        ranks: Ranks,
    ) -> None:
        """Have the step covered, add noise once to the clipped sums, and set every `.grad`.

        Raises:
            LedgerError: nothing covers the step.
            RuntimeError: the spot check found units that were measured wrongly.
        """
        self._logical.step()
        self._randomness.check("a hook before the optimizer's step")
        module.log_dict(self._norms.take(ranks))
        self._parameters.check(trainer, module)
        self._charges.take()  # the ledger covers the step, or this raises
        self._spot_check.settle(ranks, step=trainer.global_step)
        noisy = ranks.release(
            self._audit.add_to(self._engine.take()),
            noise=noise,
            scale=plan.noise_multiplier * plan.max_grad_norm,
        )
        self._audit.look(noisy)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                parameter.grad = noisy[name].div_(plan.expected_batch_size).to(parameter.dtype)

    @property
    def inside(self) -> bool:
        """Whether more physical batches of the logical one are to come."""
        return self._logical.inside

    # after training

    def remove(self) -> None:
        """Leave the module as it was found; safe to call twice."""
        self._step.remove()

    def end(self) -> None:
        """Leave the trainer as it was found."""
        self._logical.end()
