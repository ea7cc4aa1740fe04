"""What a ledger with a long history costs: starts of fits, reservations, lists, and reading all of it.

    python benchmarks/ledger.py --json docs/results/ledger.json [--before TREE]

Makes a ledger of --entries entries in --accounts accounts (runs of 8 reservations each, 50 different noise
multipliers, all closed), then times what commands and fits do with it, each in a process of its own. Times
are of the clock and of the CPU, which other work stretches less, after imports; memory is what the process
took on top of them. --before names a tree of an older version, which makes and reads a ledger of its own;
what takes longer than --limit seconds is cut off.
"""

import argparse
import contextlib
import io
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_dp.commands.ledger import main as ledger_command
from lightning_dp.privacy.accounting import GaussianEvent, event_to_dict
from lightning_dp.privacy.ledger import Ledger

UNIT, DELTA = "window", 1e-5
PER_RUN = 8
RESERVATIONS = 200


def event(steps: int, *, number: int = 0) -> GaussianEvent:
    """Steps of one of 50 mechanisms."""
    return GaussianEvent(noise_multiplier=1.0 + 0.01 * (number % 50), sampling_rate=0.01, steps=steps)


def make(path: Path, *, entries: int, accounts: int) -> None:
    """A ledger as many runs left it, written in one transaction."""
    ledger = Ledger(path)
    for account in range(accounts):
        ledger.register(f"set{account}", unit=UNIT, delta=DELTA)
    file = ledger._file
    with contextlib.closing(file.connect()) as connection:
        replay = file.load(connection)
        with file.transaction(connection, replay):
            run = 0
            while replay.seq < entries:
                key, owner = (
                    (f"set{run % accounts}", UNIT),
                    {"run": f"run{run:06d}", "lease": secrets.token_hex(8)},
                )
                steps = event_to_dict(event(50, number=run))
                plan = event_to_dict(event(50 * PER_RUN, number=run))
                process = {"host": "elsewhere", "pid": 1, "started": "1"}
                opened = {"parent": None, "plan": [plan], "process": process}
                file.insert(connection, replay, key, kind="open", detail=opened, **owner)
                reserved = {"event": steps, "note": ""}
                taken = {
                    str(
                        file.insert(connection, replay, key, kind="reserve", detail=reserved, **owner).seq
                    ): 50
                    for _ in range(PER_RUN)
                }
                file.insert(connection, replay, key, kind="close", detail={"steps_taken": taken}, **owner)
                run += 1


def start(path: Path) -> dict[str, float]:
    """What a fit does with the ledger before its first step."""
    ledger = Ledger(path)
    if hasattr(ledger, "name_of"):
        ledger.name_of("set0")
    ledger.register("set0", unit=UNIT, delta=DELTA)
    ledger.open_run("set0", unit=UNIT, run=secrets.token_hex(8), plan=[event(400)]).reserve(event(50))
    return {}


def resume(path: Path) -> dict[str, float]:
    """What a resumed fit does before its first step; its run is the first of all."""
    ledger = Ledger(path)
    head = ledger.head()
    assert ledger.contains(*head)
    ledger.events("set0", unit=UNIT, run="run000000", kind="reserve")
    ledger.open_run("set0", unit=UNIT, run="run000000", parent=head, plan=[event(50)]).reserve(event(50))
    return {}


def reserve(path: Path) -> dict[str, float]:
    """Reservations one after another."""
    lease = Ledger(path).open_run("set0", unit=UNIT, run=secrets.token_hex(8))
    took, cpu = [], time.process_time()
    for _ in range(RESERVATIONS):
        before = time.perf_counter()
        lease.reserve(event(1))
        took.append(1e3 * (time.perf_counter() - before))
    cpu_ms = 1e3 * (time.process_time() - cpu) / RESERVATIONS
    quantile = statistics.quantiles(took, n=20)[-1]
    return {"median_ms": statistics.median(took), "p95_ms": quantile, "cpu_ms": cpu_ms}


def with_limit(path: Path) -> dict[str, float]:
    """The same against a limit of the account."""
    Ledger(path).set_limit("set0", unit=UNIT, limit_epsilon=1e6)
    return reserve(path)


def list_all(path: Path) -> dict[str, float]:
    """`lightning-dp ledger list`."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert ledger_command(["--ledger", str(path), "list"]) == 0
    return {}


def read_all(path: Path) -> dict[str, float]:
    """`lightning-dp ledger verify`, which reads every row."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert ledger_command(["--ledger", str(path), "verify"]) == 0
    return {}


ACTIONS: dict[str, Callable[[Path], dict[str, float]]] = {
    "first start, no snapshot": start,
    "start of a fit": start,
    "start with a limit": start,
    "resume of a fit": resume,
    "reserve": reserve,
    "reserve with a limit": with_limit,
    "first ledger list": list_all,
    "ledger list": list_all,
    "ledger verify": read_all,
}
ORDER = [
    "first start, no snapshot",
    "start of a fit",
    "reserve",
    "resume of a fit",
    "first ledger list",
    "ledger list",
    "ledger verify",
    "reserve with a limit",
    "start with a limit",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--entries", type=int, nargs="+", default=[5_000, 100_000])
    parser.add_argument("--accounts", type=int, default=10)
    parser.add_argument("--before", type=Path, help="tree of an older version")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for one action (default 120)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        action, path, size = arguments.one
        one(action, Path(path), int(size), arguments.accounts)
        return
    rows = []
    trees = {"now": Path(__file__).parents[1], **({"before": arguments.before} if arguments.before else {})}
    for version, tree in trees.items():
        for size in arguments.entries:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "ledger.sqlite"
                asked = {"tree": tree, "accounts": arguments.accounts, "limit": arguments.limit}
                measured("make", path, size, **{**asked, "limit": 3600.0})
                for action in ORDER:
                    row = {
                        "version": version,
                        "entries": size,
                        "action": action,
                        **measured(action, path, size, **asked),
                    }
                    rows.append(row)
                    print(row, flush=True)
    if arguments.json:
        from result_file import write

        write(arguments.json, rows=rows)


def measured(
    action: str, path: Path, size: int, *, tree: Path, accounts: int, limit: float
) -> dict[str, Any]:
    """One action in a process that has just started; `{"seconds": None}` where it was cut off."""
    command = [sys.executable, __file__, "--one", action, str(path), str(size), "--accounts", str(accounts)]
    search = os.pathsep.join([str(tree), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": search},
            capture_output=True,
            text=True,
            check=True,
            timeout=limit + 30,
        )
    except subprocess.TimeoutExpired:
        return {"seconds": None, "limit": limit}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def one(action: str, path: Path, size: int, accounts: int) -> None:
    """What `measured` runs; prints its figures as JSON."""
    before = peak()
    begun, begun_cpu = time.perf_counter(), time.process_time()
    if action == "make":
        make(path, entries=size, accounts=accounts)
        more: dict[str, float] = {}
    else:
        more = ACTIONS[action](path)
    took, cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
    found = {"seconds": round(took, 4), "cpu_seconds": round(cpu, 4), "megabytes": round(peak() - before, 1)}
    print(json.dumps({**found, **more}))


def peak() -> float:
    """Most memory that this process ever held, in MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1e6)


if __name__ == "__main__":
    main()
