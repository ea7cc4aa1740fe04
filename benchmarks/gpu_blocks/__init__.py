"""What `benchmarks/gpu.py` measures, one block a file, in the order in which it is run."""

from importlib import import_module

ORDER = (
    "machine",
    "exactness",
    "noise",
    "fits",
    "syncs",
    "engines",
    "ways",
    "memory",
    "diffusion_unet",
    "release",
    "loading",
    "timedit",
)
"""Most telling first: what comes late is what may be lost."""


def block(name: str):
    """The module of a block: `SECONDS`, its share of the time, and `run(setting)`, which yields its rows."""
    return import_module(f"gpu_blocks.{name}")
