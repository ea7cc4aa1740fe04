"""What was found in a table. It tells private facts: it stays on this machine and no ε covers it."""

from dataclasses import dataclass, field

_SHOWN = 20


@dataclass(kw_only=True)
class TableReport:
    """Counts of a whole table, all splits together.

    Attributes:
        files: how many.
        rows: of all files, lines without content left out.
        customers: how many.
        first, last: stamps, in UTC or as the wall clock shows them.
        frequency: of the series.
        frequency_inferred: whether it was read from the data.
        steps: of all series from their first to their last stamp.
        gap_steps: of them, steps without any row.
        customers_with_gaps: how many.
        duplicates: readings with the stamp of an earlier one.
        unsorted: whether rows of a customer are out of order.
        missing_share: channel → share of steps without a value, gaps included.
        constant: "customer/channel" of series that never change.
        empty: customers without any value.
        clipped_covariates: cells outside of their public bounds.
        missing_covariates: cells that took the value of the customer's nearest known step.
    """

    files: int = 0
    rows: int = 0
    customers: int = 0
    first: str = ""
    last: str = ""
    frequency: str = ""
    frequency_inferred: bool = False
    steps: int = 0
    gap_steps: int = 0
    customers_with_gaps: int = 0
    duplicates: int = 0
    unsorted: bool = False
    missing_share: dict[str, float] = field(default_factory=dict)
    constant: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    clipped_covariates: int = 0
    missing_covariates: int = 0

    def to_text(self) -> str:
        """One fact a line."""
        origin = "read from the data" if self.frequency_inferred else "given"
        share = ", ".join(f"{name} {100 * value:.2f} %" for name, value in self.missing_share.items())
        lines = [
            "nonprivate: what follows is about the data itself and covered by no ε; keep it on this machine",
            f"rows               {self.rows} in {self.files} "
            f"file(s){', not in order' if self.unsorted else ''}",
            f"customers          {self.customers}",
            f"span               {self.first} to {self.last}",
            f"frequency          {self.frequency} ({origin})",
            f"steps              {self.steps}",
            f"gaps               {self.gap_steps} steps without a row, of {self.customers_with_gaps} "
            "customers",
            f"duplicates         {self.duplicates} readings",
            f"missing            {share}",
            f"constant series    {_some(self.constant)}",
            f"without any value  {_some(self.empty)}",
            f"covariates         {self.clipped_covariates} clipped to their bounds, "
            f"{self.missing_covariates} filled from the nearest known step",
        ]
        return "\n".join(lines) + "\n"


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)}: {', '.join(names[:_SHOWN])}{more}"
