"""A first project for a CSV or Parquet file of series."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lightning_dp.starter import columns as guessing
from lightning_dp.starter.columns import Columns, Look
from lightning_dp.starter.project import EPSILON, Budget, Starter
from lightning_dp.timeseries.data.own_table.split import ByCustomer

_DAY = 86_400 * 10**9
_FEW_CUSTOMERS = 20
_LONGEST_HORIZON, _LONGEST_CONTEXT = 96, 2_016


@dataclass(frozen=True, kw_only=True)
class _Window:
    """Context, horizon and patch, and the steps of a day that the model's days have (0 for none)."""

    context: int
    horizon: int
    patch: int
    steps_per_day: int


def start_table(path: Path) -> tuple[Starter, Budget | None]:
    """A project for files of series, and its first plan where one can be made.

    Args:
        path: a .csv or .parquet file, or a folder of some.

    Raises:
        ValueError: nothing in them looks like series.
    """
    seen = guessing.look(_tables(path))
    columns = guessing.guess(seen, where=path)
    facts = _Facts(path, seen=seen, columns=columns)
    return facts.starter(), facts.budget


def _tables(path: Path) -> list[Path]:
    """The files, by name; which columns they share shows when one of them is read."""
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    tables = [one for one in found if one.suffix.lower() in (".csv", ".parquet")]
    if not tables:
        raise ValueError(f"{path} ends in {path.suffix!r}; a table is a .csv or a .parquet file.")
    return tables


