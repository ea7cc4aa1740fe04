"""The real command and the unmodified W&B client, online against a stand-in server on this machine."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from wandb_server import RecordedArtifact, RecordedRun, WandbServer

from lightning_dp.tracking.wandb_logger import DiscreetWandbLogger
from lightning_dp.tracking.wandb_publish import figures_to_send

KEY = "0123456789" * 4  # as long as W&B's are
SMALL = Path(__file__).parents[2] / "conf" / "experiment" / "demo_simulator.yaml"
# The progress bar stays on: what it prints must not reach W&B either.
TINY = [
    "--trainer.max_steps=4",
    "--trainer.limit_test_batches=1",
    "--trainer.log_every_n_steps=1",
    "--run.wandb=online",
    "--data.init_args.num_households=60",
    "--data.init_args.num_days=12",
    "--privacy.expected_batch_size=12",
    "--privacy.delta=1e-3",
    "--model.init_args.num_samples=4",
]
# Where ε doesn't matter: with the noise given, the seconds that its calibration takes are saved.
NOISE_GIVEN = ["--privacy.target_epsilon=null", "--privacy.noise_multiplier=1", "--run.test=false"]

Fit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Of the runs; also the user's home, with nothing of W&B in it."""
    return tmp_path_factory.mktemp("online")


