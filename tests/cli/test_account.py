"""privacy.json is not believed: every command computes ε again, and refuses a claim that is too small."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from lightning_dp import load_run
from lightning_dp.cli import main
from lightning_dp.privacy.accounting import GaussianEvent, epsilon_pld
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.tracking.account import read_account

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROOT = Path(__file__).parents[2]
TINY = [
    "--trainer.max_steps=30",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--trainer.limit_test_batches=1",
    "--trainer.limit_val_batches=0",
    "--run.wandb=disabled",
    "--model.init_args.net.init_args.hidden_size=8",
    "--model.init_args.net.init_args.patch_size=24",
    "--model.init_args.sampler.init_args.num_steps=2",
    "--data.init_args.windows_per_user=1",
    "--data.init_args.num_households=30",
    "--data.init_args.num_days=6",
    "--data.init_args.task=lightning_dp.timeseries.masks.Forecast",
    "--data.init_args.task.horizon=24",
    "--privacy.delta=1e-2",
    "--privacy.expected_batch_size=6",
]


@pytest.fixture(scope="module")
def ledger_of_run(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("account") / "ledger.sqlite"


@pytest.fixture(scope="module")
def original(ledger_of_run) -> Path:
    """A private run with its results."""
    folder = ledger_of_run.parent / "run"
    recipe = ROOT / "conf" / "experiment" / "synthesise_simulator.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTNING_DP_LEDGER", str(ledger_of_run))
        patch.setenv("WANDB_MODE", "disabled")
        assert main(["fit", f"--config={recipe}", f"--run.dir={folder}", *TINY]) == 0
    return folder


@pytest.fixture
def run(original, tmp_path) -> Path:
    """A copy to be spoilt; the ledger of the fit is not at hand, unless a test says so."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def report_of(run: Path) -> dict:
    return json.loads((run / "privacy.json").read_text())


def edit(folder: Path, /, **changes) -> None:
    report = report_of(folder) | changes
    (folder / "privacy.json").write_text(json.dumps({k: v for k, v in report.items() if v is not None}))


def edit_event(run: Path, **changes) -> None:
    """As `edit`, and the listed mechanisms with it: an attacker who knows both places."""
    names = {name: name for name in changes} | {"steps_charged": "steps"}
    report = report_of(run)
    listed = [one | {names[name]: value for name, value in changes.items()} for one in report["mechanisms"]]
    edit(run, mechanisms=listed, **changes)


def edit_checkpoint(run: Path, **changes) -> None:
    path = run / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    saved = content["callbacks"]["DifferentialPrivacy"]
    saved |= changes
    torch.save(content, path)


def consistent(run: Path, **changes) -> None:
    """Edit the mechanisms and claim exactly what they cost."""
    edit_event(run, **changes)
    report = report_of(run)
    events = [GaussianEvent(**{k: v for k, v in one.items() if k != "type"}) for one in report["mechanisms"]]
    edit(run, epsilon_spent=epsilon_pld(events, report["delta"]))


def foreign(run: Path) -> None:
    """The report of another run, with fewer steps."""
    consistent(run, steps_charged=1)
    edit(run, run="f" * 32)


