"""Do tests notice when a line that ε rests on is changed? Mutants by cosmic-ray, file by file.

    pip install cosmic-ray==8.7.0
    python benchmarks/mutation.py --only noise --json docs/results/mutation.json

Every operator, number and condition of a file is changed, one at a time, in a view of the checkout; a test of
those named beside the file has to fail. Results are kept in --work, so that a run that was stopped goes on by
the same command, and one after other lines were changed repeats only what they touch. A mutant that survives
either changes nothing that matters (the page says why) or lacks a test.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mutation_mutants import mutants_of
from mutation_server import ROOT, Server

_PRIVACY = "lightning_dp/privacy"
_CLIPPING = "tests/privacy/clipping"
_LEDGER = (
    "tests/privacy/test_replay.py",
    "tests/privacy/test_ledger.py",
    "tests/privacy/test_ledger_proof.py",
    "tests/privacy/test_ledger_identity.py",
    "tests/privacy/test_charging.py",
)
TARGETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "noise": (f"{_PRIVACY}/noise.py", ("tests/privacy/test_sampling_and_noise.py",)),
    "sampling": (f"{_PRIVACY}/sampling.py", ("tests/privacy/test_sampling_and_noise.py",)),
    "accounting": (
        f"{_PRIVACY}/accounting.py",
        ("tests/privacy/test_accounting.py", "tests/privacy/test_top_k.py"),
    ),
    "plan": (f"{_PRIVACY}/plan.py", ("tests/privacy/test_plan.py",)),
    "charging": (f"{_PRIVACY}/charging.py", ("tests/privacy/test_charging.py",)),
    "functions": (
        f"{_PRIVACY}/clipping/functions.py",
        (
            f"{_CLIPPING}/test_clipping_functions.py",
            "tests/faults/test_functions.py",
            f"{_CLIPPING}/test_engine.py",
        ),
    ),
    "unit sums": (
        f"{_PRIVACY}/clipping/unit_sums.py",
        (f"{_CLIPPING}/test_unit_sums.py", f"{_CLIPPING}/test_engine.py", "tests/faults/test_functions.py"),
    ),
    "per-unit gradients": (
        f"{_PRIVACY}/clipping/_book_keeping/per_unit_gradient.py",
        (f"{_CLIPPING}/test_per_unit_gradients.py", f"{_CLIPPING}/test_norm_methods.py"),
    ),
    "floors": (
        f"{_PRIVACY}/clipping/_book_keeping/floors.py",
        (f"{_CLIPPING}/test_per_unit_gradients.py", f"{_CLIPPING}/test_norm_methods.py"),
    ),
    "exact": (
        f"{_PRIVACY}/clipping/exact.py",
        (f"{_CLIPPING}/test_per_unit_gradients.py",),
    ),
    "release": (f"{_PRIVACY}/release.py", ("tests/privacy/test_release.py",)),
    "release cost": (f"{_PRIVACY}/release_cost.py", ("tests/privacy/test_release_cost.py",)),
    "ledger": (f"{_PRIVACY}/ledger/ledger.py", _LEDGER),
    "ledger rows": (f"{_PRIVACY}/ledger/rows.py", _LEDGER),
    "ledger replay": (f"{_PRIVACY}/ledger/replay.py", _LEDGER),
    "ledger budget": (f"{_PRIVACY}/ledger/budget.py", _LEDGER),
    "ledger filter": (f"{_PRIVACY}/ledger/filter.py", ("tests/privacy/test_filter.py",)),
    "ledger lease": (f"{_PRIVACY}/ledger/lease.py", _LEDGER),
    "ledger account": (f"{_PRIVACY}/ledger/account.py", _LEDGER),
    "ledger storage": (f"{_PRIVACY}/ledger/storage.py", _LEDGER),
    "ledger snapshot": (f"{_PRIVACY}/ledger/snapshot.py", _LEDGER),
    "ledger proof": (f"{_PRIVACY}/ledger/evidence.py", _LEDGER),
    "ledger identity": (f"{_PRIVACY}/ledger/identity.py", _LEDGER),
    "ranks": (f"{_PRIVACY}/ranks.py", ("tests/strategies/test_ranks.py",)),
    "gaussian loss": (f"{_PRIVACY}/gaussian_loss.py", ("tests/privacy/test_gaussian_loss.py",)),
    "private ddp": ("lightning_dp/strategies/private_ddp.py", ("tests/strategies/test_private_ddp.py",)),
}
"""By name: a file, and the tests of which one has to fail."""
_JUDGED = Path(__file__).with_name("mutation_judged.json")
"""By file and mutant, why one that survived moves no ε: read by a person, one by one."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "mutation")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at once")
    parser.add_argument("--sample", type=int, help="so many of a file's mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of --sample")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of tests for one mutant; 'inf' is all, reached or not"
    )
    parser.add_argument("--again", action="store_true", help="those that survived")
    parser.add_argument("--collect", action="store_true", help="run nothing, write what there is")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    for name in options.only:
        if not options.collect:
            _try(name, options)
    rows = [row for name in TARGETS if (row := _row(name, work=options.work))]
    _write(rows, options.json)


