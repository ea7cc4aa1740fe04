"""Checkpoints on the disk: written beside and put in place as a whole, read without running anything."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lightning_dp.privacy.report import sync_folder

UNREADABLE = (RuntimeError, EOFError, OSError, pickle.UnpicklingError)
"""What torch raises for a file that is no checkpoint, or a part of one."""


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, each in the folder it belongs in until it is complete, then renamed.

    Lightning's own are written in TMPDIR and copied from there where that is another file system, so that a
    full disk cuts off the only one there is.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; on a full disk the old one stays.

        Raises:
            OSError: it can't be written, with the path.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError | RuntimeError):  # torch says so of a write that fails
                raise OSError(
                    f"{path} could not be written ({error}); an earlier checkpoint is kept"
                ) from error
            raise
        sync_folder(path.parent)

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, loc: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, whatever is asked for by its weights only: a pickle is a program.

        Raises:
            ValueError: it is damaged, or holds more than weights and plain values.
        """
        try:
            content = super().load_checkpoint(path, map_location, weights_only=True)
        except FileNotFoundError:
            raise
        except UNREADABLE as error:
            raise damaged(path, error) from error
        _check_complete(content, path=path)
        return content


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, whose tensors stay on the disk until they are looked at.

    Raises:
        ValueError: it is damaged.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise damaged(path, error) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no checkpoint of a run, but a {type(content).__name__}")
    return content


def _check_complete(content: Any, *, path: Any) -> None:
    """Raise ValueError for what Lightning would stumble over."""
    for name in ("state_dict", "pytorch-lightning_version"):
        if not isinstance(content, dict) or name not in content:
            raise ValueError(f"{path} is no Lightning checkpoint: it has no {name}; put back a copy")


def damaged(path: Any, error: Exception) -> ValueError:
    """The sentence for a checkpoint that can't be read, made of what torch says."""
    if isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in str(error):
        return ValueError(
            f"{path} holds more than weights and plain values, so reading it would run code of whoever wrote "
            "it, or it is damaged: get weights from somebody you trust, saved without objects of their own"
        )
    reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
    return ValueError(
        f"{path} is damaged or no checkpoint ({reason}): put back a copy, or start the run anew in another "
        "folder"
    )
