"""Normalisers of constants: public bounds, and a release that is paid for first."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_dp.cli import main
from lightning_dp.privacy.accounting import GaussianEvent, epsilon_pld
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.privacy.loading import Reading
from lightning_dp.privacy.release import Moments
from lightning_dp.privacy.sampling import PoissonLoader
from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.data.simulator import HouseholdLoad
from lightning_dp.timeseries.normalise import DayMean
from lightning_dp.timeseries.public_scale import PublicScale
from lightning_dp.timeseries.released_scale import ReleasedScale

ROOT = Path(__file__).parents[2]
VALUES = torch.tensor([[[0.0, 10.0], [4.0, 30.0]]])  # (1, 2, 2)
SEEN = torch.ones(1, 2, 2, dtype=torch.bool)


def test_public_bounds_map_to_one():
    frame = PublicScale(bounds=[(0, 4), (10, 30)]).frame(VALUES, SEEN)
    assert ((VALUES - frame.center) / frame.scale).tolist() == [[[-1, -1], [1, 1]]]
    assert frame.scale.shape == (1, 1, 2)
    shared = PublicScale(bounds=[(0, 4)]).frame(VALUES, SEEN)
    assert shared.center.shape == (1, 2, 2)
    assert shared.center.unique().tolist() == [2]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PublicScale(bounds=[]), "bounds is empty"),
        (lambda: PublicScale(bounds=[(4, 4)]), "lower is 4"),
        (lambda: ReleasedScale(bounds=[(0, float("inf"))]), "finite"),
        (lambda: ReleasedScale(bounds=[(0, 1)], noise_multiplier=0), "noise_multiplier is 0"),
        (lambda: ReleasedScale(bounds=[(0, 1)], floor=-1), "floor -1"),
        (lambda: PublicScale(bounds=[(0, 1)] * 3).frame(VALUES, SEEN), "3 channels and the data has 2"),
    ],
)
def test_impossible_bounds_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.fixture(scope="module")
def households():
    data = HouseholdLoad(800, num_days=20, windows_per_user=4)
    data.setup()
    return data


def prepare(normaliser: ReleasedScale, data: HouseholdLoad, ledger: Ledger) -> None:
    """What the callback does with preparations, in its order."""
    unit = data.privacy_unit()
    loader = PoissonLoader(
        data.train_dataset, sampling_rate=0.1, reading=Reading(collate_fn=data.train_dataset.collate)
    )
    ledger.register("households", unit="user", delta=1e-5)
    for preparation in normaliser.preparations(unit=unit, target_epsilon=8.0, delta=1e-5):
        lease = ledger.open_run("households", unit="user", run="r", plan=[preparation.mechanism.event])
        batches = loader.in_order(units_per_batch=256)
        released = preparation.mechanism.release(lambda: preparation.values(batches), lease)  # noqa: B023
        preparation.apply(released.value)
        lease.close(steps_taken={})


def test_the_release_is_near_the_truth_and_stays_in_checkpoints(households, ledger_path):
    normaliser = ReleasedScale(bounds=[(0, 4)], noise_multiplier=1.0)
    torch.manual_seed(0)
    prepare(normaliser, households, Ledger(ledger_path))
    train = households.train_dataset.__getitems__(list(range(640)) * 20)  # windows at random starts
    clipped = np.where(train["observed"], train["values"].clip(0, 4), np.nan)
    # 640 households: noise of 1.1 / 640 of 2 kWh, and of 4 kWh² on the variance; windows are a sample.
    assert float(normaliser.center) == pytest.approx(np.nanmean(clipped), abs=0.04)
    assert float(normaliser.scale) == pytest.approx(np.nanstd(clipped), abs=0.06)
    (event,) = Ledger(ledger_path).events("households", unit="user", run="r", kind="release")
    assert (event.noise_multiplier, event.sampling_rate, event.steps) == (1.0, 1.0, 1)
    fresh = ReleasedScale(bounds=[(0, 4)])
    assert float(fresh.scale) == 2  # of the bounds
    fresh.load_state_dict(normaliser.state_dict())
    assert torch.equal(fresh.scale, normaliser.scale)


def test_nothing_is_read_before_the_charge(households, ledger_path):
    ledger = Ledger(ledger_path)
    (preparation,) = ReleasedScale(bounds=[(0, 4)]).preparations(
        unit=households.privacy_unit(), target_epsilon=None, delta=1e-5
    )
    ledger.register("households", unit="user", delta=1e-5)
    lease = ledger.open_run("households", unit="user", run="r", plan=[preparation.mechanism.event])
    charged_when_read = []

    def batches():
        charged_when_read.append(len(ledger.events("households", unit="user", run="r", kind="release")))
        yield households.train_dataset.__getitems__([0, 1])

    preparation.mechanism.release(lambda: preparation.values(batches()), lease)
    assert charged_when_read == [1]
    lease.close(steps_taken={})


def test_one_unit_moves_the_sums_by_no_more_than_declared(households):
    """λ windows, missing values and a household of enormous readings are still one unit."""
    unit = households.privacy_unit()
    (preparation,) = ReleasedScale(bounds=[(0, 4)]).preparations(unit=unit, target_epsilon=None, delta=1e-5)
    batch = households.train_dataset.__getitems__([0, 1, 2])
    values = preparation.values([batch])
    assert len(values) == 3
    assert values[0].shape == (4 * 120,)
    assert np.isnan(values[0]).sum() == int((~batch["observed"][:4]).sum())
    wild = Batch(**{**batch, "values": batch["values"].clone()})
    wild["values"][4:8] = 1e9
    sums = preparation.mechanism.sums
    without = sums(np.stack([values[0], values[2]]))
    for given in (batch, wild):
        moved = sums(np.stack(preparation.values([given]))) - without
        assert np.linalg.norm(moved) <= preparation.mechanism.sensitivity + 1e-9
    assert preparation.mechanism.num_units == unit.num_units


def test_the_floor_holds_where_noise_left_no_variance(households):
    normaliser = ReleasedScale(bounds=[(0, 4)], floor=0.2)
    (preparation,) = normaliser.preparations(unit=households.privacy_unit(), target_epsilon=None, delta=1e-5)
    preparation.apply(Moments(mean=0.3, variance=0.0))
    assert (float(normaliser.center), float(normaliser.scale)) == pytest.approx((0.3, 0.2))


def test_the_context_costs_nothing(households):
    assert (
        DayMean(steps_per_day=24).preparations(unit=households.privacy_unit(), target_epsilon=8.0, delta=1e-5)
        == []
    )


def test_a_private_fit_pays_for_its_scale_and_resumes_with_it(tmp_path, ledger_path):
    arguments = [
        "fit",
        f"--config={ROOT / 'conf' / 'experiment' / 'demo_simulator.yaml'}",
        f"--config={ROOT / 'conf' / 'normaliser' / 'released_scale.yaml'}",
        f"--run.dir={tmp_path / 'run'}",
        "--data.init_args.num_households=60",
        "--data.init_args.num_days=12",
        "--privacy.expected_batch_size=12",
        "--privacy.delta=1e-3",
        "--trainer.max_steps=2",
        "--trainer.enable_progress_bar=false",
        "--model.init_args.num_samples=2",
        "--run.wandb=disabled",
        "--run.test=false",
        "--privacy.target_epsilon=null",
        "--privacy.noise_multiplier=2",
    ]
    assert main(arguments) == 0
    ((dataset, _),) = Ledger(ledger_path).accounts()
    (event,) = Ledger(ledger_path).events(dataset, unit="user", kind="release")
    assert event.noise_multiplier == 10.0
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)
    state = checkpoint["state_dict"]
    assert float(state["normaliser.center"]) != 2.0  # no longer the middle of the bounds
    report = json.loads((tmp_path / "run" / "privacy.json").read_text())
    training = GaussianEvent(noise_multiplier=2.0, sampling_rate=12 / 48, steps=2)
    both = epsilon_pld([training, event], delta=1e-3)
    assert report["epsilon_spent"] == pytest.approx(both, rel=1e-3)
    assert both > epsilon_pld([training], delta=1e-3)