@pytest.fixture(scope="module")
def fit(folder: Path) -> Fit:
    """Runs one `lightning-dp fit` as a user would, with this server and this key."""

    def run(name: str, server: WandbServer, *options: str, key: str | None = KEY):
        environment = {each: value for each, value in os.environ.items() if not each.startswith("WANDB_")}
        environment.pop("NETRC", None)
        environment |= {
            "HOME": str(folder),
            "LIGHTNING_DP_LEDGER": str(folder / f"{name}.sqlite"),
            "WANDB_BASE_URL": server.url,
            "WANDB_ERROR_REPORTING": "false",  # the only thing that W&B sends elsewhere
            **({} if key is None else {"WANDB_API_KEY": key}),
        }
        command = [sys.executable, "-m", "lightning_dp", "fit", f"--config={SMALL}"]
        return subprocess.run(
            [*command, f"--run.dir={folder / name}", *TINY, *options],
            cwd=folder,  # no settings of a W&B project either
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,  # a busy machine
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def artifacts() -> dict[str, RecordedArtifact]:
    """Filled by `online`."""
    return {}


@pytest.fixture(scope="module")
def online(folder: Path, fit: Fit, artifacts: dict[str, RecordedArtifact]) -> RecordedRun:
    """What the server got of one private run from the command line."""
    about = [
        "--run.project=households",
        "--run.group=pilot",
        "--run.tags=[dp, tiny]",
        "--run.method=dp-aware",
        "--run.job_type=final",
        "--run.upload_checkpoint=true",
    ]
    with WandbServer(key=KEY) as server:
        done = fit("discreet", server, *about)
        artifacts.update(server.artifacts)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert "loss=" in done.stderr  # shown to the user, so the tests below could find it at the server
    assert server.unknown == []
    (run,) = server.runs.values()  # exactly one, with the test metrics in it
    return run


def test_run_is_described_at_the_server(online, folder):
    assert (online.project, online.group, online.tags) == ("households", "pilot", ["dp", "tiny"])
    assert online.job_type == "final"
    assert online.display_name == "dp-aware"
    assert online.exit_code == 0
    assert online.config["privacy"]["target_epsilon"] == 8
    assert online.config["privacy"]["delta"] == 1e-3
    assert online.config["model"]["class_path"] == "lightning_dp.TimeSeriesDiffusion"
    assert online.config["run"]["dir"] == "kept on this machine"
    made_by = json.loads((folder / "discreet" / "environment.json").read_text())
    assert online.config["git_commit"] == made_by["git_commit"]
    assert online.config["git_changed"] == made_by["git_changed"]
    json.dumps(online.config, allow_nan=False)  # a stricter server would refuse Infinity


def test_plain_names_group_runs(online, folder):
    results = json.loads((folder / "discreet" / "results.json").read_text())
    for name in ("method", "dataset", "seed"):
        assert online.config[name] == results[name], name
    assert results["facts"]["task"] == online.config["task"]
    assert online.config["epsilon"] == pytest.approx(8, abs=0.01)
    for name in ("epsilon", "delta", "unit"):
        assert online.summary[name] == results[name], name
    assert [online.summary["ledger_seq"], online.summary["ledger_hash"]] == results["ledger"]


def test_the_checkpoint_is_sent_as_weights_with_their_privacy_report(online, artifacts, folder):
    (artifact,) = artifacts.values()
    assert artifact.committed
    assert artifact.type == "model"
    assert artifact.metadata["epsilon_of_unit"]["user"] == online.summary["epsilon"]
    assert json.loads(artifact.files["privacy.json"])["ledger_hash"] == online.summary["ledger_hash"]
    sent = torch.load(io.BytesIO(artifact.files["weights.ckpt"]), weights_only=False)
    whole = torch.load(folder / "discreet" / "checkpoints" / "last.ckpt", weights_only=False)
    for name, value in whole["state_dict"].items():
        assert torch.equal(sent["state_dict"][name], value), name
    # Batches of a random size are counted in there, and statistics may be.
    assert {"loops", "callbacks", "optimizer_states"} & set(whole)
    assert not {"loops", "callbacks", "optimizer_states"} & set(sent)
    assert {"config.yaml", "wandb-summary.json"} <= set(online.files)
    assert "wandb-metadata.json" not in online.files  # host, command line, program and git remote


def test_history_and_summary_say_what_the_run_folder_says(online, folder):
    results = json.loads((folder / "discreet" / "results.json").read_text())["metrics"]
    epsilons = [row["privacy/epsilon"] for row in online.history if "privacy/epsilon" in row]
    assert len(epsilons) == 4
    assert 0 < epsilons[0] < epsilons[1] < epsilons[-1] == pytest.approx(8, abs=0.01)
    assert epsilons == sorted(epsilons)
    assert [row["privacy/steps"] for row in online.history if "privacy/steps" in row] == [1, 2, 3, 4]
    for name in ("test/mse", "test/crps", "test/epsilon", "baseline/mean_of_days/mse"):
        assert [row[name] for row in online.history if name in row] == [pytest.approx(results[name])], name
        assert online.summary[name] == pytest.approx(results[name]), name


def test_no_private_statistic_leaves_this_machine(online, artifacts, folder):
    assert "nonprivate/train_loss" in (folder / "discreet" / "metrics.csv").read_text()
    streamed = {name: "\n".join(lines.values()) for name, lines in online.lines.items()}
    uploaded = {name: content.decode(errors="replace") for name, content in online.files.items()}
    everything = {**streamed, **uploaded, "config": json.dumps(online.config)}
    everything |= {
        name: content.decode(errors="replace")
        for artifact in artifacts.values()
        for name, content in artifact.files.items()
    }
    assert "wandb-history.jsonl" in everything
    for name, text in everything.items():
        assert "nonprivate/" not in text, name
        assert "loss=" not in text, name
    assert "output.log" not in everything  # not even the console, whose progress bar shows the loss


def test_share_nonprivate_sends_them(fit):
    with WandbServer(key=KEY) as server:
        done = fit("shared", server, "--run.share_nonprivate=true", *NOISE_GIVEN)
    assert done.returncode == 0, done.stderr
    (run,) = server.runs.values()
    for name in ("nonprivate/train_loss", "nonprivate/grad_norm", "nonprivate/clip_fraction"):
        assert any(name in row for row in run.history), name
        assert name in run.summary, name
    assert "loss=" in run.files["output.log"].decode()


def test_with_a_key_at_hand_auto_stays_offline(fit, folder):
    with WandbServer(key=KEY) as server:
        done = fit("offline", server, *NOISE_GIVEN, "--run.wandb=auto")
    assert done.returncode == 0, done.stderr
    assert server.requests == []
    (kept,) = (folder / "offline" / "wandb").glob("offline-run-*")
    (binary,) = kept.glob("run-*.wandb")
    assert b"privacy/epsilon" in binary.read_bytes()
    for private in (b"nonprivate/", b"loss="):
        assert private not in binary.read_bytes()  # `wandb sync` would send it
    said = [line for line in (done.stdout + done.stderr).splitlines() if "wandb" in line.lower()]
    assert said == [f"W&B offline: 'wandb sync {kept}' sends this run"]


def test_a_mistake_leaves_no_run_at_the_server(fit):
    with WandbServer(key=KEY) as server:
        done = fit("mistaken", server, *NOISE_GIVEN, "--privacy.expected_batch_size=1000000")
    assert done.returncode == 2
    assert server.runs == {}


def test_a_fit_that_fails_is_marked_as_failed(fit, folder):
    failing = "--trainer.callbacks+=failing.Failing"
    (folder / "failing.py").write_text(
        "from lightning.pytorch import Callback\n\n\n"
        "class Failing(Callback):\n"
        "    def on_train_batch_end(self, *_):\n"
        "        raise RuntimeError('out of memory')\n"
    )
    with WandbServer(key=KEY) as server:
        done = fit("failed", server, *NOISE_GIVEN, failing)
    assert done.returncode == 1
    (run,) = server.runs.values()
    assert run.exit_code == 1


def test_a_refused_key_is_one_sentence_before_anything_is_spent(fit, folder):
    with WandbServer(key=KEY) as server:
        done = fit("refused", server, key=KEY[::-1])
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert "W&B did not start a run" in sentence
    assert "WANDB_API_KEY" in sentence
    assert server.runs == {}
    assert not (folder / "refused.sqlite").exists()
    assert not (folder / "refused" / "privacy.json").exists()


def test_figures_of_private_things_stay_here(tmp_path):
    """What nobody has said may go stays, figures of tasks that are still to be written included."""
    (tmp_path / "plots").mkdir()
    real = {"forecast_fan", "imputation_fan", "synthesis", "of_a_new_task"}
    for name in (*real, "sample_grid", "gradient_tail", "nonprivate_losses"):
        (tmp_path / "plots" / f"{name}.png").write_bytes(b"picture")

    def sent(**flags: bool) -> set[str]:
        return {path.stem for path in figures_to_send(tmp_path, **flags)}

    assert sent(rows_are_public=False, share_nonprivate=False) == {"sample_grid"}
    assert sent(rows_are_public=True, share_nonprivate=False) == {"sample_grid", *real}
    assert len(sent(rows_are_public=False, share_nonprivate=True)) == 7


@pytest.mark.parametrize("share", [False, True])
def test_facts_can_be_private_too(tmp_path, share):
    """A data set says how many of its private files it could not read, before the run starts and after."""
    logger = DiscreetWandbLogger(share_nonprivate=share, offline=True, save_dir=tmp_path)
    logger.log_hyperparams({"method": "a", "nonprivate/skipped_images": 3})
    try:
        logger.start()
        logger.log_hyperparams({"task": "forecast", "nonprivate/skipped_rows": 5})
        known = dict(logger.experiment.config)
    finally:
        logger.experiment.finish()
    private = {"nonprivate/skipped_images", "nonprivate/skipped_rows"}
    assert set(known) == {"method", "task", *(private if share else ())}
