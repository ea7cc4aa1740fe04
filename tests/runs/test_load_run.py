"""A finished run as commands and notebooks open it, whatever kind of data it is of."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from toy_tables import Patients, RowNet, TableDiffusion

import lightning_dp
from lightning_dp.cli import main
from lightning_dp.runs import TrainedRun

# diffusers' own use of numpy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    """A short private run on a kind of data that the package doesn't know."""
    folder = tmp_path_factory.mktemp("tables")
    net = {"class_path": "toy_tables.RowNet"}
    config = {
        "seed_everything": 0,
        "data": {"class_path": "toy_tables.Patients"},
        "model": {
            "class_path": "toy_tables.TableDiffusion",
            "init_args": {"net": net, "noise_draws": 2, "guidance_scale": 1.5},
        },
        "privacy": {"noise_multiplier": 2.0, "delta": 1e-3, "expected_batch_size": 20},
        "trainer": {"accelerator": "cpu", "max_steps": 3, "enable_progress_bar": False},
        "run": {"wandb": "disabled", "dir": str(folder / "run"), "test": False},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTNING_DP_LEDGER", str(folder / "ledger.sqlite"))
        assert main(["fit", f"--config={folder / 'recipe.yaml'}"]) == 0
    return folder / "run"


def test_a_third_kind_of_data_is_trained_privately_and_sampled(tables):
    with pytest.raises(ValueError, match=r"toy_tables\.TableDiffusion.*no class of this package.*--trust"):
        lightning_dp.load_run(tables)
    run = lightning_dp.load_run(tables, trust=True)
    assert isinstance(run, TrainedRun)
    assert type(run.module) is TableDiffusion
    assert type(run.data) is Patients
    assert run.account.checks["mechanisms"] == run.account.checks["checkpoint"] == "agrees"
    assert run.epsilon == json.loads((tables / "privacy.json").read_text())["epsilon_spent"]
    assert 0 < run.epsilon < 5
    assert run.account.report["steps_charged"] == 3
    assert run.module.net.num_channels == run.data.num_channels == 3  # linked from the data
    labels = torch.tensor([0, 1, -1])
    first, again = (run.sample(labels, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.shape == (3, 3)
    assert torch.equal(first, again)
    saved = torch.load(tables / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(run.module.state_dict()[name], value) for name, value in saved.items())


def test_its_rows_stay_apart():
    torch.manual_seed(0)
    data = Patients(6)
    module = TableDiffusion(RowNet(num_channels=3))
    batch = [torch.randn(4, data.num_channels), torch.arange(4) % 2]
    other = [torch.cat([batch[0][:3], batch[0][3:] * 9]), batch[1]]
    losses = []
    for given in (batch, other):
        torch.manual_seed(1)
        losses.append(module.per_example_losses(given))
    assert torch.equal(losses[0][:3], losses[1][:3])
    assert losses[0][3] != losses[1][3]


def test_commands_go_by_what_a_module_can_do(tables, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LIGHTNING_DP_TRUST", "0")  # put back after `--trust`
    out = tmp_path / "out"
    assert main(["sample", str(tables), "--num=6", "--trust", f"--output={out}"]) == 0
    assert "ε was compared with mechanisms" in capsys.readouterr().out
    assert pd.read_csv(out / "rows.csv")["label"].tolist() == [0, 1, 0, 1, 0, 1]
    report = json.loads((out / "privacy.json").read_text())
    assert report["epsilon_spent"] == lightning_dp.load_run(tables, trust=True).epsilon
    assert (report["kind"], list(report["files"])) == ("samples", ["rows.csv"])
    assert main(["verify", str(out)]) == 0
    assert "Its pages show what it says." in capsys.readouterr().out
    for arguments, message in (
        (["sample", str(tables), "--prompt=a cat", f"--output={tmp_path / 'no'}"], "--prompt is no option"),
        (["sample", str(tables), "--rank=2", f"--output={tmp_path / 'no'}"], "rank"),
        (["evaluate", str(tables)], "holds no images"),
        (["export", str(tables), f"--output={tmp_path / 'no'}"], "export_weights"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "no").exists()


def test_an_account_that_claims_less_is_refused(tables, tmp_path):
    copy = shutil.copytree(tables, tmp_path / "copy")
    report = json.loads((copy / "privacy.json").read_text())
    (copy / "privacy.json").write_text(json.dumps({**report, "epsilon_spent": report["epsilon_spent"] / 2}))
    with pytest.raises(ValueError, match="can't be believed"):
        lightning_dp.load_run(copy, trust=True)


def test_weights_that_change_after_their_account_was_read_are_refused(tables, tmp_path):
    copy = shutil.copytree(tables, tmp_path / "copy")
    run = lightning_dp.load_run(copy, trust=True)
    path = copy / "checkpoints" / "last.ckpt"
    torch.save(torch.load(path, weights_only=True), path)
    with pytest.raises(ValueError, match="was written anew while its account was looked at"):
        run.module  # noqa: B018


def test_a_checkpoint_that_would_run_code_is_refused(tables, tmp_path):
    copy = shutil.copytree(tables, tmp_path / "copy")
    path = copy / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "extra": Patients(3)}, path)  # a pickled object of one's own class
    with pytest.raises(ValueError, match="reading it would run code"):
        lightning_dp.load_run(copy, trust=True)


def test_a_checkpoint_without_weights_is_refused(tables, tmp_path):
    copy = shutil.copytree(tables, tmp_path / "copy")
    path = copy / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["state_dict"]
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="it has no state_dict"):
        lightning_dp.load_run(copy, trust=True).module  # noqa: B018


def test_folders_that_are_no_finished_run(tables, tmp_path):
    copy = shutil.copytree(tables, tmp_path / "copy")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    gone = {**config, "model": {**config["model"], "class_path": "gone.Module"}}
    (copy / "config.yaml").write_text(yaml.safe_dump(gone))
    with pytest.raises(ValueError, match=r"names the model gone\.Module, which can't be imported"):
        lightning_dp.load_run(copy, trust=True).module  # noqa: B018
    (copy / "config.yaml").write_text(yaml.safe_dump({"model": None}))
    with pytest.raises(ValueError, match="names neither a model"):
        lightning_dp.load_run(copy, trust=True)
    (copy / "config.yaml").write_text("model: [")
    with pytest.raises(ValueError, match="is no YAML"):
        lightning_dp.load_run(copy, trust=True)
    with pytest.raises(ValueError, match="is no run folder"):
        lightning_dp.load_run(tmp_path)


def test_the_page_on_extending_has_this_toy():
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    assert f"```python\n{(Path(__file__).parent / 'toy_tables.py').read_text()}```" in page