class _Facts:
    """What was found, and what is made of it."""

    def __init__(self, path: Path, *, seen: Look, columns: Columns) -> None:
        self.path = path.expanduser().resolve()
        self.seen = seen
        self.columns = columns
        self.guesses: list[str] = []
        self.questions: list[str] = []
        rows = seen.rows
        self.names = [] if columns.identity is None else sorted(rows[columns.identity].astype(str).unique())
        step, self.regular = guessing.distances(columns, rows)
        self.frequency = _text_of(step)
        self.step = step
        self.lengths = _lengths(columns, rows, step=step)
        self.window = _window(step, span=int(np.median(self.lengths)) if len(self.lengths) else 0)
        self.single = columns.identity is None
        self.unit = "user" if len(self.names) >= _FEW_CUSTOMERS else "window"
        self.seed, self.train_names = _split(self.names) if not self.single else (0, [])
        self.budget = self._budget()

    def _budget(self) -> Budget | None:
        length = self.window.context + self.window.horizon
        if self.unit == "user":
            known = dict(zip(self.names, self.lengths, strict=True)) if len(self.lengths) else {}
            units = sum(int(known.get(name, 0)) >= length for name in self.train_names)
        else:
            share = 0.8 if self.single else len(self.train_names) / max(len(self.names), 1)
            units = int(share * np.maximum(self.lengths - length + 1, 0).sum())
        return Budget.usual(self.unit, units) if units >= 2 else None

    def starter(self) -> Starter:
        """Text of the project's files."""
        config = "\n".join(
            [
                f"# A first configuration for {self.path.name}, written by 'lightning-dp init' from a "
                "look at "
                + ("all of it." if self.seen.complete else f"its first {len(self.seen.rows)} rows."),
                "# 'guess from the data' marks what was read off the rows: no ε covers what these lines "
                "tell, so "
                "keep",
                "# them where the data is, or replace them by what is publicly known. QUESTION marks "
                "what only you "
                "know.",
                "seed_everything: 0",
                "data:",
                "  class_path: lightning_dp.Table",
                "  init_args:",
                *(f"    {line}" for line in self._data()),
                "model:",
                "  class_path: lightning_dp.TimeSeriesDiffusion",
                "  init_args:",
                *(f"    {line}" for line in self._model()),
                *(self._privacy().rstrip().split("\n")),
                "trainer:",
                "  accelerator: auto",
                "  devices: 1",
                f"  max_steps: {self.budget.steps if self.budget else 100}",
                "  limit_val_batches: 0   # validation would read rows that no ε covers",
                "  log_every_n_steps: 5",
                "  enable_model_summary: false",
                "  callbacks:",
                "  - class_path: lightning_dp.EMA",
                "    init_args: {decay: 0.97}",
                "run:",
                "  wandb: disabled   # 'offline' or 'online' to track the run in W&B",
                "",
            ]
        )
        return Starter(config=config, guesses=self.guesses, questions=self.questions)

    def _data(self) -> list[str]:
        window = self.window
        self._asked("under which name the ledger keeps the account of this data (data.name)")
        return [
            f"path: {_quoted(self.path)}",
            f"name: {_quoted(self.path.stem)}   # QUESTION: the ledger keeps this data's account under "
            "it; choose "
            "once, keep it",
            "layout:",
            *(f"  {line}" for line in self._layout()),
            "reading:",
            *(f"  {line}" for line in self._reading()),
            f"context_length: {window.context}   # guess from the data: steps that the model sees, "
            f"{self._in_words(window.context)}",
            f"horizon: {window.horizon}   # steps to forecast, {self._in_words(window.horizon)}; say "
            "what you need",
            *self._unit(),
            *self._split_lines(),
            "batch_size: 64",
            f"value_unit: {_quoted('')}   # of the values, for figures: kWh, for instance",
            "public: false   # true only if anyone may see these rows",
        ]

    def _layout(self) -> list[str]:
        columns = self.columns
        covariates = [
            "# Columns that are known for the future too (weather, tariffs) can be covariates. Their "
            "bounds and",
            "# categories must be public knowledge and not read off private rows, so they are yours to "
            "fill in:",
            "# covariates:",
            *(f"#   numeric: {{{_quoted(name)}: [LOWEST, HIGHEST]}}" for name in columns.numbers[1:2]),
            *(f"#   categorical: {{{_quoted(name)}: [EVERY, CATEGORY]}}" for name in columns.others[:1]),
        ]
        covariates = covariates if columns.numbers[1:] or columns.others else []
        time = f"  time_column: {_quoted(columns.time)}   # guess from the data"
        if self.single and len(columns.numbers) > 1:
            self._told(
                f"no column names customers, so the {len(columns.numbers)} columns of numbers are "
                "channels of "
                "one series"
            )
            self._asked(
                "whether its columns are customers, one each (then layout: lightning_dp.timeseries.Wide with "
                "time_column, and unit: user), or channels of one series (as written)"
            )
        if self.single:
            return [
                "class_path: lightning_dp.timeseries.Single   # QUESTION: one series with these "
                "channels? Were each",
                "# column a customer: lightning_dp.timeseries.Wide with time_column alone, split "
                "ByCustomer, unit user",
                "init_args:",
                time,
                f"  target_columns: {_list(columns.numbers)}   # guess: all columns of numbers",
                *(f"  {line}" for line in covariates),
            ]
        self._told(
            f"{columns.identity!r} names {len(self.names)} customers and {columns.time!r} holds the stamps"
        )
        if len(columns.numbers) > 1:
            self._asked(
                f"which columns to forecast: {columns.numbers[0]!r} is taken, the first of "
                f"{len(columns.numbers)} columns of numbers"
            )
        return [
            "class_path: lightning_dp.timeseries.Long   # one row a reading",
            "init_args:",
            f"  id_column: {_quoted(columns.identity)}   # guess from the data: who is protected",
            time,
            f"  target_columns: {_list(columns.numbers[:1])}"
            + ("" if len(columns.numbers) == 1 else f"   # QUESTION: numbers are {_list(columns.numbers)}"),
            *(f"  {line}" for line in covariates),
        ]

    def _reading(self) -> list[str]:
        columns = self.columns
        lines = []
        if self.seen.text and self.seen.delimiter != ",":
            lines.append(f"delimiter: {json.dumps(self.seen.delimiter)}")
        if columns.decimal != ".":
            lines.append(f"decimal: {json.dumps(columns.decimal)}   # guess from the data")
            self._told("numbers are written with a decimal comma")
        if columns.ambiguous is not None:
            first, second = columns.ambiguous
            self._asked(
                f"whether stamps are written as {first!r} or {second!r}: all of them can be read as both"
            )
            lines.append(
                f"time_format: null   # QUESTION: {first!r} or {second!r}? No fit starts before you say"
            )
        elif columns.time_format is not None:
            lines.append(f"time_format: {_quoted(columns.time_format)}   # guess from the data")
        if self.frequency is None:
            self._asked("at which step readings are taken (reading.frequency): the stamps don't say")
            lines.append("frequency: null   # QUESTION: 15min, h, D …; a private fit needs it")
        else:
            self._told(
                f"readings seem to be taken every {self.frequency!r}: {100 * self.regular:.3g} % of "
                "neighbouring "
                "stamps are so far apart"
            )
            lines.append(
                f"frequency: {self.frequency}   # guess from the data ({100 * self.regular:.3g} % of "
                "distances): "
                "confirm that it is known publicly"
            )
        if self.step is not None and 0 < self.step < _DAY and getattr(columns.stamps.dt, "tz", None) is None:
            self._asked(
                "in which time zone stamps are written (reading.time_zone), if clocks are changed there"
            )
            lines.append(
                "# time_zone: Europe/Berlin   # QUESTION: of stamps without an offset, where clocks change"
            )
        return lines

    def _unit(self) -> list[str]:
        if self.unit == "user":
            return [
                "unit: user   # a customer with all readings is protected",
                "windows_per_user: 4",
                "short: drop   # customers without one whole window are left out of training",
            ]
        why = (
            "a single series has no users"
            if self.single
            else f"{len(self.names)} customers are too few to hide one of them"
        )
        self._told(f"the unit is the window, as {why}; ε then says little about a whole series")
        return [f"unit: window   # {why}; ε per window says little about a whole series"]

    def _split_lines(self) -> list[str]:
        if not self.single:
            self._told(
                f"{len(self.train_names)} of the {len(self.names)} customers train, drawn by their names "
                f"(split.seed {self.seed})"
            )
            return [
                "split:",
                "  class_path: lightning_dp.timeseries.ByCustomer   # or ByTime: see docs/own_tables.md",
                f"  init_args: {{val_share: 0.0, test_share: 0.2, seed: {self.seed}}}",
            ]
        border = self._border()
        self._told(f"the test begins on {border}, when four fifths of the readings have passed")
        return [
            "split:",
            "  class_path: lightning_dp.timeseries.ByTime",
            f"  init_args: {{test_from: '{border}'}}   # guess from the data: choose a date of your own",
        ]

    def _border(self) -> str:
        stamps = self.columns.stamps.dropna().sort_values()
        if not len(stamps):
            return "2024-01-01"
        at = stamps.iloc[int(0.8 * (len(stamps) - 1))]
        return pd.Timestamp(at).strftime("%Y-%m-%d")

    def _model(self) -> list[str]:
        window = self.window
        self._asked(
            "what a value can be at least and at most (model.bounds), and what is a difference worth noticing"
        )
        ensemble = (
            [
                "base_denoiser:   # the window's own days, which the net corrects: worth most with few "
                "customers",
                "  class_path: lightning_dp.timeseries.DayEnsemble",
                f"  init_args: {{steps_per_day: {window.steps_per_day}, bandwidth: 0.15}}",
            ]
            if window.steps_per_day and window.context >= 2 * window.steps_per_day
            else []
        )
        return [
            "net:",
            "  class_path: lightning_dp.SeriesDiT",
            "  init_args:",
            "    conditioning: lightning_dp.AdaLNZero",
            f"    patch_size: {window.patch}   # divides context_length + horizon",
            "    hidden_size: 32",
            "    depth: 1",
            "    num_heads: 4",
            "normaliser:   # scales each window by its own context: costs no ε",
            "  class_path: lightning_dp.timeseries.DayMean",
            "  init_args:",
            "    floor: 0.1   # QUESTION: what difference is worth noticing, in the unit of the values; "
            "public "
            "knowledge",
            *ensemble,
            "# bounds: [0.0, .inf]   # QUESTION: what a value can be; public knowledge, such as 0 and up for "
            "consumption",
            "num_samples: 50",
            "optimizer:",
            "  class_path: torch.optim.AdamW",
            "  init_args: {lr: 1.0e-3, weight_decay: 0.0}",
        ]

    def _privacy(self) -> str:
        if self.budget is None:
            self._asked(
                "which budget to take (section privacy): too few whole windows were found to plan one"
            )
            return (
                f"privacy:\n  target_epsilon: {EPSILON:g}\n  delta: 1.0e-4\n"
                "  expected_batch_size: 2   # QUESTION: units of an average batch\n"
            )
        self._asked(f"which ε whoever is in the data may be promised: {EPSILON:g} is only a start")
        return self.budget.section

    def _in_words(self, steps: int) -> str:
        if self.step is None:
            return f"{steps} steps"
        if self.step < 0:
            return f"{steps} months"
        return str(pd.Timedelta(self.step * steps, unit="ns")).replace(" 00:00:00", "")

    def _told(self, sentence: str) -> None:
        self.guesses.append(sentence)

    def _asked(self, sentence: str) -> None:
        self.questions.append(sentence)


