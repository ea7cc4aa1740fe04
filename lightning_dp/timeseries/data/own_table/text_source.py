"""The bytes of a CSV file as Arrow wants them: unpacked, in UTF-8, with lines counted as they go by."""

import codecs
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lightning_dp.archives import check_packed
from lightning_dp.told import told_error

_BLOCK = 1 << 20
_BOMS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class TextSource:
    """A file that Arrow reads from.

    Attributes:
        lines: that have gone by, the last one without an end included.
    """

    def __init__(self, path: Path, *, encoding: str) -> None:
        self.path = path
        self.encoding = encoding
        self.closed = False
        self._file = open_packed(path)
        self._unpacked = 0
        decoder = codecs.getincrementaldecoder(encoding)
        plain = codecs.lookup(encoding).name in ("utf-8", "ascii")
        self._decoder = None if plain else decoder(errors="strict")
        self._ends = 0
        self._last = b""

    @property
    def lines(self) -> int:
        return self._ends + (self._last not in (b"", b"\n", b"\r"))

    def read(self, size: int = -1) -> bytes:
        """The next bytes in UTF-8; more than `size` of them only where another encoding needs more."""
        while True:
            try:
                packed = self._file.read(size)
            except (OSError, EOFError) as error:
                raise _broken(self.path, error) from None
            self._unpacked += len(packed)
            check_packed(self.path, packed=self.path.stat().st_size, unpacked=self._unpacked)
            data = packed
            if self._decoder is not None:
                try:
                    data = self._decoder.decode(packed, final=not packed).encode()
                except UnicodeError:
                    raise wrong_encoding(self.path, encoding=self.encoding) from None
            if data or not packed:
                break  # an empty answer would be the end
        self._count(data)
        return data

    def _count(self, data: bytes) -> None:
        if not data:
            return
        ends = data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")
        if self._last == b"\r" and data[:1] == b"\n":
            ends -= 1
        self._ends += ends
        self._last = data[-1:]

    def close(self) -> None:
        self.closed = True
        self._file.close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def writable(self) -> bool:
        return False


def open_packed(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked if it ends in .gz."""
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def first_bytes(path: Path, size: int) -> bytes:
    """The first bytes of a file, unpacked."""
    try:
        with open_packed(path) as file:
            return file.read(size)
    except (OSError, EOFError) as error:
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} can't be unpacked or read to its end ({told_error(error)}).")


def raw_lines(path: Path) -> Iterator[bytes]:
    """Lines as they lie in a file."""
    with open_packed(path) as file:
        yield from file


def wrong_encoding(path: Path, *, encoding: str) -> ValueError:
    """The sentence for a file that is not in the encoding it ought to be in, with the first such line."""
    with open_packed(path) as file:
        mark = file.read(2)
    if mark in _BOMS:
        return ValueError(
            f"{path}, line 1 is not text in {encoding.upper()} but in UTF-16: set reading.encoding to "
            "'utf-16'."
        )
    line = next((at for at, one in enumerate(raw_lines(path), start=1) if not _is_text(one, encoding)), 1)
    return ValueError(
        f"{path}, line {line} is not text in {encoding.upper()}: set reading.encoding to what it was saved "
        "in, such as 'cp1252' or 'latin-1', or save it in UTF-8."
    )


def _is_text(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeError:
        return False
    return True


def odd_quotes(path: Path) -> int:
    """The first line in which a quote is opened and not closed; 0 where there is none."""
    odd = (line for line, content in enumerate(raw_lines(path), start=1) if content.count(b'"') % 2)
    return next(odd, 0)
