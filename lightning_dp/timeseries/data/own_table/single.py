"""A table of one series: a stamp and several measured columns a row, and nobody's name."""

from collections.abc import Mapping

import pyarrow as pa

from lightning_dp.timeseries.data.own_table.files import Rows, TableFile
from lightning_dp.timeseries.data.own_table.layout import Covariates, Layout, check_distinct, check_present
from lightning_dp.timeseries.data.own_table.reading import Reading


class Single(Layout):
    """One row is one stamp of one series, whose channels are the target columns.

    A single series has no users: the privacy unit of a fit has to be `window` or `disjoint`, and the split
    `ByTime`.
    """

    def __init__(
        self,
        *,
        time_column: str,
        target_columns: list[str],
        covariates: Covariates | None = None,
        name: str = "series",
    ) -> None:
        """Name the columns.

        Args:
            time_column: of the stamp.
            target_columns: C ≥ 1 columns of measurements, forecast together.
            covariates: columns known in advance.
            name: of the series, in tables of predictions.
        """
        if not target_columns:
            raise ValueError("layout.target_columns is empty; name the column(s) that hold the measurements.")
        self.time_column = time_column
        self.channel_names = list(target_columns)
        self.covariates = covariates or Covariates()
        self.name = name
        check_distinct([time_column, *target_columns, *self.covariates.columns])
        self.id_column = next(
            one
            for one in ("series", "id", "series_id", "which_series")
            if one not in (time_column, *self.channel_names)
        )

    def needed_columns(self, file: TableFile) -> list[str]:
        needed = [self.time_column, *self.channel_names, *self.covariates.columns]
        check_present(needed, file)
        return needed

    def customers(self, file: TableFile) -> None:
        return None

    def target_columns_of(self, file: TableFile) -> list[str]:
        return self.channel_names

    def owned(self, rows: Rows, *, reading: Reading) -> tuple[Rows, pa.Array]:
        return rows, pa.array([self.name] * len(rows), type=pa.string())

    def identity(self) -> Mapping[str, object]:
        return {
            "layout": "single",
            "time": self.time_column,
            "targets": self.channel_names,
            "numeric": self.covariates.numeric,
            "categorical": self.covariates.categorical,
        }
