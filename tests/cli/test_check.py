"""`lightning-dp check` and `DifferentialPrivacy.check`: what a fit would refuse, and no trace is left."""

import copy
import json
import os
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.callbacks.needs import Needs
from lightning_dp.cli import main
from lightning_dp.timeseries.data.simulator import HouseholdLoad as Simulated

RECIPE = Path(__file__).parents[2] / "conf" / "experiment" / "demo_simulator.yaml"
TINY = [
    "--data.init_args.num_households=60",
    "--data.init_args.num_days=12",
    "--privacy.expected_batch_size=12",
    "--privacy.delta=1e-3",
    "--privacy.target_epsilon=null",  # calibration takes longer than all the rest
    "--privacy.noise_multiplier=1",
    "--trainer.max_steps=4",
]


class Rows(Dataset):
    """Rows that nobody may look at."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> list[Tensor]:
        raise AssertionError("a private row was read")


class Data(LightningDataModule):
    def synthetic_units(self, num_units: int) -> list[Tensor]:
        return [torch.randn(num_units, 4), torch.randn(num_units)]

    def setup(self, stage: str) -> None:
        self.rows = Rows()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=8, shuffle=True)


class Module(LightningModule):
    """Of a linear layer, a parameter that is added, a product by hand and a frozen layer."""

    def __init__(self, *, centred: bool = False, unused: nn.Module | None = None) -> None:
        super().__init__()
        self.centred = centred
        self.net = nn.Linear(4, 4)
        self.shift = nn.Parameter(torch.zeros(4))
        self.head = nn.Parameter(torch.randn(4, 1))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.unused = unused

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,io->bo", self.frozen(self.net(x)).tanh() + self.shift, self.head)[:, 0]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return (self(x - x.mean(dim=0) if self.centred else x) - y).square()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def check(*options: str) -> int:
    return main(["check", str(RECIPE), *TINY, *options])


def test_a_recipe_of_the_project_has_no_findings_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, ledger_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIGHTNING_DP_RUN_FOLDER", raising=False)  # of another test's fit
    assert check() == 0
    out = capsys.readouterr().out
    assert out.startswith("module   TimeSeriesDiffusion\nunit     user (")
    assert re.search(r"^ε        [\d.]+ at δ = 0.001 after 4 steps$", out, re.MULTILINE)
    assert "net.blocks.0.attention.qkv.{weight,bias}" in out
    assert "cheap  linear: units in dimension 0" in out
    assert out.endswith("\n0 findings\n")
    assert list(tmp_path.iterdir()) == []
    assert not ledger_path.exists()
    assert "LIGHTNING_DP_RUN_FOLDER" not in os.environ


def test_settings_and_findings_are_told_together(capsys):
    monitor = [
        "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",
        "--trainer.callbacks.monitor=train/loss",
    ]
    assert check("--trainer.accumulate_grad_batches=2", *monitor, "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["ok"]
    assert "trainer.accumulate_grad_batches=2" in told["refused"][0]
    assert [one["code"] for one in told["findings"]] == ["private-monitor"]
    assert told["rows"][0] == {
        "parameters": "net.timestep.inner.{weight,bias}",
        "size": 2080,
        "rule": "linear: units in dimension 0",
        "cost": "cheap",
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--privacy.expected_batch=3"], "expected_batch"),
        (["--privacy=null"], "nothing to check"),
        (["--data.init_args.num_households=0"], "num_households"),
    ],
)
def test_what_can_not_be_right_is_one_sentence_and_status_2(options, said, capsys):
    assert check(*options) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def privacy(**options) -> DifferentialPrivacy:
    return DifferentialPrivacy(noise_multiplier=1.0, delta=1e-3, expected_batch_size=10, **options)


def test_the_table_names_every_way_by_which_a_parameter_is_clipped():
    report = privacy().check(Module(), Data())
    assert report.ok, str(report)
    rows = {row.parameters: (row.cost, row.rule) for row in report.rows}
    assert rows["net.{weight,bias}"] == ("cheap", "linear: units in dimension 0")
    assert rows["shift"] == ("one copy per unit", "joined with units by add")
    assert rows["head"] == ("one copy per unit", "operator einsum unit by unit")
    assert report.frozen == (2, 20)
    assert report.epsilon is None  # nobody said how many steps


def test_a_weight_that_is_computed_costs_copies_and_its_bias_does_not():
    module = Module()
    module.frozen = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    costs = {row.parameters: row.cost for row in privacy().check(module, Data()).rows}
    assert costs["frozen.bias"] == "cheap"
    assert costs["frozen.parametrizations.weight.{original0,original1}"] == "one copy per unit"


def test_what_no_trial_reaches_is_named():
    report = privacy().check(Module(unused=nn.Linear(2, 2)), Data())
    assert [one.code for one in report.findings] == []
    assert "reached by no trial: unused.weight, unused.bias" in str(report)
    assert not any("unused" in row.parameters for row in report.rows)


class Smallest(nn.Module):
    """An operator that can't be followed, in a module that can be run per unit."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([row * self.scale for row in x])


