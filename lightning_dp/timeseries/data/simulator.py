"""Simulated household load: public data for demos, tests and calibration on machines without a data set.

Nothing here was fitted to anyone's readings. The equations are in `simulate_household_load`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lightning_dp.privacy.units import PrivacyUnit
from lightning_dp.timeseries.data.base import Splits, WindowDataModule
from lightning_dp.timeseries.data.calendar import NUM_CALENDAR_FEATURES, calendar_features
from lightning_dp.timeseries.data.own_table.layout import Covariates
from lightning_dp.timeseries.data.train_items import describe_train_items
from lightning_dp.timeseries.data.whole_series import ArraySeries
from lightning_dp.timeseries.data.windows import UserWindowDataset, WindowDataset
from lightning_dp.timeseries.masks import Mask

_HOURS = 24
_FIRST_STAMP = "2023-11-06"  # a Monday; the default 180 days then run from autumn to spring
_FUSE_KWH = 12.0
# Public bounds for the temperature covariate: [−15, 35] °C maps to [−1, 1].
_TEMPERATURE_CENTRE, _TEMPERATURE_HALF_RANGE = 10.0, 25.0


@dataclass(frozen=True, kw_only=True)
class SimulatedLoad:
    """What `simulate_household_load` returns, for N households and T steps.

    Attributes:
        kwh: (N, T) float32, energy of the step in kWh, NaN where the meter reported nothing.
        temperature: (T,) float32 outdoor temperature in °C, shared by all households.
        stamps: T time stamps.
    """

    kwh: np.ndarray
    temperature: np.ndarray
    stamps: pd.DatetimeIndex


def simulate_household_load(
    num_households: int, *, num_days: int, seed: int, steps_per_day: int = _HOURS
) -> SimulatedLoad:
    """Draw loads of households that share one climate.

    For household i at hour t, with hour of day h, T_t the outdoor temperature and 𝟙 indicators::

        T_t   = 9 − 8·cos(2π(doy − 20)/365.25) − 3·cos(2π(h − 3)/24) + A_t
        A_t   = .985·A_{t−1} + N(0, .6²)                                    weather fronts, days long
        s_it  = Σ_k w_ik(day)·exp(κ_k·(cos(2π(h − φ_k − δ_i)/24) − 1))      morning, midday, evening bump
        u_it  = .7·u_{i,t−1} + N(0, .25²)                                   what people do today
        H_it  = r_i·max(0, 15.5 − T̄_t)·(.75 + .25·cos(2π(h − 6)/24))       electric heating, T̄ = 6 h mean
        B_it  = Σ_{j ≤ n_it} .4·(1 + Lomax(2.2)),  n_it ~ Poisson(ρ_i·s_it) appliances: heavy tail
        y_it  = b_i·(.35 + P_it·s_it)·exp(u_it) + H_it + P_it·B_it + O_it
        y_it ← min(y_it, 12)                                                the main fuse

    b_i is log-normal (median .28 kWh), weights w_ik(day) differ by household and between workdays and
    weekends, δ_i ~ N(0, 1.2²) h shifts the day, r_i is .06 kWh/K (log-normal) for a quarter of the
    households that heat with electricity and .004 for the rest. P_it is 1 at home and .1 on absences
    of 2 to 10 days. O_it is an outlier of 3 to 9 kWh in one hour of 5,000. Missing: single steps
    with a probability of .4 %, and on average one block per 60 days of geometric length (mean 20 h).
    With k steps an hour a step takes a k-th of an hour's energy, but an appliance draws all of its own in
    one; A and u keep their variance and their memory in hours.

    Args:
        num_households: N ≥ 1.
        num_days: ≥ 1 days.
        seed: of the generator. A seed is fine here because the data is public.
        steps_per_day: 24·k, k ≥ 1: 24 for hours, 48 for half-hours.
    """
    per_hour = steps_per_day // _HOURS
    rng = np.random.default_rng(seed)
    step = pd.Timedelta(hours=1) / per_hour
    stamps = pd.date_range(_FIRST_STAMP, periods=num_days * steps_per_day, freq=step)
    hour = (stamps - stamps.normalize()) / pd.Timedelta(hours=1)  # of the day
    hour = hour.to_numpy()
    temperature = _temperature(stamps, hour=hour, per_hour=per_hour, rng=rng)
    shape = _daily_shape(stamps, hour=hour, num_households=num_households, rng=rng)  # (N, T)
    present = _presence(num_households, num_days=num_days, rng=rng).repeat(steps_per_day, axis=1)

    level = 0.28 * np.exp(rng.normal(0.0, 0.5, num_households))[:, None]
    habit = _autoregression(shape.shape, coefficient=0.7, scale=0.25, per_hour=per_hour, rng=rng)
    kwh = level * (0.35 + present * shape) * np.exp(habit)
    kwh += _heating(temperature, hour=hour, per_hour=per_hour, num_households=num_households, rng=rng)
    kwh /= per_hour
    kwh += present * _appliances(shape, per_hour=per_hour, rng=rng)
    outliers = rng.random(shape.shape) < 1 / (5_000 * per_hour)
    kwh[outliers] += rng.uniform(3.0, 9.0, int(outliers.sum())) / per_hour
    kwh = np.minimum(kwh, _FUSE_KWH / per_hour).astype(np.float32)
    kwh[_missing(shape.shape, per_hour=per_hour, rng=rng)] = np.nan
    return SimulatedLoad(kwh=kwh, temperature=temperature.astype(np.float32), stamps=stamps)


class HouseholdLoad(WindowDataModule):
    """Simulated load of many households, split by household: the user-level task without a file.

    One channel (kWh of the step); covariates are the 6 calendar features and the temperature, [−15, 35] °C
    mapped to [−1, 1]. A train item is one household: `windows_per_user` windows at random starts,
    consecutive rows of the batch. Validation and test households are never seen in training.

    Attributes:
        public: True: nobody lives in these households.
    """

    public = True

    def __init__(
        self,
        num_households: int = 400,
        *,
        num_days: int = 180,
        context_length: int = 96,
        horizon: int = 24,
        windows_per_user: int = 4,
        batch_size: int = 16,
        num_workers: int = 0,
        eval_stride: int = 72,
        seed: int = 0,
        steps_per_day: int = _HOURS,
        with_temperature: bool = True,
        task: Mask | None = None,
    ) -> None:
        """Declare the task; nothing is simulated yet.

        Args:
            num_households: ≥ 10; 80 % train, 10 % validation, 10 % test.
            num_days: days of every household; at least one window must fit.
            context_length: ≥ 1, known steps of a window.
            horizon: ≥ 1, steps to forecast.
            windows_per_user: λ ≥ 1, windows that a household contributes to a batch.
            batch_size: ≥ 1, households of a train batch (λ rows each); validation and test batches
                have the same number of rows.
            num_workers: ≥ 0, loader processes.
            eval_stride: ≥ 1, steps between validation or test windows; 72 hours forecast every third day.
            seed: of the simulator and of the split.
            steps_per_day: a multiple of 24: 24 for hours, 48 for half-hours.
            with_temperature: whether the temperature is a covariate; without it a model starts on data
                that has the calendar alone.
            task: what is to be predicted; None = the forecast of the last `horizon` steps.

        Raises:
            ValueError: a count is too small, `steps_per_day` is no multiple of 24, or no window fits into
                `num_days`.
        """
        if steps_per_day < _HOURS or steps_per_day % _HOURS:
            raise ValueError(
                f"HouseholdLoad.steps_per_day is {steps_per_day}; it must be a multiple of 24: 24 for hours, "
                "48 for half-hours."
            )
        super().__init__(
            context_length=context_length,
            horizon=horizon,
            batch_size=batch_size,
            num_workers=num_workers,
            task=task,
        )
        self.check_count("num_households", num_households, least=10)
        self.check_count("num_days", num_days)
        self.check_count("windows_per_user", windows_per_user)
        self.check_count("eval_stride", eval_stride)
        if num_days * steps_per_day < self.length:
            raise ValueError(
                f"HouseholdLoad.num_days is {num_days} ({num_days * steps_per_day} steps); one window needs "
                f"context_length + horizon = {self.length} steps: simulate more days."
            )
        self.num_households = num_households
        self.num_days = num_days
        steps = "" if steps_per_day == _HOURS else f"-{steps_per_day}-steps"
        self.dataset_id = f"simulated-{num_households}-households-{num_days}-days{steps}-seed-{seed}"
        self.value_unit = "kWh"
        self.rows_per_unit = self.windows_per_user = windows_per_user
        self.eval_stride = eval_stride
        self.seed = seed
        self.channel_names = ["load"]
        self.with_temperature = with_temperature
        self.num_covariates = NUM_CALENDAR_FEATURES + with_temperature
        if with_temperature:
            lowest = _TEMPERATURE_CENTRE - _TEMPERATURE_HALF_RANGE
            highest = _TEMPERATURE_CENTRE + _TEMPERATURE_HALF_RANGE
            self.extra_covariates = Covariates(numeric={"temperature": (lowest, highest)})
        self.steps_per_day = steps_per_day
        num_held_out = num_households // 10
        self.num_train_households = num_households - 2 * num_held_out

    def read_splits(self) -> Splits:
        load = simulate_household_load(
            self.num_households, num_days=self.num_days, seed=self.seed, steps_per_day=self.steps_per_day
        )
        covariates = calendar_features(load.stamps)  # (T, 6)
        if self.with_temperature:
            temperature = (load.temperature - _TEMPERATURE_CENTRE) / _TEMPERATURE_HALF_RANGE
            covariates = np.concatenate(
                [covariates, np.clip(temperature, -1.0, 1.0)[:, None]], axis=1
            )  # (T, 7)
        series = load.kwh[:, :, None]  # (N, T, 1)
        # A stream of its own, so that another simulator draw can't change who is in the test set.
        order = np.random.default_rng([self.seed, 1]).permutation(self.num_households)
        val_start = self.num_train_households
        test_start = val_start + (self.num_households - val_start) // 2
        train = series[order[:val_start]]
        digits = len(str(self.num_households - 1))
        names = [f"household-{number:0{digits}d}" for number in range(self.num_households)]
        self._test_names = [names[number] for number in order[test_start:]]
        self._whole = ArraySeries(list(series), names=names, stamps=load.stamps, covariates=covariates)

        def windows(households: np.ndarray) -> WindowDataset:
            return WindowDataset(
                list(series[households]),
                covariates=covariates,
                context_length=self.context_length,
                horizon=self.horizon,
                stride=self.eval_stride,
                channel_names=self.channel_names,
                source="simulated household load",
                task=self.task,
                fixed_masks=True,
            )

        return Splits(
            train=UserWindowDataset(
                list(train),
                covariates=covariates,
                context_length=self.context_length,
                horizon=self.horizon,
                windows_per_user=self.windows_per_user,
                channel_names=self.channel_names,
                source="simulated household load",
                task=self.task,
            ),
            val=windows(order[val_start:test_start]),
            test=windows(order[test_start:]),
        )

    def window_labels(self, index: int) -> tuple[str, Any]:
        """The household and the (L,) stamps of test window `index`."""
        household, start = self.test_dataset.locate(index)
        stamps = self.whole_series().stamps(0, start=start, length=self.length)
        return self._test_names[household], stamps

    def whole_series(self) -> ArraySeries:
        """All households to their last reading and beyond."""
        self.setup()
        return self._whole

    def privacy_unit(self) -> PrivacyUnit:
        """The household with everything it ever reported."""
        self.setup()
        return describe_train_items(
            self.train_dataset, unit="user", length=self.length, train_stride=1, user="household"
        )


def _temperature(
    stamps: pd.DatetimeIndex, *, hour: np.ndarray, per_hour: int, rng: np.random.Generator
) -> np.ndarray:
    """(T,) °C: season, day and weather fronts."""
    season = -8.0 * np.cos(2 * np.pi * (stamps.day_of_year.to_numpy() - 20) / 365.25)
    day = -3.0 * np.cos(2 * np.pi * (hour - 3) / 24)
    front = _autoregression((1, len(stamps)), coefficient=0.985, scale=0.6, per_hour=per_hour, rng=rng)[0]
    return 9.0 + season + day + front


def _daily_shape(
    stamps: pd.DatetimeIndex, *, hour: np.ndarray, num_households: int, rng: np.random.Generator
) -> np.ndarray:
    """(N, T) how active a household is: three bumps a day, weighted by household and kind of day."""
    peak, width = np.array([7.3, 13.0, 19.5]), np.array([14.0, 4.0, 7.0])
    typical = np.array([[0.9, 0.35, 2.0], [0.6, 1.1, 1.8]])  # workday, weekend
    taste = np.exp(rng.normal(0.0, 0.45, (num_households, 1, 3)))
    at_home = rng.random((num_households, 1, 1)) < 0.3
    # Those who are at home by day have weekends all week.
    weights = np.where(at_home, typical[1], typical) * taste  # (N, 2, 3)
    shift = rng.normal(0.0, 1.2, (num_households, 1, 1))
    hours, step_of_day = np.unique(hour, return_inverse=True)  # S steps a day
    bumps = np.exp(width * (np.cos(2 * np.pi * (hours[:, None] - peak - shift) / 24) - 1))  # (N, S, 3)
    by_day = np.einsum("nhk,ndk->ndh", bumps, weights)  # (N, 2, S)
    weekend = (stamps.day_of_week.to_numpy() >= 5).astype(int)
    return by_day[:, weekend, step_of_day]


def _presence(num_households: int, *, num_days: int, rng: np.random.Generator) -> np.ndarray:
    """(N, days) 1 at home, .1 while away: about one absence of 2 to 10 days in 90 days."""
    home = np.ones((num_households, num_days))
    for household, count in enumerate(rng.poisson(num_days / 90, num_households)):
        for start in rng.integers(0, num_days, count):
            home[household, start : start + rng.integers(2, 11)] = 0.1
    return home


def _heating(
    temperature: np.ndarray, *, hour: np.ndarray, per_hour: int, num_households: int, rng: np.random.Generator
) -> np.ndarray:
    """(N, T) kWh an hour: walls keep the last hours' temperature, a thermostat keeps mornings warmer."""
    steps = 6 * per_hour
    padded = np.concatenate([np.full(steps - 1, temperature[0]), temperature])
    felt = np.convolve(padded, np.full(steps, 1 / steps), mode="valid")  # (T,) mean of the last six hours
    demand = np.maximum(0.0, 15.5 - felt) * (0.75 + 0.25 * np.cos(2 * np.pi * (hour - 6) / 24))
    electric = rng.random(num_households) < 0.25
    response = np.where(electric, 0.06, 0.004) * np.exp(rng.normal(0.0, 0.35, num_households))
    return response[:, None] * demand


