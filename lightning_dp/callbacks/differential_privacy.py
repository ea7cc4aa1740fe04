"""The one place where `privacy/` meets Lightning: DP-SGD for any LightningModule, as a callback.

Lightning's hooks, in the order in which they run: `setup` checks, plans and swaps the sampler
(`planned_fit`); `on_fit_start` opens the account and makes the releases before training (`fit_account`); each
step begins, collects clipped sums and releases a noisy gradient (`private_training`, which reads in order).
"""

import math
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, final

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lightning_dp.callbacks.audit_canaries import AuditCanaries
from lightning_dp.callbacks.check import Refusals
from lightning_dp.callbacks.check_fit import check_fit, preflight_arguments
from lightning_dp.callbacks.check_report import CheckReport
from lightning_dp.callbacks.fit_account import FitAccount, make_releases
from lightning_dp.callbacks.loggers import follow_fit
from lightning_dp.callbacks.monitors import refuse_a_stop_by_hand
from lightning_dp.callbacks.planned_fit import PlannedFit, checked_fit, say_memory
from lightning_dp.callbacks.preflight import refuse_all, run_preflight
from lightning_dp.callbacks.privacy_settings import check_settings, physical_batch_size_for
from lightning_dp.callbacks.private_training import PrivateTraining
from lightning_dp.callbacks.spot_check import SpotCheck
from lightning_dp.callbacks.trainer_checks import check_optimizers, check_parameters
from lightning_dp.fit.declared_unit import content_pieces
from lightning_dp.fit.facts import FitFacts, run_folder
from lightning_dp.lightning_internals import datamodule_of, replace_train_loader
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import ClippingFunction, Flat
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.privacy.loading import Reading
from lightning_dp.privacy.noise import GaussianNoise, NoiseSource
from lightning_dp.privacy.plan import DeltaRule, PrivacyPlan
from lightning_dp.privacy.randomness import SecretRandomness
from lightning_dp.privacy.ranks import Ranks
from lightning_dp.privacy.sampling import PoissonLoader
from lightning_dp.privacy.secure_noise import SecureGaussianNoise, check_margin
from lightning_dp.privacy.units import PrivacyUnit, UnitName
from lightning_dp.protocols import PRIVATE_PREFIX, LoggedMetrics, ReadsTrainSet, provides
from lightning_dp.strategies.private_ddp import PrivateDDP


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
        check_settings(
            target_epsilon=target_epsilon,
            delta=delta,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            counts={
                "expected_batch_size": expected_batch_size,
                "physical_batch_size": physical_batch_size,
                "num_units": num_units,
                "reserve_steps": reserve_steps,
            },
            accept=accept or {},
            unit=unit,
            public_start=public_start,
        )
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
        self.num_units = num_units
        self.clipping_function = clipping_function or Flat()
        self.clipping_engine = clipping_engine or BookKeeping()
        self.physical_batch_size = physical_batch_size_for(self.clipping_engine, physical_batch_size)
        self.dataset = dataset
        self.ledger = ledger
        self.reserve_steps = reserve_steps
        self.secure = secure
        self._public_fields = frozenset(name for name in vars(self) if not name.startswith("_"))
        self._noise: NoiseSource = SecureGaussianNoise() if secure else GaussianNoise()
        self._run = ""
        self._parent: tuple[int, str] | None = None
        self._facts: FitFacts | None = None  # these two stay after the fit
        self._account: FitAccount | None = None
        self._fit: PlannedFit | None = None
        self._put_back: Callable[[], None] | None = None
        self._randomness: SecretRandomness | None = None
        self._training: PrivateTraining | None = None
        self._out_of_credit = False

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("_fit") is not None and name in self._public_fields:
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
    def facts(self) -> FitFacts:
        """What the fit is: unit, plan, releases, name of its data; known once `setup` has run."""
        if self._facts is None:
            raise RuntimeError("the privacy plan is made when a fit is set up: call trainer.fit first")
        return self._facts

    @property
    def plan(self) -> PrivacyPlan:
        """The plan of the fit; known once `setup` has run."""
        return self.facts.plan

    @property
    def account(self) -> FitAccount:
        """What was charged so far, and what report and checkpoints say of it; known once a fit has begun."""
        if self._account is None:
            raise RuntimeError("a fit has an account once it has begun: call trainer.fit first")
        return self._account

    @property
    def epsilon_spent(self) -> float:
        """ε per unit that was spent so far, at `plan.delta`: what the ledger holds against the latest fit.

        While a fit runs it counts the steps that are reserved ahead; after it, those that were taken.
        """
        return self.account.epsilon_spent

    @property
    def units_at_once(self) -> int:
        """The most that is computed at once: a physical batch, or where none is set a usual logical one."""
        return self.physical_batch_size or math.ceil(self.expected_batch_size)

    # before training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check, plan and swap the sampler; nothing private is read yet."""
        if stage != "fit":
            return
        ranks = Ranks()
        refused = Refusals()
        with refused.kept():
            loader, self._facts = checked_fit(self, trainer, pl_module, ranks=ranks, attempt=refused.kept)
        refuse_all(refused.sentences, trainer, pl_module, accept=self.accept)
        self._account, self._out_of_credit = None, False
        if isinstance(trainer.strategy, PrivateDDP):
            trainer.strategy.accept_callback()
        # A fit is a run of its own, unless a checkpoint, which is loaded after this, says otherwise.
        self._run, self._parent = ranks.on_rank_zero(lambda: uuid.uuid4().hex), None
        follow_fit(trainer, train=loader.dataset, figures=self._figures)
        accepted = run_preflight(
            trainer,
            pl_module,
            **preflight_arguments(self, loader, self.plan),
            then=partial(
                say_memory,
                preparations=self.facts.preparations,
                units_at_once=self.units_at_once,
                precision=trainer.precision,
                ranks=ranks,
            ),
        )
        sampled = PoissonLoader(
            loader.dataset,
            sampling_rate=self.plan.sampling_rate,
            physical_batch_size=self.physical_batch_size,
            reading=Reading.of(loader),
            ranks=ranks,
        )
        self._fit = PlannedFit(
            facts=self.facts,
            loader=sampled,
            ranks=ranks,
            accepted=tuple(accepted),
        )
        self._audit.start(self.plan, ranks)
        self._put_back = replace_train_loader(trainer, sampled)

    def check(
        self,
        module: LightningModule,
        data: LightningDataModule | DataLoader[Any],
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
        if self._fit is not None:
            raise RuntimeError(
                "privacy.check can't look at a fit that is running: call it before trainer.fit"
            )
        return check_fit(self, module, data, trainer=trainer, needs=needs)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Charge the first steps, and charge and make the releases before training.

        Optimizers and checkpoint are there, no row has been fetched.
        """
        assert self._fit is not None
        check_parameters(pl_module)
        if self.secure:
            check_margin(
                noise_multiplier=self.plan.noise_multiplier,
                num_values=sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
            )
        accepted = check_optimizers(trainer, pl_module, accept=self.accept)
        account = FitAccount.open(
            self._fit,
            pl_module,
            run=self._run,
            parent=self._parent,
            accepted=(*self._fit.accepted, *accepted),
            folder=run_folder(trainer),
            ledger=Ledger(self.ledger),
            pieces=partial(content_pieces, self._fit.loader.dataset, datamodule=datamodule_of(trainer)),
            reserve_steps=self.reserve_steps,
            public_start=self.public_start,
            noise=self._noise,
            spot_check=self._spot_check,
            audit=self._audit,
        )
        self._account, self._facts = account, account.facts
        account.cover()  # before anything is read, and reported: never below what may be released
        self._fit.loader.randomness = randomness = self._randomness = SecretRandomness()
        randomness.begin()  # from here on rows are read
        if provides(pl_module, ReadsTrainSet):
            # In every process at once, rather than where the others wait for the first one's releases.
            pl_module.read_train_set()
        if self._parent is None:  # else the checkpoint holds what they set
            make_releases(
                account, loader=self._fit.loader, units_at_once=self.units_at_once, randomness=randomness
            )
        randomness.check("read_train_set or a release before training")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook the clipper onto the model."""
        assert self._fit is not None
        assert self._randomness is not None
        account = self.account
        self._randomness.check("a hook before training (on_fit_start, on_sanity_check_start)")
        self._randomness.advance()
        lost = account.charges.charged_before - trainer.global_step
        if lost > 0:
            rank_zero_warn(
                f"{lost} steps were charged and lost before this resume; they stay charged, so training ends "
                f"at step {trainer.max_steps - lost} to keep ε ≤ {self.plan.epsilon:.4g}"
            )
        self._training = PrivateTraining(
            trainer,
            pl_module,
            facts=account.facts,
            engine=self.clipping_engine,
            function=self.clipping_function,
            loader=self._fit.loader,
            charges=account.charges,
            randomness=self._randomness,
            spot_check=self._spot_check,
            audit=self._audit,
            accepted=account.accepted,
        )

    # one step

    @property
    def _step(self) -> PrivateTraining:
        assert self._training is not None
        return self._training

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A physical batch begins."""
        refuse_a_stop_by_hand(trainer, accept=self.accept, expected=self._out_of_credit)
        self._step.begin(trainer, pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Its loss becomes the sum over its rows again."""
        self._step.unscale(trainer, loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its clipped gradients join the sums."""
        self._step.collected()
        refuse_a_stop_by_hand(trainer, accept=self.accept, expected=self._out_of_credit)
        self._step.collect(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """The logical batch is complete: charge, add noise once, hand over to the optimizer."""
        assert self._fit is not None
        self._step.release(trainer, pl_module, plan=self.plan, noise=self._noise, ranks=self._fit.ranks)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what was spent; pay for the next step or stop."""
        if self._step.inside:
            return
        for name, value in self._figures().items():
            pl_module.log(name, value, prog_bar=name == "privacy/epsilon")
        if self.account.charges.left < 1:
            self._out_of_credit = trainer.should_stop = True
        else:
            self.account.cover()

    def _figures(self) -> dict[str, float]:
        """What is published of the fit so far; nothing before the first charge."""
        return {} if self._account is None else self._account.figures()

    def logged_metrics(self, module: LightningModule, data: Any) -> LoggedMetrics:
        """What every private fit logs while it trains; it takes one finite gradient for its norm."""
        own = ("units", "units_not_finite", "grad_norm", "clip_fraction")
        return LoggedMetrics(
            train=frozenset({"privacy/steps", "privacy/noise_multiplier", "privacy/epsilon"})
            | {PRIVATE_PREFIX + name for name in own}
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning stops here for whoever asked it to."""
        refuse_a_stop_by_hand(trainer, accept=self.accept, expected=self._out_of_credit)

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
        refuse_a_stop_by_hand(trainer, accept=self.accept, expected=self._out_of_credit)
        self._finish(status="finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same for a fit that failed or was interrupted."""
        self._finish(status="interrupted")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing stays hooked on, whatever happened."""
        self._let_go()
        if self._put_back is not None:
            self._put_back()
            self._put_back = None

    def _let_go(self) -> None:
        self.clipping_engine.detach()
        if self._training is not None:
            self._training.remove()
        if self._randomness is not None:
            self._randomness.end()
        self._fit = self._randomness = None

    def _finish(self, *, status: str) -> None:
        self._spot_check.leave()
        training, self._training = self._training, None
        if training is not None:
            training.remove()
        has_begun = self._fit is not None
        self._let_go()
        if self._account is None or not has_begun:
            return
        if training is not None:
            training.end()
        self._account.charges.close()
        self._account.report(status=status)

    # checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs to find its account; never the state of the noise."""
        return {} if self._account is None else self._account.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on under the account of a checkpoint."""
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
