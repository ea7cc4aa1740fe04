"""The harness fails on planted faults: each mutant breaks the project's own code in one place."""

import math
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import distributed as dist

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.callbacks.logical_batches import LogicalBatches
from lightning_dp.modules import diffusion_module
from lightning_dp.privacy import release, sampling
from lightning_dp.privacy.charging import StepCharges
from lightning_dp.privacy.clipping.unit_sums import UnitSums
from lightning_dp.privacy.plan import PrivacyPlan
from lightning_dp.privacy.ranks import Ranks
from lightning_dp.privacy.sampling import PoissonSampler
from lightning_dp.timeseries.masks import PointImputation
from replay.harness import Replay
from replay.neighbours import ADDED, BLANK, NOT_A_NUMBER, REMOVED, REPLACED
from replay.test_replay import checked_by_nobody, households, of_line, of_series
from replay.toys import PRIVACY, Learner, Line

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook"),
]


def caught(found: Replay, kind: str, *, where: str = "") -> None:
    """The run on D went well, and what is wrong was seen as this kind of violation."""
    assert found.exit.endswith("finished")
    assert any(v.kind == kind and where in v.where for v in found.violations), found.violations


# --- who is in a batch (P1, P3, P4, P11) ----------------------------------------------------------------


def test_p1_shuffled_batches(tmp_path, monkeypatch):
    def draw(self):
        return sorted(torch.randperm(len(self._units))[: PRIVACY["expected_batch_size"]].tolist())

    monkeypatch.setattr(PoissonSampler, "draw", draw)
    caught(of_line(tmp_path, neighbours=[]), "sampling")


def test_p3_rate_of_one_batch_in_the_loader(tmp_path, monkeypatch):
    """12 units, batches of 5: a loader has 3 of them, so 1 / 3 is sampled where 5 / 12 is paid for."""
    init = PoissonSampler.__init__

    def rounded(self, *, num_units, sampling_rate, **ranks):
        init(self, num_units=num_units, sampling_rate=1 / math.ceil(1 / sampling_rate), **ranks)

    monkeypatch.setattr(PoissonSampler, "__init__", rounded)
    caught(of_line(tmp_path, neighbours=[], privacy={"expected_batch_size": 5}), "sampling")


def test_p4_ranks_that_draw_the_same_units(tmp_path, monkeypatch):
    init = PoissonSampler.__init__

    def unsharded(self, *, num_units, sampling_rate, rank=0, world_size=1):
        init(self, num_units=num_units, sampling_rate=sampling_rate)

    monkeypatch.setattr(PoissonSampler, "__init__", unsharded)
    found = of_line(tmp_path, neighbours=[REMOVED], ranks=2)
    caught(found, "sampling")
    caught(found, "sensitivity")
    assert found.moved["one removed"] == pytest.approx(2.0, rel=0.01)


def test_p11_empty_batches_skipped(tmp_path, monkeypatch):
    split = sampling.split

    def skipping(logical, **options):
        return split(logical, **options) if logical else iter(())

    monkeypatch.setattr(sampling, "split", skipping)
    options = {"privacy": {"expected_batch_size": 1}, "steps": 12}
    caught(of_line(tmp_path, neighbours=[REMOVED], **options), "sampling")


# --- what a step divides by (P2) ------------------------------------------------------------------------


def with_divisor(monkeypatch, divisor) -> None:
    """Let each step divide by what `divisor` makes of the callback."""
    step = DifferentialPrivacy.on_before_optimizer_step

    def divided(self, *arguments):
        facts = self._facts
        self._facts = replace(facts, plan=replace(facts.plan, expected_batch_size=divisor(self)))
        step(self, *arguments)
        self._facts = facts

    monkeypatch.setattr(DifferentialPrivacy, "on_before_optimizer_step", divided)


def test_p2_divided_by_the_realised_batch(tmp_path, monkeypatch):
    with_divisor(monkeypatch, lambda privacy: max(1, int(privacy._training.part.weights.sum())))
    caught(of_line(tmp_path, neighbours=[REMOVED]), "seen", where="gradient")


def test_p2_divided_by_a_share_of_the_private_number_of_units(tmp_path, monkeypatch):
    with_divisor(monkeypatch, lambda privacy: privacy.plan.sampling_rate * len(privacy._fit.loader.dataset))
    caught(of_line(tmp_path, neighbours=[ADDED]), "seen", where="gradient")


def test_p2_counted_units_are_published(tmp_path):
    """Not a mutant: where `num_units` is counted, it is public by the user's own choice."""
    found = of_line(tmp_path, neighbours=[ADDED], privacy={"num_units": None})
    caught(found, "seen", where="privacy.json/num_units: 12 and 13")


# --- what a unit adds (P6, P7, P12) ---------------------------------------------------------------------


