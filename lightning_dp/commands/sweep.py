"""`lightning-dp sweep`: the trials of a W&B sweep file, run here with no account or started on a cluster."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import yaml

_EPILOG = """\
The file is one that `wandb sweep` takes. With a server:
  wandb sweep sweeps/vanilla_vs_dp_aware.yaml     # prints an id
  wandb agent ENTITY/PROJECT/ID                   # on as many machines as there are
Without one:
  lightning-dp sweep run sweeps/vanilla_vs_dp_aware.yaml --workers 4 --out runs/versus

A sweep that was stopped, by Ctrl-C or by anything else, goes on when the same command is given again: what
ended stays ended, and what was interrupted goes on from its checkpoint.
"""


def main(argv: list[str]) -> int:
    """Run, check or launch; 1 where a trial failed, 130 where the sweep was interrupted."""
    arguments = _parser().parse_args(argv)
    return int(arguments.command(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-dp sweep",
        description="Run a sweep in W&B's schema.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run its trials on this machine", allow_abbrev=False)
    _add_common(run)
    run.set_defaults(command=_run)

    check = commands.add_parser(
        "check",
        help="make every configuration, and say what its trials would charge and are judged by; run none",
        allow_abbrev=False,
    )
    _add_what(check)
    check.set_defaults(command=_check)

    launch = commands.add_parser("launch", help="start agents as jobs of their own", allow_abbrev=False)
    _add_common(launch, sweep_help="sweep file, or the id of a W&B sweep: ENTITY/PROJECT/ID")
    launch.add_argument("--cluster", choices=["slurm", "local"], required=True, help="where")
    launch.add_argument("--agents", type=int, default=1, metavar="N", help="jobs (default 1)")
    launch.add_argument("--minutes", type=int, default=24 * 60, help="time limit of a job (default a day)")
    launch.add_argument("--cpus", type=int, default=1, help="cores of a job (default 1)")
    launch.add_argument("--gpus", type=int, default=0, help="GPUs of a job (default none)")
    launch.add_argument("--partition", help="Slurm's")
    launch.set_defaults(command=_launch)
    return parser


def _add_what(parser: argparse.ArgumentParser, sweep_help: str = "sweep file") -> None:
    parser.add_argument("sweep", metavar="FILE", help=sweep_help)
    parser.add_argument("--out", type=Path, help="folder of the sweep (default runs/sweep-NAME)")
    parser.add_argument("--limit", type=int, metavar="K", help="most trials in all")
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for every trial, e.g. trainer.max_steps=4; a list gives a parameter of the file other values",
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="of a grid: give points whose trials have failed a new one, which is charged again",
    )


def _add_common(parser: argparse.ArgumentParser, sweep_help: str = "sweep file") -> None:
    _add_what(parser, sweep_help)
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="trials at a time (default 1)")
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="start without making every configuration once, without asking whether trials log the metric "
        "and without saying what the sweep will cost",
    )


def _run(arguments: argparse.Namespace) -> int:
    from optuna.trial import TrialState

    from lightning_dp.sweeps.command import fit_arguments
    from lightning_dp.sweeps.progress import SweepProgress
    from lightning_dp.sweeps.resources import Resources
    from lightning_dp.sweeps.runner import SweepRunner
    from lightning_dp.sweeps.study import SweepStudy

    sweep = _read(arguments)
    resources = Resources.of_this_machine(workers=arguments.workers)
    out = _folder(arguments, sweep.name)
    how = {"limit": arguments.limit, "retry_failed": arguments.retry_failed}
    costs = [] if arguments.no_check else _costs(sweep, out=out, **how)
    study = SweepStudy(sweep, folder=out, **how)
    ended = sum(trial.state.is_finished() for trial in study.trials())
    print(
        f"{out}: {study.num_trials} trials" + (f", {ended} of them ended before" if ended else ""), flush=True
    )
    progress = SweepProgress(workers=resources.workers, total=study.num_trials, ended=ended)
    runner = SweepRunner(study, resources=resources, progress=progress)
    interrupted = False
    try:
        runner.run()
    except KeyboardInterrupt:
        interrupted = True
    trials = study.trials()
    if fit_arguments(sweep.command) is not None:
        _print_table(out)
    failed = study.failed()
    for trial in failed:
        print(f"failed: {study.trial_folder(trial.number)}: {trial.user_attrs.get('reason', '')}")
    if pruned := sum(trial.state == TrialState.PRUNED for trial in trials):
        print(f"{pruned} stopped early")
    if costs:
        from lightning_dp.sweeps.cost import ledger_totals

        print("\n".join(ledger_totals(costs)))
    if interrupted:
        left = study.num_trials - sum(trial.state.is_finished() for trial in trials)
        print(f"interrupted with {left} trials left: the same command goes on", file=sys.stderr)
        return 130
    if runner.stopped:
        print(runner.stopped, file=sys.stderr)
    return 1 if failed else 0


def _check(arguments: argparse.Namespace) -> int:
    sweep = _read(arguments)
    out = _folder(arguments, sweep.name)
    _costs(sweep, out=out, limit=arguments.limit, retry_failed=arguments.retry_failed)
    return 0


def _launch(arguments: argparse.Namespace) -> int:
    from lightning_dp.sweeps.launch import Resources, launch
    from lightning_dp.sweeps.study import SweepStudy

    resources = Resources(
        minutes=arguments.minutes, cpus=arguments.cpus, gpus=arguments.gpus, partition=arguments.partition
    )
    python = [sys.executable, "-m"]
    if not Path(arguments.sweep).suffix and re.fullmatch(r"([\w.-]+/){0,2}[\w-]+", arguments.sweep):
        out = _folder(arguments, arguments.sweep.rsplit("/", 1)[-1])
        command = [*python, "wandb", "agent", arguments.sweep]
        print("every agent charges the ledger it finds: let those on private data run on one machine")
    else:
        sweep = _read(arguments)
        out = _folder(arguments, sweep.name).resolve()
        how = {"limit": arguments.limit, "retry_failed": arguments.retry_failed}
        costs = [] if arguments.no_check else _costs(sweep, out=out, **how)
        if costs and arguments.cluster == "slurm" and arguments.agents > 1:
            raise ValueError(
                f"--agents is {arguments.agents} and the trials are private: jobs on several machines can't "
                f"share one ledger, so take --agents 1 --workers {arguments.agents}"
            )
        # Made here, so that the agents agree on where it is kept.
        SweepStudy(sweep, folder=out, **how, across_hosts=arguments.cluster == "slurm")
        command = [*python, "lightning_dp", "sweep", "run", str(Path(arguments.sweep).resolve())]
        command += [f"--out={out}", f"--workers={arguments.workers}", "--no-check"]
        command += [f"--limit={arguments.limit}"] if arguments.limit else []
        command += [f"--override={override}" for override in arguments.override]
    for job in launch(
        command, cluster=arguments.cluster, agents=arguments.agents, folder=out / "jobs", resources=resources
    ):
        print(job)
    return 0


def _read(arguments: argparse.Namespace) -> Any:
    from lightning_dp.sweeps.sweep import read_sweep

    if arguments.limit is not None and arguments.limit < 1:
        raise ValueError(f"--limit is {arguments.limit}; it must be at least 1")
    overrides: dict[str, Any] = {}
    for override in arguments.override:
        name, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"--override {override} must be KEY=VALUE, e.g. trainer.max_steps=4")
        overrides[name.removeprefix("--")] = yaml.safe_load(value)
    return read_sweep(Path(arguments.sweep)).with_overrides(overrides)


def _folder(arguments: argparse.Namespace, name: str) -> Path:
    return arguments.out or Path("runs") / ("sweep-" + re.sub(r"[^\w.-]+", "-", name))


def _costs(sweep: Any, *, out: Path, limit: int | None, retry_failed: bool) -> list[Any]:
    """Make every configuration once, and say what the private ones will charge together.

    Raises:
        ValueError: a configuration can't be made, or its trials would not log the sweep's metric.
    """
    from optuna.trial import TrialState

    from lightning_dp.sweeps.command import build_command, fit_arguments
    from lightning_dp.sweeps.parameters import assemble, corners
    from lightning_dp.sweeps.study import SweepStudy, study_exists

    if fit_arguments(sweep.command) is None:  # another program: what it costs is its own affair
        _check_other(sweep)
        return []
    # Late: a sweep of something else should not wait for torch.
    from lightning_dp.sweeps.cost import describe_costs

    grid, interrupted = sweep.method == "grid", False
    if grid and study_exists(out):
        study = SweepStudy(sweep, folder=out, limit=limit, retry_failed=retry_failed)
        points = study.unfinished_points() or []
        # A part of what these cost is in the ledger already.
        interrupted = any(trial.state == TrialState.RUNNING for trial in study.trials())
    elif grid:
        points = list(sweep.points())[:limit]
    else:
        points = list(corners(sweep.parameters))
    known: dict[str, Any] = {}
    costs = []
    for point in points:
        arguments = fit_arguments(build_command(sweep, assemble(point)))
        assert arguments is not None
        # Seeds change neither what is valid nor what it costs.
        key = repr([part for part in arguments if not part.startswith("--seed_everything=")])
        if key not in known:
            known[key] = _cost(arguments, sweep)
        if known[key] is not None:
            costs.append(known[key])
    if not grid and costs:
        number = (
            min(cap for cap in (limit, sweep.run_cap) if cap is not None) if limit or sweep.run_cap else 1
        )
        costs = [max(costs, key=lambda cost: cost.epsilon)] * number
    for line in describe_costs(costs, at_most=interrupted or not grid):
        print(line, flush=True)
    early = sweep.early_terminate is not None
    if costs and early and not sweep.metric.name.startswith("privacy/"):
        print(f"trials are stopped by looking at {sweep.metric.name}: no ε covers that choice", flush=True)
    return costs


def _check_other(sweep: Any) -> None:
    """What is known of the metric where trials don't fit."""
    from lightning_dp.sweeps.command import own_arguments

    if sweep.metric is None:
        return
    if (own_arguments(sweep.command) or [""])[0] == "evolve":
        from lightning_dp.sweeps.metric import EVOLUTION, check_metric

        check_metric(sweep, logged=EVOLUTION, program="lightning-dp evolve")
        return
    print(
        f"only their own program knows whether trials write {sweep.metric.name} into results.json or "
        "metrics.csv: the first that ends without it stops the sweep",
        flush=True,
    )


def _cost(arguments: list[str], sweep: Any) -> Any:
    """The cost of a trial, None where it has none; its metric is checked on the way."""
    from lightning_dp.lightning_cli import instantiate
    from lightning_dp.sweeps.cost import cost_of_trial
    from lightning_dp.sweeps.metric import check_metric, metrics_of_fit

    try:
        cli = instantiate(arguments)
        config: Any = cli.config_init[cli.subcommand]
        if sweep.metric is not None:
            logged = metrics_of_fit(module=cli.model, data=cli.datamodule, config=config)
            check_metric(sweep, logged=logged, program=type(cli.model).__name__)
        if config.privacy is None:
            return None
        return cost_of_trial(
            config.privacy, module=cli.model, data=cli.datamodule, num_steps=config.trainer.max_steps
        )
    except ValueError as error:
        raise ValueError(f"{error} (in the trial {' '.join(arguments)})") from error


def _print_table(out: Path) -> None:
    from lightning_dp.tracking.results import compare, read_results
    from lightning_dp.tracking.tables import comparison_tables, markdown

    if any(out.rglob("results.json")):
        print(markdown(comparison_tables(compare(read_results([out])))))
