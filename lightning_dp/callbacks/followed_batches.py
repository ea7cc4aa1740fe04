"""Real batches are followed too, as made-up units may not take every branch that a step has.

The first batch is, those of steps 1, 2, 4, 8, …, and one in many others, chosen by the operating system's
entropy: a copy of the module takes the step of the batch's first unit, operator by operator (`privacy.rows`).
Nothing of that step is kept but where units are; what mixes them stops the fit before the batch is used.
"""

import copy
import random
from collections.abc import Collection
from typing import Any, cast, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_dp.callbacks.preflight import shared_by_copies, silent, undisturbed
from lightning_dp.callbacks.trial_batches import moved, output_of
from lightning_dp.privacy.batch_layout import BatchLayout, NoLayout
from lightning_dp.privacy.batch_trees import change
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.following import Followed
from lightning_dp.privacy.clipping.sites import Sites, UnknownUse
from lightning_dp.privacy.noise import entropy_bits
from lightning_dp.privacy.preflight import Accepted
from lightning_dp.privacy.row_losses import mean_loss
from lightning_dp.privacy.rows import UnitsMixed
from lightning_dp.privacy.sampling import PhysicalBatch, PoissonLoader
from lightning_dp.privacy.spot_check.rerun import snapshot

_EXAMPLES = (1, 2, 3)
_ONE_IN = 1000
_HALF = (torch.bfloat16, torch.float16)
_ANSWERS = frozenset({"coupling", "clipping", "remembers", "batch-norm", "not-a-mean", "not-finite"})


def _in_full(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in _HALF else leaf


@final
class FollowedBatches:
    """What `DifferentialPrivacy` asks to follow a batch; one for each fit.

    Args:
        engine: knows the sites of made-up units, or none; is not attached yet.
        loader: of the fit.
        accepted: findings of the preflight that somebody answers for; what is about units that see each other
            answers for what would be found here.
    """

    def __init__(
        self, engine: ClippingEngine, *, loader: PoissonLoader, accepted: Collection[Accepted]
    ) -> None:
        self._engine, self._loader = engine, loader
        self._answered = bool(_ANSWERS & {one.finding.code for one in accepted})
        self._entropy = random.Random(entropy_bits())
        self._at = -1

    def look(self, trainer: Trainer, module: LightningModule, batch: Any, part: PhysicalBatch) -> bool:
        """Perhaps follow a batch, at the start of a logical one.

        Returns:
            Whether the engine knows more than before, and has to be attached anew.

        Raises:
            RuntimeError: units are mixed or can't be followed; says where.
        """
        if self._engine.units_at_once == 1:
            return False  # there are no others that a unit could be mixed with
        step = trainer.global_step
        if step == self._at:
            return False  # another part of the same logical batch
        self._at = step
        chosen = step & (step - 1) == 0 or not self._entropy.randrange(_ONE_IN)
        if not chosen:
            return False
        return self.follow(trainer, module, batch, part)

    def follow(
        self,
        trainer: Trainer,
        module: LightningModule,
        batch: Any,
        part: PhysicalBatch,
        *,
        seed: int | None = 0,
    ) -> bool:
        """Follow a batch now, under random numbers by `seed`, or those that come next; see `look`."""
        try:
            with undisturbed(trainer, seed=seed):
                return self._engine.sites.join(self._followed(trainer, module, batch, part, seed=seed))
        except Exception as error:
            if self._answered:
                return False
            if not isinstance(error, RuntimeError | UnitsMixed | NoLayout):
                raise  # the step's own, which it would raise without this too
            if not isinstance(error, UnitsMixed | UnknownUse | NoLayout):
                raise RuntimeError(
                    "training_step can't be followed from a real batch to its loss "
                    f"({type(error).__name__}: {' '.join(str(error).split())[:300]}); nothing of this step "
                    "left. Put that part of it into a module of its own, which is then run unit by unit"
                ) from error
            raise RuntimeError(
                f"units of a real batch can't be told apart: {error}; nothing of this step left. Compute "
                "every row from itself alone, and return one loss a row; or let each unit have a batch of "
                "its own, slowly (privacy.clipping_engine: OneByOne)"
            ) from error

    def _followed(
        self,
        trainer: Trainer,
        module: LightningModule,
        batch: Any,
        part: PhysicalBatch,
        *,
        seed: int | None,
    ) -> Sites:
        shared = shared_by_copies(trainer, module, cast(Any, self._loader))
        again = cast(LightningModule, silent(snapshot(module, keep=shared, with_weights=True)).cpu())
        if any(p.dtype in _HALF for p in again.parameters()):
            again.float()
            batch = change(batch, _in_full)
        again.trainer = trainer
        unit = self._first_unit(trainer, again, copy.deepcopy(batch), part)
        followed = Followed(again)
        try:
            with torch.compiler.set_stance("force_eager"), self._engine.aside():
                followed.step(
                    lambda: mean_loss(output_of(trainer, again, unit)), mixing=self._answered, seed=seed
                )
        finally:
            followed.close()
        return followed.sites

    def _first_unit(self, trainer: Trainer, module: LightningModule, batch: Any, part: PhysicalBatch) -> Any:
        """The batch's first unit, to be followed."""
        sites, units = self._engine.sites, len(part.indices)
        if sites.layout is not None:
            try:
                return sites.layout.first(batch, num_units=units)
            except NoLayout:
                pass  # a hook of the transfer to the device may change what is in a batch
        # Read again, and as often as is needed to see what grows with the number of units.
        examples = {n: self._loader.collated([part.indices[0]] * n) for n in _EXAMPLES}
        sites.layout = BatchLayout.of({n: moved(trainer, module, one) for n, one in examples.items()})
        return sites.layout.first(batch, num_units=units)
