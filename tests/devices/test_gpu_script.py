"""The command for the day a GPU is there: every block runs, and nothing unmeasured is told."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import gpu  # noqa: E402
import torch  # noqa: E402
from fake_device import fake_device  # noqa: E402
from gpu_blocks import ORDER, block, page  # noqa: E402
from gpu_blocks.setting import Setting  # noqa: E402
from labels import GPU  # noqa: E402

RESULTS = BENCHMARKS.parent / "docs" / "results"


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> Path:
    """Of a run of the whole command at toy size."""
    out = tmp_path_factory.mktemp("gpu") / "fake.jsonl"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--fake", "--out", str(out), "--seconds", "900"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


def test_every_block_runs_and_finds_nothing_wrong(lines):
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert rows[0]["fake"] is True
    ends = {row["block"]: row["ended"] for row in rows if "ended" in row}
    assert ends == dict.fromkeys(ORDER, "finished")
    failed = [row for row in rows if row.get("ok") is False and row.get("case") != "fastdp"]
    assert not failed
    assert not [row for row in rows if row.get("within") is False]
    for name in ORDER:
        assert [row for row in rows if row["block"] == name and "ended" not in row]


def test_figures_of_a_toy_are_never_told(lines, tmp_path):
    with pytest.raises(ValueError, match="made by --fake"):
        page.merge([lines], results=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_page_says_what_was_measured(lines, tmp_path):
    """The same lines as if a card had made them, the last of them cut off; then none."""
    text = lines.read_text().replace('"fake": true', '"fake": false')
    (tmp_path / "card.jsonl").write_text(text + '{"block": "timed')
    page.merge([tmp_path / "card.jsonl"], results=tmp_path)
    told = (tmp_path / "gpu.md").read_text()
    assert "Not measured on a GPU" not in told
    assert told.count("\n## ") == len(ORDER)
    assert "| linear, many tokens |" in told
    page.merge([], results=tmp_path)
    assert "Not measured on a GPU" in (tmp_path / "gpu.md").read_text()


def test_the_committed_page_is_what_its_lines_say(tmp_path):
    content = json.loads((RESULTS / "gpu.json").read_text())
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(row) for row in content["rows"]))
    page.merge([tmp_path / "lines.jsonl"] if content["rows"] else [], results=tmp_path)
    for name in ("gpu.md", "gpu.json"):
        assert (tmp_path / name).read_text() == (RESULTS / name).read_text()


def test_a_block_that_fails_or_hangs_costs_itself_alone(tmp_path, monkeypatch):
    noise, loading = block("noise"), block("loading")

    def fails(setting):
        yield {"case": "before"}
        raise RuntimeError("the device is gone")

    def hangs(setting):
        yield {"case": "before"}
        while True:
            pass

    monkeypatch.setattr(noise, "run", fails)
    monkeypatch.setattr(block("release"), "run", hangs)
    monkeypatch.setattr(loading, "run", lambda setting: iter([{"case": "after"}]))
    monkeypatch.setattr(gpu, "_import_all", lambda: None)
    out = tmp_path / "lines.jsonl"
    for variable in ("LIGHTNING_DP_LEDGER", "WANDB_MODE"):
        monkeypatch.setenv(variable, "of this test")
    assert gpu.measure(["noise", "release", "loading"], out=out, seconds=5, fake=True) == 1
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    ends = {row["block"]: row["ended"] for row in rows if "ended" in row}
    assert ends["noise"] == "failed"
    assert ends["release"] == "stopped"
    assert "the device is gone" in str([row for row in rows if row["block"] == "noise"])
    assert sum(row.get("case") == "before" for row in rows) == 2


def test_what_has_to_be_carried_is_small():
    found = gpu.needs()
    assert {"dp-accounting", "opacus", "diffusers", "wandb"} <= set(found["packages"])
    assert not {"torch", "lightning", "numpy"} & set(found["packages"])
    assert found["folder_bytes"] < 8 << 20
    # Wheels of these are about a third of what they unpack to; 64 MiB can be carried.
    assert found["package_bytes_unpacked"] < 180 << 20


class OnTheFake(Setting):
    """Toy sizes on the device that is not there."""

    device = GPU
    kind = "cuda"


@pytest.mark.parametrize("name", ["exactness", "noise", "ways", "memory", "diffusion_unet", "loading"])
def test_a_block_mixes_no_devices(name, tmp_path):
    setting = OnTheFake(fake=True, folder=tmp_path, until=float("inf"))
    with fake_device() as seen:
        rows = list(block(name).run(setting))
    assert not seen.mixed
    assert seen.kernels
    # A CPU's operators have no products of bf16 whose result is fp32, and autocast is a GPU's.
    odd = ("out_dtype", "dtype", "BFloat16", "bmm")
    wrong = [row for row in rows if row.get("ok") is False and not any(o in row["error"] for o in odd)]
    assert not wrong
    assert torch.zeros(1).device.type == "cpu"
