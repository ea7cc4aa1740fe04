"""`lightning-dp evolve`: Private Evolution, the baseline that trains nothing."""

import argparse
import os
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
Make synthetic data by Private Evolution. A generation of public samples; each private row votes for the
nearest of its class; noisy counts choose parents; an API makes variations of them. Nothing is trained, and
what it costs is one noisy histogram per iteration, charged to the ledger before a private row is read.

The parts, each chosen by class_path in a YAML:
  data         the private data
  task         what kind of data that is: lightning_dp.images.ImageTask
  api          where samples come from: PublicImages (a public set), DiffusionAPI (a public run of 'fit'),
               DiffusersPipelineAPI (a public pipeline folder), RenderedText, RenderedShapes (a simulator)
  embedding    where nearness is measured: PixelEmbedding, AutoencoderEmbedding, FeatureEmbedding
  generations  iterations, population, num_samples, threshold, degrees, lookahead, neighbours, selection,
               children, keep_parents
  privacy      target_epsilon or noise_multiplier, and delta
"""
_EPILOG = """\
examples:
  lightning-dp evolve --config conf/evolution/fashion_mnist.yaml --run.dir runs/evolution
  lightning-dp evolve --config conf/evolution/fashion_mnist.yaml --privacy.target_epsilon 1
  lightning-dp evolve --config runs/evolution/config.yaml --run.dir runs/evolution --resume true   # go on
  lightning-dp evaluate runs/evolution

The folder then holds samples/train.npz, plots/sample_grid.png, privacy.json and results.json.
"""


def main(argv: list[str]) -> int:
    """Evolve and print where the samples are.

    Raises:
        ValueError: the command line, a file or the plan can't be right; nothing was read.
    """
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of how nulls are kept in a dump
    # Late: other commands should not wait for torch.
    from jsonargparse import ArgumentError
    from omegaconf.errors import OmegaConfBaseException

    from lightning_dp import interpolation
    from lightning_dp.config_errors import explained
    from lightning_dp.evolution.evolution import PrivateEvolution
    from lightning_dp.tracking.run_config import trusted_configs
    from lightning_dp.tracking.run_folder import new_run_folder

    parser = _parser()
    try:
        trusted_configs(argv)
        interpolation.read_below(None)
        config = parser.parse_args(argv)
        interpolation.open_link_targets(config.task, ["data"])
        config.run.dir = str(config.run.dir or new_run_folder())
        text = parser.dump(config, skip_link_targets=True, skip_none=False)
        made = parser.instantiate_classes(config)
    except OmegaConfBaseException as error:
        raise ValueError(interpolation.explained(error)) from error
    except (ArgumentError, ValueError) as error:
        raise ValueError(explained(str(error), argv=argv)) from error
    folder = Path(made.run.dir)
    evolution = PrivateEvolution(
        made.task,
        api=made.api,
        embedding=made.embedding,
        generations=made.generations,
        privacy=made.privacy,
        folder=folder,
        method=made.run.method or folder.name,
        seed=made.seed_everything,
    )
    plan = evolution.plan
    print(
        f"{plan.iterations} votes with noise of {plan.noise_multiplier:.5g} each: ε = {plan.epsilon:.4g} at "
        f"δ = {plan.delta:g} per {made.task.unit_name}",
        flush=True,
    )
    evolution.run(config=text, resume=made.resume)
    print(f"samples  {folder / 'samples'}\nprivacy  {folder / 'privacy.json'}")
    return 0


def _parser() -> Any:
    from jsonargparse import ArgumentParser
    from lightning.pytorch import LightningDataModule

    from lightning_dp import interpolation
    from lightning_dp.evolution.api import SampleAPI
    from lightning_dp.evolution.embedding import Embedding
    from lightning_dp.evolution.evolution import EvolutionRun, Generations
    from lightning_dp.evolution.plan import VotesPrivacy
    from lightning_dp.evolution.task import EvolutionTask

    parser = ArgumentParser(
        prog="lightning-dp evolve",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parser_mode=interpolation.MODE,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="a YAML; may be repeated, later ones win")
    parser.add_argument("--seed_everything", type=int, default=0, help="of all that is not noise")
    for kind, name in (
        (LightningDataModule, "data"),
        (EvolutionTask, "task"),
        (SampleAPI, "api"),
        (Embedding, "embedding"),
    ):
        parser.add_subclass_arguments(kind, name, required=True)
    parser.add_class_arguments(Generations, "generations")
    parser.add_class_arguments(VotesPrivacy, "privacy")
    parser.add_class_arguments(EvolutionRun, "run")
    parser.add_argument("--resume", type=bool, default=False, help="go on with the run in run.dir")
    parser.link_arguments("data", "task.init_args.data", apply_on="instantiate")
    return parser
