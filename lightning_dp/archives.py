"""Files of other people, measured before they are unpacked.

A few kilobytes can announce terabytes. What a file says of itself is compared with what it has room for,
before memory is taken for it.
"""

import json
import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lightning_dp.told import told_error

MAX_TEXT = 2**20
"""Bytes of a label, a caption or facts about one image."""
MAX_ENCODED = 256 * 2**20
"""Bytes of one encoded image."""
_SUSPICIOUS_BYTES = 2**30
_SUSPICIOUS_RATIO = 100
_MAX_NPZ_HEADER = 10_000


def load_npz(path: Path, *names: str, fix: str) -> dict[str, np.ndarray]:
    """The plain arrays of an npz file; each is as large as it says.

    Args:
        path: the file.
        *names: those that are wanted, where they are there; none for all.
        fix: what to do about a file that can't be read, for the message.

    Raises:
        ValueError: it is missing, damaged, larger inside than it says, or holds objects, which are code.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: {fix}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            check_packed(path, packed=path.stat().st_size, unpacked=sum(one.file_size for one in members))
            for member in members:
                if not names or member.filename.removesuffix(".npy") in names:
                    with archive.open(member) as file:
                        _check_array(file, member=member, path=path)
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files if not names or name in names}
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise _unreadable(path, error, fix=fix) from error
    except (OSError, zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise _unreadable(path, error, fix=fix) from error
    except Exception as error:  # zlib, lzma and struct have errors of their own without a common base
        raise _unreadable(path, error, fix=fix) from error


def _unreadable(path: Path, error: Exception, *, fix: str) -> ValueError:
    return ValueError(f"{path} can't be read as an npz file of plain arrays ({told_error(error)}): {fix}")


def _check_array(file: Any, *, member: zipfile.ZipInfo, path: Path) -> None:
    """Raise ValueError for an array smaller than its header says, before memory is taken for it."""
    where = f"{path}, {member.filename[:80]}"
    version = np.lib.format.read_magic(file)
    read: Any = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file, max_header_size=_MAX_NPZ_HEADER)
    if dtype.hasobject:
        raise ValueError(f"{where} holds objects, which could run code: save plain arrays.")
    announced = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or announced > member.file_size:
        raise ValueError(f"{where} announces {announced} bytes and has room for {member.file_size}.")


def check_packed(path: Path | str, *, packed: int, unpacked: int) -> None:
    """Raise ValueError for what unpacks to more than pictures and tables do."""
    if unpacked > _SUSPICIOUS_BYTES and unpacked > _SUSPICIOUS_RATIO * packed:
        raise ValueError(
            f"{path} has {packed} bytes and unpacks to {unpacked}, more than {_SUSPICIOUS_RATIO} times as "
            "many: it is made to fill the memory; save the data again, uncompressed if all of it is blank."
        )


def read_at_most(file: BinaryIO, most: int, *, where: str) -> bytes:
    """All of a file that may have at most so many bytes.

    Raises:
        ValueError: it has more.
    """
    content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{where} has more than {most} bytes, and nothing of its kind is so large.")
    return content


def parse_json(text: str | bytes, *, where: str, fix: str = "correct it") -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none; says where, and quotes nothing.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise ValueError(f"{where} is not JSON ({place}): {fix}.") from error
    except (ValueError, RecursionError) as error:  # bytes of no text, digits without end, too deep
        raise ValueError(f"{where} is not JSON ({told_error(error)}): {fix}.") from error


def inside(path: Path, folder: Path) -> bool:
    """Whether a file of a folder is really there: no link that leads out of it."""
    return not path.is_symlink() or path.resolve().is_relative_to(folder.resolve())
