"""Everything that only a GPU can tell, by one command in nine minutes, on the day one is there.

    python benchmarks/gpu.py --out gpu.jsonl             # on the machine with the card; no network
    python benchmarks/gpu.py --merge gpu.jsonl           # here: docs/results/gpu.{md,json}
    python benchmarks/gpu.py --list-needs                # what has to be carried there
    python benchmarks/gpu.py --fake --out fake.jsonl     # every block on the CPU at toy size

Each block (`gpu_blocks/`, most telling first) has a process, a share of the time and a try of its own: what
fails, hangs or takes the device down with it costs that block alone. Each row is a line, written as it is
found; a last line of a block says how it ended.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
import warnings
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, files, requires
from pathlib import Path
from typing import Any

# Asked through the driver's library, whether there is a card leaves the device alone: forks could not use it.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

from gpu_blocks import ORDER, block

TOTAL_SECONDS = 540
FOLDERS = ("lightning_dp", "benchmarks", "conf")
"""Of the repository."""
ROOTS = (
    "dp-accounting",
    "opacus",
    "diffusers",
    "peft",
    "jsonargparse",
    "omegaconf",
    "torch-fidelity",
    "wandb",
)
"""Packages that a machine with torch and Lightning may lack; what they need comes along."""
_SCIENCE = "numpy scipy pandas matplotlib scikit-learn pyarrow pillow tqdm opt-einsum mpmath"
_LEARNING = "torch torchvision lightning torchmetrics timm transformers tokenizers safetensors accelerate"
_REST = "huggingface-hub requests pyyaml protobuf psutil packaging attrs typing-extensions filelock"
THERE = frozenset(f"{_SCIENCE} {_LEARNING} {_REST}".split())
"""What is taken for granted on such a machine."""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="a line for each row")
    parser.add_argument("--blocks", nargs="+", choices=ORDER, default=list(ORDER))
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="of all blocks together")
    parser.add_argument("--fake", action="store_true", help="on the CPU at toy size")
    parser.add_argument("--list-needs", action="store_true", help="what to carry to the machine")
    parser.add_argument("--merge", nargs="*", type=Path, metavar="FILE", help="write docs/results/gpu.*")
    options = parser.parse_args()
    if options.list_needs:
        print(json.dumps(needs(), indent=1))
        return 0
    if options.merge is not None:
        from gpu_blocks.page import merge

        merge(options.merge)
        return 0
    return measure(options.blocks, out=options.out, seconds=options.seconds, fake=options.fake)


def measure(names: list[str], *, out: Path, seconds: float, fake: bool) -> int:
    """Run blocks one after the other; 0 if each ended by itself."""
    end = time.monotonic() + seconds
    _import_all()
    _write(out, {"block": "", "fake": fake, "date": datetime.now(UTC).isoformat(timespec="seconds")})
    statuses: list[str] = []
    how = "fork"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIGHTNING_DP_LEDGER"] = str(Path(folder) / "ledger.sqlite")
        os.environ["WANDB_MODE"] = "disabled"
        for number, name in enumerate(names):
            left = end - time.monotonic()
            last = number == len(names) - 1
            # Toys have no shares: a loaded machine may be slow, and no card is waiting.
            share = left if last or fake else min(block(name).SECONDS, left)
            start = time.monotonic()
            where = {"out": out, "seconds": share, "fake": fake, "folder": Path(folder)}
            status = _in_a_process(name, how=how, **where)
            if not statuses and status != "finished" and not fake:
                how = "spawn"  # slower, but what was imported here may have touched the device
                status = _in_a_process(name, how=how, **where)
            _write(out, {"block": name, "ended": status, "seconds": round(time.monotonic() - start, 2)})
            print(f"{name}: {status}, {time.monotonic() - start:.1f} s", flush=True)
            statuses.append(status)
    return 0 if all(status == "finished" for status in statuses) else 1


def _in_a_process(name: str, *, how: str, seconds: float, **where: Any) -> str:
    """How a block ended: `finished`, `failed`, `stopped` at the end of its time, or `died` with what."""
    if seconds < 1:
        return "no time left"
    # A fork has all that was imported; this process never touches the device, which forks can't share.
    context: Any = multiprocessing.get_context(how)
    process = context.Process(target=_run, args=(name,), kwargs={"seconds": seconds, **where})
    process.start()
    process.join(seconds + 3)  # blocks look at the clock themselves
    if process.is_alive():
        process.kill()
        process.join()
        return "stopped"
    return {0: "finished", 1: "failed"}.get(process.exitcode, f"died ({process.exitcode})")


def _run(name: str, *, out: Path, seconds: float, fake: bool, folder: Path) -> None:
    import torch
    from gpu_blocks.setting import Setting

    warnings.simplefilter("ignore")
    if fake:
        torch.set_num_threads(1)
    setting = Setting(fake=fake, folder=folder, until=time.monotonic() + seconds)
    try:
        for row in block(name).run(setting):
            _write(out, {"block": name, **row})
            if setting.left() < 0:
                break
    except Exception as error:
        traceback.print_exc()
        line = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        _write(out, {"block": name, "ok": False, "error": line})
        raise SystemExit(1) from error


def _import_all() -> None:
    """Before the forks, once: what a block can't import is its own failure, later."""
    for name in ORDER:
        try:
            block(name)
        except Exception as error:
            print(f"{name} can't be imported: {error}", flush=True)


def _write(out: Path, row: dict[str, Any]) -> None:
    with out.open("a") as lines:
        lines.write(json.dumps(row, default=str) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def needs() -> dict[str, Any]:
    """Folders of the repository and packages to carry, those that these need among them, and their bytes."""
    found: dict[str, int | None] = {}
    waiting = list(ROOTS)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found or name in THERE:
            continue
        try:
            paths = [Path(str(file.locate())) for file in files(name) or []]
            found[name] = sum(path.stat().st_size for path in paths if path.is_file())
            wanted = [text for text in requires(name) or [] if "extra ==" not in text]
        except PackageNotFoundError:
            found[name], wanted = None, []
        waiting += [_name(text) for text in wanted if _applies(text)]
    root = Path(__file__).parents[1]
    code = [path for folder in FOLDERS for path in (root / folder).rglob("*") if path.is_file()]
    return {
        "folders": list(FOLDERS),
        "folder_bytes": sum(path.stat().st_size for path in code if "__pycache__" not in path.parts),
        "packages": sorted(found),
        "package_bytes_unpacked": sum(size or 0 for size in found.values()),
        "optional": "fastDP's source folder, on PYTHONPATH",
        "taken_for_granted": sorted(THERE),
    }


def _name(requirement: str) -> str:
    from packaging.requirements import Requirement

    return Requirement(requirement).name


def _applies(requirement: str) -> bool:
    from packaging.requirements import Requirement

    marker = Requirement(requirement).marker
    return marker is None or marker.evaluate({"extra": ""})


if __name__ == "__main__":
    raise SystemExit(main())
