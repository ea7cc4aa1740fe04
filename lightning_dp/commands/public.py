"""`lightning-dp public`: a run folder of a public model as it is, for `sample` and `evaluate`."""

import argparse
from pathlib import Path
from typing import Any

_EPILOG = """example:
  lightning-dp public conf/experiment/papers/dpsapf_sd15.yaml --run.dir runs/zero_shot \\
      --model.init_args.net.init_args.path FOLDER
  lightning-dp evaluate runs/zero_shot --samples 60000
"""


def main(argv: list[str]) -> int:
    """Write the folder; read no image and charge nothing."""
    parser = argparse.ArgumentParser(
        prog="lightning-dp public",
        usage="lightning-dp public CONFIG [CONFIG ...] --run.dir DIR [options of fit]",
        description=(
            "Make a run folder of the public checkpoint that a configuration starts from, without a fit:\n"
            "what a private run has to be better than. Reads no private row and charges nothing."
        ),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML of fit; later ones go on top")
    first = next((place for place, one in enumerate(argv) if one.startswith("--")), len(argv))
    arguments = parser.parse_args(argv[:first] or ["--help"] * ("--help" in argv))

    # Late: --help should not wait for torch.
    from lightning_dp.lightning_cli import instantiate_untrained

    cli, text = instantiate_untrained([*(f"--config={one}" for one in arguments.configs), *argv[first:]])
    given = cli.config["fit"].run.dir
    if given is None:
        raise ValueError("run.dir is missing: name the folder to write by --run.dir")
    folder = Path(given)
    _check(cli)
    write(cli.model, folder, config=text)
    print(f"run      {folder} (ε = 0: the public weights as they are)")
    return 0


def _check(cli: Any) -> None:
    from lightning_dp.callbacks.weights_origin import WeightsOrigin
    from lightning_dp.images.module import LatentDiffusion
    from lightning_dp.images.pretrained import PretrainedNet
    from lightning_dp.protocols import HasNet, provides

    module = cli.model
    if not isinstance(module, LatentDiffusion) or not isinstance(module.net, PretrainedNet):
        net = module.net if provides(module, HasNet) else module
        raise ValueError(
            f"the configuration's net is a {type(net).__name__}, whose weights are random before a fit: take "
            "one that starts from a public checkpoint, such as StableDiffusionUNet."
        )
    if module.base_denoiser is not None:
        raise ValueError(
            "model.base_denoiser is a release about the data, and nothing is read here: leave it out."
        )
    callbacks = cli.config_init["fit"].trainer.callbacks or []
    if any(isinstance(one, WeightsOrigin) and one.start_from is not None for one in callbacks):
        raise ValueError(
            "the configuration starts from another run (WeightsOrigin.start_from): sample and evaluate "
            "that run."
        )


def write(module: Any, folder: Path, *, config: str) -> None:
    """The run folder of a module that no data has been shown to.

    Args:
        module: a `LatentDiffusion` on public weights, made by the command line.
        folder: does not exist yet, or is empty.
        config: its configuration as YAML.

    Raises:
        ValueError: the folder is in use.
    """
    import torch

    from lightning_dp.images.export import check_empty
    from lightning_dp.privacy.report import REPORT_NAME, write_privacy_report
    from lightning_dp.privacy.report.document import SCHEMA
    from lightning_dp.privacy.report.readable import write_readable
    from lightning_dp.tracking.account import UNTRAINED
    from lightning_dp.tracking.layout import CHECKPOINT

    check_empty(folder)
    checkpoint = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "global_step": 0,
        UNTRAINED: True,
    }
    module.on_save_checkpoint(checkpoint)
    (folder / CHECKPOINT).parent.mkdir(parents=True)
    torch.save(checkpoint, folder / CHECKPOINT)
    (folder / "config.yaml").write_text(config)
    content = {
        "schema": SCHEMA,
        "kind": "public weights",
        "status": "finished",
        "epsilon": 0.0,
        "epsilon_spent": 0.0,
        "epsilon_of_unit": {},
        UNTRAINED: True,
        "note": "public weights as they are: no private row was read",
        "unsigned": "nothing was charged to a ledger",
    }
    write_privacy_report(folder, content)
    write_readable(folder / REPORT_NAME, content)
