"""What a data set holds, marked so that it is known again under another name, and nobody else learns of it.

A content is a set of pieces: images, or short stretches of a series. Each piece has a mark, a keyed hash
(BLAKE2b with a secret key, RFC 7693 §2.9); kept are their number, one mark of all of them, and the 256
smallest different ones: a bottom-k sketch, from which the share of pieces that two contents have in common
is estimated (Broder 1997; Cohen & Kaplan 2007). The ledger holds them sealed by the same key
(ChaCha20-Poly1305, RFC 8439) and at one length, so without it not even their number can be read.

Found are: the same pieces in another order, place or file format; rows that were appended or taken away;
other columns beside the same ones. Missed are: an overlap of less than about 5 % of the smaller content; one
that is less than about a hundredth of the larger; and whatever changes every piece, such as rescaled values,
resized images or shifted clocks.
"""

import hashlib
import heapq
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from lightning_dp.privacy.ledger.rows import canonical

SIZE = 256
_NONCE = 12
_LENGTH = 6000  # above that of any content
_MODULUS = 1 << 128
_SHARED = (
    3  # marks that both have among the smallest of all: fewer may be chance pieces, such as black images
)
_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Content:
    """The marks of a content.

    Attributes:
        key: tells which key made them.
        pieces: how many there are, repeated ones counted.
        whole: mark of all of them together, whatever their order.
        sketch: the `SIZE` smallest marks, in order.
    """

    key: str
    pieces: int
    whole: str
    sketch: tuple[str, ...]

    def sealed(self, key: bytes) -> dict[str, Any]:
        """What the ledger keeps of it; JSON-ready."""
        text = canonical({"pieces": self.pieces, "whole": self.whole, "sketch": self.sketch})
        nonce = secrets.token_bytes(_NONCE)
        box = ChaCha20Poly1305(_seal_key(key)).encrypt(nonce, text.ljust(_LENGTH).encode(), self.key.encode())
        return {"key": self.key, "sealed": (nonce + box).hex()}

    @classmethod
    def opened(cls, content: Mapping[str, Any], key: bytes) -> "Content | None":
        """What `sealed` kept; None where another key did."""
        box = bytes.fromhex(content["sealed"])
        try:
            text = ChaCha20Poly1305(_seal_key(key)).decrypt(
                box[:_NONCE], box[_NONCE:], str(content["key"]).encode()
            )
        except InvalidTag:
            return None
        said = json.loads(text)
        return cls(
            key=content["key"], pieces=said["pieces"], whole=said["whole"], sketch=tuple(said["sketch"])
        )

    def share_in(self, other: "Content") -> float:
        """About which share of the smaller of two contents is in the other, between 0 and 1.

        0 where fewer than a handful of marks agree, or the two were made by different keys.
        """
        if self.key != other.key or not self.pieces or not other.pieces:
            return 0.0
        if self.whole == other.whole:
            return 1.0
        mine, theirs = set(self.sketch), set(other.sketch)
        smallest = heapq.nsmallest(SIZE, mine | theirs)
        shared = sum(mark in mine and mark in theirs for mark in smallest)
        if shared < min(_SHARED, len(mine), len(theirs)):
            return 0.0
        alike = shared / len(smallest)  # estimates |A ∩ B| / |A ∪ B|
        common = alike * (self._distinct + other._distinct) / (1 + alike)
        return min(1.0, common / min(self._distinct, other._distinct))

    @property
    def _distinct(self) -> float:
        """About how many different pieces there are: of n, the k-th smallest mark lies near k / n."""
        if len(self.sketch) < SIZE:
            return float(len(self.sketch))
        return (SIZE - 1) / (int(self.sketch[-1], 16) / 2**64)

    def overlaps(self, other: "Content") -> bool:
        """Whether they have too much in common for two data sets."""
        return self.share_in(other) >= _SHARE


def _seal_key(key: bytes) -> bytes:
    return hashlib.blake2b(b"lightning-dp seal", key=key, digest_size=32).digest()


def content_of(pieces: Iterable[bytes], *, key: bytes, key_id: str) -> Content:
    """The marks of a content, a piece at a time.

    Args:
        pieces: anything that holds a piece's content, or a hash of it.
        key: 32 secret bytes.
        key_id: tells the key from others.
    """
    smallest: list[int] = []  # a heap of the smallest marks, negated: the largest of them comes first
    kept: set[int] = set()
    number = whole = 0
    for piece in pieces:
        digest = hashlib.blake2b(piece, key=key, digest_size=16).digest()
        number += 1
        whole += int.from_bytes(digest, "big")
        mark = int.from_bytes(digest[:8], "big")
        if (len(smallest) == SIZE and mark >= -smallest[0]) or mark in kept:
            continue
        kept.add(mark)
        if len(smallest) < SIZE:
            heapq.heappush(smallest, -mark)
        else:
            kept.discard(-heapq.heapreplace(smallest, -mark))
    return Content(
        key=key_id,
        pieces=number,
        whole=f"{whole % _MODULUS:032x}",
        sketch=tuple(f"{mark:016x}" for mark in sorted(kept)),
    )
