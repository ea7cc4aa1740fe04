"""`lightning-dp audit`: attack the training path of a configuration on made-up units."""

import argparse
import sys
from pathlib import Path

_EPILOG = """what the columns say:
  adversary    step: was the canary in this batch?  run: was it in the data?  batches: the same, knowing how
               many others were in each batch.  seed: the same, repeating the run with its published seed.
  n            scores without + with a canary
  ε ≥          what the attack has shown, right with probability 1 − α
  claimed ε ≤  by the accountant: of one step for the adversary step, of the whole run for others

exit status: 0 within the claim, 1 above it, 2 the configuration can't be right

examples:
  lightning-dp audit conf/experiment/demo_simulator.yaml
  lightning-dp audit conf/experiment/demo_simulator.yaml --steps 64 --canaries 64       # quicker, sees less
  lightning-dp audit my.yaml --noise_multiplier 0.6 --out audits/my --privacy.secure true

files: audit.json, scores.png and trade_off.png in --out
"""

_KINDS = ("white-box", "membership", "outliers")
_OPTIONS = {
    "--steps": (int, "optimizer steps of the run (160: ten passes)"),
    "--canaries": (int, "canaries, of which a coin puts each in or not (128)"),
    "--others": (int, "other units (64)"),
    "--batch": (int, "expected batch size (12)"),
    "--noise_multiplier": (float, "σ of the audit's own plan (1.0)"),
    "--shadows": (int, "of membership and outliers: further fits that show what is usual (0, or 2 and more)"),
    "--seed": (int, "the published seed of both fits (7)"),
}


def main(argv: list[str]) -> int:
    """Audit and print; 1 where a bound is above its claim."""
    parser = argparse.ArgumentParser(
        prog="lightning-dp audit",
        usage="lightning-dp audit CONFIG [CONFIG ...] [--steps T] [--out DIR] … [options of fit]",
        description=(
            "Train the module of a configuration twice on made-up units of its data's shapes, by its\n"
            "own trainer, clipping, sampler and noise, with canaries whose gradient is known, and try to\n"
            "tell from the released updates whether each canary was there. What attacks show is a lower\n"
            "bound on ε; one above the accountant's upper bound means that what ran is not what was\n"
            "accounted for.\n\n"
            "No private row is trained on and nothing is charged: the plan (N, B, T, σ) is the audit's\n"
            "own.\n"
            "Data modules are prepared and set up as by check. A pass is no proof."
        ),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML of fit; later ones go on top")
    for name, (kind, text) in _OPTIONS.items():
        parser.add_argument(name, type=kind, help=text)
    parser.add_argument(
        "--kind",
        choices=_KINDS,
        default="white-box",
        help="white-box: from released updates; membership: from losses of the finished model, by timestep; "
        "outliers: the same of extreme units",
    )
    parser.add_argument("--alpha", type=float, default=0.05, help="probability of a false alarm (0.05)")
    parser.add_argument("--out", type=Path, help="folder for the files (audits/CONFIG-KIND)")
    arguments, overrides = parser.parse_known_args(argv)
    if not 0 < arguments.alpha < 1:
        raise ValueError(
            f"--alpha is {arguments.alpha}; it is a probability between 0 and 1, 0.05 for instance"
        )
    given = {name[2:]: getattr(arguments, name[2:]) for name in _OPTIONS}
    shadows = given.pop("shadows") or 0
    if shadows and arguments.kind == "white-box":
        raise ValueError("--shadows is for --kind membership and outliers; leave it out")

    # Late: --help should not wait for torch.
    from lightning_dp.audits.judged import judge
    from lightning_dp.audits.membership import Membership, attack_losses
    from lightning_dp.audits.white_box import Setting, attack
    from lightning_dp.audits.written import facts_of, sentence, table, write
    from lightning_dp.lightning_cli import instantiate_fit

    setting = Setting(**{name: value for name, value in given.items() if value is not None})
    cli = instantiate_fit([*(f"--config={config}" for config in arguments.configs), *overrides])
    privacy = cli.config_init["fit"].privacy
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    with _Bar() as bar:
        parts = {"setting": setting, "privacy": privacy, "progress": bar.show}
        if arguments.kind == "white-box":
            scores = attack(cli.model, cli.datamodule, **parts)
        else:
            of_losses = Membership(shadows=shadows, outliers=arguments.kind == "outliers")
            scores = attack_losses(cli.model, cli.datamodule, membership=of_losses, **parts)
    rows = judge(scores, delta=setting.delta, alpha=arguments.alpha)
    folder = arguments.out or Path("audits") / f"{Path(arguments.configs[-1]).stem}-{arguments.kind}"
    facts = {
        "kind": arguments.kind,
        "configs": [Path(config).name for config in arguments.configs],
        **facts_of(setting),
    }
    write(folder, rows, scores=scores, alpha=arguments.alpha, facts=facts)
    print(table(rows))
    print(f"\n{sentence(rows, alpha=arguments.alpha)}\n{folder}/audit.json, scores.png, trade_off.png")
    return 1 if any(row.exceeds for row in rows) else 0


class _Bar:
    """Steps of one fit after the other, where somebody watches."""

    def __enter__(self) -> "_Bar":
        from tqdm import tqdm

        self._name, self._shown = "", 0
        self._bar = tqdm(unit="step", file=sys.stderr, disable=not sys.stderr.isatty())
        return self

    def show(self, name: str, step: int, steps: int) -> None:
        if name != self._name:
            self._name, self._shown = name, 0
            self._bar.reset(total=steps)
            self._bar.set_description(name)
        self._bar.update(step - self._shown)
        self._shown = step

    def __exit__(self, *_: object) -> None:
        self._bar.close()
