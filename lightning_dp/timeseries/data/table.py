"""The user's own table: CSV or Parquet, wide or long, as a datamodule."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.data_files import cache_folder
from lightning_dp.privacy.units import PrivacyUnit
from lightning_dp.timeseries.data.base import Splits, WindowDataModule
from lightning_dp.timeseries.data.calendar import NUM_CALENDAR_FEATURES, calendar_features
from lightning_dp.timeseries.data.own_table.cache import converted, fingerprint, write_private
from lightning_dp.timeseries.data.own_table.convert import CELLS, INDEX, convert
from lightning_dp.timeseries.data.own_table.files import TableFile, find_files, left_out
from lightning_dp.timeseries.data.own_table.frequency import Frequency
from lightning_dp.timeseries.data.own_table.layout import Layout
from lightning_dp.timeseries.data.own_table.reading import Reading
from lightning_dp.timeseries.data.own_table.report import TableReport
from lightning_dp.timeseries.data.own_table.single import Single
from lightning_dp.timeseries.data.own_table.spelling import TableSpelling
from lightning_dp.timeseries.data.own_table.split import ByCustomer, ByTime, Part, Split
from lightning_dp.timeseries.data.own_table.store import FileStore
from lightning_dp.timeseries.data.own_table.table_series import TableSeries, written
from lightning_dp.timeseries.data.stretches import stretches
from lightning_dp.timeseries.data.train_items import (
    TrainItem,
    check_train_item,
    describe_train_items,
    make_train_items,
)
from lightning_dp.timeseries.data.windows import WindowDataset, window_starts
from lightning_dp.timeseries.masks import Mask
from lightning_dp.told import told_place

Short = Literal["error", "drop"]

_REPORT, _REPORT_JSON = "nonprivate_report.txt", "nonprivate_report.json"
_NO_FREQUENCY = (
    "Table.reading.frequency is not given, and where a fit is private no customer's readings may set the "
    "clock of all: set it to the step at which readings are known to be taken, such as '15min', 'h' or 'D'."
)


@dataclass(frozen=True, kw_only=True)
class Customer:
    """One customer of a table. Private facts.

    Attributes:
        id: what they are known by, and split by.
        spelled: as the table writes it where they first appear.
        first_stamp, last_stamp: of their readings, as `Table.stamps` gives them; None without a reading.
        known_until: stamp of their last row, which may hold covariates alone.
        future_steps: ≥ 0, steps from the last reading to there.
    """

    id: str
    spelled: str
    first_stamp: pd.Timestamp | None
    last_stamp: pd.Timestamp | None
    known_until: pd.Timestamp
    future_steps: int


class Table(WindowDataModule):
    """Series of many customers from files of one's own; the customer is the privacy unit.

    The files are converted once, a bounded piece at a time, into an array on disk in a cache folder of the
    user, and windows are read from there: neither step needs the table in memory. What was found in it is
    written beside that array and not into run folders, which are made to be passed on.

    Validation and test windows hold no row that was trained on, in their contexts neither, and errors are
    standardised by what the test scores: test metrics are published, and no ε covers what they are made of.
    What is the same for all customers (the clock, the borders of the split, bounds and categories of
    covariates) is stated and never taken from their rows; only a fit without privacy may infer the frequency.

    Covariates are the 6 calendar features and those of the layout.

    Attributes:
        public: whether anyone may see these rows.
    """

    def __init__(
        self,
        path: str,
        *,
        name: str = "",
        layout: Layout,
        context_length: int,
        horizon: int,
        reading: Reading | None = None,
        split: Split | None = None,
        unit: TrainItem = "user",
        windows_per_user: int = 4,
        train_stride: int = 1,
        eval_stride: int | None = None,
        short: Short = "error",
        batch_size: int = 64,
        num_workers: int = 0,
        value_unit: str = "",
        cache_dir: str | None = None,
        task: Mask | None = None,
        public: bool = False,
    ) -> None:
        """Declare what the table is; nothing is read yet.

        Args:
            path: a .csv or .parquet file, a folder that holds some, or a pattern such as `data/*.csv`.
            name: under which the ledger keeps this data's account: choose it once and keep it.
            layout: what the columns mean.
            context_length: ≥ 1, time steps before the horizon.
            horizon: ≥ 1, last time steps of a window.
            reading: how cells are written; None = as ISO 8601 and with decimal points. A private fit needs
                its `frequency`.
            split: into train, validation and test; None = `ByCustomer()`.
            unit: what a train item is: `user` (a customer, by λ windows), `window`, or `disjoint`.
            windows_per_user: λ ≥ 1, windows that a customer contributes to a batch; of `user` only.
            train_stride: ≥ 1, time steps between (possible) starts of train windows; not of `disjoint`.
            eval_stride: ≥ 1, time steps between validation or test windows; None = `horizon`.
            short: of customers whose train rows hold no window: stop, or leave them out.
            batch_size: ≥ 1, train items of a batch.
            num_workers: ≥ 0, loader processes.
            value_unit: of the values, for figures.
            cache_dir: folder of converted tables; None = the user's cache folder.
            task: what is to be predicted; None = the forecast of the last `horizon` steps.
            public: on your word, anyone may see these rows. Published protocols can then be followed: train
                rows are the context of the first test windows, and standardise errors.

        Raises:
            ValueError: an argument can't be right.
        """
        super().__init__(
            context_length=context_length,
            horizon=horizon,
            batch_size=batch_size,
            num_workers=num_workers,
            task=task,
        )
        check_train_item(unit)
        self.check_count("windows_per_user", windows_per_user)
        self.check_count("train_stride", train_stride)
        self.check_count("eval_stride", horizon if eval_stride is None else eval_stride)
        if not name.strip():
            raise ValueError(
                "Table.name is missing: the ledger keeps the account of this data under it, so choose one "
                "name per data set and keep it, also when rows are added or files are moved."
            )
        if short not in get_args(Short):
            raise ValueError(f"Table.short is {short!r}; it must be one of {', '.join(get_args(Short))}.")
        self.path = path
        self.dataset_id = name.strip()
        self.layout = layout
        self.reading = reading or Reading()
        if self.reading.frequency is not None:
            Frequency.parse(self.reading.frequency)
        self.split = split or ByCustomer()
        if "test" not in self.split.parts:
            raise ValueError("Table.split has no test part; give it a share above 0.")
        if isinstance(layout, Single):
            _check_single(unit, self.split)
        self.unit: TrainItem = unit
        self.windows_per_user = windows_per_user
        self.rows_per_unit = windows_per_user if unit == "user" else 1
        self.train_stride = train_stride
        self.eval_stride = horizon if eval_stride is None else eval_stride
        self.short = short
        self.value_unit = value_unit
        self.cache_dir = cache_dir
        self.public = public
        self.channel_names = list(layout.channel_names)
        self.num_covariates = NUM_CALENDAR_FEATURES + layout.covariates.num_covariates
        self.num_dropped = 0

    @staticmethod
    def check_config(arguments: Any) -> None:
        """Refuse, before the table is made, what `setup` of a private fit would: links may read the files.

        Args:
            arguments: of `__init__`, as a configuration has them.

        Raises:
            ValueError: a fact that is the same for all customers is left to their rows.
        """
        reading = arguments.get("reading")
        if reading is None or reading.get("frequency") is None:
            raise ValueError(_NO_FREQUENCY)

    @property
    def steps_per_day(self) -> int:  # type: ignore[override]
        """Time steps of a day, 1 where it has none of its own; reads the files if no frequency is given."""
        if self.reading.frequency is not None:
            return Frequency.parse(self.reading.frequency).steps_per_day
        return self._frequency.steps_per_day

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits of the files' contents and of how they are read."""
        identity = {**self.layout.identity(), "reading": asdict(self.reading)}
        return fingerprint([file.path for file in self._files()], identity=identity)

    def report(self) -> str:
        """What was found in the table, one fact a line. Private facts: covered by no ε."""
        return (self._folder / _REPORT).read_text()

    def found(self) -> TableReport:
        """The same as numbers and names. Private facts."""
        return TableReport.from_json((self._folder / _REPORT_JSON).read_text())

    def data_report(self) -> dict[str, Any]:
        """The same for a run folder: nobody is named. Private facts: covered by no ε."""
        return self.found().to_dict()

    def customers(self) -> list[Customer]:
        """Everybody in the table, in the order of `whole_store`. Private facts."""
        index = self._index
        found = []
        for code, name in enumerate(index["ids"].tolist()):
            first, end, rows = (int(index[key][code]) for key in ("first_rows", "end_rows", "all_rows"))
            clock = int(index["clock"][code])
            stamps = self.stamps(np.array([clock + first, clock + end - 1, clock + rows - 1]))
            found.append(
                Customer(
                    id=name,
                    spelled=str(index["spelled"][code]),
                    first_stamp=stamps[0] if end else None,
                    last_stamp=stamps[1] if end else None,
                    known_until=stamps[2],
                    future_steps=rows - end,
                )
            )
        return found

    def whole_store(self) -> FileStore:
        """Every customer's series from the first reading to the last row, whatever the split says.

        Rows after the last reading, with covariates and without a target, are part of it: they are what a
        forecast continues into (`Customer.future_steps` says how many). Windows of it are no train windows.
        """
        index = self._index
        return self._file_store(
            np.arange(len(index["ids"])), first_rows=index["first_rows"], end_rows=index["all_rows"]
        )

    def stamps(self, numbers: np.ndarray) -> pd.DatetimeIndex:
        """Of steps of the common clock: in the table's own zone where it has one, else as they stand."""
        stamps = self._frequency.stamps(numbers)
        if self._frequency.is_days or not (self.reading.time_zone or self._index["aware"]):
            return stamps
        return stamps.tz_localize("UTC").tz_convert(self.reading.time_zone or "UTC")

    def prepare_data(self) -> None:
        """Convert the files where that has not been done; what is wrong with them shows before a run."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """As of `WindowDataModule`.

        Raises:
            ValueError: the fit is private and a fact that is the same for all customers isn't stated.
        """
        if self.trainer is not None and DifferentialPrivacy.of(self.trainer) is not None:
            self._check_public_facts()
        super().setup(stage)

    def read_splits(self) -> Splits:
        _say(f"data report (nonprivate, for this machine only): {self._folder / _REPORT}")
        for line in self.found().summary():
            _say(f"  nonprivate: {line}")
        train = self._train_store()
        evaluation = {part: self._windows(part) for part in self.split.parts if part != "train"}
        for part, windows in evaluation.items():
            if not len(windows):
                raise ValueError(
                    f"Table.split leaves no {part} window of {self.length} steps, none of which may be a "
                    "train row: give that part a larger share, other borders, or another seed."
                )
        return Splits(
            train=make_train_items(
                train,
                unit=self.unit,
                context_length=self.context_length,
                horizon=self.horizon,
                windows_per_user=self.windows_per_user,
                train_stride=self.train_stride,
                task=self.task,
            ),
            val=evaluation.get("val"),
            test=evaluation["test"],
        )

    def read_metric_scale(self) -> tuple[Tensor, Tensor]:
        """Of what the test scores; of the train rows where they are public."""
        if not self.public:
            return super().read_metric_scale()
        store = self._train_store()
        count, total, squares = (np.zeros(self.num_channels) for _ in range(3))
        for index in range(len(store)):
            values = store.series(index).astype(np.float64)  # (T, C)
            count += (~np.isnan(values)).sum(axis=0)
            total += np.nansum(values, axis=0)
            squares += np.nansum(values**2, axis=0)
        mean = total / np.maximum(count, 1)
        std = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))
        std[std == 0] = 1.0  # a channel that never changes: its errors are then in its own unit
        return torch.from_numpy(mean).float(), torch.from_numpy(std).float()

    def content_pieces(self) -> Iterator[bytes]:
        """What the ledger knows the table by: stretches of a channel's values, cut by the clock."""
        index = self._index
        cells = np.load(self._folder / CELLS, mmap_mode="r")
        for code, offset in enumerate(index["offsets"].tolist()):
            first, end = int(index["first_rows"][code]), int(index["end_rows"][code])
            values = cells[offset + first : offset + end, : self.num_channels]
            # As windows hold them: the marks of tables that older versions have read stay the same.
            yield from stretches(
                np.asarray(values, dtype=np.float32), clock=int(index["clock"][code]) + first
            )

    def window_labels(self, index: int) -> tuple[Any, Any]:
        """The customer and the (L,) stamps of test window `index`, as the input writes them."""
        series, start = self.test_dataset.locate(index)
        code = self._test_codes[series]
        steps = int(self._index["clock"][code]) + np.arange(start, start + self.length)
        return self._spelling.id_of(str(self._index["ids"][code])), written(self._spelling, steps)

    def whole_series(self) -> TableSeries:
        """Every customer up to the last reading and beyond, whatever part of the split they are of."""
        index = self._index
        return TableSeries(
            self._file_store(
                np.arange(len(index["ids"])), first_rows=index["first_rows"], end_rows=index["end_rows"]
            ),
            num_rows=index["all_rows"],
            names=index["ids"].tolist(),
            spelling=self._spelling,
            features=self._features,
            step_of=partial(self._step_of, field="--from"),
        )

    def privacy_unit(self) -> PrivacyUnit:
        """The customer with all train rows, or one window of it.

        Raises:
            ValueError: as `setup` of a private fit.
        """
        self._check_public_facts()
        self.setup()
        return describe_train_items(
            self.train_dataset,
            unit=self.unit,
            length=self.length,
            train_stride=self.train_stride,
            user="customer",
        )

    def _check_public_facts(self) -> None:
        if self.reading.frequency is None:
            raise ValueError(_NO_FREQUENCY)

    @cached_property
    def _folder(self) -> Path:
        files = self._files()

        def make(folder: Path) -> None:
            report = convert(files, layout=self.layout, reading=self.reading, folder=folder)
            report.left_out = left_out(self.path)
            write_private(folder / _REPORT, report.to_text())
            write_private(folder / _REPORT_JSON, report.to_json())

        root = Path(self.cache_dir).expanduser() if self.cache_dir else cache_folder() / "tables"
        return converted(root, key=self.fingerprint, make=make)

    def _files(self) -> list[TableFile]:
        reading = self.reading
        return find_files(
            self.path,
            delimiter=reading.delimiter,
            encoding=reading.encoding,
            skip_lines=reading.skip_lines,
        )

    @cached_property
    def _index(self) -> dict[str, np.ndarray]:
        with np.load(self._folder / INDEX) as file:
            return dict(file)

    @cached_property
    def _frequency(self) -> Frequency:
        nanoseconds, months, phase = self._index["frequency"].tolist()
        return Frequency(nanoseconds=nanoseconds, months=months, phase=phase)

    @cached_property
    def _calendar(self) -> tuple[Tensor, int]:
        """Features of every step of the clock, and the number of the first of them."""
        index = self._index
        start = int(index["clock"].min())
        end = int((index["clock"] + index["all_rows"]).max())
        return torch.from_numpy(self._features(np.arange(start, max(end, start + 1)))), start

    def _features(self, steps: np.ndarray) -> np.ndarray:
        """(S, 6) float32 of steps of the clock."""
        stamps = self._frequency.stamps(steps)
        if self.reading.time_zone is not None and not self._frequency.is_days:
            stamps = stamps.tz_localize("UTC").tz_convert(self.reading.time_zone)
        return calendar_features(stamps)

    @cached_property
    def _spelling(self) -> TableSpelling:
        return TableSpelling.learn(
            self._files(),
            layout=self.layout,
            reading=self.reading,
            frequency=self._frequency,
        )

    @cached_property
    def _test_codes(self) -> list[int]:
        """Of the customers that the test has a series of, in its order."""
        names = self._index["ids"].tolist()
        return [code for code, name in enumerate(names) if "test" in self.split.spans(name)]

    def _train_store(self) -> FileStore:
        store, names = self._store("train")
        stride = self.length if self.unit == "disjoint" else self.train_stride
        _, count = window_starts(store, length=self.length, stride=stride, clock_offset=-self.context_length)
        fits = (count > 0).numpy()
        self.num_dropped = int((~fits).sum())
        if self.num_dropped and self.short == "error":
            shortest = int((~fits).argmax())
            steps = int(store.end_rows[shortest] - store.first_rows[shortest])
            raise ValueError(
                f"customer {told_place(shortest, names[shortest])} has {max(steps, 0)} train steps, which "
                f"hold no window of context_length + horizon = {self.length} (and {self.num_dropped - 1} "
                "more such customers): set Table.short to 'drop' to leave them out, or shorten the window."
            )
        if not fits.any():
            raise ValueError(
                f"Table.split leaves no customer with a train window of {self.length} steps: shorten the "
                "window, or choose another split."
            )
        return self._store("train", keep=fits)[0] if self.num_dropped else store

    def _windows(self, part: Part) -> WindowDataset:
        return WindowDataset(
            self._store(part)[0],
            context_length=self.context_length,
            horizon=self.horizon,
            stride=self.eval_stride,
            clock_offset=-self.context_length,
            task=self.task,
            fixed_masks=True,
        )

    def _store(self, part: Part, *, keep: np.ndarray | None = None) -> tuple[FileStore, Sequence[str]]:
        """The series of one part and whose they are; `keep` chooses among them."""
        index = self._index
        chosen, begins, ends = [], [], []
        for code, name in enumerate(index["ids"].tolist()):
            span = self.split.spans(name).get(part)
            if span is None:
                continue
            begin, end = int(index["first_rows"][code]), int(index["end_rows"][code])
            if span.begin is not None:
                begin = max(begin, self._row(span.begin, code) - self.context_length)  # may reach back …
                trained = self.split.spans(name).get("train")
                if trained is not None and trained.end is not None and not self.public:
                    begin = max(begin, self._row(trained.end, code))  # … to where nobody trained
            if span.end is not None:
                end = min(end, self._row(span.end, code))
            chosen.append(code)
            begins.append(begin)
            ends.append(max(end, begin))
        codes = np.array(chosen, dtype=np.int64)
        first_rows, end_rows = np.array(begins, dtype=np.int64), np.array(ends, dtype=np.int64)
        if keep is not None:
            codes, first_rows, end_rows = codes[keep], first_rows[keep], end_rows[keep]
        store = self._file_store(codes, first_rows=first_rows, end_rows=end_rows)
        return store, index["ids"][codes].tolist()

    def _file_store(self, codes: np.ndarray, *, first_rows: np.ndarray, end_rows: np.ndarray) -> FileStore:
        calendar, calendar_start = self._calendar
        return FileStore(
            self._folder / CELLS,
            offsets=torch.from_numpy(self._index["offsets"][codes]),
            first_rows=torch.from_numpy(first_rows),
            end_rows=torch.from_numpy(end_rows),
            clock=torch.from_numpy(self._index["clock"][codes]),
            num_channels=self.num_channels,
            num_numeric=len(self.layout.covariates.numeric),
            category_sizes=self.layout.covariates.sizes,
            calendar=calendar,
            calendar_start=calendar_start,
        )

    def _row(self, stamp: pd.Timestamp, code: int) -> int:
        """The customer's row at or after a border."""
        return self._step_of(stamp, field="split: the border") - int(self._index["clock"][code])

    def _step_of(self, stamp: pd.Timestamp, *, field: str) -> int:
        """The step at or after a stamp, which is in local time where a zone is given."""
        aware = bool(self._index["aware"])
        if self.reading.time_zone is None and aware != (stamp.tz is not None):
            have, other = ("have an", "none") if aware else ("have no", "one")
            raise ValueError(
                f"{field} {stamp} has {other} where stamps of {self.path} {have} offset from UTC: "
                f"{'write it with its offset' if aware else 'leave its offset out'}, or set "
                "reading.time_zone."
            )
        if self._frequency.is_days:
            stamp = stamp.tz_localize(None)
        elif stamp.tz is not None or self.reading.time_zone is not None:
            stamp = stamp if stamp.tz is not None else stamp.tz_localize(self.reading.time_zone)
            stamp = stamp.tz_convert(None)
        return self._frequency.first_number_from(stamp.as_unit("ns").value)


def _check_single(unit: TrainItem, split: Split) -> None:
    if unit == "user":
        raise ValueError(
            "Table.unit is 'user', but a single series has no users to protect: set it to 'window', or to "
            "'disjoint' for windows that share no step."
        )
    if not isinstance(split, ByTime):
        raise ValueError(
            f"Table.split is {type(split).__name__}, but a single series can be split by time alone: set it "
            "to ByTime with test_from."
        )


@rank_zero_only
def _say(message: str) -> None:
    print(message)
