"""ε of accounts, kept so that nobody need compose the same mechanisms again.

A file beside the ledger and no part of it, signed by the key whose owner reads it; without a key, or where
the signature does not fit, everything is computed. An ε is found by the mechanisms and δ that it is of.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_dp.privacy.accounting import Event, event_to_dict
from lightning_dp.privacy.ledger.keys import SigningKey, signature_fits
from lightning_dp.privacy.ledger.rows import canonical
from lightning_dp.privacy.ledger.snapshot import replace_quietly

_FORMAT = 1
_MOST = 5000  # that are kept, the newest


class Totals:
    """What was computed before, and what is computed now; `save` keeps both."""

    def __init__(self, ledger: Path, *, key: SigningKey | None) -> None:
        self._key = key
        self._path = None if key is None else ledger.with_name(f"{ledger.name}-totals-{key.public[:16]}")
        self._known: dict[str, float] = self._read()
        self._is_new = False

    def epsilon(
        self, counts: Counter[Event], delta: float, *, how: str, compute: Callable[[], float]
    ) -> float:
        """ε of these releases at δ, kept or computed.

        Args:
            counts: releases of each mechanism.
            delta: δ.
            how: the way it is computed.
            compute: does so.
        """
        name = self._name(counts, delta, how)
        if name not in self._known:
            self._known[name] = compute()
            self._is_new = True
        return self._known[name]

    def knows(self, counts: Counter[Event], delta: float, *, how: str) -> bool:
        """Whether nothing need be computed."""
        return self._name(counts, delta, how) in self._known

    def save(self) -> None:
        """Keep what is new."""
        if self._key is None or self._path is None or not self._is_new:
            return
        kept = {
            name: "inf" if epsilon == float("inf") else epsilon
            for name, epsilon in list(self._known.items())[-_MOST:]
        }
        content: dict[str, Any] = {"format": _FORMAT, "totals": kept}
        content["signature"] = self._key.sign(_message(content))
        replace_quietly(self._path, canonical(content))

    def _read(self) -> dict[str, float]:
        if self._key is None or self._path is None:
            return {}
        try:
            content = json.loads(self._path.read_text())
            signature = content.pop("signature")
            sound = content["format"] == _FORMAT and signature_fits(
                _message(content), public=self._key.public, signature=signature
            )
            return {name: float(value) for name, value in content["totals"].items()} if sound else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    @staticmethod
    def _name(counts: Counter[Event], delta: float, how: str) -> str:
        counted = sorted(([event_to_dict(event), n] for event, n in counts.items() if n), key=canonical)
        return hashlib.sha256(canonical([how, counted, delta]).encode()).hexdigest()


def _message(content: dict[str, Any]) -> str:
    return f"lightning-dp ledger totals\n{canonical(content)}"
