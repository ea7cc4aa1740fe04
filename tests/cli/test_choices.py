"""Public names: what a configuration may choose has one, and a slip of the pen is answered with it."""

import inspect
import subprocess
import sys
from importlib import import_module
from pkgutil import walk_packages

import pytest
from jsonargparse._util import get_import_path
from lightning.pytorch import Callback, LightningDataModule, LightningModule

import lightning_dp
from lightning_dp.choices import did_you_mean, import_choices
from lightning_dp.cli import main

# Made by the command line itself, never chosen in a configuration.
MADE = {"Cli", "MadeUpImages", "MadeUpWindows", "Rehearsal"}  # by the program, and chosen by nobody
OWN = {"RunFolder", "WandbStart", "PredictionWriter", "StepProgress"}


def _chosen_by_class_path():
    """Every concrete class of ours that a `class_path` may name: of an ABC of ours, or of Lightning's."""
    for module in walk_packages(lightning_dp.__path__, "lightning_dp."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    from lightning_dp.adapters import Adapter, Choice, FreeScore, PrivateScore
    from lightning_dp.diffusion import NoiseSchedule, Prediction
    from lightning_dp.evolution import Embedding, EvolutionTask, SampleAPI
    from lightning_dp.images import Augmentation, Autoencoder, ImageSource
    from lightning_dp.nets import Bound, Conditioning, DenoisingNet, ImageNet, Tokenizer
    from lightning_dp.privacy import ClippingEngine, ClippingFunction
    from lightning_dp.timeseries import Layout, Mask, Normaliser, Split

    kinds = [LightningModule, LightningDataModule, Callback, Adapter, FreeScore, PrivateScore, NoiseSchedule]
    kinds += [Prediction, Embedding, EvolutionTask, SampleAPI, Augmentation, Autoencoder, ImageSource, Bound]
    kinds += [Conditioning, DenoisingNet, ImageNet, ClippingEngine, ClippingFunction, Layout, Mask]
    kinds += [Normaliser, Split, Choice, Tokenizer]
    left = list(kinds)
    while left:
        for kind in left.pop().__subclasses__():
            left.append(kind)
            ours = kind.__module__.startswith("lightning_dp.") and not kind.__name__.startswith("_")
            if ours and not inspect.isabstract(kind) and kind.__name__ not in OWN | MADE:
                yield kind


def test_whatever_a_configuration_chooses_has_a_public_name():
    hidden = {path for kind in _chosen_by_class_path() if (path := get_import_path(kind)).count(".") > 2}
    assert not hidden, "list them in the __init__.pyi of their package"


@pytest.mark.parametrize("package", ["", ".adapters", ".images", ".nets", ".privacy", ".timeseries"])
def test_every_public_name_can_be_imported_and_is_documented(package):
    module = import_module(f"lightning_dp{package}")
    for name in module.__all__:
        value = getattr(module, name)
        assert not inspect.isclass(value) or inspect.getdoc(value), name
    with pytest.raises(AttributeError, match="DifferentialPrivaci"):
        _ = module.DifferentialPrivaci


def test_the_package_alone_imports_no_library():
    """A fresh interpreter, as other tests have imported everything."""
    code = "import sys, lightning_dp; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "lightning_dp" in loaded.split()
    assert not {"torch", "lightning", "wandb", "diffusers", "pandas", "sklearn"} & set(loaded.split())


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("--model TimeSeriesDifusion", "TimeSeriesDiffusion"),
        ("--model lightning_dp.timeseries.module.TimeSeriesDifusion", "TimeSeriesDiffusion"),
        ("--data ETH", "ETT"),
        ("--privacy.clipping_engine BookKeping", "BookKeeping"),
        ("--model TimeSeriesDiffusion --model.normaliser DayMeen", "DayMean"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(wrong, right, capsys):
    assert main(["fit", *wrong.split()]) == 2
    said = capsys.readouterr().err
    assert f"Did you mean {right}" in said
    assert len(said.strip().splitlines()) == 1


def test_a_message_without_a_wrong_name_stays_as_it_is():
    for message in ("model.lr must be above 0", '"data": Import path is no subclass of LightningDataModule.'):
        assert did_you_mean(message) == message


def test_a_short_name_chooses_a_class_that_nothing_imported(tmp_path):
    """In a fresh interpreter; `PublicScale` is chosen by no recipe that is imported on the way."""
    options = ["fit", "--config=conf/experiment/demo_simulator.yaml", "--print_config"]
    command = [sys.executable, "-m", "lightning_dp", *options, "--model.init_args.normaliser=PublicScale"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "class_path: lightning_dp.timeseries.PublicScale" in printed


def test_a_package_of_an_extra_that_is_missing_leaves_out_what_needs_it(monkeypatch):
    from lightning_dp import images

    def missing(name):
        raise ModuleNotFoundError("No module named 'timm'", name="timm")

    for name in {"ImageData", "LatentDiffusion"} & set(vars(images)):
        monkeypatch.delattr(images, name)
    monkeypatch.setattr(images, "__getattr__", missing)
    import_choices()


def test_version_and_the_nearest_command(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning-dp {lightning_dp.__version__}\n"
    assert main(["fitt"]) == 2
    assert "did you mean fit?" in capsys.readouterr().err
