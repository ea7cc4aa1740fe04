"""Every training path, recorded on D and replayed on its neighbours."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from images.image_support import awake, npz_data, tiny_module, tiny_net, write_npz
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_dp.adapters.modulation import ModulationOnly
from lightning_dp.callbacks.ema import EMA
from lightning_dp.callbacks.gradient_diagnostics import GradientDiagnostics
from lightning_dp.diffusion.schedule import Cosine
from lightning_dp.images.augmentation import Flip
from lightning_dp.nets.conditioning.dp_aware_adaln_zero import DPAwareAdaLNZero
from lightning_dp.nets.series_dit import SeriesDiT
from lightning_dp.privacy.clipping.functions import Automatic, PerGroup, PerLayer
from lightning_dp.privacy.clipping.loop import Loop
from lightning_dp.privacy.clipping.materialised import Materialised
from lightning_dp.privacy.preflight import CODES
from lightning_dp.timeseries.data.ett import ETT
from lightning_dp.timeseries.data.own_table.layout import Long
from lightning_dp.timeseries.data.own_table.reading import Reading
from lightning_dp.timeseries.data.own_table.split import ByTime
from lightning_dp.timeseries.data.simulator import HouseholdLoad
from lightning_dp.timeseries.data.table import Table
from lightning_dp.timeseries.day_ensemble import DayEnsemble
from lightning_dp.timeseries.masks import (
    BlackoutImputation,
    Interpolation,
    PointImputation,
    StrideImputation,
    SubSequenceImputation,
    Synthesis,
)
from lightning_dp.timeseries.module import TimeSeriesDiffusion
from lightning_dp.timeseries.normalise import DayMean
from lightning_dp.timeseries.released_scale import ReleasedScale
from lightning_dp.tracking.wandb_logger import DiscreetWandbLogger, finish_wandb
from replay.harness import Replay, replay
from replay.neighbours import ADDED, ALL, BLANK, FEW, HUGE, NOT_A_NUMBER, REMOVED, REPLACED
from replay.toys import NUM_UNITS, PRIVACY, STEPS, Learner, Line, Points, PointsAndMore, Still, Validated

# diffusers' own use of numpy, and autograd's advice on hooks of modules whose inputs need no gradient.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook"),
]


def held(found: Replay) -> Replay:
    """The replay, once it is known to have held, to have trained and to have looked at something."""
    assert found.violations == []
    assert found.exit == "finished"
    assert sum(found.batches) > 0
    return found


def checked_by_nobody(**options) -> dict:
    """Options under which preflight's findings are accepted, so that the harness is on its own."""
    reasons = {code: "planted, to see the harness catch it" for code in CODES if code != "nothing-trains"}
    return {**options, "accept": reasons}


def of_line(folder: Path, *, make_module=Line, make_data=Points, neighbours=FEW, **options) -> Replay:
    privacy = {**PRIVACY, **options.pop("privacy", {})}
    options = {"steps": STEPS, "num_units": NUM_UNITS, "neighbours": neighbours, **options}
    return replay(make_module, make_data, folder=folder, privacy=privacy, **options)


def test_a_module_of_the_users_own(tmp_path):
    moved = held(of_line(tmp_path, neighbours=ALL)).moved
    assert moved["one removed"] > 0.99, "all units are clipped here: the bound is reached"
    assert 1.1 < moved["one replaced"] < 2, "replacing a unit is not what ε is about: it moves up to 2C"


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (Line, {"clipping_engine": Materialised()}),
        (Still, {"clipping_engine": Loop()}),
        (Line, {"clipping_function": Automatic()}),
        (Line, {"clipping_function": PerLayer()}),
        (Line, {"clipping_function": PerGroup(groups={"first": [r"^net\.0\."]}, shares={"first": 2.0})}),
        (Line, {"secure": True}),
        (Line, {"max_grad_norm": 100.0}),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else None,
)
def test_engines_functions_and_noise_sources(tmp_path, module, options):
    held(of_line(tmp_path, make_module=module, privacy=options))


def test_several_physical_batches(tmp_path):
    parts = [REMOVED, BLANK, ADDED, NOT_A_NUMBER]
    found = held(of_line(tmp_path, neighbours=parts, privacy={"physical_batch_size": 2}))
    assert max(found.batches) > 2


def test_empty_batches(tmp_path):
    found = held(of_line(tmp_path, privacy={"expected_batch_size": 1}, steps=12))
    assert 0 in found.batches


