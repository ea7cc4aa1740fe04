"""The idx format of MNIST and its relatives: a short header, then bytes; usually gzipped."""

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np

from lightning_dp.archives import read_at_most
from lightning_dp.data_files import check_digest, ensure_file
from lightning_dp.told import told_error

_UNSIGNED_BYTES = 8
_MAX_PAYLOAD = 2**30  # the largest set in this form, EMNIST's by class, has 0.55 GB


def read_idx(content: bytes, *, where: str) -> np.ndarray:
    """The array in a gzipped idx file of unsigned bytes.

    Raises:
        ValueError: it is no such file, or shorter or longer than its header says.
    """
    payload = _payload(content, where=where)
    if len(payload) < 4 or payload[:2] != b"\0\0" or payload[2] != _UNSIGNED_BYTES:
        raise ValueError(
            f"{where} is not an idx file of unsigned bytes: it starts with {payload[:4].hex()} where 000008 "
            "and the number of dimensions are due; download it again."
        )
    ndim = payload[3]
    start = 4 + 4 * ndim
    shape = tuple(int.from_bytes(payload[4 * i : 4 * i + 4], "big") for i in range(1, ndim + 1))
    if len(payload) != start + math.prod(shape):
        raise ValueError(
            f"{where} announces {shape} bytes and holds {len(payload) - start}: it is cut short or damaged; "
            "download it again."
        )
    return np.frombuffer(payload, dtype=np.uint8, offset=start).reshape(shape)


def open_idx(path: Path, *, url: str | None, payload_sha256: str) -> np.ndarray:
    """A published idx file, downloaded where it is missing.

    The check is on what is inside the gzip wrapper: mirrors wrap the same pixels differently.
    """

    def check(content: bytes, where: str) -> None:
        check_digest(_payload(content, where=where), expected=payload_sha256, method="sha256", where=where)

    ensure_file(path, url=url, check=check)
    content = path.read_bytes()
    array = read_idx(content, where=str(path))  # first: its messages say more
    check(content, str(path))
    return array


def _payload(content: bytes, *, where: str) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            return read_at_most(file, _MAX_PAYLOAD, where=where)  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{where} is not a whole gzip file ({told_error(error)}): download it again."
        ) from None
