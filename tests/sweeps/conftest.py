"""What sweeps name by their environment."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A Stable Diffusion folder, tiny and with random weights."""
    from images.sd_support import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-sd")


@pytest.fixture(autouse=True)
def public_checkpoint(request, monkeypatch) -> None:
    """For sweeps that start from one."""
    path = getattr(request.node, "callspec", None) and request.node.callspec.params.get("path")
    if isinstance(path, Path) and "STABLE_DIFFUSION" in path.read_text():
        monkeypatch.setenv("STABLE_DIFFUSION", str(request.getfixturevalue("checkpoint")))