def _quoted(value: Any) -> str:
    return json.dumps(str(value), ensure_ascii=False)


def _list(names: list[str]) -> str:
    return f"[{', '.join(_quoted(name) for name in names)}]"


def _text_of(step: int | None) -> str | None:
    """pandas' name of a step; None where there is none."""
    if step is None:
        return None
    if step < 0:
        return "MS"
    for length, name in ((7 * _DAY, "W"), (_DAY, "D"), (_DAY // 24, "h"), (_DAY // 1440, "min")):
        if step % length == 0:
            count = step // length
            return name if count == 1 else f"{count}{name}"
    return f"{step // 10**9}s" if step % 10**9 == 0 else f"{step}ns"


def _lengths(columns: Columns, rows: pd.DataFrame, *, step: int | None) -> np.ndarray:
    """Steps of each series from its first stamp to its last, by name."""
    if step is None or columns.stamps.isna().any():
        return np.empty(0, dtype=np.int64)
    nanoseconds = pd.Series(_nanoseconds(columns.stamps))
    keys = (
        pd.Series(0, index=nanoseconds.index)
        if columns.identity is None
        else rows[columns.identity].astype(str).reset_index(drop=True)
    )
    spans = nanoseconds.groupby(keys).agg(["min", "max"]).sort_index()
    length = step if step > 0 else 30 * _DAY
    return ((spans["max"] - spans["min"]) // length + 1).to_numpy()


def _nanoseconds(stamps: pd.Series) -> np.ndarray:
    if getattr(stamps.dt, "tz", None) is not None:
        stamps = stamps.dt.tz_convert("UTC").dt.tz_localize(None)
    return stamps.astype("datetime64[ns]").astype("int64").to_numpy()


def _window(step: int | None, *, span: int) -> _Window:
    """Lengths that are usual for a step, shortened until two windows fit into a series."""
    steps_per_day = 0
    if step is not None and 0 < step < _DAY and _DAY % step == 0:
        steps_per_day = _DAY // step
        horizon = min(steps_per_day, _LONGEST_HORIZON)
        days = 7 if span >= 20 * steps_per_day else 4
        context, patch = min(days * steps_per_day, _LONGEST_CONTEXT), horizon
        context -= context % patch
    elif step is not None and step < 0:
        context, horizon, patch = 24, 12, 12
    elif step == _DAY:
        context, horizon, patch = 28, 7, 7
    elif step is not None and step > _DAY:
        context, horizon, patch = 24, 4, 4
    else:
        context, horizon, patch = 96, 24, 24
    while span and context > patch and context + horizon > span // 2:
        context -= patch
    return _Window(context=context, horizon=horizon, patch=patch, steps_per_day=steps_per_day)


def _split(names: list[str]) -> tuple[int, list[str]]:
    """The seed of twenty by which nearest to a fifth of the customers test, and who trains."""
    drawn = {}
    for seed in range(20):
        split = ByCustomer(val_share=0.0, test_share=0.2, seed=seed)
        drawn[seed] = [name for name in names if split.part(name.strip()) == "train"]
    wanted = len(names) - max(1, round(0.2 * len(names)))
    seed = min(drawn, key=lambda one: (abs(len(drawn[one]) - wanted), one))
    return seed, drawn[seed]
