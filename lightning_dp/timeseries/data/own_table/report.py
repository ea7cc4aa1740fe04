"""What was found in a table. It tells private facts: it stays on this machine and no ε covers it."""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

NONPRIVATE = "what follows is about the data itself and covered by no ε; keep it on this machine"
_SHOWN = 20
_NAMED = ("names", "constant", "empty", "left_out")  # people, and files that may be called by them


@dataclass(kw_only=True)
class TableReport:
    """Counts of a whole table, all splits together.

    Attributes:
        files: how many.
        left_out: names in the folder that are no tables, and were not read.
        rows: of all files, lines without content and rows of nobody left out.
        rows_of_nobody: left out, as `reading.missing_ids` says.
        customers: how many.
        names: of the first few.
        id_type: of Parquet's column of ids; empty for CSV, which has no types.
        first, last: stamps, in UTC or as the wall clock shows them.
        frequency: of the series.
        frequency_inferred: whether it was read from the data.
        frequency_share: share of the distances of neighbouring stamps that are one step, where inferred.
        steps: of all series from their first to their last stamp.
        gap_steps: of them, steps without any row.
        longest_gap: steps.
        customers_with_gaps: how many.
        duplicates: readings with the stamp of an earlier one.
        unsorted: whether rows of a customer are out of order.
        missing_share: channel → share of steps without a value, gaps included.
        constant: "customer/channel" of series that never change.
        empty: customers without any value.
        rows_before: rows without a value before a customer's first reading, which no window holds.
        future_rows: rows without a value after a customer's last reading; a forecast can use their
            covariates.
        future_customers: how many have such rows.
        readings: cells with a value.
        rounded: of them, those that fp32, in which windows are, doesn't give back as they were written.
        rounded_most: the largest change by that, in the unit of the values.
        rounded_share: the same as a share of the series' own range.
        clipped_covariates: cells outside of their public bounds.
        missing_covariates: cells that took the customer's last known value, or the first one before that.
    """

    files: int = 0
    left_out: list[str] = field(default_factory=list)
    rows: int = 0
    rows_of_nobody: int = 0
    customers: int = 0
    names: list[str] = field(default_factory=list)
    id_type: str = ""
    first: str = ""
    last: str = ""
    frequency: str = ""
    frequency_inferred: bool = False
    frequency_share: float = 1.0
    steps: int = 0
    gap_steps: int = 0
    longest_gap: int = 0
    customers_with_gaps: int = 0
    duplicates: int = 0
    unsorted: bool = False
    missing_share: dict[str, float] = field(default_factory=dict)
    constant: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    rows_before: int = 0
    future_rows: int = 0
    future_customers: int = 0
    readings: int = 0
    rounded: int = 0
    rounded_most: float = 0.0
    rounded_share: float = 0.0
    clipped_covariates: int = 0
    missing_covariates: int = 0

    @classmethod
    def from_json(cls, text: str) -> "TableReport":
        """What `to_json` wrote."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in json.loads(text).items() if name in known})

    def to_json(self) -> str:
        """All of it, people's names too."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """For a run folder: marked as nonprivate, and nobody is named: where names were, they are counted."""
        content = asdict(self)
        return {
            "nonprivate": NONPRIVATE,
            **{
                name: len(value) if name in _NAMED else value
                for name, value in content.items()
                if name != "names"
            },
        }

    def to_text(self) -> str:
        """One fact a line."""
        share = ", ".join(f"{name} {100 * value:.2f} %" for name, value in self.missing_share.items())
        lines = [
            f"nonprivate: {NONPRIVATE}",
            f"rows               {self.rows} in {self.files} "
            f"file(s){', not in order' if self.unsorted else ''}",
            f"customers          {self.customers}: {', '.join(self.names)}"
            f"{', …' if self.customers > len(self.names) else ''}",
            f"span               {self.first} to {self.last}",
            f"frequency          {self.frequency} ({self._origin()})",
            f"steps              {self.steps}",
            f"gaps               {self.gap_steps} steps without a row, of {self.customers_with_gaps} "
            f"customers; the longest has {self.longest_gap}",
            f"duplicates         {self.duplicates} readings",
            f"missing            {share}",
            f"constant series    {_some(self.constant)}",
            f"without any value  {_some(self.empty)}",
            f"covariates         {self.clipped_covariates} clipped to their bounds, "
            f"{self.missing_covariates} filled from the last known step",
            f"rounding           {self._rounding()}",
            f"future rows        {self.future_rows} after the last reading of {self.future_customers} "
            "customers, kept for forecasts",
            f"rows left out      {self.rows_of_nobody} of nobody, {self.rows_before} before a first reading",
            f"files left out     {_some(self.left_out)}",
        ]
        return "\n".join(lines) + "\n"

    def summary(self) -> list[str]:
        """A few lines for the terminal before a fit; nobody is named."""
        lines = [
            f"{self.rows} rows of {self.customers} customers, {self.first} to {self.last}, every "
            f"{self.frequency} ({self._origin()})",
            f"{self.gap_steps} steps without a row, the longest gap has {self.longest_gap}; "
            f"{self.duplicates} duplicates; {self.future_rows} rows after the last reading, kept for "
            "forecasts",
        ]
        if self.rounded:
            lines.append(f"rounding: {self._rounding()}")
        left = self.rows_of_nobody + self.rows_before
        if left or self.left_out:
            lines.append(f"left out: {left} rows, {len(self.left_out)} files or folders")
        return lines

    def _origin(self) -> str:
        if not self.frequency_inferred:
            return "given"
        return (
            f"read from the data: {100 * self.frequency_share:.2f} % of neighbouring stamps lie so far apart"
        )

    def _rounding(self) -> str:
        text = f"{self.rounded} of {self.readings} readings have more digits than windows hold (fp32)"
        if not self.rounded:
            return text
        text += f"; the largest change is {self.rounded_most:.3g}"
        if self.rounded_share > 1e-3:
            text += (
                f", {100 * self.rounded_share:.2g} % of its series' range: subtract a constant that is known "
                "beforehand, or train on differences"
            )
        return text


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)}: {', '.join(names[:_SHOWN])}{more}"
