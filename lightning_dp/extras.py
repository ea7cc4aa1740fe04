"""Packages that only one half or one command needs, and the sentence that names the extra of a missing one.

`pyproject.toml` declares them; a test holds this list against it.
"""

import contextlib
from collections.abc import Callable, Iterator
from pydoc import ErrorDuringImport
from typing import Any

import lazy_loader

EXTRAS = {
    "PIL": ("images", "figures", "timeseries"),
    "diffusers": ("diffusion", "images", "timeseries"),
    "matplotlib": ("figures", "images", "timeseries"),
    "optuna": ("sweeps",),
    "pandas": ("timeseries",),
    "peft": ("adapters", "images"),
    "plotly": ("dashboard",),
    "pyarrow": ("timeseries", "images"),
    "safetensors": ("diffusion", "images", "timeseries"),
    "sklearn": ("timeseries",),
    "sqlalchemy": ("sweeps",),
    "submitit": ("cluster",),
    "timm": ("images",),
    "tokenizers": ("images",),
    "torch_fidelity": ("images",),
    "torchvision": ("images",),
    "transformers": ("images",),
    "wandb_workspaces": ("dashboard",),
}
"""A package as it is imported → the extras that bring it, the one to advise first."""

_HALVES = ("images", "timeseries")


class MissingExtra(ModuleNotFoundError, ValueError):
    """A package that this needs is not installed; its message says which extra brings it."""


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """What `lazy_loader.attach_stub` gives a package; a name whose extra is missing raises `MissingExtra`.

    Args:
        package: its `__name__`.
        file: its `__file__`, beside which its stub is.
    """
    get, names, public = lazy_loader.attach_stub(package, file)

    def __getattr__(name: str) -> Any:
        with needed_by(f"{package}.{name}"):
            return get(name)

    return __getattr__, names, public


@contextlib.contextmanager
def needed_by(what: str) -> Iterator[None]:
    """Imports inside are those that `what` needs: a missing one is answered by the extra that brings it.

    Raises:
        MissingExtra: a package of an extra is not installed.
    """
    try:
        yield
    except (ModuleNotFoundError, ErrorDuringImport) as error:
        missing = missing_extra(error, what=what)
        if missing is None or missing is error:
            raise
        raise missing from error


def missing_extra(error: BaseException, *, what: str) -> MissingExtra | None:
    """The sentence for an error that is, or was caused by, a missing package of an extra; None for others."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MissingExtra):
            return seen
        package = (seen.name or "").partition(".")[0] if isinstance(seen, ModuleNotFoundError) else ""
        if package in EXTRAS:
            return MissingExtra(
                f"{what} needs {package}, which is not installed: in the checkout, pip install "
                f"-c constraints.txt -e '.[{_extra(package, seen)}]'",
                name=package,
            )
        seen = seen.value if isinstance(seen, ErrorDuringImport) else seen.__cause__
    return None


def _extra(package: str, error: BaseException) -> str:
    """Of the extras that bring the package, that of the half that asked for it."""
    step = error.__traceback__
    while step is not None:
        parts = str(step.tb_frame.f_globals.get("__name__")).split(".")
        if parts[0] == "lightning_dp" and len(parts) > 1 and parts[1] in _HALVES:
            return parts[1] if parts[1] in EXTRAS[package] else EXTRAS[package][0]
        step = step.tb_next
    return EXTRAS[package][0]
