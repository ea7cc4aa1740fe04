"""`lightning-dp sample`: synthetic series, predictions or images from a run folder, with a privacy report.

What is drawn is post-processing of the weights: it costs no further ε. Synthesis reads nothing else.
Predictions read the rows that they continue or complete, and the report says so.
"""

import argparse
from pathlib import Path

from lightning_dp.tracking.run_config import add_trust

_COMMON = ("run", "num", "output", "seed", "steps", "rank")


def main(argv: list[str]) -> int:
    """Write the samples and their privacy report."""
    parser = argparse.ArgumentParser(
        prog="lightning-dp sample",
        description=(
            "Draw synthetic series (a run whose task is Synthesis) or predictions of its test windows (any "
            "other run on series) and write them with the columns of the table that was trained on, one row "
            "a reading; FILE.privacy.json says what may be claimed of them. Of a run on images, a Private "
            "Evolution included, write a folder with images of every class, and privacy.json in it. Of other "
            "modules, what they say themselves."
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
        "--days", type=int, help="spread the starts over so many days from --start (default 1)"
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
    images.add_argument("--format", choices=["png", "npz"], help="of the files (default png)")
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
    arguments = vars(parser.parse_args(argv))
    folder, output = arguments["run"], arguments["output"]
    options = {
        name: value for name, value in arguments.items() if name not in _COMMON and value not in (None, [])
    }

    # Late: --help should not wait for the accountant, nor a folder that can't be right for torch.
    from lightning_dp.privacy.report import REPORT_NAME, read_privacy_report
    from lightning_dp.runs.abilities import SampleRequest, SampleWriter
    from lightning_dp.runs.load import load_run
    from lightning_dp.tracking.sealed import seal_folder

    run = load_run(folder)
    writer = run.sampler
    kind = type(writer).__name__
    if not isinstance(writer, SampleWriter):
        raise ValueError(
            f"{folder} holds a {kind}, which doesn't say how its samples become files: give it the method "
            "write_samples of lightning_dp.runs.SampleWriter, or sample from Python by "
            "lightning_dp.load_run(folder).sample(…)."
        )
    unknown = [name for name in options if name not in writer.sample_options]
    if unknown:
        known = ", ".join(f"--{name}" for name in writer.sample_options) or "none beside those of every run"
        raise ValueError(f"--{unknown[0]} is no option of a run of {kind}, whose options are {known}.")
    run.set_sampling(num_steps=arguments["steps"], rank=arguments["rank"])
    request = SampleRequest(
        output=output,
        num=arguments["num"],
        seed=arguments["seed"],
        num_steps=arguments["steps"],
        rank=arguments["rank"],
        options=options,
    )
    lines = writer.write_samples(request, run=run)
    if "files" not in read_privacy_report(output) and (output / REPORT_NAME).is_file():
        seal_folder(output, sign=run.account.signed, kind="samples")  # of a writer that doesn't itself
    print("\n".join(lines))
    return 0
