"""The core is enough for the callback, plans and ledgers; what needs more says which extra brings it."""

import re

import pytest
from installed import PROJECT, ROOT, closure, environment, required, run

from lightning_dp.extras import EXTRAS, MissingExtra, needed_by

_OWN_MODULE = """
import os, sys
import lightning_dp
assert not {"torch", "wandb", "diffusers", "pandas", "sklearn"} & set(sys.modules)
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_dp import DifferentialPrivacy

class Linear(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 1)

    def training_step(self, batch, index):
        return {"losses": (self.net(batch[0])[:, 0] - batch[1]) ** 2}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

rows = torch.utils.data.TensorDataset(torch.randn(64, 4), torch.randn(64))
privacy = DifferentialPrivacy(target_epsilon=8, delta=1e-3, expected_batch_size=16, dataset="own")
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
folder = os.path.dirname(os.environ["LIGHTNING_DP_LEDGER"])
trainer = Trainer(max_steps=2, accelerator="cpu", callbacks=[privacy], default_root_dir=folder, **quiet)
trainer.fit(Linear(), train_dataloaders=torch.utils.data.DataLoader(rows, batch_size=16))
assert trainer.global_step == 2

from lightning_dp.cli import main
assert main(["ledger", "list"]) == 0
assert main(["plan", "--epsilon=8", "--delta=1e-5", "--units=1000", "--batch=100", "--steps=10"]) == 0

import importlib
for package in sys.argv[1:]:
    part = importlib.import_module(package)
    for name in part.__all__:
        try:
            getattr(part, name)
        except lightning_dp.extras.MissingExtra as error:
            print("MISSING", name, error)
        else:
            print("THERE", name, "-")

for command in (
    ["sweep", "check", "sweeps/smoke.yaml"],
    ["evaluate", "runs/none"],
    ["workspace", "--dry-run"],
    ["fit", "--model=TimeSeriesDiffusion"],
    ["fit", "--model=lightning_dp.LatentDiffusion"],
):
    assert main(command) == 2
"""
_ADVICE = re.compile(r"needs (\w+), which is not installed: .* -e '\.\[(\w+)\]'$")


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """What happens where nothing but the core is installed."""
    folder = tmp_path_factory.mktemp("core")
    variables = environment(folder / "packages") | {"LIGHTNING_DP_LEDGER": str(folder / "ledger.sqlite")}
    packages = ["lightning_dp", "lightning_dp.timeseries", "lightning_dp.images", "lightning_dp.callbacks"]
    return run(variables, "-c", _OWN_MODULE, *packages)


def test_the_core_trains_a_module_of_ones_own(core):
    assert core.returncode == 0, core.stderr[-2000:]
    assert "own" in core.stdout


def test_a_name_says_which_extra_it_needs(core):
    found = re.findall(r"^(MISSING|THERE) (\w+) (.*)$", core.stdout, re.MULTILINE)
    there = {name for kind, name, _ in found if kind == "THERE"}
    assert {"DifferentialPrivacy", "Ledger", "PrivacyPlan", "load_run", "SeriesDiT", "EMA"} <= there
    advice = {name: _ADVICE.search(said) for kind, name, said in found if kind == "MISSING"}
    assert all(advice.values())
    extras = {name: said[2] for name, said in advice.items() if said}
    assert extras["TimeSeriesDiffusion"] == extras["ETT"] == "timeseries"
    assert extras["LatentDiffusion"] == extras["ImageData"] == "images"
    assert extras["GradientDiagnostics"] == "figures"


def test_a_command_says_which_extra_it_needs(core):
    lines = [line for line in core.stderr.splitlines() if "which is not installed" in line]
    assert [_ADVICE.search(line)[2] for line in lines] == [
        "sweeps",
        "images",
        "dashboard",
        "timeseries",
        "images",
    ]


_WITHOUT_EACH = """
import sys

def one(package):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("lightning_dp", package)]:
        del sys.modules[name]
    sys.modules[package] = None  # an import of it raises ModuleNotFoundError
    import lightning_dp
    from lightning_dp.cli import main
    from lightning_dp.extras import needed_by

    import lightning_dp.commands.plan
    assert main(["--help"]) == 0
    assert main(["ledger", "list"]) == 2  # there is none yet
    try:
        with needed_by("this"):
            __import__(package)
    except ValueError as error:
        print("ASKED", package, error)
    del sys.modules[package]

for package in sys.argv[1:]:
    one(package)
print(sorted({"torch", "wandb"} & set(sys.modules)))
"""


def test_without_each_package_plan_and_ledger_work_and_its_extra_is_named(tmp_path):
    variables = environment(tmp_path / "packages", extras=list(PROJECT["optional-dependencies"]))
    done = run(variables | {"LIGHTNING_DP_LEDGER": str(tmp_path / "none")}, "-c", _WITHOUT_EACH, *EXTRAS)
    assert done.returncode == 0, done.stderr[-2000:]
    said = [_ADVICE.search(line) for line in done.stdout.splitlines() if line.startswith("ASKED")]
    assert [(one[1], one[2]) for one in said if one] == [(name, extras[0]) for name, extras in EXTRAS.items()]
    assert done.stdout.splitlines()[-1] == "[]"


def test_only_packages_of_extras_are_explained():
    with pytest.raises(MissingExtra, match=r"pip install .*\[timeseries\]"), needed_by("this"):
        raise ModuleNotFoundError("No module named 'pandas.core'", name="pandas.core")
    with pytest.raises(ModuleNotFoundError) as caught, needed_by("this"):
        raise ModuleNotFoundError("No module named 'nobodys'", name="nobodys")
    assert not isinstance(caught.value, MissingExtra)
    with pytest.raises(AttributeError), needed_by("this"):
        raise AttributeError("pandas")


def test_the_commands_of_the_readme_install_what_they_need():
    """`make demo` trains forecasters, `make test` everything."""
    makefile = (ROOT / "Makefile").read_text()
    installed = re.findall(r"pip install -q -c constraints.txt -e '\.\[(\w+)\]'", makefile)
    assert installed == ["timeseries", "dev"]
    assert closure(required(["dev"])) >= closure(required(set(PROJECT["optional-dependencies"]) - {"dev"}))