def test_p6_clipping_after_averaging(tmp_path, monkeypatch):
    take = UnitSums.take

    def limited(self):
        sums = take(self)
        norm = torch.stack([value.square().sum() for value in sums.values()]).sum().sqrt()
        most = PRIVACY["max_grad_norm"] * PRIVACY["expected_batch_size"]
        return {name: value * min(1.0, most / float(norm)) for name, value in sums.items()}

    # Behind the check of what clipping functions return, which refuses such factors.
    monkeypatch.setattr(UnitSums, "_factors", lambda self, norms: torch.ones_like(norms))
    monkeypatch.setattr(UnitSums, "take", limited)
    found = of_line(tmp_path, neighbours=[ADDED, REMOVED], privacy=checked_by_nobody())
    caught(found, "sensitivity")


class Contrastive(Line):
    """A unit's loss looks at the others in the batch."""

    def losses(self, x, y):
        return super().losses(x - x.mean(dim=0), y)


class OverTheBatch(Line):
    """The sum is divided by what the whole batch has of something, as a masked mean over a batch is."""

    def losses(self, x, y):
        return super().losses(x, y) / x.abs().mean()


@pytest.mark.parametrize("module", [Contrastive, OverTheBatch])
def test_p7_a_loss_across_units(tmp_path, module):
    options = {"make_module": module, "privacy": checked_by_nobody(max_grad_norm=3.0)}
    found = of_line(tmp_path, neighbours=[REMOVED, BLANK, NOT_A_NUMBER], **options)
    caught(found, "coupling", where="one of weight 0")
    caught(found, "coupling", where="a NaN added")


def test_p7_targets_counted_over_the_batch(tmp_path, monkeypatch):
    """CSDI's loss: the squares of all targets of a batch over their number."""
    per_example = diffusion_module.per_example_loss

    def over_the_batch(output, target, *, mask, **options):
        own = mask.flatten(1).sum(dim=1)
        return per_example(output, target, mask=mask, **options) * own / own.float().mean()

    monkeypatch.setattr(diffusion_module, "per_example_loss", over_the_batch)

    def data():
        return households(windows_per_user=2, task=PointImputation((0.05, 0.9)))

    privacy = checked_by_nobody(max_grad_norm=30.0)
    caught(of_series(tmp_path, data, neighbours=[REMOVED, BLANK], privacy=privacy), "coupling")


def test_p12_a_broken_record_spoils_the_sum(tmp_path, monkeypatch):
    def clip_coefficients(self, squared_norms):
        squares = torch.zeros(self.units, self.num_groups)
        for name, square in squared_norms.items():
            squares[:, self.groups[name]] += square
        norms = squares.sqrt() * self._scale
        factors = self._function.factors(norms, max_grad_norm=self._max_grad_norm)
        coefficients = factors * self._weights[:, None] * self._scale
        return norms[:, 0], {name: coefficients[:, group] for name, group in self.groups.items()}

    monkeypatch.setattr(UnitSums, "clip_coefficients", clip_coefficients)
    found = of_line(tmp_path, neighbours=[NOT_A_NUMBER], privacy=checked_by_nobody())
    caught(found, "sensitivity")


# --- what stays behind (P8), noise (P5, P10) ------------------------------------------------------------


