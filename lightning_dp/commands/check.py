"""`lightning-dp check`: everything that a private fit checks before it reads a row, without the fit."""

import argparse
import json

_EPILOG = """exit status: 0 nothing found, 1 findings, 2 the configuration can't be right

examples:
  lightning-dp check conf/experiment/demo_simulator.yaml
  lightning-dp check conf/experiment/demo_simulator.yaml conf/controls/vanilla.yaml --privacy.target_epsilon 3
  lightning-dp check conf/experiment/papers/timedit_etth1.yaml --needs    # what a fit would need
  lightning-dp check my.yaml --privacy.accept.coupling 'the scale is a public constant' --json

the same in Python, for any LightningModule:
  print(DifferentialPrivacy(target_epsilon=8, delta=1e-5, expected_batch_size=512).check(module, datamodule))
"""


def main(argv: list[str]) -> int:
    """Print the report; raise ValueError where the configuration can't be right."""
    parser = argparse.ArgumentParser(
        prog="lightning-dp check",
        usage="lightning-dp check CONFIG [CONFIG ...] [--json] [--needs] [options of fit]",
        description=(
            "Check the fit of a configuration in seconds: settings of the trainer, the data's privacy unit,\n"
            "and the module on made-up units. Trains nothing, reads no private row, charges and writes\n"
            "nothing.\n\n"
            "Prints by which rule each parameter is clipped and what that costs (cheap, one copy per unit,\n"
            "or a loop over units), and each finding with its place and its fix. Data modules are prepared\n"
            "and set up as in a fit, downloads included."
        ),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML of fit; later ones go on top")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--needs", action="store_true", help="also time clipped steps: what the whole fit would need"
    )
    own = ("-h", "--help", "--json", "--needs")
    others = [i for i, one in enumerate(argv) if one.startswith("-") and one not in own]
    end = others[0] if others else len(argv)
    arguments = parser.parse_args(argv[:end] + [one for one in argv[end:] if one in own])
    overrides = [one for one in argv[end:] if one not in own]

    # Late: --help should not wait for torch.
    from lightning_dp.lightning_cli import instantiate_fit

    cli = instantiate_fit([*(f"--config={config}" for config in arguments.configs), *overrides])
    privacy = cli.config_init["fit"].privacy
    report = privacy.check(cli.model, cli.datamodule, trainer=cli.trainer, needs=arguments.needs)
    print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if arguments.json else report)
    return 0 if report.ok else 1
