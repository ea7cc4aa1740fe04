"""Is the default clipping engine exact on models nobody here wrote, whatever the batch size?

    python benchmarks/conformance.py --jobs 2 --json docs/results/conformance.json

Each model is tried in a process of its own at every batch size up to 40 and around every length that occurs
in it, against one autograd backward per unit. It is right, or refused before training with a sentence;
anything else is a fault. Rows are kept in --lines as they come, so that a scan that was stopped goes on by
the same command; they count for the code they were made with and no other. --only runs its models anew.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from conformance_models import CASES
from result_file import write

import lightning_dp.privacy
from lightning_dp.tracking.tables import Table, markdown

ROOT = Path(__file__).parents[1]
_PRELOADED = ["__main__", "conformance_check", "conformance_engine", "conformance_models.libraries"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="models, or parts of names")
    parser.add_argument("--quick", action="store_true", help="few sizes: 1, 2, 3, 5 and around lengths")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time, one thread each")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds one model may take")
    parser.add_argument("--lines", type=Path, default=ROOT / "runs" / "conformance.jsonl")
    parser.add_argument("--json", type=Path, help="the result file; a page of the same name goes beside it")
    options = parser.parse_args()
    names = [n for n in CASES if not options.only or any(part.lower() in n.lower() for part in options.only)]
    if not names:
        parser.error(f"--only {' '.join(options.only)} names none of {', '.join(CASES)}")
    code = _code(quick=options.quick)
    done = {} if options.only else _read(options.lines, code=code)
    started = time.monotonic()
    waiting = [n for n in names if n not in done]
    for row in _scan_all(waiting, quick=options.quick, jobs=options.jobs, timeout=options.timeout):
        done[row["model"]] = row
        options.lines.parent.mkdir(parents=True, exist_ok=True)
        with options.lines.open("a") as file:
            file.write(json.dumps({"code": code, **row}, ensure_ascii=False) + "\n")
        print(f"{row['model']:48} {row['seconds']:5.0f} s  {verdict(row)[:300]}", flush=True)
    rows = [done[n] for n in names if n in done]
    summary = _summary(rows)
    print(f"{summary} ({time.monotonic() - started:.0f} s)")
    if options.json:
        write(options.json, rows=[_in_short(row) for row in rows], summary=summary)
        options.json.with_suffix(".md").write_text(_page(rows, summary))
    sys.exit(any(is_fault(row) for row in rows))


def _code(*, quick: bool) -> str:
    """A digest of the engine and of this scan: rows of other code say nothing."""
    digest = hashlib.sha256(str(quick).encode())
    ours = Path(__file__).parent
    files = [*Path(lightning_dp.privacy.__file__).parent.rglob("*.py"), *ours.rglob("conformance*.py")]
    for path in sorted([*files, *(ours / "conformance_models").glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _read(path: Path, *, code: str) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["model"]: row for row in rows if row.pop("code") == code}


def _scan_all(names: list[str], *, quick: bool, jobs: int, timeout: float) -> Iterable[dict[str, Any]]:
    """One process per model, `jobs` at a time, each ended after `timeout` seconds."""
    # The server that the processes are forked from reads its path from here.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        dict.fromkeys([str(Path(__file__).parent), *filter(None, sys.path)])
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    waiting, running = list(reversed(names)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop()
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_scan_one, args=(name, quick, theirs))
            process.start()
            theirs.close()
            running[name] = (process, ours, time.monotonic())
        wait([pipe for _, pipe, _ in running.values()], timeout=0.5)
        for name, (process, pipe, began) in list(running.items()):
            seconds = time.monotonic() - began
            if pipe.poll():
                row = _received(pipe, process)
            elif seconds > timeout:
                process.kill()
                row = {"crashed": f"not done after {timeout:.0f} s"}
            else:
                continue
            process.join()
            del running[name]
            yield {"model": name, "source": CASES[name].source, **_EMPTY, **row, "seconds": round(seconds, 1)}


_EMPTY: dict[str, Any] = {
    "batch_sizes": [],
    "worst_relative_error": None,
    "refused": None,
    "wrong": {},
    "rounded": {},
    "late": {},
    "crashed": None,
}


def _received(pipe: Connection, process: Any) -> dict[str, Any]:
    try:
        return pipe.recv()
    except EOFError:
        process.join()
        return {"crashed": f"the process ended with exit code {process.exitcode}"}


def _scan_one(name: str, quick: bool, pipe: Connection) -> None:
    from conformance_check import scan
    from conformance_engine import prepared_engine

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        found = scan(CASES[name], prepared_engine, quick=quick)
    except BaseException as error:
        traceback.print_exc()
        pipe.send({"crashed": f"{type(error).__name__}: {error}"[:400]})
        return
    pipe.send(
        {
            "batch_sizes": found.batch_sizes,
            "worst_relative_error": found.worst or None,
            "refused": found.refused,
            "wrong": {str(size): error for size, error in found.wrong.items()},
            "rounded": {str(size): error for size, error in found.rounded.items()},
            "late": found.late,
        }
    )


def is_fault(row: dict[str, Any]) -> bool:
    """Neither exact nor refused before training."""
    return bool(row["wrong"] or row["late"] or row["crashed"])


def verdict(row: dict[str, Any]) -> str:
    """One line: exact, wrong where, or refused how."""
    if row["crashed"]:
        return f"NOT SCANNED: {row['crashed']}"
    parts = [f"refused: {row['refused']}"] if row["refused"] else []
    if row["wrong"]:
        parts.append(f"WRONG by up to {max(row['wrong'].values()):.1e} at {_ranges(row['wrong'])}")
    if row["rounded"]:
        parts.append(f"exact in fp64; fp32 rounds by up to {max(row['rounded'].values()):.1e}")
    for sentence, sizes in row["late"].items():
        parts.append(f"REFUSED LATE at {_ranges(sizes)}: {sentence}")
    return "; ".join(parts) or f"exact, {row['worst_relative_error']:.1e}"


def _ranges(sizes: Iterable[Any]) -> str:
    """1, 2, 3, 7 → 1–3, 7."""
    parts: list[list[int]] = []
    for size in sorted(int(size) for size in sizes):
        if parts and size == parts[-1][1] + 1:
            parts[-1][1] = size
        else:
            parts.append([size, size])
    return ", ".join(str(low) if low == high else f"{low}–{high}" for low, high in parts)


def _in_short(row: dict[str, Any]) -> dict[str, Any]:
    """The row with batch sizes as ranges."""
    late = {sentence: _ranges(sizes) for sentence, sizes in row["late"].items()}
    return {**row, "batch_sizes": _ranges(row["batch_sizes"]), "late": late}


def _summary(rows: list[dict[str, Any]]) -> str:
    wrong, late = sum(bool(r["wrong"]) for r in rows), sum(bool(r["late"]) for r in rows)
    refused, crashed = sum(bool(r["refused"]) for r in rows), sum(bool(r["crashed"]) for r in rows)
    exact = sum(not is_fault(r) and not r["refused"] for r in rows)
    return (
        f"{len(rows)} models: {exact} exact, {refused} refused before training, {wrong} silently wrong at "
        f"some batch size, {late} refused in the middle of training, {crashed} not scanned"
    )


def _page(rows: list[dict[str, Any]], summary: str) -> str:
    table = Table(
        title="Models",
        header=["model", "source", "batch sizes", "worst relative error", "verdict"],
        cells=[
            [
                row["model"],
                row["source"],
                _ranges(row["batch_sizes"]),
                "" if row["worst_relative_error"] is None else f"{row['worst_relative_error']:.1e}",
                "exact"
                if not (is_fault(row) or row["refused"] or row["rounded"])
                else verdict(row).replace("|", "\\|"),
            ]
            for row in rows
        ],
    )
    title = "# Is the default engine exact on models nobody here wrote?"
    return "\n\n".join([title, *_ASKED, f"{summary}.", markdown([table])]) + "\n"


_ASKED = [
    "**Asked.** Each model trains under the default clipping engine (tiny configurations, random weights, "
    "no dropout), at every batch size up to 40 and around every length that occurs in it: channels, "
    "tokens, heads, tables, buffers, any length of any tensor seen in a forward. Rows come in random "
    "order from a pool; units have weights 0, 1 and between, one row or two. Each unit's norm and each "
    "parameter's clipped sum is compared with one autograd backward per unit, norms in fp64: the worst "
    "relative error may be 1e-5. The other good answer is a refusal before training. Where fp32 rounds more "
    "than that, the size is tried again in fp64, where what is attributed to wrong rows would stay; the row "
    "says so. Informer is refused because its own loss divides by what all rows observe together.",
    "**Command.** `python benchmarks/conformance.py --jobs 2 --json docs/results/conformance.json`",
]


if __name__ == "__main__":
    main()
