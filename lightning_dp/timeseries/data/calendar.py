"""Calendar features that are public for any series with time stamps."""

import numpy as np
import pandas as pd

NUM_CALENDAR_FEATURES = 6


def calendar_features(stamps: pd.DatetimeIndex) -> np.ndarray:
    """Sine and cosine of the hour of day, day of week and day of year.

    Args:
        stamps: T time stamps; minutes count as fractions of the hour.

    Returns:
        (T, 6) float32 in [−1, 1]: sin, cos of the day's, the week's and the year's phase. The week's
        phase is the whole day's number, so that it marks the day and leaves the hour to the first pair.
    """
    hour = stamps.hour.to_numpy() + stamps.minute.to_numpy() / 60
    phases = (hour / 24, stamps.day_of_week.to_numpy() / 7, (stamps.day_of_year.to_numpy() - 1) / 365.25)
    waves = [wave(2 * np.pi * phase) for phase in phases for wave in (np.sin, np.cos)]
    return np.stack(waves, axis=1).astype(np.float32)
