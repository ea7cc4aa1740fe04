"""A trial that costs no seconds: it logs a metric, then does what its options say, as a fit would.

Not a fit: tests that need one run a real one.
"""

import argparse
import csv
import json
import os
import signal
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--run.dir", type=Path, dest="folder")
parser.add_argument("--ckpt_path")
parser.add_argument("--quality", type=float, default=1.0)
parser.add_argument("--steps", type=int, default=3)
parser.add_argument("--seconds", type=float, default=0.0, help="per step")
parser.add_argument("--until", type=Path, help="stay, after the last step, until this file is there")
parser.add_argument("--fail", type=float, help="the quality at which it fails")
parser.add_argument("--unless", type=Path, help="do not fail where this file is")
parser.add_argument("--nested")
arguments, _ = parser.parse_known_args()

folder = arguments.folder
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
with (folder / "starts.txt").open("a") as file:
    file.write(f"{os.getpid()} {arguments.ckpt_path} {os.environ.get('OMP_NUM_THREADS')}\n")


def stop(*_: object) -> None:
    (folder / "stopped.txt").write_text("closed its account")
    sys.exit(1)


signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
rows = []
for step in range(arguments.steps):
    time.sleep(arguments.seconds)
    rows.append({"step": step, "val": arguments.quality / (step + 1)})
    with (folder / "metrics.csv").open("w") as file:
        writer = csv.DictWriter(file, ["step", "val"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "checkpoints" / "last.ckpt").write_text(str(step))
while arguments.until and not arguments.until.exists():
    time.sleep(0.05)
if arguments.quality == arguments.fail and not (arguments.unless and arguments.unless.exists()):
    print("the last words", file=sys.stderr)
    sys.exit(3)
(folder / "results.json").write_text(json.dumps({"metrics": {"test/loss": arguments.quality}}))
