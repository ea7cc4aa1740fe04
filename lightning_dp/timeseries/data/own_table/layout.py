"""What the columns of a table mean: one row a reading (`Long`), or one column a customer (`Wide`)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightning_dp.privacy.release import PublicBounds
from lightning_dp.timeseries.data.own_table.files import Rows, TableFile
from lightning_dp.timeseries.data.own_table.ids import read_ids
from lightning_dp.timeseries.data.own_table.numbers import Marks, read_numbers
from lightning_dp.timeseries.data.own_table.reading import Reading
from lightning_dp.timeseries.data.own_table.wide_columns import WideColumns, check_named
from lightning_dp.told import debugging, told


@dataclass(frozen=True, kw_only=True)
class Covariates:
    """Columns that are known for every step, future ones included, scaled without looking at the data.

    Attributes:
        numeric: column → [lower, upper], bounds known publicly; values are mapped to [−1, 1] and those
            outside are clipped.
        categorical: column → all categories it can hold, a public list; each becomes one covariate.
    """

    numeric: dict[str, tuple[float, float] | None] = field(default_factory=dict)
    categorical: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for column, pair in self.numeric.items():
            if pair is None:
                raise ValueError(
                    f"covariates.numeric[{column!r}] has no bounds; give [lower, upper] that are known "
                    "without looking at the data: bounds taken from it would tell about it, and no ε "
                    "covers that."
                )
            try:
                PublicBounds(lower=pair[0], upper=pair[1])
            except ValueError as error:
                raise ValueError(f"covariates.numeric[{column!r}]: {error}.") from None
        for column, categories in self.categorical.items():
            if not categories or len(set(categories)) < len(categories):
                raise ValueError(
                    f"covariates.categorical[{column!r}] is {categories!r}; it must list every category "
                    "once, from public knowledge."
                )

    @property
    def columns(self) -> list[str]:
        """Numeric ones first."""
        return [*self.numeric, *self.categorical]

    @property
    def sizes(self) -> list[int]:
        """How many categories each categorical column has."""
        return [len(categories) for categories in self.categorical.values()]

    @property
    def num_covariates(self) -> int:
        """How many covariates the columns become."""
        return len(self.numeric) + sum(self.sizes)

    def read(self, rows: Rows, *, reading: Reading, marks: Marks | None = None) -> tuple[np.ndarray, int]:
        """(R, columns) float32, numbers in [−1, 1] and categories by number, NaN where missing; and how many
        numbers were clipped.

        Raises:
            ValueError: a cell holds no number, or a category that isn't listed.
        """
        parts = []
        clipped = 0
        if self.numeric:
            numbers = read_numbers(rows, list(self.numeric), reading=reading, marks=marks)
            for index, pair in enumerate(self.numeric.values()):
                assert pair is not None
                scaled = PublicBounds(lower=pair[0], upper=pair[1]).normalise(numbers[:, index])
                clipped += int((np.abs(scaled) > 1).sum())
                parts.append(np.clip(scaled, -1, 1))
        for column, categories in self.categorical.items():
            names = _categories(rows, column).to_pandas()
            codes = np.array(
                names.map({name: code for code, name in enumerate(categories)}), dtype=np.float32
            )
            missing = names.isin(reading.missing_texts).to_numpy()
            unknown = np.isnan(codes) & ~missing
            if unknown.any():
                row = int(unknown.argmax())
                raise ValueError(
                    f"{rows.where(row, column)} holds {told(names[row])}, which is not among the "
                    f"{len(categories)} of covariates.categorical[{column!r}]: mend the cell or complete the "
                    "list."
                )
            parts.append(codes)
        stacked = np.stack(parts, axis=1) if parts else np.empty((len(rows), 0))
        return stacked.astype(np.float32), clipped


@dataclass(frozen=True, kw_only=True)
class Readings:
    """Cells of a batch of rows, by customer and stamp.

    Attributes:
        rows: where they are from.
        customers: (R,) names, or None where the columns are the customers.
        targets: (R, C) fp64; or (R, N), one column a customer.
        covariates: (R, columns) float32.
        clipped: how many covariates lay outside of their bounds.
    """

    rows: Rows
    customers: pa.Array | None
    targets: np.ndarray
    covariates: np.ndarray
    clipped: int


class Layout(ABC):
    """Which columns hold what.

    Attributes:
        names_in_rows: whether a column names the customer of each row.
        id_column: of the customers' names; where no column has them, what a table of predictions calls it.
        time_column: of the stamps.
        covariates: columns known in advance.
        channel_names: C names of what is measured.
    """

    names_in_rows: bool = False
    id_column: str
    time_column: str
    covariates: Covariates
    channel_names: list[str]

    @abstractmethod
    def needed_columns(self, file: TableFile) -> list[str]:
        """The columns of `file` that are read.

        Raises:
            ValueError: one of them is not there.
        """

    @abstractmethod
    def customers(self, file: TableFile) -> list[str] | None:
        """The customers that are columns of `file`; None where they are named in rows."""

    @abstractmethod
    def owned(self, rows: Rows, *, reading: Reading) -> tuple[Rows, pa.Array | None]:
        """The rows that somebody is named in, and whose each is; None where the columns are the customers.

        Raises:
            ValueError: a row says nobody's, and `reading` has no rule for it.
        """

    def column_checks(self, file: TableFile) -> WideColumns | None:
        """What the columns of `file` have to pass to be customers; None where they are none, or stated."""
        return None

    @abstractmethod
    def identity(self) -> Mapping[str, object]:
        """What decides how a table is converted, as JSON."""

    @abstractmethod
    def target_columns_of(self, file: TableFile) -> list[str]:
        """The columns that hold measurements."""

    def read(self, file: TableFile, *, reading: Reading, marks: Marks | None = None) -> Iterator[Readings]:
        """All cells of `file`, some rows at a time; what its marks can mean is noted in `marks`."""
        targets = self.target_columns_of(file)
        for every in file.read(self.needed_columns(file)):
            rows, customers = self.owned(every, reading=reading)
            covariates, clipped = self.covariates.read(rows, reading=reading, marks=marks)
            named = self.customers(file) is None
            yield Readings(
                rows=rows,
                customers=customers,
                targets=read_numbers(rows, targets, reading=reading, named=named, marks=marks),
                covariates=covariates,
                clipped=clipped,
            )


class Long(Layout):
    """One row is one reading of one customer: columns id, time, what was measured, covariates."""

    names_in_rows = True

    def __init__(
        self,
        *,
        id_column: str,
        time_column: str,
        target_columns: list[str],
        covariates: Covariates | None = None,
    ) -> None:
        """Name the columns.

        Args:
            id_column: of the customer, who is the privacy unit.
            time_column: of the stamp.
            target_columns: C ≥ 1 columns of measurements.
            covariates: columns known in advance.
        """
        if not target_columns:
            raise ValueError("layout.target_columns is empty; name the column(s) that hold the measurements.")
        self.id_column = id_column
        self.time_column = time_column
        self.channel_names = list(target_columns)
        self.covariates = covariates or Covariates()
        check_distinct([id_column, time_column, *target_columns, *self.covariates.columns])

    def needed_columns(self, file: TableFile) -> list[str]:
        needed = [self.id_column, self.time_column, *self.channel_names, *self.covariates.columns]
        check_present(needed, file)
        return needed

    def customers(self, file: TableFile) -> None:
        return None

    def target_columns_of(self, file: TableFile) -> list[str]:
        return self.channel_names

    def owned(self, rows: Rows, *, reading: Reading) -> tuple[Rows, pa.Array]:
        ids = read_ids(rows, self.id_column, reading=reading)
        if not ids.null_count:
            return rows, ids
        return rows.only(pc.is_valid(ids).to_numpy(zero_copy_only=False)), ids.drop_null()

    def identity(self) -> Mapping[str, object]:
        return {
            "layout": "long",
            "id": self.id_column,
            "time": self.time_column,
            "targets": self.channel_names,
            "numeric": self.covariates.numeric,
            "categorical": self.covariates.categorical,
        }


class Wide(Layout):
    """One row is one stamp and one column one customer; covariates are shared by all."""

    def __init__(
        self,
        *,
        time_column: str,
        id_columns: list[str] | None = None,
        ignored_columns: list[str] | None = None,
        value_name: str = "value",
        covariates: Covariates | None = None,
    ) -> None:
        """Name the columns.

        Args:
            time_column: of the stamp.
            id_columns: the customers; None = all columns that are nothing else, of which one without a name,
                one that counts rows and one that is the sum or the mean of the others are refused.
            ignored_columns: columns that are nothing of all this, such as a total or a saved index.
            value_name: of what is measured.
            covariates: columns known in advance.
        """
        self.time_column = time_column
        self.id_columns = id_columns
        self.ignored_columns = list(ignored_columns or [])
        self.channel_names = [value_name]
        self.covariates = covariates or Covariates()
        check_distinct([time_column, *(id_columns or []), *self.ignored_columns, *self.covariates.columns])
        taken = {time_column, value_name, *self.covariates.columns}
        self.id_column = next(
            name for name in ("customer", "id", "customer_id", "series_id") if name not in taken
        )

    def needed_columns(self, file: TableFile) -> list[str]:
        needed = [self.time_column, *self.target_columns_of(file), *self.covariates.columns]
        check_present(needed, file)
        return needed

    def customers(self, file: TableFile) -> list[str]:
        return self.target_columns_of(file)

    def target_columns_of(self, file: TableFile) -> list[str]:
        if self.id_columns is not None:
            return self.id_columns
        others = {self.time_column, *self.ignored_columns, *self.covariates.columns}
        customers = [name for name in file.column_names if name not in others]
        check_named(customers, file=file.path)
        if not customers:
            raise ValueError(f"{file.path} has no column of a customer beside {self.time_column!r}.")
        return customers

    def owned(self, rows: Rows, *, reading: Reading) -> tuple[Rows, None]:
        return rows, None

    def column_checks(self, file: TableFile) -> WideColumns | None:
        return WideColumns(self.target_columns_of(file)) if self.id_columns is None else None

    def identity(self) -> Mapping[str, object]:
        return {
            "layout": "wide",
            "ids": self.id_columns,
            "ignored": self.ignored_columns,
            "time": self.time_column,
            "numeric": self.covariates.numeric,
            "categorical": self.covariates.categorical,
        }


def _categories(rows: Rows, column: str) -> pa.Array:
    """(R,) text without surrounding blanks; a missing cell is ''."""
    array = rows.columns[column]
    text = array if pa.types.is_string(array.type) else pc.cast(array, pa.string())
    return pc.fill_null(pc.utf8_trim_whitespace(text), "")


def check_distinct(columns: list[str]) -> None:
    seen: set[str] = set()
    for name in columns:
        if name in seen:
            raise ValueError(f"layout names the column {name!r} twice; a column has one meaning.")
        seen.add(name)


def check_present(needed: list[str], file: TableFile) -> None:
    present = set(file.column_names)
    for column in needed:
        if column not in present:
            # Without a header the first line holds a customer's cells.
            shown = f"{len(file.column_names)} columns"
            if debugging():
                shown = ", ".join(file.column_names[:12])
            close = [name for name in file.column_names if _plain(name) == _plain(column)]
            hint = f"; {close[0]!r} differs in blanks or capitals only" if close else ""
            if len(file.column_names) == 1 and not close:
                hint = (
                    ": set reading.delimiter if its columns are separated otherwise, or reading.skip_lines "
                    "if its names stand further down"
                )
            raise ValueError(f"{file.path} has no column {column!r}; it has {shown}{hint}.")


def _plain(name: str) -> str:
    return "".join(name.split()).casefold().strip("\ufeff\"'")