def _try(name: str, options: argparse.Namespace) -> None:
    """Try the mutants of one file that were not tried yet."""
    module, files = TARGETS[name]
    mutants, _ = mutants_of((ROOT / module).read_text(encoding="utf-8"))
    if options.sample is not None and options.sample < len(mutants):
        chosen = random.Random(options.seed).sample(range(len(mutants)), options.sample)
        mutants = [mutants[place] for place in sorted(chosen)]
    known = _known(name, work=options.work)
    outcome = {key: result["outcome"] for key, result in known.items()}
    wanted = "survived" if options.again else None
    left = [mutant for mutant in mutants if outcome.get(mutant.key) == wanted]
    if not left:
        return
    server = Server(
        module=module, files=files, work=options.work.resolve() / _folder(name), jobs=options.jobs
    )
    print(f"{name}: {len(left)} of {len(mutants)} to try", flush=True)
    with _results(name, work=options.work).open("a") as results:
        for mutant, result in server.tried(left, seconds=options.seconds):
            results.write(json.dumps({"key": mutant.key, **result}) + "\n")
            results.flush()
            if result["outcome"] == "survived":
                print(f"  {module}:{mutant.line} {' '.join(result['change'])}", flush=True)


def _folder(name: str) -> str:
    return name.replace(" ", "_")


def _results(name: str, *, work: Path) -> Path:
    work.mkdir(parents=True, exist_ok=True)
    return work / f"{_folder(name)}.jsonl"


def _known(name: str, *, work: Path) -> dict[str, dict[str, Any]]:
    """By a mutant's key, what became of it when it was tried last."""
    file = _results(name, work=work)
    lines = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    return {line["key"]: line for line in lines}


def _row(name: str, *, work: Path) -> dict[str, Any] | None:
    known = _known(name, work=work)
    if not known:
        return None
    module, files = TARGETS[name]
    judged = json.loads(_JUDGED.read_text(encoding="utf-8")).get(module, {})
    mutants, left_out = mutants_of((ROOT / module).read_text(encoding="utf-8"))
    tried = [mutant for mutant in mutants if mutant.key in known]
    survivors = [mutant for mutant in tried if known[mutant.key]["outcome"] == "survived"]
    return {
        "file": module,
        "tests": " ".join(files),
        "mutants": len(tried),
        "caught": len(tried) - len(survivors),
        "by_timeout": sum(known[mutant.key]["outcome"] == "timeout" for mutant in tried),
        "not_tried": len(mutants) - len(tried),
        "left_out": left_out,
        "seconds_per_mutant": round(sum(known[one.key]["seconds"] for one in tried) / max(1, len(tried)), 2),
        "survivors": [
            {"line": one.line, "change": known[one.key]["change"], "judged": judged.get(one.key, "")}
            for one in survivors
        ],
    }


def _write(rows: Sequence[dict[str, Any]], path: Path | None) -> None:
    from result_file import write  # not before: what is imported here is not the changed file

    from lightning_dp.tracking.tables import Table, markdown

    header = ["mutants", "caught", "not_tried", "left_out"]
    cells = [
        [
            row["file"],
            *(str(row[name]) for name in header),
            str(len(row["survivors"])),
            str(sum(not one["judged"] for one in row["survivors"])),
        ]
        for row in rows
    ]
    print(markdown([Table(title="Mutants", header=["file", *header, "survived", "not judged"], cells=cells)]))
    if path:
        write(path, rows=rows)


if __name__ == "__main__":
    main()
