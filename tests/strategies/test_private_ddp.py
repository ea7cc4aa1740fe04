"""One private step on 1, 2 and 4 gloo ranks: the same release as one process makes, and the same price."""

import copy
import json

import numpy as np
import pytest
import torch
from gloo import NoNoise, fit_on_ranks
from support import Records, Regression
from torch import distributed as dist
from torch.utils.data import TensorDataset

from lightning_dp.callbacks import differential_privacy
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.privacy.preparation import Preparation
from lightning_dp.privacy.ranks import Ranks
from lightning_dp.privacy.release import BoundedMean, PublicBounds
from lightning_dp.privacy.sampling import PoissonSampler
from lightning_dp.privacy.secure_noise import SecureGaussianNoise

B, N, SIGMA, C = 10, 100, 1.3, 0.4
RANKS = pytest.mark.parametrize("ranks", [1, 2, 4])


def private(**options) -> DifferentialPrivacy:
    defaults = {"noise_multiplier": SIGMA, "delta": 1e-3, "expected_batch_size": B, "max_grad_norm": C}
    return DifferentialPrivacy(**{**defaults, **options})


def silent(**options) -> DifferentialPrivacy:
    privacy = private(**options)
    privacy._noise = NoNoise()
    return privacy


def weights_of(module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@RANKS
@pytest.mark.parametrize("physical", [None, 7])
def test_without_noise_every_rank_takes_the_step_of_one_process(tmp_path, ranks, physical):
    """All units are sampled (q = 1), so the step is known: −Σ clip(g) / N."""
    torch.manual_seed(0)
    module, data = Regression(), Records(N)
    before = weights_of(module)
    options = {"expected_batch_size": N, "physical_batch_size": physical}
    alone = fit_on_ranks(1, copy.deepcopy(module), data, silent(**options), folder=tmp_path / "alone")
    together = fit_on_ranks(ranks, module, data, silent(**options), folder=tmp_path / "together")
    expected = alone[0]["weights"] - before
    assert expected.norm() > 0.05
    for rank in together:
        torch.testing.assert_close(rank["weights"] - before, expected, rtol=1e-5, atol=1e-5 * C)
        assert torch.equal(rank["weights"], together[0]["weights"]), "ranks must end equal, to the bit"
        assert rank["logged"]["nonprivate/units"] == N, "of the whole step, on all ranks"
        for name in ("grad_norm", "clip_fraction"):
            own, one = (end["logged"][f"nonprivate/{name}"] for end in (rank, alone[0]))
            assert own == pytest.approx(one, rel=1e-6)
        assert 0 < one < 1
    seen = torch.cat([rank["seen"] for rank in together])
    assert seen.sort().values.tolist() == list(range(N)), "each unit once, on one rank"


def noise_ratio(tmp_path, ranks: int, noise=None) -> float:
    """Standard deviation of one update without gradients, ÷ σC/B."""
    torch.manual_seed(0)
    module = Regression(width=12_000, zero_loss=True)
    before = weights_of(module)
    privacy = private(accept={"unchecked": "its gradient is zero on purpose"})
    privacy._noise = noise or privacy._noise
    ends = fit_on_ranks(ranks, module, Records(N), privacy, folder=tmp_path)
    assert all(torch.equal(end["weights"], ends[0]["weights"]) for end in ends)
    return float((ends[0]["weights"] - before).std()) / (SIGMA * C / B)


@RANKS
@pytest.mark.parametrize("secure", [False, True])
def test_noise_is_added_once(tmp_path, ranks, secure):
    # The standard error of a standard deviation over 72,001 values is 0.26 %.
    ratio = noise_ratio(tmp_path, ranks, SecureGaussianNoise() if secure else None)
    assert ratio == pytest.approx(1.0, rel=0.01)


def test_noise_on_every_rank_is_caught(tmp_path, monkeypatch):
    """P5 planted: each rank adds its own noise before the sums meet."""

    def release(self, sums, *, noise, scale):
        noisy = {name: noise.add_to(value, scale=scale) for name, value in sums.items()}
        for value in noisy.values():
            dist.all_reduce(value)
        return noisy

    monkeypatch.setattr(Ranks, "release", release)
    assert noise_ratio(tmp_path, 2) == pytest.approx(np.sqrt(2), rel=0.01)


def test_noise_on_the_first_rank_without_a_broadcast_is_caught(tmp_path, monkeypatch):
    """P5 planted: rank 0's noise stays with rank 0, so the ranks part."""

    def release(self, sums, *, noise, scale):
        for value in sums.values():
            dist.all_reduce(value)
            if self.is_first:
                noise.add_to(value, scale=scale)
        return sums

    monkeypatch.setattr(Ranks, "release", release)
    with pytest.raises(AssertionError):
        noise_ratio(tmp_path, 2)


def change_by_one_unit(tmp_path, ranks: int) -> float:
    """How far one more unit, a huge one, moves the total that is noised, ÷ C; everybody is sampled."""
    totals = []
    for number in (4, 5):
        torch.manual_seed(0)
        data = Records(5)
        data.dataset.tensors[0][4] = 1e6
        data.dataset = TensorDataset(*(tensor[:number] for tensor in data.dataset.tensors))
        ends = fit_on_ranks(
            ranks,
            Regression(),
            data,
            silent(expected_batch_size=number, delta=0.1),
            folder=tmp_path / str(number),
        )
        totals.append(torch.cat(ends[0]["totals"]).double())
    return float((totals[1] - totals[0]).norm()) / C


@RANKS
def test_one_unit_moves_the_total_by_at_most_the_clipping_norm(tmp_path, ranks):
    assert 0.9 < change_by_one_unit(tmp_path, ranks) <= 1 + 1e-6


def test_ranks_that_sample_the_same_units_are_caught(tmp_path, monkeypatch):
    """P4 planted: every rank draws from all units, so one unit is there twice."""
    init = PoissonSampler.__init__

    def unsharded(self, *, num_units, sampling_rate, rank=0, world_size=1):
        init(self, num_units=num_units, sampling_rate=sampling_rate)

    monkeypatch.setattr(PoissonSampler, "__init__", unsharded)
    assert change_by_one_unit(tmp_path, 2) == pytest.approx(2.0, abs=1e-3)


@RANKS
def test_shards_are_disjoint_and_their_union_is_poisson(tmp_path, ranks):
    ends = fit_on_ranks(ranks, Regression(), Records(N), silent(), folder=tmp_path, steps=60)
    owners = [set(end["seen"].long().tolist()) - {0} for end in ends]  # 0 is padding everywhere
    assert sum(map(len, owners)) == len(set.union(*owners))
    counts = np.bincount(torch.cat([end["seen"] for end in ends]).long().numpy(), minlength=N)
    # 60 draws at q = 0.1: mean 6 per unit, and 594 ± 23 in all.
    assert abs(counts[1:].sum() - 594) < 5 * 24
    assert 2.5 < counts[1:].var() < 10
    assert {end["step"] for end in ends} == {60}


def test_ranks_without_units_step_along(tmp_path):
    """3 units on 4 ranks at q = 1/3: some rank is always empty, often all are."""
    ends = fit_on_ranks(
        4, Regression(), Records(3), private(expected_batch_size=1, delta=0.1), folder=tmp_path, steps=12
    )
    assert {end["step"] for end in ends} == {12}
    assert all(torch.equal(end["weights"], ends[0]["weights"]) for end in ends)


def test_ranks_that_need_fewer_physical_batches_add_padding(tmp_path):
    """Lightning talks between ranks once a physical batch, so they must come to the same number."""
    ends = fit_on_ranks(
        2, Regression(), Records(N), private(physical_batch_size=1), folder=tmp_path, steps=20
    )
    assert ends[0]["batches"] == ends[1]["batches"]
    # Unit 0 is rank 0's own; rank 1 sees it as padding only.
    assert (ends[1]["seen"] == 0).sum() > 5
    assert {end["step"] for end in ends} == {20}
    assert torch.equal(ends[0]["weights"], ends[1]["weights"])


def test_the_price_does_not_depend_on_the_number_of_ranks(tmp_path, ledger_path):
    reports = []
    for ranks in (1, 2, 4):
        folder = tmp_path / str(ranks)
        data = Records(N, dataset_id=f"records{ranks}")
        fit_on_ranks(ranks, Regression(), data, private(reserve_steps=3), folder=folder, steps=7)
        reports.append(json.loads((folder / "privacy.json").read_text()))
        ledger = Ledger(ledger_path)
        assert sum(e.steps for e in ledger.events(f"records{ranks}", unit="record")) == 7
        assert ledger.epsilon(f"records{ranks}", unit="record") == reports[0]["epsilon_spent"]
    assert len({report["epsilon_spent"] for report in reports}) == 1


class Learns(Regression):
    """Needs the mean of the first column before its first step."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(()))
        self.reads = 0

    def preparations(self, *, unit, target_epsilon, delta):
        return [Mean(self, num_units=unit.num_units)]

    def on_train_end(self):
        torch.save((self.centre, self.reads), f"{self.trainer.default_root_dir}/mean{self.global_rank}.pt")


class Mean(Preparation[float]):
    def __init__(self, module: Learns, *, num_units: int) -> None:
        self.module = module
        self.num_units = num_units

    @property
    def mechanism(self):
        return BoundedMean(
            noise_multiplier=2.0, bounds=PublicBounds(lower=0.0, upper=200.0), num_units=self.num_units
        )

    def values(self, batches):
        self.module.reads += 1
        return [x[0].numpy() for batch in batches for x in batch[0][:, :1]]

    def apply(self, answer):
        self.module.centre.fill_(answer)


@RANKS
def test_a_release_before_training_is_paid_and_read_once_and_known_to_all(tmp_path, ledger_path, ranks):
    module = Learns()
    fit_on_ranks(ranks, module, Records(N), private(), folder=tmp_path, steps=2)
    answers = [torch.load(tmp_path / f"mean{rank}.pt") for rank in range(ranks)]
    assert len({float(centre) for centre, _ in answers}) == 1
    # Σ t has noise 2 on a scale of radius 100 over 100 units: ± 2 around 49.5.
    assert abs(float(answers[0][0]) - 49.5) < 12
    assert [reads for _, reads in answers] == [1, *[0] * (ranks - 1)]
    assert len(Ledger(ledger_path).events("records", unit="record", kind="release")) == 1


def test_stock_ddp_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(Exception, match=r"trainer\.strategy=private_ddp"):
        fit_on_ranks(2, Regression(), Records(N), private(), folder=tmp_path, strategy="ddp_fork")


def test_the_strategy_without_the_callback_is_refused(tmp_path):
    with pytest.raises(Exception, match="belongs to private training"):
        fit_on_ranks(2, Regression(), Records(N), None, folder=tmp_path)


def test_a_refusal_by_the_first_rank_reaches_all(tmp_path, ledger_path):
    """The data set's limit is used up: no rank trains, none hangs."""
    ledger = Ledger(ledger_path)
    ledger.register("records", unit="record", delta=1e-3)
    ledger.set_limit("records", unit="record", limit_epsilon=0.01)
    with pytest.raises(Exception, match="limit"):
        fit_on_ranks(2, Regression(), Records(N), private(), folder=tmp_path)
    assert ledger.events("records", unit="record") == []


def test_per_row_losses_on_ranks_train_as_their_mean(tmp_path):
    class PerRow(Regression):
        def training_step(self, batch, batch_idx):
            x, y = batch
            return {"losses": (self.net(x).squeeze(1) - y).square()}

    plain, rows = Regression(), PerRow()
    rows.load_state_dict(plain.state_dict())
    ends = [
        fit_on_ranks(2, module, Records(N), silent(expected_batch_size=N), folder=tmp_path / name)
        for name, module in (("mean", plain), ("rows", rows))
    ]
    torch.testing.assert_close(ends[0][0]["weights"], ends[1][1]["weights"], rtol=1e-5, atol=1e-6)


def test_ranks_draw_their_own_timesteps(tmp_path):
    """Equal streams of torch's random numbers would tie the ranks' diffusion noise together."""

    class Draws(Regression):
        def training_step(self, batch, batch_idx):
            self.seen.append(torch.rand(1))
            x, y = batch
            return (self.net(x).squeeze(1) - y).square().mean()

    torch.manual_seed(0)
    ends = fit_on_ranks(2, Draws(), Records(N), private(), folder=tmp_path)
    assert not torch.equal(ends[0]["seen"], ends[1]["seen"])


class CoupledOnOneRank(Regression):
    """Every second record belongs to rank 1; its batches alone are divided by their largest value."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        odd = bool((x[:, 0] % 2 == 1).all())
        return super().training_step([x / x.abs().max() if odd else x, y], batch_idx)


def test_what_one_rank_finds_in_a_batch_stops_all(tmp_path, monkeypatch):
    monkeypatch.setattr(differential_privacy, "run_preflight", lambda *_, **__: [])
    with pytest.raises(Exception, match=r"the spot check stopped step 0|units of a real batch") as error:
        fit_on_ranks(2, CoupledOnOneRank(), Records(N), private(expected_batch_size=50), folder=tmp_path)
    assert "RuntimeError" in str(error.value)
    assert not list(tmp_path.glob("rank*.pt")), "no rank came to its end"
