"""`lightning-dp fit --dry-run`: the whole plan of a fit, and what it would charge; nothing is done."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_GIB = 2**30


def main(argv: list[str]) -> int:
    """Print the plan.

    Args:
        argv: options of `fit`.

    Returns:
        0, or 1 where the fit would be refused.

    Raises:
        ValueError: the configuration can't be right.
    """
    from lightning_dp.lightning_cli import instantiate_planned

    cli = instantiate_planned(argv)
    config: Any = cli.config_init["fit"]
    folder = Path(config.run.dir or "runs")
    print(
        f"plan of a fit of {type(cli.model).__name__} on {type(cli.datamodule).__name__}: nothing is charged,"
    )
    print("written or read of private rows, but for what the data module does when it is set up")
    refused = []
    plan = None
    if config.privacy is None:
        print("ε        ∞: privacy is null, so nothing about the training data is protected")
    else:
        report = config.privacy.check(cli.model, cli.datamodule, trainer=cli.trainer, needs=True)
        refused += [*report.refused, *map(str, report.findings)]
        if not report.refused:
            plan = _plan(cli)
            print("\n".join(_privacy(plan)))
        if report.needs is not None:
            print("\n".join(report.needs.lines()))
    found = None
    try:
        found = _rehearsed(cli, folder, test=config.run.test)
    except ValueError as error:
        refused.append(" ".join(str(error).split()))
    if found is not None:
        print("\n".join(_afterwards(found, cli=cli, folder=folder)))
    if plan is not None:
        try:
            print("\n".join(_charges(cli, config)))
        except ValueError as error:
            refused.append(str(error))
    for sentence in refused:
        print(f"[refused] {sentence}")
    return 1 if refused else 0


def _plan(cli: Any) -> Any:
    from lightning_dp.callbacks.check import without_fit
    from lightning_dp.callbacks.planned_fit import checked_fit
    from lightning_dp.privacy.ranks import Ranks

    privacy = cli.config_init["fit"].privacy
    with without_fit(cli.trainer, cli.model, cli.datamodule, beside=(privacy, privacy.clipping_engine)):
        return checked_fit(privacy, cli.trainer, cli.model, ranks=Ranks())[1].plan


def _rehearsed(cli: Any, folder: Path, *, test: bool) -> Any:
    from lightning_dp.callbacks.check import without_fit
    from lightning_dp.runs.rehearsal import rehearse

    privacy = cli.config_init["fit"].privacy
    beside = () if privacy is None else (privacy, privacy.clipping_engine)
    with without_fit(cli.trainer, cli.model, cli.datamodule, beside=beside):
        return rehearse(cli.trainer, cli.model, folder=folder, test=test)


def _privacy(plan: Any) -> Iterator[str]:
    yield f"ε        {plan.epsilon:.4g} at δ = {plan.delta:g} per {plan.unit.name}"
    for name, value in plan.epsilons().items():
        if name != plan.unit.name:
            yield f"         {'undefined' if value is None else f'{value:.4g}'} per {name}"
    batch, noise, rate = plan.expected_batch_size, plan.noise_multiplier, plan.sampling_rate
    yield f"steps    {plan.num_steps:,} of about {batch:,} units of N = {plan.unit.num_units:,}"
    yield f"noise    σ = {noise:.4g} at q = {rate:.4g}, C = {plan.max_grad_norm:g}"


def _afterwards(found: Any, *, cli: Any, folder: Path) -> Iterator[str]:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    yield f"disk     {found.on_disk / 2**20:.3g} MiB of checkpoints, {free / _GIB:.3g} GiB are free"
    tested = sorted(name for name in found.metrics if name.startswith("test/"))
    baselines = sorted({name.split("/")[1] for name in found.metrics if name.startswith("baseline/")})
    if found.tests:
        yield f"test     {', '.join(tested) or 'after the fit'}"
    if baselines:
        yield f"beside   {', '.join(name.replace('_', ' ') for name in baselines)}"
    yield from (f"without  {sentence}" for sentence in (*found.left_out, *_evaluation(cli.model)))


def _evaluation(module: Any) -> Iterator[str]:
    """What `lightning-dp evaluate` could not measure afterwards."""
    from lightning_dp.images.image_sampler import ImageSampler

    if isinstance(module, ImageSampler):
        from lightning_dp.images.features import available_name

        try:
            available_name()
        except ValueError as error:
            yield f"'lightning-dp evaluate' has no distances here: {error}"


def _charges(cli: Any, config: Any) -> Iterator[str]:
    from lightning_dp.privacy.ledger import Ledger
    from lightning_dp.sweeps.cost import cost_of_trial, describe_costs

    cost = cost_of_trial(
        config.privacy, module=cli.model, data=cli.datamodule, num_steps=cli.trainer.max_steps
    )
    (line,) = describe_costs([cost], at_most=False)
    yield f"charged  to {line}"
    yield f"ledger   {Ledger(config.privacy.ledger).path}"