FORGERIES = {
    "epsilon": (lambda run: edit(run, epsilon_spent=0.1), "its mechanisms costs"),
    "epsilon without mechanisms": (
        lambda run: edit(run, epsilon_spent=0.1, mechanisms=None),
        "its mechanisms costs",
    ),
    "epsilon is NaN": (lambda run: edit(run, epsilon_spent="nan"), "which is no ε"),
    "epsilon is true": (lambda run: edit(run, epsilon_spent=True), "which is no ε"),
    "epsilon is gone": (lambda run: edit(run, epsilon_spent=None), "which is no ε"),
    "steps": (lambda run: edit(run, epsilon_spent=0.1, steps_charged=1), "its mechanisms don't hold that"),
    "steps, all alike": (
        lambda run: consistent(run, steps_charged=1),
        "the checkpoint holds weights of step 30",
    ),
    "sigma": (lambda run: edit(run, epsilon_spent=0.1, noise_multiplier=99.0), "its mechanisms don't hold"),
    "sigma, all alike": (lambda run: consistent(run, noise_multiplier=99.0), "checkpoint's own account says"),
    "q, all alike": (lambda run: consistent(run, sampling_rate=1e-4), "checkpoint's own account says"),
    "no mechanisms": (lambda run: edit(run, epsilon_spent=0.1, mechanisms=[]), "its mechanisms don't hold"),
    "delta": (lambda run: edit(run, epsilon_spent=3.0, delta=0.5), "the checkpoint's is 0.01"),
    "relation": (lambda run: edit(run, relation="replace one"), "only 'add or remove one unit'"),
    "another run's": (foreign, "which doesn't cover them"),
    "a public model's": (
        lambda run: edit(run, epsilon_spent=0.0, lightning_dp_untrained=True),
        "can't be believed",
    ),
    "checkpoint says more": (lambda run: edit_checkpoint(run, epsilon=99.0), "own account says 99"),
    "checkpoint says less": (lambda run: edit_checkpoint(run, epsilon=0.1), "what the checkpoint records"),
    "checkpoint lists less": (
        lambda run: edit_checkpoint(run, mechanisms=[]),
        "checkpoint's account records 0 steps",
    ),
    "truncated": (
        lambda run: (run / "privacy.json").write_bytes((run / "privacy.json").read_bytes()[:100]),
        "is damaged",
    ),
    "empty": (lambda run: (run / "privacy.json").write_text(""), "is damaged"),
    "a list": (lambda run: (run / "privacy.json").write_text("[]"), "not the account of a run"),
    "missing": (lambda run: (run / "privacy.json").unlink(), "privacy.json, the account"),
    "truncated checkpoint": (
        lambda run: (run / "checkpoints" / "last.ckpt").write_bytes(
            (run / "checkpoints" / "last.ckpt").read_bytes()[:5_000]
        ),
        "is damaged or no checkpoint",
    ),
}


def test_what_was_compared_stands_in_the_statement(original, ledger_of_run, tmp_path, monkeypatch):
    sample = ["sample", str(original), "--num=1", "--samples=1"]
    assert main([*sample, f"--output={tmp_path / 'away.csv'}"]) == 0
    monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(ledger_of_run))
    assert main([*sample, f"--output={tmp_path / 'here.csv'}"]) == 0
    for name, ledger in (("away", "not at hand"), ("here", "agrees")):
        claims = json.loads((tmp_path / f"{name}.csv.privacy.json").read_text())
        checks = dict.fromkeys(("mechanisms", "checkpoint", "config", "signature"), "agrees")
        checks["ledger"] = ledger
        assert claims["checks"] == checks
        assert claims["epsilon"] == report_of(original)["epsilon_spent"]
        assert "ε was compared with mechanisms, checkpoint, config" in claims["statement"]
        assert ("not with ledger: not at hand" in claims["statement"]) == (name == "away")
    assert json.loads((original / "results.json").read_text())["checks"]["mechanisms"] == "agrees"


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_claim_that_is_too_small_is_refused(run, forgery):
    forge, message = FORGERIES[forgery]
    forge(run)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_run(run)


@pytest.mark.parametrize("forgery", ["epsilon", "sigma, all alike", "truncated", "truncated checkpoint"])
def test_the_command_says_so_in_one_sentence_and_writes_nothing(run, tmp_path, capsys, forgery):
    forge, message = FORGERIES[forgery]
    forge(run)
    assert main(["sample", str(run), "--num=1", f"--output={tmp_path / 'x.csv'}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("x.csv*"))


@pytest.mark.parametrize("command", ["test", "evaluate", "export", "report", "dashboard"])
def test_no_command_repeats_a_forged_epsilon(run, tmp_path, capsys, command):
    edit(run, epsilon_spent=0.1)
    config, out = f"--config={run / 'config.yaml'}", str(tmp_path / "out")
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    arguments = {
        "evaluate": [str(run)],
        "export": [str(run), f"--output={out}"],
        "report": [str(run)],
        "dashboard": [str(run), f"--out={out}"],
    }.get(command, [config, f"--run.dir={run}", checkpoint])
    before = (run / "results.json").read_text()
    assert main([command, *arguments]) in (1, 2)
    assert "its mechanisms costs" in capsys.readouterr().err
    assert (run / "results.json").read_text() == before
    assert not (tmp_path / "out" / "privacy.json").exists()
    assert not list(tmp_path.rglob("out/**/privacy.json.txt"))


def test_a_result_that_claims_less_than_its_run_is_refused(run, capsys):
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"epsilon": 0.1}))
    assert main(["report", str(run)]) == 2
    assert "claims ε = 0.1, and the account of its run says" in capsys.readouterr().err


