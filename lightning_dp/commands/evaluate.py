"""`lightning-dp evaluate`: what the samples of an image run are worth, added to its results.json."""

import argparse
from pathlib import Path

from lightning_dp.tracking.run_config import add_trust


def main(argv: list[str]) -> int:
    """Measure run folders one after the other and print their metrics."""
    from lightning_dp.images.evaluation import PARTS, Evaluation, evaluate_run

    parser = argparse.ArgumentParser(
        prog="lightning-dp evaluate",
        description="Sample from finished image runs and measure the samples: distance to the test split "
        "(FID where Inception's weights are at hand, fd_lite0 otherwise) and the accuracy on the test split "
        "of "
        "classifiers trained on samples alone.",
        epilog="example: lightning-dp evaluate runs/fashion_mnist --samples 10000 --parts distances cnn",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    defaults = Evaluation()
    parser.add_argument(
        "--parts",
        nargs="+",
        default=list(defaults.parts),
        choices=PARTS,
        help="what to measure (default distances cnn); memorisation and train_distances read private images, "
        "and their figures are nonprivate/",
    )
    parser.add_argument("--samples", type=int, default=defaults.num_samples, help="images to sample")
    parser.add_argument(
        "--distance-samples",
        type=int,
        default=defaults.distance_samples,
        help="of them, how many the distances use: features take 0.05 s an image on one core",
    )
    parser.add_argument("--epochs", type=int, default=defaults.epochs, help="of each classifier")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance; default: the run's own")
    parser.add_argument("--steps", type=int, help="of the sampler; default: the run's own")
    parser.add_argument(
        "--rank", type=int, help="of a run by DyLoRA, which of its ranks (default the largest)"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of sampling and classifiers")
    add_trust(parser)
    arguments = parser.parse_args(argv)
    evaluation = Evaluation(
        parts=tuple(arguments.parts),
        num_samples=arguments.samples,
        distance_samples=arguments.distance_samples,
        epochs=arguments.epochs,
        guidance=arguments.guidance,
        num_steps=arguments.steps,
        rank=arguments.rank,
        seed=arguments.seed,
    )
    for run in arguments.runs:
        metrics = evaluate_run(run, evaluation=evaluation)
        print(run)
        for name, value in metrics.items():
            print(f"  {name:<42}{value:.4g}")
    return 0
