"""Kill Private Evolution, its resume and `evaluate` as `artefacts.py` kills fits: no file may claim less.

A vote is what is witnessed. `evaluate` releases nothing: it measures folders that were left by a kill.

A broken run, whose report counts the votes that are finished and not the one that is charged, goes through
the same kills.

    python benchmarks/artefacts_evolve.py --kills 300 --seed 1 --json docs/results/artefacts_evolve.json
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import artefacts
import crash
import numpy as np
import torch

from lightning_dp.cli import main as command_line
from lightning_dp.evolution.evolution import PrivateEvolution
from lightning_dp.privacy.accounting import GaussianEvent
from lightning_dp.privacy.release import Mechanism

VOTES, UNITS, SIZE = 8, 60, 8
EVOLVE = ("evolve", "--config=evolve.yaml", "--run.dir=run")
RESUME = (*EVOLVE, "--resume=true")
EVALUATE = ("evaluate", "run", "--parts=cnn", "--samples=120", "--epochs=1")
DATA = """\
class_path: lightning_dp.ImageData
{indent}init_args:
{indent}  source:
{indent}    class_path: lightning_dp.images.NPZ
{indent}    init_args: {{path: {name}, class_names: [dark, grey, bright]}}
{indent}  size: {size}
{indent}  mode: grey
{indent}  public: {public}
"""
CONFIG = f"""\
seed_everything: 0
data:
  {DATA.format(indent="  ", name="private", size=SIZE, public="false")}
task: {{class_path: lightning_dp.images.ImageTask}}
api:
  class_path: lightning_dp.images.PublicImages
  init_args:
    data:
      {DATA.format(indent="      ", name="public", size=SIZE, public="true")}