def test_more_noise_than_the_target_asks_for_is_found_without_checkpoint_and_ledger(run):
    """Somebody who edits σ in the report and hands the folder on without weights."""
    shutil.rmtree(run / "checkpoints")
    assert read_account(run).checks["config"] == "agrees"
    consistent(run, noise_multiplier=99.0)
    with pytest.raises(ValueError, match="is met by"):
        read_account(run)


@pytest.mark.parametrize(
    ("name", "value"), [("delta", 0.001), ("expected_batch_size", 5), ("max_grad_norm", 9.0)]
)
def test_a_config_that_says_otherwise_is_named(run, name, value):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["privacy"][name] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=f"{name} is .*, and config.yaml says {value}"):
        read_account(run)
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"privacy": None}))
    with pytest.raises(ValueError, match="says privacy: null"):
        read_account(run)


def test_the_ledger_is_compared_where_it_is_at_hand(run, ledger_of_run, tmp_path, monkeypatch):
    """Report, checkpoint and configuration forged alike: the ledger still knows."""
    copy = tmp_path / "ledger.sqlite"
    for file in ledger_of_run.parent.glob("ledger.sqlite*"):
        shutil.copy(file, tmp_path / file.name)
    monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(copy))
    assert read_account(run).checks["ledger"] == "agrees"
    consistent(run, noise_multiplier=99.0)
    forged = report_of(run)
    edit_checkpoint(run, epsilon=forged["epsilon_spent"], mechanisms=forged["mechanisms"])
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["privacy"] |= {"target_epsilon": None, "noise_multiplier": 99.0}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="what the ledger was charged for this run costs"):
        read_account(run)
    monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(tmp_path / "none.sqlite"))
    with pytest.raises(ValueError, match="is not the report that was signed"):
        read_account(run)
    edit(run, signature=None, schema=None)  # as an older version would have written it
    checks = read_account(run).checks
    assert (checks["ledger"], checks["signature"]) == (
        "not at hand",
        "unsigned (written by an older version)",
    )


def test_an_entry_that_the_ledger_of_the_run_does_not_hold_is_refused(run, ledger_of_run, monkeypatch):
    monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(ledger_of_run))
    edit(run, ledger_hash="0" * 64)
    with pytest.raises(ValueError, match="is not in the ledger, which knows its run"):
        read_account(run)


NEW = ("schema", "kind", "composition", "curve", "noise", "total", "code", "replace_one", "not_covered")


def older(run: Path) -> None:
    """The report as versions before the signature wrote it."""
    edit(run, signature=None, mechanisms=None, **dict.fromkeys(NEW))


def test_a_report_of_an_older_version_is_read(run, capsys):
    older(run)
    checks = read_account(run).checks
    assert checks["mechanisms"] == "agrees"
    assert checks["signature"] == "unsigned (written by an older version)"
    assert main(["report", str(run)]) == 0
    assert "unsigned (written by an older version)" in capsys.readouterr().err
    assert main(["verify", str(run), "--no-ledger"]) == 1  # its pages are of the newer report
    assert "privacy_report.html does not show" in capsys.readouterr().err
    for page in run.glob("privacy_report.*"):
        page.unlink()
    (run / "checkpoints" / "README.md").unlink()
    assert main(["verify", str(run), "--no-ledger"]) == 0
    edit(run, weights_seen=[{"dataset": "D", "unit": "user", "delta": 0.01, "runs": ["x"], "epsilon": 3.0}])
    with pytest.raises(ValueError, match="of an older version doesn't list the mechanisms"):
        read_account(run)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_no_subcommand_takes_a_logger_that_may_send_private_statistics(run, capsys, command):
    arguments = [f"--config={run / 'config.yaml'}", f"--run.dir={run}", "--ckpt_path=last"]
    logger = ["--trainer.logger=lightning.pytorch.loggers.WandbLogger", "--trainer.logger.offline=true"]
    assert main([command, *arguments, *logger]) == 2
    assert "WandbLogger, which may send" in capsys.readouterr().err
    assert not list(run.rglob("*.wandb"))


