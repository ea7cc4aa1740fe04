"""`lightning-dp demo`: three fits that differ in one thing each, and their comparison.

Private with DP-aware conditioning, private with vanilla conditioning, and not private at all, on
ETTh1 where it is at hand and on simulated households elsewhere.
"""

import argparse
import os
import time
from pathlib import Path

from lightning_dp.tracking.results import compare, read_results
from lightning_dp.tracking.tables import comparison_tables, markdown

_VANILLA = [
    "--model.init_args.net.init_args.conditioning",
    "lightning_dp.AdaLNZero",
]
METHODS: dict[str, list[str]] = {
    "private, DP-aware": [],
    "private, vanilla": [*_VANILLA],
    "non-private": [*_VANILLA, "--privacy", "null"],
}


def main(argv: list[str]) -> int:
    """Run the three fits and print the table."""
    parser = argparse.ArgumentParser(
        prog="lightning-dp demo",
        description="Train private and non-private forecasts side by side and compare them.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, help="folder of the runs (default runs/demo-<time>)")
    parser.add_argument("--conf", type=Path, default=Path("conf"), help="folder of the recipes")
    parser.add_argument(
        "--data", choices=["auto", "etth1", "simulator"], default="auto", help="what to train on"
    )
    parser.add_argument("--steps", type=int, help="optimizer steps instead of the recipe's")
    arguments = parser.parse_args(argv)

    data = arguments.data if arguments.data != "auto" else _choose_data()
    recipe = arguments.conf / "experiment" / f"demo_{data}.yaml"
    if not recipe.is_file():
        raise ValueError(f"{recipe} is not a file: run this in the repository, or give --conf")
    out = arguments.out or Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out {out} is not empty: choose another folder")

    os.environ.setdefault("WANDB_SILENT", "true")  # its advice after each of three runs would bury the table
    # Late: --help should not wait for torch.
    import torch

    from lightning_dp.lightning_cli import run

    # Networks this small gain little from a second thread, and lose a lot where it is contended.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))

    for method, overrides in METHODS.items():
        folder = out / method.replace(", ", "-").replace(" ", "-").lower()
        command = ["fit", "--config", str(recipe), "--run.dir", str(folder)]
        command += ["--run.method", method, *overrides]
        if arguments.steps:
            command += ["--trainer.max_steps", str(arguments.steps)]
        print(f"\n── {method} ──\nlightning-dp {_quoted(command)}", flush=True)
        run(command)

    table = markdown(comparison_tables(compare(read_results([out]))))
    (out / "table.md").write_text(table + "\n")
    print(f"\n{table}\n")
    print("ε ≈ 0: a baseline reads nothing but the window it forecasts. ε = ∞: not private.")
    for path in sorted(out.glob("*/plots/*.png")):
        print(f"plot  {path}")
    print(f"table {out / 'table.md'}")
    return 0


def _choose_data() -> str:
    from lightning_dp.timeseries.data.ett import data_folder, ensure_file

    try:
        ensure_file("ETTh1", folder=data_folder(None))
    except ValueError as reason:
        print(f"ETTh1 is not at hand ({reason})\nFalling back to simulated households: 'user' is the unit.")
        return "simulator"
    print("Training on ETTh1: 'window' is the unit, a single series has no users.")
    return "etth1"


def _quoted(command: list[str]) -> str:
    return " ".join(f"'{part}'" if " " in part else part for part in command)
