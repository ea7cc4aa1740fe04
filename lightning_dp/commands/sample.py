"""`lightning-dp sample`: synthetic series, predictions or images from a run folder, with a privacy report.

What is drawn is post-processing of the weights: it costs no further ε. Synthesis reads nothing else.
Predictions read the rows that they continue or complete, and the report says so.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_dp.commands.run_account import read_run
from lightning_dp.tracking.layout import CHECKPOINT
from lightning_dp.tracking.run_config import add_trust

if TYPE_CHECKING:
    from lightning_dp.tracking.account import Account


def main(argv: list[str]) -> int:
    """Write the table and its privacy report."""
    parser = argparse.ArgumentParser(
        prog="lightning-dp sample",
        description=(
            "Draw synthetic series (a run whose task is Synthesis) or predictions of its test windows (any "
            "other run on series) and write them with the columns of the table that was trained on, one row "
            "a reading; FILE.privacy.json says what may be claimed of them. Of a run on images write a "
            "folder with images of every class, and privacy.json in it."
        ),
        epilog=(
            "example: lightning-dp sample runs/days --num 1000 --start 2009-03-01 --days 92 "
            "--output days.parquet"
        ),
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument(
        "--num", type=int, help="series or images to make, or windows to predict (default all)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="a .csv or .parquet file; of images a folder",
    )
    parser.add_argument("--seed", type=int, help="of the draws; they may be repeated without harm")
    parser.add_argument("--steps", type=int, help="of the sampler (default the run's)")
    parser.add_argument("--samples", type=int, help="draws of each predicted window (default 1)")
    parser.add_argument(
        "--rank", type=int, help="of a run by DyLoRA, which of its ranks (default the largest)"
    )
    synthesis = parser.add_argument_group("synthesis")
    synthesis.add_argument("--start", metavar="DATE", help="first stamp of the series, e.g. 2024-01-01")
    synthesis.add_argument(
        "--days", type=int, default=1, help="spread the starts over so many days from --start (default 1)"
    )
    synthesis.add_argument(
        "--frequency", help="between steps, e.g. 30min (default: that of the run's data, where it is stated)"
    )
    synthesis.add_argument(
        "--condition",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a covariate that is not the calendar's; repeat for each",
    )
    images = parser.add_argument_group("images")
    images.add_argument("--format", choices=["png", "npz"], default="png", help="of the files (default png)")
    images.add_argument(
        "--guidance", type=float, help="w ≥ 1 of classifier-free guidance (default the run's)"
    )
    images.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="what a model that reads text draws, instead of its classes; repeat for several. Not a caption "
        "of the private data",
    )
    add_trust(parser)
    arguments = parser.parse_args(argv)
    checkpoint = arguments.run / CHECKPOINT
    weights = _digest(checkpoint) if checkpoint.is_file() else ""
    account = read_run(arguments.run)
    # Late: --help, and a folder that can't be right, should not wait for torch.
    from lightning_dp.timeseries.module import TimeSeriesDiffusion
    from lightning_dp.tracking.run_config import model_class

    kind = model_class(arguments.run)
    if not issubclass(kind, TimeSeriesDiffusion):
        # Later still: series don't wait for the image half, nor need its packages.
        from lightning_dp.images.module import LatentDiffusion

        if not issubclass(kind, LatentDiffusion):
            raise ValueError(
                f"{arguments.run} holds a {kind.__name__}, which can't be sampled: it is neither a "
                "TimeSeriesDiffusion nor a LatentDiffusion."
            )
        return _sample_images(arguments, account=account)
    if arguments.prompt:
        raise ValueError("--prompt is of images; this run is on series.")

    import torch
    from tqdm import tqdm

    from lightning_dp.adapters.dylora import use_rank
    from lightning_dp.privacy.report import json_ready, replace_text
    from lightning_dp.timeseries.export import TableWriter, schema_of
    from lightning_dp.timeseries.masks import Synthesis

    module, data = _load(arguments.run, kind=kind)
    if _digest(checkpoint) != weights:
        raise ValueError(
            f"{checkpoint} was written anew while its account was looked at: a fit is running; ask again."
        )
    if arguments.steps is not None:
        module.sampler.num_steps = arguments.steps
    if arguments.rank is not None:
        use_rank(module.adapter, arguments.rank)
    synthetic = isinstance(getattr(data, "task", None), Synthesis)
    generator = torch.Generator(module.device)
    if arguments.seed is None:
        generator.seed()
    else:
        generator.manual_seed(arguments.seed)
    schema = schema_of(data)
    draw = _synthesis if synthetic else _predictions
    frames, total = draw(arguments, module=module, data=data, schema=schema, generator=generator)
    path = arguments.output.with_name(f"{arguments.output.name}.privacy.json")
    claims = _claims(account, synthetic=synthetic)

    def say(complete: Path) -> None:
        """The report, before the table that it speaks of is there."""
        content = {
            "file": arguments.output.name,
            "sha256": _digest(complete),
            "rows": table.num_rows,
            "series" if synthetic else "windows": total,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": arguments.seed,
            "num_steps": module.sampler.num_steps,
            **({} if arguments.rank is None else {"rank": arguments.rank}),
            "checkpoint_sha256": weights,
            "kind": "synthesis" if synthetic else "predictions",
            **claims,
        }
        text = json.dumps(json_ready(content), indent=2, ensure_ascii=False, allow_nan=False)
        replace_text(path, text + "\n")

    with (
        TableWriter(arguments.output, before=say) as table,
        tqdm(total=total, unit="series" if synthetic else "window", desc="sampling") as progress,
    ):
        for number, frame in frames:
            table.write(frame)
            progress.update(number)
    if not table.num_rows:
        raise ValueError("there is nothing to predict in the chosen windows, so nothing was written.")
    print(f"table    {arguments.output} ({table.num_rows} rows)\nprivacy  {path}\n{claims['statement']}")
    return 0


def _sample_images(arguments: argparse.Namespace, *, account: "Account") -> int:
    from lightning_dp.images.export import sample_run

    if arguments.num is None:
        raise ValueError("--num is missing; say how many images to make.")
    folder = sample_run(
        arguments.run,
        num_samples=arguments.num,
        prompts=arguments.prompt,
        out=arguments.output,
        file_format=arguments.format,
        guidance=arguments.guidance,
        num_steps=arguments.steps,
        rank=arguments.rank,
        seed=arguments.seed,
        report=account.to_dict(),
    )
    print(f"images   {folder} ({arguments.num})\nprivacy  {folder / 'privacy.json'}\n{account.sentence}")
    return 0


def _load(folder: Path, *, kind: Any) -> tuple[Any, Any]:
    """The model with its weights, and its data module, which has read nothing yet."""
    from jsonargparse import ArgumentParser
    from lightning.pytorch import LightningDataModule

    from lightning_dp.strategies.device import command_device
    from lightning_dp.tracking.checkpoint_file import trusted_checkpoint
    from lightning_dp.tracking.run_config import read_run_config

    trusted_checkpoint(folder / CHECKPOINT)
    module = kind.load_from_checkpoint(folder / CHECKPOINT, map_location="cpu", weights_only=True)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    parsed = parser.parse_object({"data": read_run_config(folder)["data"]})
    return module.eval().to(command_device()), parser.instantiate_classes(parsed).data


def _synthesis(
    arguments: argparse.Namespace, *, module: Any, data: Any, schema: Any, generator: Any
) -> tuple[Iterator[tuple[int, Any]], int]:
    """Frames of synthetic series with how many each holds, and how many there will be."""
    import pandas as pd

    from lightning_dp.timeseries.export import public_covariates, synthesise

    if arguments.num is None or arguments.num < 1:
        raise ValueError(f"--num is {arguments.num}; say how many series to synthesise, at least 1.")
    if arguments.samples is not None:
        raise ValueError("--samples is of predictions; synthesis draws --num series.")
    if arguments.start is None:
        raise ValueError("--start is missing; synthesis needs a first stamp to take the calendar from.")
    if arguments.days < 1:
        raise ValueError(f"--days is {arguments.days}; the starts are spread over at least 1 day.")
    try:
        first = pd.Timestamp(arguments.start)
    except ValueError:
        raise ValueError(f"--start {arguments.start} is no date such as 2024-01-01.") from None
    conditions = {}
    for pair in arguments.condition:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--condition {pair} is not of the form NAME=VALUE.")
        conditions[name] = value
    step = arguments.frequency or _frequency(data)
    length, num_covariates = module.net.length, module.net.num_covariates
    first_stamps = [first + pd.Timedelta(days=day) for day in range(min(arguments.days, arguments.num))]
    covariates = {
        start: public_covariates(
            data,
            stamps=pd.date_range(start, periods=length, freq=step),
            num_covariates=num_covariates,
            conditions=conditions,
        )
        for start in first_stamps
    }
    frames = synthesise(
        module,
        starts=[first_stamps[number % len(first_stamps)] for number in range(arguments.num)],
        length=length,
        step=step,
        covariates=covariates,
        schema=schema,
        generator=generator,
    )
    return ((len(frame) // length, frame) for frame in frames), arguments.num


def _frequency(data: Any) -> str:
    """Time between steps as the configuration states it; looking it up in the data would read the data."""
    reading = getattr(data, "reading", None)
    if reading is not None:
        if reading.frequency is None:
            raise ValueError(
                "--frequency is missing, and the run's data doesn't state one: give 30min, for instance."
            )
        return reading.frequency
    return f"{24 * 60 * 60 // data.steps_per_day}s"


def _predictions(
    arguments: argparse.Namespace, *, module: Any, data: Any, schema: Any, generator: Any
) -> tuple[Iterator[tuple[int, Any]], int]:
    """Frames of predicted windows with how many each completes, and how many there will be."""
    from lightning_dp.timeseries.export import WindowLabels, predict

    num_samples = 1 if arguments.samples is None else arguments.samples
    if num_samples < 1:
        raise ValueError(f"--samples is {num_samples}; at least 1 draw of each window is needed.")
    if arguments.num is not None and arguments.num < 1:
        raise ValueError(f"--num is {arguments.num}; at least 1 window is predicted.")
    if arguments.start or arguments.frequency or arguments.condition:
        raise ValueError(
            "--start, --frequency and --condition are of synthesis; this run predicts test windows."
        )
    data.prepare_data()
    data.setup("predict")
    total = len(data.test_dataset) if arguments.num is None else min(arguments.num, len(data.test_dataset))
    frames = predict(
        module,
        batches=data.predict_dataloader(),
        num_windows=total,
        num_samples=num_samples,
        labels=WindowLabels(data),
        schema=schema,
        generator=generator,
    )
    return ((int(frame["sample"].iloc[0] == 1), frame) for frame in frames), total


def _claims(account: "Account", *, synthetic: bool) -> dict[str, Any]:
    """What may be said of the table: the run's own account, and one sentence for people."""
    report = account.report
    epsilon = report["epsilon_spent"]  # a checked account has one
    if epsilon == "inf":
        statement = (
            "ε = ∞: the model was trained without privacy, and this file may reveal its training data."
        )
    else:
        statement = (
            f"Post-processing of weights trained with ({float(epsilon):.4g}, {report.get('delta')})-"
            f"differential privacy per {report.get('unit')}: this file costs no further ε, however often it "
            f"is made. {account.sentence}"
        )
    if not synthetic:
        statement += (
            " It also holds predictions from rows that were read as they are: no ε covers those rows. None "
            "of their readings is in it: only what was drawn has a value."
        )
    kept = ("unit", "delta", "relation", "noise_multiplier", "epsilon_of_unit", "run")
    return {
        "statement": statement,
        "epsilon": epsilon,
        **{name: report[name] for name in kept if name in report},
        "ledger": [report.get("ledger_seq"), report.get("ledger_hash")],
        "read_rows": not synthetic,
        "checks": account.checks,
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