class Remembers(Line):
    """Keeps a running mean of its inputs by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def losses(self, x, y):
        self.mean.lerp_(x.detach().nan_to_num(0, 0, 0).mean(dim=0), 0.1)
        return super().losses(x, y)


def test_p8_a_buffer_that_remembers(tmp_path):
    options = {"make_module": Remembers, "privacy": checked_by_nobody()}
    found = of_line(tmp_path, neighbours=[REMOVED], **options)
    caught(found, "seen", where="buffer/mean")
    caught(found, "seen", where="end.ckpt/state_dict/mean")


def test_p5_noise_that_stays_with_the_first_rank(tmp_path, monkeypatch):
    def alone(self, sums, *, noise, scale):
        for value in sums.values():
            dist.all_reduce(value)
            if self.is_first:
                noise.add_to(value, scale=scale)
        return sums

    monkeypatch.setattr(Ranks, "release", alone)
    caught(of_line(tmp_path, neighbours=[], ranks=2), "seen", where="rank 1 differs")


def test_p5_noise_on_every_rank(tmp_path, monkeypatch):
    def each(self, sums, *, noise, scale):
        noisy = {name: noise.add_to(value, scale=scale) for name, value in sums.items()}
        for value in noisy.values():
            dist.all_reduce(value)
        return noisy

    monkeypatch.setattr(Ranks, "release", each)
    caught(of_line(tmp_path, neighbours=[], ranks=2), "noise", where="another rank")


def test_p5_noise_of_half_the_scale_that_is_paid_for(tmp_path, monkeypatch):
    honest = Ranks.release

    def quiet(self, sums, *, noise, scale):
        return honest(self, sums, noise=noise, scale=scale / 2)

    monkeypatch.setattr(Ranks, "release", quiet)
    found = of_line(tmp_path, neighbours=[REMOVED])
    caught(found, "sensitivity")
    assert found.moved["one removed"] == pytest.approx(2.0, rel=0.01)


def test_p10_noise_per_physical_batch(tmp_path, monkeypatch):
    after, step = DifferentialPrivacy.on_after_backward, DifferentialPrivacy.on_before_optimizer_step
    parts: dict[str, torch.Tensor] = {}

    class Collected(Ranks):
        def release(self, sums, *, noise, scale):
            noisy = dict(parts)
            parts.clear()
            return noisy

    def noised(self, trainer, pl_module):
        after(self, trainer, pl_module)
        scale = self.plan.noise_multiplier * self.max_grad_norm
        part = self._fit.ranks.release(self.clipping_engine.take(), noise=self._noise, scale=scale)
        for name, value in part.items():
            parts[name] = parts[name] + value if name in parts else value

    def unnoised(self, *arguments):
        fit = self._fit
        self._fit = replace(fit, ranks=Collected())
        step(self, *arguments)
        self._fit = fit

    monkeypatch.setattr(DifferentialPrivacy, "on_after_backward", noised)
    monkeypatch.setattr(DifferentialPrivacy, "on_before_optimizer_step", unnoised)
    caught(of_line(tmp_path, neighbours=[], privacy={"physical_batch_size": 2}), "noise")


def test_p10_physical_batches_counted_by_lightning(tmp_path, monkeypatch):
    """Its counters are in every checkpoint, and tell how large the Poisson samples were."""
    monkeypatch.setattr(LogicalBatches, "_count_no_further", lambda self: None)
    found = of_line(tmp_path, neighbours=[REMOVED], privacy={"physical_batch_size": 1})
    caught(found, "seen", where="end.ckpt/loops/fit_loop/epoch_loop.batch_progress")


# --- what is published (P17), and of what (P18, P22) ----------------------------------------------------


class LogsTheLoss(Line):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss.detach(), batch_size=len(batch[0]))
        return loss


def test_p17_a_private_scalar_without_the_prefix(tmp_path):
    found = of_line(tmp_path, make_module=LogsTheLoss, neighbours=[REMOVED])
    caught(found, "seen", where="metrics.csv")


class FollowsTheLoss(Line):
    """A schedule of its own, fed by the training loss, which no check of the trainer knows."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = 0.05 / (1 + float(outputs["loss"]))


def test_p17_a_learning_rate_fed_by_the_loss(tmp_path):
    options = {"make_module": FollowsTheLoss, "privacy": checked_by_nobody()}
    found = of_line(tmp_path, neighbours=[REMOVED], **options)
    caught(found, "seen", where="optimizer/param_groups[0]/lr")


def test_p17_checkpoints_chosen_by_a_private_metric(tmp_path):
    def best(folder):
        return [ModelCheckpoint(folder, monitor="nonprivate/units", mode="max", every_n_train_steps=1)]

    found = of_line(tmp_path, neighbours=[ADDED], callbacks=best, privacy=checked_by_nobody())
    caught(found, "seen", where="best_model_score")


def test_p17_a_release_that_nobody_paid_for(tmp_path, monkeypatch):
    def free(self, mechanism, values, *, note, drawn_at):
        sums = torch.from_numpy(mechanism.sums(values()))
        scale = mechanism.noise_multiplier * mechanism.sensitivity
        return mechanism.answer(release.SecureGaussianNoise().add_to(sums, scale=scale).numpy())

    monkeypatch.setattr(StepCharges, "release", free)
    caught(of_line(tmp_path, make_module=Learner, neighbours=[]), "noise", where="a release was not paid for")


def test_p18_a_release_that_every_rank_adds_to(tmp_path, monkeypatch):
    """Every rank reads all units and the sums meet, with the noise that one reading needs."""
    pay = StepCharges.release

    def of_all(self, mechanism, values, *, note, drawn_at):
        raw = type(mechanism).sums

        def added(self, data):
            return raw(self, data) * dist.get_world_size()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(mechanism), "sums", added)
            return pay(self, mechanism, values, note=note, drawn_at=drawn_at)

    monkeypatch.setattr(StepCharges, "release", of_all)
    found = of_line(tmp_path, make_module=Learner, neighbours=[REMOVED], ranks=2)
    caught(found, "sensitivity", where="release")


def test_p22_a_claim_about_replacing_a_unit(tmp_path, monkeypatch):
    """The same training, reported for a relation that moves it by 2C."""
    facts = PrivacyPlan.to_dict
    monkeypatch.setattr(PrivacyPlan, "to_dict", lambda self: facts(self) | {"relation": "replace one unit"})
    caught(of_line(tmp_path, neighbours=[REPLACED]), "sensitivity")
