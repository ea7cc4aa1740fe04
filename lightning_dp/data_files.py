"""Where data sets lie on this machine, and how a missing file gets there."""

import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

_TIMEOUT_SECONDS = 20.0


def data_folder(data_dir: str | None) -> Path:
    """The argument, else LIGHTNING_DP_DATA, else a cache folder of the user."""
    if data_dir:
        return Path(data_dir).expanduser()
    named = os.environ.get("LIGHTNING_DP_DATA")
    if named:
        return Path(named).expanduser()
    return cache_folder()


def cache_folder() -> Path:
    """A folder of the user for what can be made again."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "lightning_dp"


def ensure_file(path: Path, *, url: str | None, check: Callable[[bytes, str], None]) -> Path:
    """`path`, downloaded where it is missing and has an address.

    Args:
        path: where the file belongs.
        url: its public address, or None where there is none to rely on.
        check: raises ValueError unless the content, given with its name, is the published one.

    Raises:
        ValueError: it is missing and can't be had, or what came is not the published file.
    """
    if path.exists():
        return path
    advice = "put the file there by hand, or point LIGHTNING_DP_DATA (or data_dir) at a folder that holds it."
    if url is None:
        raise ValueError(f"{path} is missing, and there is no address to download it from: {advice}")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        reason = getattr(error, "reason", None) or error
        raise ValueError(
            f"{path} is missing and {url} could not be downloaded ({reason}): {advice}"
        ) from None
    check(content, url)
    try:
        write_atomically(content, path=path)
    except OSError as error:
        raise ValueError(
            f"{path} is missing and its folder can't be written ({error}): point LIGHTNING_DP_DATA (or "
            "data_dir) at a folder that can."
        ) from None
    return path


def check_digest(content: bytes, *, expected: str, method: str, where: str) -> None:
    """Raise ValueError unless the content is the published one.

    Args:
        content: all of it.
        expected: hexadecimal digest.
        method: of hashlib; md5 where that is what was published, which guards against damage only.
        where: file or address.
    """
    actual = hashlib.new(method, content, usedforsecurity=False).hexdigest()
    if actual != expected:
        raise ValueError(
            f"{where} has the {method} checksum {actual} where the published file has {expected}: it is "
            "damaged or was edited; delete it to download it again."
        )


def write_atomically(content: bytes, *, path: Path) -> None:
    """A reader sees the whole file or none, whatever interrupts the write or races with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:  # of a full disk, which names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
