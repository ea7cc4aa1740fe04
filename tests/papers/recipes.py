"""How each recipe under conf/experiment/papers/ becomes small enough for a test: one entry for each file.

To add a recipe, add an entry to `RECIPES` under the name of its file. An entry says what lies under the
recipe (`configs`), which overrides make it small (`toy`) and what it reads (`files`): a function that writes
made-up files of the real form into the folder that LIGHTNING_DP_DATA will name, and returns overrides that
need them. Stages that have to run first go into `before`: each is the arguments of one call of
`lightning-dp`. In `toy` and `before`, `{place}` stands for the test's folder, which holds data/ and will hold
run/. Net, losses, engine, metrics and report stay the recipe's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dpsapf_toy import TOY, write_dpsapf
from made_up_series import write_ett, write_smart_meters

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
PAPERS = CONF / "experiment" / "papers"


def _no_files(folder: Path) -> list[str]:
    return []


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A recipe at the size of a test.

    Attributes:
        toy: overrides of the command line that make it small; no more than 5 steps.
        configs: files under conf/ that lie under the recipe, in their order.
        files: writes made-up files of the real form into a folder, and returns overrides that need it.
        before: arguments of `lightning-dp` for stages that run before the fit.
        evaluate: whether `lightning-dp evaluate` follows, as for images.
        private: False of a public stage alone.
    """

    toy: list[str]
    configs: list[str] = field(default_factory=list)
    files: Callable[[Path], list[str]] = _no_files
    before: list[list[str]] = field(default_factory=list)
    evaluate: bool = False
    private: bool = True


TIMEDIT = [
    "--model.init_args.net.init_args.hidden_size=16",
    "--model.init_args.net.init_args.depth=2",
    "--model.init_args.net.init_args.num_heads=2",
    "--model.init_args.num_samples=2",
    "--model.init_args.sampler.init_args.num_steps=2",
    "--data.init_args.eval_stride=960",
    "--trainer.accelerator=cpu",
]

RECIPES: dict[str, Toy] = {
    "dpsapf_sd15": Toy(toy=TOY, files=write_dpsapf),  # evaluated in test_dpsapf.py
    "timedit_etth1": Toy(toy=TIMEDIT, files=lambda folder: write_ett(folder, "ETTh1")),
    "timedit_ettm1": Toy(
        toy=TIMEDIT,
        configs=["experiment/papers/timedit_etth1.yaml"],
        files=lambda folder: write_ett(folder, "ETTm1"),
    ),
    "timedit_smartmeter": Toy(
        toy=TIMEDIT, configs=["experiment/papers/timedit_etth1.yaml"], files=write_smart_meters
    ),
}