def checkpoints(folder: Path) -> list:
    return [EMA(), ModelCheckpoint(folder, every_n_train_steps=2, save_last=True, save_top_k=-1)]


def test_moving_average_and_checkpoints_on_the_way(tmp_path):
    held(of_line(tmp_path, callbacks=checkpoints))
    assert len(list((tmp_path / "D" / "run").glob("*.ckpt"))) > 3


def test_validation_between_physical_batches(tmp_path):
    """It comes after so many steps, not after so many physical batches, whose number is private."""
    trainer = {"val_check_interval": 2, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    parts = {"make_module": Validated, "make_data": PointsAndMore, "trainer": trainer}
    found = held(of_line(tmp_path, privacy={"physical_batch_size": 1}, **parts))
    assert max(found.batches) > 2
    checkpoint = torch.load(tmp_path / "D" / "run" / "end.ckpt", weights_only=False)
    assert int(checkpoint["state_dict"]["validations"]) == STEPS / 2


def test_gradient_diagnostics_look_on(tmp_path):
    def observers():
        return [GradientDiagnostics(bias_every_n_steps=2)]

    options = {"neighbours": [REMOVED], "privacy": {"physical_batch_size": 3}}
    held(of_line(tmp_path, observers=observers, **options))
    assert len(list(tmp_path.rglob("diagnostics.json"))) == 2


def test_a_run_that_was_resumed(tmp_path):
    found = of_line(tmp_path, callbacks=lambda folder: [EMA()], interrupt_after=3)
    assert found.violations == []
    assert found.exit == "interrupted, finished"
    assert len(found.batches) == STEPS


def test_a_release_before_training(tmp_path):
    # The release reads every unit, also one of weight 0, which only training knows.
    neighbours = [neighbour for neighbour in ALL if neighbour is not BLANK]
    moved = held(of_line(tmp_path, make_module=Learner, neighbours=neighbours)).moved
    assert moved["one replaced"] > 1


def test_two_ranks(tmp_path):
    held(of_line(tmp_path, neighbours=[REMOVED, HUGE], ranks=2))


def wandb_offline(folder: Path) -> list:
    return [DiscreetWandbLogger(share_nonprivate=False, offline=True, save_dir=folder, log_model=False)]


def test_what_wandb_is_sent(tmp_path):
    """One process at a time may have a W&B run, so each fit ends its own."""

    class Ends(EMA):
        def teardown(self, trainer, pl_module, stage):
            finish_wandb(failed=False)

    held(of_line(tmp_path, neighbours=[HUGE], loggers=wandb_offline, callbacks=lambda folder: [Ends()]))
    assert len(list(tmp_path.rglob("*.wandb"))) == 2


# --- images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [None, ModulationOnly()])
def test_images(tmp_path, adapter):
    """One image a unit, in variants whose latents are computed once; some labels are dropped."""
    pictures = write_npz(tmp_path / "pictures", train=NUM_UNITS + 1)

    def module():
        return tiny_module(net=awake(tiny_net()), adapter=adapter, augmentation=Flip(), noise_draws=2)

    found = replay(
        module,
        lambda: npz_data(pictures),
        folder=tmp_path,
        steps=STEPS,
        num_units=NUM_UNITS,
        neighbours=[REMOVED, HUGE],
        privacy={**PRIVACY, "physical_batch_size": 3},
        trainer={"limit_val_batches": 0},
    )
    held(found)


# --- time series ---------------------------------------------------------------------------------------

CONTEXT, HORIZON = 24, 8


def series_module(
    *, num_channels: int, num_covariates: int, dropout: float = 0.1, **options
) -> TimeSeriesDiffusion:
    net = SeriesDiT(
        DPAwareAdaLNZero(),
        length=CONTEXT + HORIZON,
        num_channels=num_channels,
        num_covariates=num_covariates,
        patch_size=8,
        hidden_size=8,
        depth=1,
        num_heads=2,
        dropout=dropout,
    )
    for parameter in net.parameters():  # zero-initialised layers would hide what comes before them
        torch.nn.init.normal_(parameter, std=0.1)
    options = {"normaliser": DayMean(steps_per_day=24), **options}
    return TimeSeriesDiffusion(net, schedule=Cosine(num_steps=100), condition_dropout=0.2, **options)


def of_series(
    folder: Path, make_data, *, make_module=None, neighbours=FEW, privacy=None, **options
) -> Replay:
    data: LightningDataModule = make_data()
    sizes = {"num_channels": data.num_channels, "num_covariates": data.num_covariates}
    return replay(
        make_module or (lambda: series_module(**sizes, **options)),
        make_data,
        folder=folder,
        steps=STEPS,
        num_units=NUM_UNITS,
        neighbours=neighbours,
        privacy={**PRIVACY, **(privacy or {})},
        trainer={"limit_val_batches": 0},
    )


@pytest.mark.skipif("LIGHTNING_DP_DATA" not in os.environ, reason="LIGHTNING_DP_DATA is not set")
def test_windows_of_a_series(tmp_path):
    def data() -> ETT:
        return ETT("ETTh1", context_length=CONTEXT, horizon=HORIZON, train_stride=CONTEXT + HORIZON)

    held(of_series(tmp_path, data, neighbours=[REMOVED, HUGE, REPLACED], noise_draws=3))


def households(**options) -> HouseholdLoad:
    return HouseholdLoad(18, num_days=4, context_length=CONTEXT, horizon=HORIZON, **options)


def test_users_with_several_windows(tmp_path):
    def data() -> HouseholdLoad:
        return households(windows_per_user=3)

    users = [REMOVED, BLANK, HUGE, NOT_A_NUMBER]
    held(of_series(tmp_path, data, neighbours=users, noise_draws=2, privacy={"physical_batch_size": 3}))


def test_imputation_with_masks_drawn_in_training(tmp_path):
    def data() -> HouseholdLoad:
        return households(windows_per_user=2, task=PointImputation((0.1, 0.6)))

    held(of_series(tmp_path, data, neighbours=[REMOVED, BLANK, HUGE]))


TASKS = [
    PointImputation((0.1, 0.6)),
    SubSequenceImputation((0.2, 0.5)),
    BlackoutImputation(0.5),
    StrideImputation(4),
    Interpolation(3),
    Synthesis(),
]
# Without a mixture, which draws for the windows of a batch that got the same task, and without dropout, which
# in the last block draws for the tokens that a batch asks for. Both are independent of other units, but the
# harness can't hand them out by unit.


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_every_task_without_dropout(tmp_path, task):
    def data() -> HouseholdLoad:
        return households(windows_per_user=2, task=task)

    ensemble = None if isinstance(task, Synthesis) else DayEnsemble(steps_per_day=24)
    held(of_series(tmp_path, data, neighbours=[REMOVED, HUGE], base_denoiser=ensemble, dropout=0.0))


def test_a_table_of_the_users_own(tmp_path):
    """Customers of different lengths, with gaps and something that is no number."""
    stamps = pd.date_range("2024-01-01", periods=144, freq="h")
    load = np.random.default_rng(0).gamma(2, 0.3, (NUM_UNITS + 2, len(stamps)))
    rows = pd.DataFrame(load.T, columns=[f"meter {n}" for n in range(len(load))]).assign(time=stamps)
    long = rows.melt(id_vars="time", var_name="meter", value_name="kwh")
    long = long[~((long["meter"] == "meter 3") & (long["time"] < "2024-01-02"))]
    long.loc[long.index[::17], "kwh"] = np.nan
    long.to_csv(tmp_path / "load.csv", index=False)

    def data() -> Table:
        return Table(
            str(tmp_path / "load.csv"),
            name="meters",
            layout=Long(id_column="meter", time_column="time", target_columns=["kwh"]),
            context_length=CONTEXT,
            horizon=HORIZON,
            reading=Reading(frequency="h"),
            split=ByTime(test_from="2024-01-04"),
            windows_per_user=2,
            cache_dir=str(tmp_path / "cache"),
        )

    held(of_series(tmp_path, data, neighbours=[REMOVED, HUGE]))


def test_a_scale_that_is_released_before_training(tmp_path):
    def data() -> HouseholdLoad:
        return households(windows_per_user=2)

    def module() -> TimeSeriesDiffusion:
        scale = ReleasedScale(bounds=[(0.0, 2.0)])
        return series_module(num_channels=1, num_covariates=7, normaliser=scale)

    found = of_series(tmp_path, data, make_module=module, neighbours=[REMOVED, HUGE])
    assert held(found).moved["a huge one added"] > 0.1, "within its bounds it counts"
