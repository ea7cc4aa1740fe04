"""How a fit ends: SIGTERM, a folder in use, a full disk, a checkpoint that is cut off."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lightning_dp.cli import main
from lightning_dp.privacy.report import replace_text
from lightning_dp.tracking.account import read_account
from lightning_dp.tracking.checkpoint_file import WholeCheckpoints, read_checkpoint
from lightning_dp.tracking.folder_lock import FolderLock

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "conf" / "experiment" / "synthesise_simulator.yaml"
TINY = [
    "--trainer.enable_progress_bar=false",
    "--trainer.limit_val_batches=0",
    "--run.wandb=disabled",
    "--run.test=false",
    "--model.init_args.net.init_args.hidden_size=8",
    "--model.init_args.net.init_args.patch_size=24",
    "--data.init_args.windows_per_user=1",
    "--data.init_args.num_households=30",
    "--data.init_args.num_days=6",
    "--privacy.target_epsilon=null",
    "--privacy.noise_multiplier=2",
    "--privacy.delta=1e-2",
    "--privacy.expected_batch_size=6",
]


@pytest.fixture
def full_disk():
    """No file of this process may grow beyond 4 KiB, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_terminated_fit_says_so_and_leaves_checkpoint_and_report(tmp_path):
    """143 is what a scheduler takes for a fit that was told to stop, 0 for one that is done."""
    folder = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "lightning_dp",
        "fit",
        f"--config={RECIPE}",
        f"--run.dir={folder}",
        *TINY,
    ]
    command += [
        "--trainer.max_steps=100000",
        "--run.checkpoint_every=100000",
        "--trainer.log_every_n_steps=1",
    ]
    environment = {**os.environ, "WANDB_MODE": "disabled"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 240
        while not (folder / "metrics.csv").exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert main(["fit", f"--config={RECIPE}", f"--run.dir={folder}", *TINY, "--trainer.max_steps=2"]) == 2
        process.send_signal(signal.SIGTERM)
        error = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 143, error
    report = json.loads((folder / "privacy.json").read_text())
    assert report["status"] == "interrupted"
    checkpoint = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == report["steps_charged"] > 0
    assert read_account(folder, needs_weights=True).checks["ledger"] == "agrees"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_in_use_is_refused_before_anything_is_charged(tmp_path, capsys, ledger_path):
    folder = tmp_path / "run"
    other = FolderLock(folder)
    fit = ["fit", f"--config={RECIPE}", f"--run.dir={folder}", *TINY, "--trainer.max_steps=2"]
    assert main(fit) == 2
    assert f"run.dir={folder} is in use by another fit" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == [".fit.lock"]
    assert not ledger_path.exists()
    other.release()
    FolderLock(folder).release()


def test_a_full_disk_leaves_the_checkpoint_and_the_report_that_were_there(tmp_path, full_disk):
    path, report = tmp_path / "checkpoints" / "last.ckpt", tmp_path / "privacy.json"
    WholeCheckpoints().save_checkpoint({"step": 1, "weights": torch.ones(9)}, path)
    replace_text(report, "old")
    full_disk()
    with pytest.raises(OSError, match=r"last\.ckpt could not be written .* an earlier checkpoint is kept"):
        WholeCheckpoints().save_checkpoint({"step": 2, "weights": torch.ones(100_000)}, path)
    with pytest.raises(OSError, match="too large"):
        replace_text(report, "new" * 10_000)
    assert read_checkpoint(path)["step"] == 1
    assert report.read_text() == "old"
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == [
        "last.ckpt",
        "privacy.json",
    ]


@pytest.mark.parametrize("size", [0, 100, 2_000])
def test_a_checkpoint_that_is_cut_off_is_answered_in_one_sentence(tmp_path, capsys, size):
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"weights": torch.ones(10_000)}, path)
    path.write_bytes(path.read_bytes()[:size])
    for load in (read_checkpoint, WholeCheckpoints().load_checkpoint):
        with pytest.raises(ValueError, match=r"last\.ckpt is damaged or no checkpoint"):
            load(path)
    if size == 100:
        fit = ["fit", f"--config={RECIPE}", f"--run.dir={path.parents[1]}", *TINY, "--trainer.max_steps=2"]
        assert main([*fit, f"--ckpt_path={path}"]) == 2
        assert "last.ckpt is damaged or no checkpoint" in capsys.readouterr().err