def _appliances(shape: np.ndarray, *, per_hour: int, rng: np.random.Generator) -> np.ndarray:
    """(N, T) kWh of washing, cooking and charging: rare, and heavy in the tail (index 2.2)."""
    rate = 0.06 / per_hour * np.exp(rng.normal(0.0, 0.6, (len(shape), 1)))
    counts = rng.poisson(rate * shape)
    hits = np.flatnonzero(counts)
    events = np.repeat(hits, counts.ravel()[hits])
    sizes = 0.4 * (1.0 + rng.pareto(2.2, len(events)))
    return np.bincount(events, weights=sizes, minlength=shape.size).reshape(shape.shape)


def _missing(shape: tuple[int, ...], *, per_hour: int, rng: np.random.Generator) -> np.ndarray:
    """(N, T) bool: single steps and blocks that the meter lost."""
    num_households, num_steps = shape
    lost = rng.random(shape) < 0.004
    for household, count in enumerate(rng.poisson(num_steps / (60 * _HOURS * per_hour), num_households)):
        for start in rng.integers(0, num_steps, count):
            lost[household, start : start + per_hour * rng.geometric(1 / 20)] = True
    return lost


def _autoregression(
    shape: tuple[int, ...], *, coefficient: float, scale: float, per_hour: int, rng: np.random.Generator
) -> np.ndarray:
    """(N, T) AR(1) from its stationary distribution; coefficient and scale are those of hourly steps."""
    variance = scale**2 / (1 - coefficient**2)
    coefficient = coefficient ** (1 / per_hour)
    scale = float(np.sqrt(variance * (1 - coefficient**2)))
    noise = rng.normal(0.0, scale, shape).T.copy()  # time first: the loop below then walks rows
    noise[0] /= np.sqrt(1 - coefficient**2)
    for step in range(1, len(noise)):
        noise[step] += coefficient * noise[step - 1]
    return noise.T
