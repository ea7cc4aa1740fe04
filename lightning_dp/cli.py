"""The only entry: `lightning-dp COMMAND`.

fit, validate, test and predict are LightningCLI subcommands over `model`, `data`, `trainer`,
`privacy` and `run`; the other commands are one file each under `commands/`.
"""

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from difflib import get_close_matches

from lightning_dp import __version__
from lightning_dp.extras import missing_extra

_COMMANDS = {
    "init": "a starter project for a table or images of your own: configuration, commands, a first plan",
    "plan": "what a private run would cost, without touching data",
    "check": "what would break a private fit and how each parameter is clipped, without the fit",
    "data": "check: what is in a table of one's own, without a fit",
    "audit": "attack the training path of a configuration on made-up units: what it gives away at least",
    "demo": "train private and non-private forecasts side by side and compare them",
    "report": "compare the results of several runs",
    "dashboard": "write a static site over runs, for the browser",
    "workspace": "build the same views in W&B",
    "sweep": "run or launch a sweep of W&B's schema, with or without W&B",
    "sample": "write synthetic series, or predictions, with a privacy report beside them",
    "forecast": "what follows the last reading of each series, with the input's ids and stamps",
    "export": "write the weights of an image run as diffusers loads them",
    "ledger": "what has been spent on each data set",
    "verify": "check a privacy report against its signature, its ledger and its files",
    "evolve": "make synthetic data by Private Evolution: noisy votes, no training",
    "public": "make a run folder of a public model as it is, for sample and evaluate",
    "evaluate": "measure the samples of image runs: distances, downstream accuracy, memorisation",
}
_LIGHTNING = {
    "fit": "train a model",
    "validate": "run the validation loop",
    "test": "evaluate a checkpoint on the test split, beside the baselines",
    "predict": "forecast with a checkpoint",
}
_TRUSTING = ("check", "evolve", "public")  # the others know --trust themselves
_HELP = """usage: lightning-dp COMMAND [options]

Conditional diffusion models on private data: one private step is one callback, every ε is accounted.

train and evaluate (LightningCLI: --config several times, dotted overrides such as --privacy.target_epsilon 3)
{lightning}

plan and compare
{commands}

'lightning-dp COMMAND --help' explains a command; start with:
  lightning-dp fit --config conf/experiment/demo_etth1.yaml
  lightning-dp fit --config conf/experiment/demo_etth1.yaml --dry-run    # what it would cost

A run folder that somebody else made is read as data: of its config.yaml only classes of this package, of
torch's optimizers, diffusers' schedulers and Lightning are made. --trust (or LIGHTNING_DP_TRUST=1)
lets it choose any class that is installed, which runs that code.
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one sentence on stderr and exit status 2."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_HELP.format(lightning=_listing(_LIGHTNING), commands=_listing(_COMMANDS)))
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"lightning-dp {__version__}")
        return 0
    if argv[0] not in _COMMANDS and argv[0] not in _LIGHTNING:
        known = [*_LIGHTNING, *_COMMANDS]
        near = get_close_matches(argv[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
        print(f"lightning-dp: there is no command {argv[0]!r}; {hint}", file=sys.stderr)
        return 2
    if argv[0] in (*_LIGHTNING, *_TRUSTING) and "--trust" in argv:
        argv = [argument for argument in argv if argument != "--trust"]
        os.environ["LIGHTNING_DP_TRUST"] = "1"  # for the processes of other ranks too
    try:
        if argv[0] == "fit" and "--dry-run" in argv:
            options = [argument for argument in argv[1:] if argument != "--dry-run"]
            return int(importlib.import_module("lightning_dp.commands.dry_run").main(options))
        if argv[0] in _LIGHTNING:
            # Imported late: help and plans should not wait for torch and wandb.
            importlib.import_module("lightning_dp.lightning_cli").run(argv)
            return 0
        with _terminated_in_order():
            return int(importlib.import_module(f"lightning_dp.commands.{argv[0]}").main(argv[1:]))
    except KeyboardInterrupt:
        print(f"lightning-dp {argv[0]}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        error = missing_extra(error, what="this command") or error
        if os.environ.get("LIGHTNING_DP_DEBUG") or not _is_users(error):
            raise
        print(f"lightning-dp {argv[0]}: {_sentence(error)}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def _terminated_in_order() -> Iterator[None]:
    """A command that is told to stop removes what it has half written, and ends with 143."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _listing(commands: dict[str, str]) -> str:
    return "\n".join(f"  {name:<10}{text}" for name, text in commands.items())


def _is_users(error: Exception) -> bool:
    """Whether the error is a sentence for the user rather than a fault of ours."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return _is_homeless(error) or bool(
        names & {"ValueError", "LedgerError", "OSError", "MisconfigurationException"}
    )


def _is_homeless(error: Exception) -> bool:
    """Whether this user has no home, which `Path.home` says by an error of no kind of its own."""
    return type(error) is RuntimeError and "home directory" in str(error)


def _sentence(error: Exception) -> str:
    if _is_homeless(error):
        return (
            "this user has no home folder: set HOME, or LIGHTNING_DP_LEDGER to where the ledger is to be kept"
        )
    return " ".join(str(error).split()) or type(error).__name__
