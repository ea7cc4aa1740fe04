"""`lightning-dp init`: from a user's table or images to a starter project."""

import argparse
import shlex
import time
import warnings
from pathlib import Path

from lightning_dp.starter.project import Budget, Starter, check_empty, write

_MADE_UP_UNITS = 8


def main(argv: list[str]) -> int:
    """Write a project folder; print what was guessed and what is left to answer."""
    parser = argparse.ArgumentParser(
        prog="lightning-dp init",
        description="Look at a table of series (CSV or Parquet) or a folder of images and write a project: a "
        "commented configuration, its commands, and a first plan with ε, σ and the expected time. What a "
        "private fit must not read off private rows is left as a question.",
        epilog="example: lightning-dp init readings.csv --out meters && "
        "lightning-dp fit --config meters/config.yaml --run.dir runs/meters",
        allow_abbrev=False,
    )
    parser.add_argument(
        "path", type=Path, help="a .csv or .parquet file, a folder of some, or a folder of images"
    )
    parser.add_argument("--out", type=Path, help="folder of the project (default NAME-project)")
    arguments = parser.parse_args(argv)
    path: Path = arguments.path
    if not path.exists():
        raise ValueError(f"{path} is neither a file nor a folder.")
    out = arguments.out or Path(f"{path.resolve().stem}-project")
    check_empty(out)

    kind, starter, budget = _start(path)
    commands = _commands(kind, out=out)
    plan = budget.sentences() if budget is not None else ["no plan: there are too few units to train on"]
    print(f"looked at {path} to write guesses; nothing was trained and no ε was spent")
    starter.readme = _readme(starter, path=path, commands=commands, plan=plan)
    written = write(starter, out)
    if budget is not None:
        plan.append(_expected_time(out / "config.yaml", budget=budget))
        (out / "README.md").write_text(_readme(starter, path=path, commands=commands, plan=plan))
    for title, sentences in (
        ("guesses from the data (private facts that no ε covers: keep them with the data)", starter.guesses),
        ("questions that only you can answer (QUESTION in config.yaml)", starter.questions),
        ("plan", plan),
        ("next", commands),
    ):
        print(f"\n{title}")
        print("\n".join(f"  {sentence}" for sentence in sentences))
    print("\n" + "\n".join(f"wrote {one}" for one in written))
    return 0


def _start(path: Path) -> tuple[str, Starter, Budget | None]:
    if path.is_file() or any(one.suffix.lower() in (".csv", ".parquet") for one in path.iterdir()):
        from lightning_dp.starter.table import start_table

        return "table", *start_table(path)
    from lightning_dp.starter.images import start_images

    return "images", *start_images(path)


def _commands(kind: str, *, out: Path) -> list[str]:
    config, run = shlex.quote(str(out / "config.yaml")), shlex.quote(f"runs/{out.name}")
    after = (
        [f"lightning-dp forecast {run} --output forecast.csv"]
        if kind == "table"
        else [f"lightning-dp sample {run} --num 200 --output samples", f"lightning-dp evaluate {run}"]
    )
    return [f"lightning-dp fit --config {config} --run.dir {run}", *after, f"lightning-dp verify {run}"]


def _readme(starter: Starter, *, path: Path, commands: list[str], plan: list[str]) -> str:
    def listed(sentences: list[str]) -> str:
        return "\n".join(f"- {sentence}" for sentence in sentences) or "- none"

    lines = "\n".join(commands)
    return (
        f"# {path.resolve().stem}, private\n\n"
        "Written by `lightning-dp init` from a look at the data. Answer the questions, edit "
        "`config.yaml`, then:\n\n"
        f"```\n{lines}\n```\n\n"
        f"## A first plan\n\n{listed(plan)}\n\n"
        "`lightning-dp plan --help` computes others without touching data.\n\n"
        f"## Questions that only you can answer\n\n{listed(starter.questions)}\n\n"
        "## Guesses from the data\n\nThey tell private facts that no ε covers: keep this folder where "
        "the data "
        f"is, or replace them by public knowledge.\n\n{listed(starter.guesses)}\n"
    )


def _expected_time(config: Path, *, budget: Budget) -> str:
    """By steps on made-up units: the configuration is made as a fit would, and no row is read."""
    from lightning_dp.lightning_cli import instantiate

    cli = instantiate(["fit", "--config", str(config)])
    module, data = cli.model, cli.datamodule
    units = min(_MADE_UP_UNITS, budget.batch)
    batch = data.synthetic_units(units)
    seconds = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*self.log.*trainer.*")  # there is no fit
        for _ in range(2):
            begin = time.perf_counter()
            module.training_step(batch, 0)["losses"].mean().backward()
            seconds.append(time.perf_counter() - begin)
    # Clipping and noise add a fifth; a step of few rows is mostly overhead, which doesn't grow.
    whole = 1.2 * min(seconds) * max(1.0, budget.batch / units) * budget.steps
    return (
        f"about {max(1, round(whole / 60))} minute(s) of training on this machine's CPU, by two steps "
        "on made-up "
        "units; starting, the test and its baselines take a minute more"
    )
