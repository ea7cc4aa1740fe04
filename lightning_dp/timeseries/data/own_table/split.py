"""Which of a customer's rows train, validate and test; decided without looking at any other customer.

That matters: were customers shuffled, one of them more or less would move all others between the splits.
"""

import contextlib
import hashlib
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, final

import pandas as pd

Part = Literal["train", "val", "test"]
_ISO = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d(:\d\d(:\d\d(\.\d+)?)?)?\s?(Z|[+-]\d\d(:?\d\d)?)?)?", flags=re.ASCII
)


@dataclass(frozen=True, kw_only=True)
class Span:
    """A run of time.

    Attributes:
        begin: first stamp; None = from the start.
        end: the stamp it ends before; None = to the end.
    """

    begin: pd.Timestamp | None = None
    end: pd.Timestamp | None = None


class Split(ABC):
    """A rule that gives each part of the data to training, validation or test."""

    @abstractmethod
    def spans(self, customer: str) -> dict[Part, Span]:
        """When this customer's rows belong to which part; parts it has nothing of are left out."""

    @property
    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """The parts that are meant to have something in them."""


@final
class ByCustomer(Split):
    """Each customer belongs to one part, drawn from the name alone: test customers are never trained on."""

    def __init__(self, *, val_share: float = 0.1, test_share: float = 0.2, seed: int = 0) -> None:
        """Set the odds.

        Args:
            val_share: 0 … 1, probability of validation.
            test_share: 0 … 1, probability of the test.
            seed: another one draws other customers.
        """
        if not (0 <= val_share < 1 and 0 <= test_share < 1 and val_share + test_share < 1):
            raise ValueError(
                f"split: val_share={val_share} and test_share={test_share} must be at least 0 and leave "
                "customers to train on: together less than 1."
            )
        self.val_share = val_share
        self.test_share = test_share
        self.seed = seed

    @property
    def parts(self) -> tuple[Part, ...]:
        shares: dict[Part, float] = {"train": 1.0, "val": self.val_share, "test": self.test_share}
        return tuple(part for part, share in shares.items() if share > 0)

    def spans(self, customer: str) -> dict[Part, Span]:
        return {self.part(customer): Span()}

    def part(self, customer: str) -> Part:
        """Where a customer belongs."""
        digest = hashlib.blake2b(f"{self.seed}:{customer}".encode(), digest_size=8).digest()
        draw = int.from_bytes(digest, "big") / 2**64
        if draw < self.test_share:
            return "test"
        return "val" if draw < self.test_share + self.val_share else "train"


@final
class ByTime(Split):
    """All customers train on the past, validate on what follows and are tested on what follows that.

    A window belongs to the part that its first predicted step lies in. Its context may reach back before that
    part, but into train rows only where the table is public: what the test sees is published.
    """

    def __init__(self, *, val_from: str | None = None, test_from: str) -> None:
        """Set the borders, public stamps.

        Args:
            val_from: where validation begins; None = no validation.
            test_from: where the test begins.
        """
        self.test_from = _stamp("test_from", test_from)
        self.val_from = None if val_from is None else _stamp("val_from", val_from)
        if self.val_from is not None and (self.val_from.tz is None) != (self.test_from.tz is None):
            raise ValueError(
                f"split: val_from={val_from} and test_from={test_from}: one has an offset from UTC and the "
                "other has none; write both alike."
            )
        if self.val_from is not None and not self.val_from < self.test_from:
            raise ValueError(f"split: val_from={val_from} must lie before test_from={test_from}.")

    @property
    def parts(self) -> tuple[Part, ...]:
        return ("train", "test") if self.val_from is None else ("train", "val", "test")

    def spans(self, customer: str) -> dict[Part, Span]:
        spans: dict[Part, Span] = {
            "train": Span(end=self.val_from or self.test_from),
            "test": Span(begin=self.test_from),
        }
        if self.val_from is not None:
            spans["val"] = Span(begin=self.val_from, end=self.test_from)
        return spans


@final
class ByCustomerAndTime(Split):
    """Test customers in the time of the test: neither they nor their time were trained on."""

    def __init__(self, *, customers: ByCustomer, times: ByTime) -> None:
        """Combine two rules.

        Args:
            customers: who belongs where.
            times: and of when.
        """
        self.customers = customers
        self.times = times

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for part in self.customers.parts if part in self.times.parts)

    def spans(self, customer: str) -> dict[Part, Span]:
        part = self.customers.part(customer)
        return {name: span for name, span in self.times.spans(customer).items() if name == part}


def _stamp(field: str, text: str) -> pd.Timestamp:
    # pandas reads 03.02.2024 as 2 March, wherever it was written.
    stamp = pd.NaT
    if _ISO.fullmatch(str(text).strip()):
        with contextlib.suppress(ValueError):
            stamp = pd.Timestamp(str(text).strip())
    if stamp is pd.NaT:
        raise ValueError(
            f"split: {field} is {text!r}; write it as ISO 8601 does, 2024-01-31 or 2024-01-31 12:00, "
            "whatever reading.time_format is."
        )
    return stamp