def test_a_module_that_is_run_per_unit_is_said_to_be():
    module = Module()
    module.frozen = nn.Sequential(Smallest(), module.frozen)
    report = privacy().check(module, Data())
    (row,) = [row for row in report.rows if "scale" in row.parameters]
    assert row.rule.startswith("inside 'frozen.0', run per unit ("), str(report)
    assert row.cost in ("one copy per unit", "loop")


def test_a_coupling_is_a_finding_and_may_be_answered_for():
    report = privacy().check(Module(centred=True), Data())
    assert not report.ok
    (found,) = report.findings
    assert found.code == "coupling"
    assert str(report).splitlines()[-1] == "1 finding"
    assert f"    fix      {found.fix}" in str(report)
    answered = privacy(accept={"coupling": "the mean is public"}).check(Module(centred=True), Data())
    assert answered.ok
    assert "    accepted the mean is public" in str(answered)
    assert str(answered).splitlines()[-1] == "0 findings, 1 accepted"


def test_a_check_leaves_nothing_behind(tmp_path, ledger_path):
    module, data, dp = Module(), Data(), privacy()
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_steps=3, logger=False, callbacks=[dp], devices=1
    )
    watched = (module, module.net, data, dp, dp.clipping_engine, trainer, trainer.fit_loop, trainer.state)
    before = [dict(vars(one)) for one in watched]
    weights, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    report = dp.check(module, data, trainer=trainer)
    assert (report.num_steps, report.num_units) == (3, 100)
    assert report.epsilon is not None
    for one, attributes in zip(watched, before, strict=True):
        now = vars(one)
        assert now.keys() == attributes.keys()
        assert all(now[name] is value for name, value in attributes.items())
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert list(tmp_path.iterdir()) == []
    assert not ledger_path.exists()


def test_a_setting_of_the_data_is_told_without_a_table_of_rules():
    rows = DataLoader(Rows(), batch_size=None)
    report = privacy().check(Module(), rows)
    assert not report.ok
    assert "batch_size=None" in report.refused[0]
    assert "unit     unknown" in str(report)
    assert {row.cost for row in report.rows} == {None}


def test_what_a_fit_would_need_is_measured_on_made_up_units(ledger_path):
    def needs(width: int, *, steps: int = 1000, physical: int | None = None) -> Needs:
        module = Module(unused=None)
        module.net, module.frozen = nn.Linear(4, width), nn.Linear(width, width).requires_grad_(False)
        module.shift, module.head = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.randn(width, 1))
        privacy = DifferentialPrivacy(
            noise_multiplier=1.0, delta=1e-3, expected_batch_size=16, physical_batch_size=physical
        )
        trainer = Trainer(
            accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, callbacks=[privacy]
        )
        found = privacy.check(module, Data(), trainer=trainer, needs=True).needs
        assert found is not None
        return found

    small, large = needs(64), needs(512, steps=10)
    assert (small.steps, small.units_per_step, small.units_at_once) == (1000, 16, 16)
    assert small.trained == 4 * 64 + 64 + 64 + 64
    assert small.frozen == 64 * 64 + 64
    assert small.hours == pytest.approx(1000 * small.seconds_per_step / 3600)
    # What a unit keeps grows with the width, and a limit on units at once bounds the whole.
    assert large.unit == pytest.approx(8 * small.unit, rel=0.5)
    assert small.unit >= 4 * 64
    assert needs(512, physical=2).memory < large.memory
    assert small.files is None
    assert not ledger_path.exists()


def test_what_a_refused_fit_would_need_is_not_said(capsys):
    report = DifferentialPrivacy(noise_multiplier=1.0, delta=1e-3, expected_batch_size=8).check(
        Module(centred=True), Data(), needs=True
    )
    assert report.findings
    assert report.needs is None


def test_the_command_prints_needs_and_the_files_that_are_read(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(Simulated, "files", lambda self: [tmp_path / "absent.csv"], raising=False)
    assert main(["check", str(RECIPE), "--needs", *TINY]) == 0
    said = capsys.readouterr().out
    assert re.search(r"time     about .* for 4 steps of \S+ s\n", said)
    assert re.search(r"memory   about \S+ GiB", said)
    assert "absent.csv: missing" in said
