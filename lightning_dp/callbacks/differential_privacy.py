"""The one place where `privacy/` meets Lightning: DP-SGD for any LightningModule, as a callback.

One private step, in the order of the hooks below: `setup` checks, plans and swaps the sampler;
`on_train_batch_start` tells the clipper who is in the batch; `on_after_backward` collects clipped
sums; `on_before_optimizer_step` has the step covered by the ledger, adds noise once and sets `.grad`.
"""

import logging
import math
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from numbers import Integral
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lightning_dp.callbacks.audit_canaries import AuditCanaries
from lightning_dp.callbacks.check import Refusals, plain_trainer, without_fit
from lightning_dp.callbacks.check_report import CheckReport, report_of
from lightning_dp.callbacks.declared_unit import ASSUMED, check_unit, dataset_name, find_unit
from lightning_dp.callbacks.followed_batches import FollowedBatches
from lightning_dp.callbacks.loggers import follow_fit
from lightning_dp.callbacks.logical_batches import LogicalBatches
from lightning_dp.callbacks.monitors import stopped_by_hand
from lightning_dp.callbacks.needs import measure
from lightning_dp.callbacks.norm_statistics import NormStatistics
from lightning_dp.callbacks.planned_parameters import PlannedParameters
from lightning_dp.callbacks.preflight import look, run_preflight
from lightning_dp.callbacks.private_step import PrivateStep
from lightning_dp.callbacks.spot_check import SpotCheck
from lightning_dp.callbacks.trainer_checks import (
    check_automatic,
    check_length,
    check_loader,
    check_optimizers,
    check_parameters,
    check_trainer,
)
from lightning_dp.callbacks.weights_account import Before, account_for, check_public_start
from lightning_dp.callbacks.weights_seen import Origin, remember, seen_by
from lightning_dp.privacy.accounting import event_to_dict
from lightning_dp.privacy.charging import StepCharges
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import ClippingFunction, Flat
from lightning_dp.privacy.distinct_items import check_distinct
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.privacy.loading import Reading
from lightning_dp.privacy.noise import GaussianNoise, NoiseSource
from lightning_dp.privacy.own_generators import find_generators
from lightning_dp.privacy.plan import DeltaRule, PrivacyPlan, check_delta_or_rule, delta_of
from lightning_dp.privacy.preflight import Accepted, Trial, check_accept
from lightning_dp.privacy.preparation import Preparation
from lightning_dp.privacy.randomness import SecretRandomness
from lightning_dp.privacy.ranks import Ranks
from lightning_dp.privacy.report import json_ready, write_privacy_report
from lightning_dp.privacy.sampling import PhysicalBatch, PoissonLoader
from lightning_dp.privacy.secure_noise import SecureGaussianNoise, check_margin
from lightning_dp.privacy.units import PrivacyUnit, UnitName
from lightning_dp.strategies.private_ddp import PrivateDDP
from lightning_dp.tracking.logged_metrics import LoggedMetrics
from lightning_dp.tracking.outgoing import PRIVATE_PREFIX

_logger = logging.getLogger(__name__)
_WATCHED_FIRST, _WATCHED_EVERY = 3, 32  # steps whose operators are watched: it makes small steps slower