embedding: {{class_path: lightning_dp.images.PixelEmbedding}}
generations: {{iterations: {VOTES}, population: 24, num_samples: 120, threshold: 1, lookahead: 0}}
privacy: {{noise_multiplier: {artefacts.SIGMA}, delta: {artefacts.DELTA}}}
"""
_IN_RUN = (
    *("before reserve", "after reserve", "before release", "after release", "before sync"),
    *("before rename", "after rename", "before close", "after close"),
)
POINTS = {
    "evolve": _IN_RUN,
    "resume": _IN_RUN,
    "evaluate": ("before rename", "after rename", "before sync"),
}


class Hooks(artefacts.Hooks):
    """The points of a run that votes."""

    release = (Mechanism, "perturbed")
    around = artefacts.Hooks.around[:3]


class Harness(artefacts.Harness):
    """Runs, resumes of what they left, and measurements of that."""

    hooks = Hooks
    forked_at_first_charge = ()
    points = POINTS

    def round(self, *, runs: int) -> None:
        home = self._new("start")
        home.mkdir()
        make(home)
        killed = self._trials("evolve", home, EVOLVE, number=runs)
        for arguments in (RESUME, RESUME):
            usable = [one for one in killed if (one / "run" / "state.npz").exists()]
            if not usable:
                return
            chosen = self._rng.sample(usable, min(3, len(usable)))
            for one in chosen:
                killed = self._trials("resume", one, arguments, number=max(1, runs // 6))
        ended = [one for one in killed if any((one / "run").glob("samples/*"))]
        for one in ended[:2]:
            self._trials("evaluate", one, EVALUATE, number=max(1, runs // 12))


class Planted(Harness):
    """Kills of the broken run, each within a vote."""

    def _plan(self, command: str) -> artefacts.Trial:
        name, visit = self._rng.choice(("before release", "after release")), self._rng.randint(2, VOTES)
        return artefacts.Trial(home=self._new("trial"), death=artefacts.Death(point=name, visit=visit))


def plant_votes_finished() -> None:
    """The fault: a vote that is charged is reported when it is finished."""
    report = PrivateEvolution._report

    def late(self: Any, account: Any, *, status: str, votes: int | None = None) -> None:
        report(self, account, status=status, votes=account.spent)

    PrivateEvolution._report = late  # type: ignore[method-assign]


def make(home: Path) -> None:
    """Two small sets of images and the configuration of a run."""
    for number, name in enumerate(("private", "public")):
        rng = np.random.default_rng(number)
        for split, count in (("train", UNITS), ("test", 30)):
            labels = np.arange(count) % 3
            images = (40 + 80 * labels[:, None, None] + rng.normal(0, 8, (count, SIZE, SIZE))).clip(0, 255)
            (home / name).mkdir(exist_ok=True)
            np.savez(home / name / f"{split}.npz", images=images.astype(np.uint8), labels=labels)
    (home / "evolve.yaml").write_text(CONFIG)


def warm_up(home: Path) -> None:
    """A run and its measurement in this process, for what they import late."""
    here = Path.cwd()
    os.chdir(home)
    os.environ["LIGHTNING_DP_LEDGER"] = "ledger.sqlite"
    make(home)
    with (home / "log.txt").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        for arguments in (EVOLVE, EVALUATE):
            if command_line(list(arguments)):
                log.flush()
                raise RuntimeError(f"{arguments[0]} failed: {(home / 'log.txt').read_text()[-2000:]}")
    artefacts.released.append(GaussianEvent(noise_multiplier=artefacts.SIGMA, sampling_rate=1.0, steps=1))
    for votes in range(VOTES + 1):
        artefacts.epsilon_of(votes)
    os.chdir(here)


def main() -> int:
    """Run both variants; 0 if nothing sound claimed too little and every planted fault was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--kills", type=int, default=300, help="of the sound run")
    parser.add_argument("--planted", type=int, default=20, help="kills of the broken run")
    parser.add_argument("--runs", type=int, default=24, help="trials of a story")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--progress", type=Path, help="a file of results so far: go on from there")
    parser.add_argument("--json", type=Path, help="write the result there")
    arguments = parser.parse_args()
    for name in ("lightning_dp", "lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    begin, commit = time.monotonic(), crash.head_commit()
    with tempfile.TemporaryDirectory(prefix="artefacts-", ignore_cleanup_errors=True) as folder:
        warm_up(Path(folder))
    with tempfile.TemporaryDirectory(prefix="artefacts-", ignore_cleanup_errors=True) as folder:
        sound = Harness(
            Path(folder), seed=arguments.seed, variant=artefacts.SOUND, progress=arguments.progress
        )
        try:
            while sound.kills < arguments.kills:
                sound.round(runs=min(arguments.runs, arguments.kills))
                for path in Path(folder).glob("*-*"):
                    shutil.rmtree(path, ignore_errors=True)
                bad = sum(bool(row["below"]) for row in sound.rows)
                print(f"{sound.kills} kills, {bad} claims below", file=sys.stderr, flush=True)
        finally:
            sound.close()
    with tempfile.TemporaryDirectory(prefix="artefacts-", ignore_cleanup_errors=True) as folder:
        planted = Planted(
            Path(folder), seed=arguments.seed, variant="report of votes finished", progress=None
        )
        planted.close()
        plant_votes_finished()
        home = Path(folder) / "0-start"
        home.mkdir()
        make(home)
        planted._trials("evolve", home, EVOLVE, number=arguments.planted)
    rows = [{"variant": artefacts.SOUND, **artefacts.summary(sound.rows)}]
    rows.append({"variant": "report of votes finished", **artefacts.summary(planted.rows)})
    crash.write_report(rows, commit=commit, begin=begin, path=arguments.json)
    ok = (
        not rows[0]["processes_with_a_claim_below"]
        and not rows[0]["folders_refused"]
        and rows[1]["processes_with_a_claim_below"] == rows[1]["kills"] == arguments.planted
    )
    print("OK" if ok else "FAILED", file=sys.stderr)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