# --- lightning-dp verify ------------------------------------------------------------------------------


@pytest.fixture
def own_ledger(ledger_of_run, tmp_path, monkeypatch) -> Path:
    """A copy of the run's ledger, to be spoilt, where commands look for it."""
    for file in ledger_of_run.parent.glob("ledger.sqlite*"):
        shutil.copy(file, tmp_path / file.name)
    monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(tmp_path / "ledger.sqlite"))
    return tmp_path / "ledger.sqlite"


def test_verify_finds_nothing_wrong_with_a_run(run, own_ledger, capsys):
    assert main(["verify", str(run)]) == 0
    said = capsys.readouterr().out
    assert "not changed since" in said
    assert "holds its entries" in said
    report = report_of(run)
    assert report["content"] == "not compared: it has no fingerprint"  # made-up data has none
    assert report["ledger_elsewhere"] is False
    assert main(["ledger", "verify", "--against", str(run)]) == 0
    assert "holds all 2 entries that were carried elsewhere" in capsys.readouterr().out
    assert main(["verify", str(run / "config.yaml")]) == 1
    assert main(["verify", str(run / "none")]) == 2


@pytest.mark.parametrize(
    "field",
    ["epsilon_spent", "noise_multiplier", "status", "num_units", "ledger_seq", "unit", "ledger_proof"],
)
def test_verify_finds_a_report_of_which_anything_was_changed(run, own_ledger, capsys, field):
    value = report_of(run)[field]
    changed = (
        value + 1
        if isinstance(value, int | float)
        else value | {"seq": 1}
        if field == "ledger_proof"
        else "x"
    )
    edit(run, **{field: changed})
    assert main(["verify", str(run)]) == 1
    assert "is not the report that was signed" in capsys.readouterr().err


def test_verify_finds_what_the_ledger_lacks(run, own_ledger, capsys):
    for file in own_ledger.parent.glob("ledger.sqlite*"):
        file.unlink()
    assert main(["verify", str(run)]) == 0
    assert "not at hand" in capsys.readouterr().out
    assert main(["verify", str(run), "--ledger", str(own_ledger)]) == 1
    assert "it was emptied, moved or deleted" in capsys.readouterr().err
    Ledger(own_ledger).register("begun anew", unit="user", delta=1e-2)
    assert main(["verify", str(run)]) == 1
    assert "was rewritten or emptied and begun anew" in capsys.readouterr().err
    assert main(["verify", str(run), "--no-ledger"]) == 0


def test_verify_finds_a_table_that_is_not_the_reports_own(run, own_ledger, tmp_path, capsys):
    table = tmp_path / "made.csv"
    arguments = ["--num=2", f"--output={table}", "--steps=2"]
    assert main(["sample", str(run), *arguments]) == 0
    report = tmp_path / "made.csv.privacy.json"
    assert main(["verify", str(report)]) == 0
    said = capsys.readouterr().out
    assert "Signed by key" in said
    assert "Its files are those" in said
    with table.open("a") as file:
        file.write("\n")
    assert main(["verify", str(report)]) == 1
    assert "is not the file that this report speaks of" in capsys.readouterr().err
    table.unlink()
    assert main(["verify", str(report)]) == 1
    assert "is missing" in capsys.readouterr().err


def test_a_sealed_folder_holds_what_its_report_says(run, tmp_path, capsys):
    from lightning_dp.tracking.sealed import seal_folder

    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.register("made", unit="user", delta=1e-2)
    folder = tmp_path / "samples"
    (folder / "train").mkdir(parents=True)
    for name in ("a", "b"):
        (folder / "train" / name).write_text(name)
    shutil.copy(run / "privacy.json", folder)
    seal_folder(folder, sign=ledger.sign_report)
    check = ["verify", str(folder), "--no-ledger"]
    assert main(check) == 0
    (folder / "train" / "a").write_text("c")
    (folder / "train" / "b").rename(folder / "train" / "d")
    capsys.readouterr()
    assert main(check) == 1
    said = capsys.readouterr().err
    for text in ("a is not the file", "b is missing", "d is none of the files"):
        assert text in said