@final
class DifferentialPrivacy(Callback):
    """Trains any LightningModule with automatic optimisation under DP-SGD.

    Guarantee: (ε, δ)-DP of the weights after each optimizer step, for adding or removing one privacy
    unit of the train set, with Poisson sampling, per-unit clipping to `max_grad_norm` and Gaussian
    noise of σ · max_grad_norm from the operating system's entropy (Abadi et al. 2016, arXiv
    1607.00133; accounted by privacy loss distributions). Validation, early stopping and what is logged
    under `nonprivate/` are outside of it.

    The module's `training_step` should return per-row losses (R,), alone or under "losses": their mean is
    taken here. A scalar mean of them is allowed as well. Random numbers of the fit come from the operating
    system, whatever was seeded (`privacy.randomness`): seeds stay in charge of initial weights, of splits,
    and of validation and what comes after the fit. A module whose layers see
    several rows per row of the data set says so by an integer attribute `rows_per_example`; one that has
    to learn something about the data before its first step lists it in `preparations()`; one that computes
    something of each row once, such as latents, does so in `read_train_set()`; a datamodule whose items are
    not independent records describes them by a method `privacy_unit()`.

    Several devices need `trainer.strategy=private_ddp`: each rank draws from units of its own, rank 0 pays
    and adds the noise, and the expected batch size is that of all ranks together.

    Args:
        target_epsilon: ε > 0 to calibrate the noise to, or None if `noise_multiplier` is given.
        delta: δ in (0, 1), at most 1 / number of units to mean anything; or "1/(N ln N)", of their number.
        noise_multiplier: σ > 0, or None if `target_epsilon` is given.
        max_grad_norm: C > 0, bound on one unit's contribution to the summed gradient.
        expected_batch_size: B, units in an average batch; B / N is the sampling rate.
        physical_batch_size: units that one process computes at once, for memory; None is all of a batch.
        unit: what one item of the train dataset is, as a PrivacyUnit or its name (record, window, user);
            None asks `privacy_unit()` of the data module, then of the dataset. Where nobody says, it is
            `record`, and report and ledger say that this was assumed.
        num_units: N as a public fact, where it must not be counted from the data; None counts.
        clipping_function: how a unit's norms become factors.
        clipping_engine: how clipped sums are computed; never changes the result. `OneByOne` runs each unit in
            a batch of its own: slow, and for models and batches that no other engine can tell units apart in.
        dataset: the name under which the ledger keeps the account of this data; None takes the
            datamodule's `dataset_id`, else its class name.
        ledger: path of the ledger; None is LIGHTNING_DP_LEDGER or the user's data folder.
        reserve_steps: ≥ 1, steps that are charged ahead at once; a crash forfeits at most so many.
        secure: noise from the operating system's cryptographic generator, added on a public grid, against
            attacks on the generator's state and on floating-point rounding; slower.
        public_start: why weights that were trained without privacy before this fit hold nothing private
            ("pretrained on the UCI electricity set"); None makes no such statement, and such weights are
            refused. Weights of earlier private fits need none: they are counted.
        accept: for findings of the preflight that are harmless here, code → why; the reasons go into the
            ledger and the privacy report. See `lightning_dp.privacy.preflight.CODES`.
        spot_check: n, one logical batch in how many is looked at twice, as is the first: some of its units
            are run again alone, and a fit stops where their gradients are not what was measured; 0 for none.
            See docs/spot_check.md.
        audit: whether canaries of no unit's join every step's sum, so that the report says what an attack
            shows at least; no unit's ε changes. See `lightning_dp.callbacks.audit_canaries`.
        synthetic_items: n → n made-up items of the train dataset, for the preflight; None asks the data.
        synthetic_units: n → a collated batch of n made-up units; see `lightning_dp.callbacks.made_up_units`.
    """

    def __init__(
        self,
        *,
        target_epsilon: float | None = None,
        delta: float | DeltaRule,
        noise_multiplier: float | None = None,
        max_grad_norm: float = 1.0,
        expected_batch_size: int,
        physical_batch_size: int | None = None,
        unit: PrivacyUnit | UnitName | None = None,
        num_units: int | None = None,
        clipping_function: ClippingFunction | None = None,
        clipping_engine: ClippingEngine | None = None,
        dataset: str | None = None,
        ledger: str | None = None,
        reserve_steps: int = 50,
        secure: bool = False,
        public_start: str | None = None,
        accept: dict[str, str] | None = None,
        spot_check: int = 100,
        audit: bool = False,
        synthetic_items: Callable[[int], Any] | None = None,
        synthetic_units: Callable[[int], Any] | None = None,
    ) -> None:
        if (target_epsilon is None) == (noise_multiplier is None):
            raise ValueError("give exactly one of privacy.target_epsilon and privacy.noise_multiplier")
        if target_epsilon is not None and not target_epsilon > 0:
            raise ValueError(
                f"privacy.target_epsilon must be above 0, not {target_epsilon}; to train without privacy "
                "write 'privacy: null'"
            )
        check_delta_or_rule(delta)
        for name, value in (("max_grad_norm", max_grad_norm), ("noise_multiplier", noise_multiplier)):
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"privacy.{name} must be a number above 0, not {value}")
        for name, count in (
            ("expected_batch_size", expected_batch_size),
            ("physical_batch_size", physical_batch_size),
            ("num_units", num_units),
            ("reserve_steps", reserve_steps),
        ):
            whole = isinstance(count, Integral) and not isinstance(count, bool)
            if count is not None and not (whole and count >= 1):
                raise ValueError(f"privacy.{name} must be a whole number of at least 1, not {count!r}")
        check_accept(accept or {})
        check_unit(unit)
        check_public_start(public_start)
        self.unit = unit
        self.public_start = public_start
        self.accept = accept or {}
        self._spot_check = SpotCheck(spot_check)
        self.audit = audit
        self._audit = AuditCanaries(audit)
        self.synthetic_items = synthetic_items
        self.synthetic_units = synthetic_units
        self.target_epsilon = target_epsilon
        self.delta = delta
        self.noise_multiplier = noise_multiplier
        self.max_grad_norm = max_grad_norm
        self.expected_batch_size = expected_batch_size
        self.physical_batch_size = physical_batch_size
        self.num_units = num_units
        self.clipping_function = clipping_function or Flat()
        self.clipping_engine = clipping_engine or BookKeeping()
        most = self.clipping_engine.units_at_once
        if most is not None:
            if physical_batch_size not in (None, most):
                raise ValueError(
                    f"privacy.physical_batch_size must be {most} or left out, not {physical_batch_size}, for "
                    f"privacy.clipping_engine={type(self.clipping_engine).__name__}"
                )
            self.physical_batch_size = most
        self.dataset = dataset
        self.ledger = ledger
        self.reserve_steps = reserve_steps
        self.secure = secure
        self._noise: NoiseSource = SecureGaussianNoise() if secure else GaussianNoise()
        self._run = ""
        self._parent: tuple[int, str] | None = None
        self._plan: PrivacyPlan | None = None
        self._loader: PoissonLoader | None = None
        self._preparations: list[Preparation] = []
        self._accepted: list[Accepted] = []
        self._before = Before()
        self._charges: StepCharges | None = None
        self._logical: LogicalBatches | None = None
        self._randomness: SecretRandomness | None = None
        self._step: PrivateStep | None = None
        self._own_source: _DataLoaderSource | None = None
        self._part: PhysicalBatch | None = None
        self._public_fields = frozenset(name for name in vars(self) if not name.startswith("_"))
        self._in_fit = False

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("_in_fit") and name in self._public_fields:
            raise RuntimeError(
                f"privacy.{name} can't be changed during a fit: clipping, noise, price and report go by the "
                "plan that was made before it; set it before trainer.fit, and start another fit for another "
                "value"
            )
        super().__setattr__(name, value)

    @classmethod
    def of(cls, trainer: Trainer) -> "DifferentialPrivacy | None":
        """The one among a trainer's callbacks; None where fits are not private."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        return next((callback for callback in callbacks if isinstance(callback, cls)), None)

    @property
    def plan(self) -> PrivacyPlan:
        """The plan of the fit; known once `setup` has run."""
        if self._plan is None:
            raise RuntimeError("the privacy plan is made when a fit is set up: call trainer.fit first")
        return self._plan

    # before training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check, plan and swap the sampler; nothing private is read yet."""
        if stage != "fit":
            return
        self._ranks = Ranks()
        loader, self._plan = self._checked(trainer, pl_module)
        self._out_of_credit = False
        if isinstance(trainer.strategy, PrivateDDP):
            trainer.strategy.accept_callback()
        # A fit is a run of its own, unless a checkpoint, which is loaded after this, says otherwise.
        self._run, self._parent = self._ranks.on_first(lambda: uuid.uuid4().hex), None
        follow_fit(trainer, train=loader.dataset, figures=self._figures)
        self.__dict__.pop("_facts", None)  # of an earlier fit's plan
        self._accepted = run_preflight(
            trainer,
            pl_module,
            **self._for_preflight(loader, self._plan),
            then=partial(self._say_memory, precision=trainer.precision),
        )
        self._loader = PoissonLoader(
            loader.dataset,
            sampling_rate=self._plan.sampling_rate,
            physical_batch_size=self.physical_batch_size,
            reading=Reading.of(loader),
            ranks=self._ranks,
        )
        self._own_source = trainer.fit_loop._data_source
        trainer.fit_loop._data_source = _DataLoaderSource(self._loader, "")
        self._audit.start(self._plan, self._ranks)
        self._in_fit = True

    def check(
        self,
        module: LightningModule,
        data: LightningDataModule | DataLoader,
        *,
        trainer: Trainer | None = None,
        needs: bool = False,
    ) -> CheckReport:
        """Everything that `setup` checks, without a fit: nothing is charged, written or left behind.

        What a fit checks only later is not part of it: optimizers, and where the weights come from.

        Args:
            module: of the fit.
            data: the data module, whose `prepare_data` and `setup("fit")` run, or the train loader.
            trainer: of the fit, for its settings and the ε at its end; None is a plain one of 1000 steps.
            needs: whether clipped steps on made-up units are timed, for the time and memory of the fit.

        Raises:
            RuntimeError: a fit is running.
        """
        if self._in_fit:
            raise RuntimeError(
                "privacy.check can't look at a fit that is running: call it before trainer.fit"
            )
        refused = Refusals()
        chosen = trainer if trainer is not None else plain_trainer(self)
        plan, seen, needed = None, None, None
        with without_fit(chosen, module, data, beside=(self, self.clipping_engine)):
            self._ranks = Ranks()
            with refused.kept():
                loader, plan = self._checked(chosen, module, attempt=refused.kept)
                seen = look(chosen, module, **self._for_preflight(loader, plan))
                # A step that the preflight refuses may not even run.
                if needs and seen.trial is not None and not seen.findings:
                    physical = self.physical_batch_size
                    needed = measure(seen.trial, plan=plan, physical_batch_size=physical, data=data)
            return report_of(
                module,
                plan=plan,
                seen=seen,
                refused=refused.sentences,
                accept=self.accept,
                engine=self.clipping_engine,
                steps_are_given=trainer is not None,
                needs=needed,
            )

    def _for_preflight(self, loader: DataLoader, plan: PrivacyPlan) -> dict[str, Any]:
        return {
            "loader": loader,
            "plan": plan,
            "engine": self.clipping_engine,
            "function": self.clipping_function,
            "accept": self.accept,
            "synthetic_items": self.synthetic_items,
            "synthetic_units": self.synthetic_units,
        }

    def _checked(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        *,
        attempt: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> tuple[DataLoader, PrivacyPlan]:
        """The train loader and the plan of a fit whose settings are right.

        Args:
            trainer: with its data.
            pl_module: of the fit.
            attempt: around each check that later ones don't build on.

        Raises:
            ValueError: the first that is wrong, unless `attempt` keeps it.
        """
        with attempt():
            check_trainer(trainer)
        with attempt():
            check_automatic(pl_module)
        loader = trainer.fit_loop._data_source.dataloader()
        check_loader(loader)
        assert isinstance(loader, DataLoader)
        with attempt():
            check_parameters(pl_module)
        with attempt():
            self._refuse_own_generators(trainer, pl_module, loader)
        unit = self._unit(trainer, pl_module, loader)
        check_length(trainer, num_units=unit.num_units, expected_batch_size=self.expected_batch_size)
        with attempt():
            check_distinct(loader)
        return loader, self._make_plan(unit, pl_module, num_steps=trainer.max_steps)

    def _refuse_own_generators(
        self, trainer: Trainer, pl_module: LightningModule, loader: DataLoader
    ) -> None:
        beside = (trainer, getattr(trainer, "datamodule", None), loader, *trainer.loggers)
        found = [
            where
            for name, one in (
                (type(pl_module).__name__, pl_module),
                (type(loader.dataset).__name__, loader.dataset),
                ("collate_fn", loader.collate_fn),
            )
            for where in find_generators(name, one, beside=beside)
        ]
        if found:
            raise ValueError(
                f"{', '.join(found)} is a random generator of its own, whose seed may be known, and what "
                "units draw from it in the order of the batch with it: draw from torch's, numpy's or "
                "Python's global generators, which are filled with the operating system's entropy for the fit"
            )

    def _unit(self, trainer: Trainer, module: LightningModule, loader: DataLoader) -> PrivacyUnit:
        unit = find_unit(
            loader,
            datamodule=getattr(trainer, "datamodule", None),
            module=module,
            unit=self.unit,
            dataset=self.dataset,
        )
        if not unit.declared and self._ranks.is_first:
            _logger.warning(
                "The privacy unit is %s; say it by a method privacy_unit() of the data module or the train "
                "dataset, or by DifferentialPrivacy(unit=…)",
                ASSUMED,
            )
        return unit if self.num_units is None else replace(unit, num_units=self.num_units)

    def _make_plan(self, unit: PrivacyUnit, module: LightningModule, *, num_steps: int) -> PrivacyPlan:
        prepare = getattr(module, "preparations", None)
        delta = delta_of(self.delta, num_units=unit.num_units)
        self._preparations = (
            prepare(unit=unit, target_epsilon=self.target_epsilon, delta=delta) if prepare else []
        )
        return PrivacyPlan.make(
            unit,
            expected_batch_size=self.expected_batch_size,
            num_steps=num_steps,
            target_epsilon=self.target_epsilon,
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=self.max_grad_norm,
            delta=delta,
            prior=[preparation.mechanism.event for preparation in self._preparations],
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Charge the first steps, and charge and make the releases before training.

        Optimizers and checkpoint are there, no row has been fetched.
        """
        check_parameters(pl_module)
        if self.secure:
            check_margin(
                noise_multiplier=self.plan.noise_multiplier,
                num_values=sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
            )
        self._accepted += check_optimizers(trainer, pl_module, accept=self.accept)
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)
        assert self._loader is not None
        dataset = dataset_name(
            self._loader.dataset, datamodule=getattr(trainer, "datamodule", None), dataset=self.dataset
        )
        ledger = Ledger(self.ledger)
        self._count_earlier_runs(pl_module, ledger=ledger, dataset=dataset)
        self._charges = StepCharges(
            ledger,
            self.plan,
            dataset=dataset,
            run=self._run,
            parent=self._parent,
            reserve_steps=self.reserve_steps,
            ranks=self._ranks,
            overrides=tuple(map(str, self._accepted)),
            facts={
                **({} if self.plan.unit.declared else {"unit": ASSUMED, "declared": False}),
                **({} if self.public_start is None else {"public_start": self.public_start}),
                **({"weights_seen": json_ready(self._before.report)} if self._before.report else {}),
            },
        )
        remember(pl_module, Origin(dataset=dataset, run=self._run, ledger=list(self._charges.head)))
        self._charges.cover(announce=self._announce)
        self._report(status="running")  # before anything is read: never below what may be released
        self._loader.randomness = self._randomness = SecretRandomness()
        self._randomness.begin()  # from here on rows are read
        if read := getattr(pl_module, "read_train_set", None):
            read()  # in every process at once, rather than where the others wait for the first one's releases
        if self._parent is None:  # else the checkpoint holds what they set
            for preparation in self._preparations:
                self._prepare(preparation)
                self._report(status="running")
                self._randomness.check(type(preparation).__name__)
        self._randomness.check("read_train_set or a release before training")

    def _count_earlier_runs(self, module: LightningModule, *, ledger: Ledger, dataset: str) -> None:
        """Make the plan's ε that of the weights, or refuse where none can be stated."""
        origins = seen_by(module)
        self._before = Before()
        if origins:
            self._before = self._ranks.on_first(
                lambda: account_for(
                    origins,
                    ledger=ledger,
                    dataset=dataset,
                    unit=self.plan.unit.name,
                    run=self._run,
                    public_start=self.public_start,
                )
            )
        if self._before.events:
            self._plan = replace(self.plan, earlier=self._before.events)

    def _say_memory(self, trial: Trial, *, precision: str | int) -> None:
        """What the passes before training will hold at once, before anything is charged or read."""
        if not (self._ranks.is_first and self._preparations) or (each := trial.bytes_of_unit) is None:
            return
        passes = ", ".join(type(preparation).__name__ for preparation in self._preparations)
        size = _readable(self.units_at_once * each)
        print(
            f"{passes}: {self.units_at_once} units at once in {precision}, as in a step of training, which "
            f"keeps about {size} of activations (privacy.physical_batch_size makes it less)",
            flush=True,
        )

    @property
    def units_at_once(self) -> int:
        """The most that is computed at once: a physical batch, or where none is set a usual logical one."""
        return self.physical_batch_size or math.ceil(self.expected_batch_size)

    def _prepare(self, preparation: Preparation) -> None:
        assert self._charges is not None
        assert self._loader is not None
        units = max(1, int(self.units_at_once / preparation.rows_of_step))
        rate = preparation.mechanism.sampling_rate
        batches = self._loader.in_order(units_per_batch=units, sampling_rate=rate)
        answer = self._charges.release(
            preparation.mechanism,
            lambda: preparation.values(batches),
            note=type(preparation).__name__,
            drawn_at=rate,
        )
        preparation.apply(answer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook the clipper onto the model."""
        assert self._charges is not None
        assert self._randomness is not None
        self._randomness.check("a hook before training (on_fit_start, on_sanity_check_start)")
        self._randomness.advance()
        assert self._loader is not None
        self._logical = LogicalBatches(trainer)
        lost = self._charges.charged_before - trainer.global_step
        if lost > 0:
            rank_zero_warn(
                f"{lost} steps were charged and lost before this resume; they stay charged, so training ends "
                f"at step {trainer.max_steps - lost} to keep ε ≤ {self.plan.epsilon:.4g}"
            )
        self._followed = FollowedBatches(self.clipping_engine, loader=self._loader, accepted=self._accepted)
        self._spot_check.start(
            self.clipping_engine,
            function=self.clipping_function,
            max_grad_norm=self.plan.max_grad_norm,
            loader=self._loader,
            rows_per_unit=self.plan.unit.rows_per_unit,
            accepted=self._accepted,
        )
        self._attach(pl_module)
        self._parameters = PlannedParameters(pl_module)
        self._norms = NormStatistics()
        self._step = PrivateStep(
            pl_module,
            around=self._around_step,
            inside=self.clipping_engine.stepping,
            check=self._check_losses,
            follow=partial(self._follow, trainer, pl_module),
            learn=partial(self._learn, trainer, pl_module),
        )

    # one step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Tell the clipper which units the physical batch holds, and Lightning whether a step follows."""
        assert self._loader is not None
        assert self._logical is not None
        assert self._randomness is not None
        self._refuse_a_stop_by_hand(trainer)
        part = self._loader.pending.popleft()
        self._part = part
        self._logical.begin_part(last=part.last)
        self._parameters.check(trainer, pl_module)
        self._randomness.check("a hook between two steps")
        self._randomness.advance()
        self._weights = torch.tensor(part.weights)
        self._rows_per_example = int(getattr(pl_module, "rows_per_example", 1))
        self._expect()
        self._spot_check.begin(trainer, pl_module, part)

    def _follow(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        """Perhaps follow this batch, once all hooks before its step have run."""
        if self._part is None:
            return  # somebody else looks at the step, before its batch begins
        with self._paid_if_it_stops():
            if self._followed.look(trainer, module, batch, self._part):
                self._attach_anew(module)

    @contextmanager
    def _paid_if_it_stops(self) -> Iterator[None]:
        """Charge the step of a batch whose following stops the fit, as that says something of the batch."""
        assert self._charges is not None
        try:
            yield
        except RuntimeError:
            self._charges.take()
            raise

    def _learn(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        """This batch takes a branch that none took before which was followed."""
        assert self._part is not None
        with self._paid_if_it_stops():
            anew = self._followed.follow(trainer, module, batch, self._part, seed=None)
        if anew and self.clipping_engine.pending:
            raise RuntimeError(
                "a later part of a logical batch takes a branch of training_step that no batch took before; "
                "give made-up units that take it (synthetic_items), or set a larger "
                "privacy.physical_batch_size"
            )
        if anew:
            self._attach_anew(module)
        else:
            self._expect()

    def _attach_anew(self, module: LightningModule) -> None:
        observer = self.clipping_engine.observe(None)
        self.clipping_engine.detach()
        self._attach(module)
        self.clipping_engine.observe(observer)
        self._expect()

    def _expect(self) -> None:
        rows_per_unit = self.plan.unit.rows_per_unit * self._rows_per_example
        self._rows = len(self._weights) * rows_per_unit
        self.clipping_engine.expect(
            unit_weights=self._weights, rows_per_unit=rows_per_unit, loss_scale=self._rows
        )

    def _attach(self, module: LightningModule) -> None:
        self.clipping_engine.attach(
            module, function=self.clipping_function, max_grad_norm=self.plan.max_grad_norm
        )

    def _around_step(self) -> AbstractContextManager[Any]:
        assert self._randomness is not None
        assert self._charges is not None
        self._randomness.check("a hook before training_step")
        taken = self._charges.taken
        if taken < _WATCHED_FIRST or taken % _WATCHED_EVERY == 0:
            return self._randomness.watching("training_step")
        return nullcontext()

    def _check_losses(self, number: int) -> None:
        """Losses are one a row, or one a row of the data set where `rows_per_example` rows belong to it."""
        if self._part is None:
            return  # as in `_follow`
        examples = len(self._weights) * self.plan.unit.rows_per_unit
        if number not in (examples, examples * self._rows_per_example):
            raise RuntimeError(
                f"training_step returned {number} losses for a batch of "
                f"{examples * self._rows_per_example} rows: return one a row, in the order of the batch, and "
                "let collate_fn keep the rows of every unit"
            )

    def _refuse_a_stop_by_hand(self, trainer: Trainer) -> None:
        if not self._out_of_credit and "private-monitor" not in self.accept and stopped_by_hand(trainer):
            raise RuntimeError(
                "trainer.should_stop was set by neither a limit nor a callback with a public metric, and no "
                "ε covers a choice by private numbers: set trainer.max_steps or max_time, use EarlyStopping "
                "on a metric of public rows, or say in privacy.accept.private-monitor by what public fact it "
                "stops"
            )

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Undo the division of the loss by the number of rows, and Lightning's by accumulate_grad_batches.

        In half precision a unit's gradient would else be rounded by how many others there are.
        """
        factor = trainer.accumulate_grad_batches * self._rows
        if self._rows > 2 / torch.finfo(loss.dtype).eps:
            raise RuntimeError(
                f"the loss of {self._rows} rows is a mean in {loss.dtype}, which can't hold that number, so "
                "each unit's gradient depends on how many others there are: return the rows' losses (R,), or "
                "take their mean in fp32"
            )
        loss.register_hook(lambda gradient: gradient * factor)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add this physical batch's clipped gradients to the sums."""
        assert self._logical is not None
        assert self._randomness is not None
        self._logical.collect()
        self._randomness.check("training_step or its backward")
        self._refuse_a_stop_by_hand(trainer)
        norms = self.clipping_engine.collect()
        self._part = None
        self._spot_check.look(trainer, pl_module, norms)
        self._norms.add(norms, weights=self._weights, bound=self.plan.max_grad_norm)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add noise once to the clipped sums and put the result where the optimizer reads it."""
        assert self._charges is not None
        assert self._logical is not None
        assert self._randomness is not None
        self._logical.step()
        self._randomness.check("a hook before the optimizer's step")
        pl_module.log_dict(self._norms.take(self._ranks))
        self._parameters.check(trainer, pl_module)
        self._charges.take()  # the ledger covers the step, or this raises
        self._spot_check.settle(self._ranks, step=trainer.global_step)
        noisy = self._ranks.release(
            self._audit.add_to(self.clipping_engine.take()),
            noise=self._noise,
            scale=self.plan.noise_multiplier * self.plan.max_grad_norm,
        )
        self._audit.look(noisy)
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad:
                parameter.grad = noisy[name].div_(self.plan.expected_batch_size).to(parameter.dtype)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what was spent; pay for the next step or stop."""
        assert self._charges is not None
        assert self._logical is not None
        if self._logical.inside:
            return
        for name, value in self._figures().items():
            pl_module.log(name, value, prog_bar=name == "privacy/epsilon")
        if self._charges.left < 1:
            self._out_of_credit = trainer.should_stop = True
        elif self._charges.cover(announce=self._announce):
            self._report(status="running")

    def _figures(self) -> dict[str, float]:
        """What is published of the fit so far; nothing before the first charge."""
        if self._charges is None:
            return {}
        return {
            "privacy/steps": float(self._charges.spent),
            "privacy/noise_multiplier": self.plan.noise_multiplier,
            "privacy/epsilon": self.plan.epsilon_after(self._charges.spent),
        }

    def logged_metrics(self, module: LightningModule, data: Any) -> LoggedMetrics:
        """What every private fit logs while it trains; it takes one finite gradient for its norm."""
        own = ("units", "units_not_finite", "grad_norm", "clip_fraction")
        return LoggedMetrics(
            train=frozenset({"privacy/steps", "privacy/noise_multiplier", "privacy/epsilon"})
            | {PRIVATE_PREFIX + name for name in own}
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning stops here for whoever asked it to."""
        self._refuse_a_stop_by_hand(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation goes by the program's seeds, and may set its own."""
        if self._randomness is not None:
            self._randomness.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Private rows come next."""
        if self._randomness is not None:
            self._randomness.resume()

    # after training

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give back what was charged and not used; leave the model as it was found."""
        self._refuse_a_stop_by_hand(trainer)
        self._finish(trainer, status="finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same for a fit that failed or was interrupted."""
        self._finish(trainer, status="interrupted")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing stays hooked on, whatever happened."""
        self._let_go()
        if self._own_source is not None:
            trainer.fit_loop._data_source, self._own_source = self._own_source, None

    def _let_go(self) -> None:
        self.clipping_engine.detach()
        if self._step is not None:
            self._step.remove()
            self._step = None
        if self._randomness is not None:
            self._randomness.end()
            self._randomness = None
        self._in_fit = False

    def _finish(self, trainer: Trainer, *, status: str) -> None:
        self._spot_check.leave()
        self._let_go()
        if self._charges is not None and self._loader is not None:
            if self._logical is not None:
                self._logical.end()
            self._charges.close()
            self._report(status=status)
            self._loader = None

    def _announce(self, charged: int) -> None:
        """The report says what a reservation costs before the ledger does, so it is never below it."""
        self._report(status="running", charged=charged)

    def _report(self, *, status: str, charged: int | None = None) -> None:
        if not self._ranks.is_first:
            return
        assert self._charges is not None
        seq, digest = self._charges.head
        charged = self._charges.charged if charged is None else charged
        write_privacy_report(
            self._folder,
            {
                "status": status,
                "epsilon_spent": self.plan.epsilon_after(charged),
                "steps_charged": charged,
                "mechanisms": self._mechanisms(charged),
                "run": self._run,
                "ledger_seq": seq,
                "ledger_hash": digest,
                "spot_check": self._spot_check.to_dict(),
                "audit": self._audit.to_dict(self.plan.epsilon_after(charged)),
                **self._facts,
            },
        )

    def _mechanisms(self, steps: int) -> list[dict[str, Any]]:
        """Everything that the weights release in so many steps, for whoever computes ε again."""
        return [event_to_dict(event) for event in self.plan.events_of_weights(steps)]

    @cached_property
    def _facts(self) -> dict[str, object]:
        accepted = [one.to_dict() for one in self._accepted]
        return {
            **self.plan.to_dict(),
            "accepted_findings": accepted,
            "weights_seen": self._before.report,
        }

    # checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs to find its account; never the state of the noise."""
        if self._charges is None:
            return {}
        seq, digest = self._charges.head
        return {
            "run": self._run,
            "ledger": [seq, digest],
            "epsilon": self.plan.epsilon_after(self._charges.spent),
            "steps": self._charges.spent,
            "mechanisms": self._mechanisms(self._charges.spent),
            "delta": self.plan.delta,
            "unit": self.plan.unit.name,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._run = state_dict["run"]
        seq, digest = state_dict["ledger"]
        self._parent = (int(seq), str(digest))

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to go on from weights whose privacy nobody accounted for."""
        if trainer.state.fn == TrainerFn.FITTING and not checkpoint.get("callbacks", {}).get(self.state_key):
            raise ValueError(
                "the checkpoint of --ckpt_path was trained without privacy accounting, so no ε could be "
                "stated for what follows; load public weights in the model instead of resuming from them"
            )


def _readable(size: float) -> str:
    """Bytes in the largest unit of which there is at least one."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"
