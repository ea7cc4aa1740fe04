"""Series cut into stretches that are the same wherever they come from, to be known again."""

from collections.abc import Iterator

import numpy as np

STEPS = 24
_DIFFERENT = 6  # values of a stretch: fewer are alike in many data sets, such as nights without use


def stretches(values: np.ndarray, *, clock: int) -> Iterator[bytes]:
    """Each channel's stretches of 24 steps, cut where the clock shows a multiple of that.

    So rows that were appended, or came off at either end, and other columns leave the rest as it was. Those
    of fewer than 6 different values are left out, and so are those with a value that is missing.

    Args:
        values: (T, C) float32, NaN = missing.
        clock: number of the first row on the common clock.
    """
    values = values[-clock % STEPS :]
    blocks = values[: len(values) // STEPS * STEPS].reshape(-1, STEPS, values.shape[1])
    rows: np.ndarray = blocks.transpose(0, 2, 1).astype(np.float32).reshape(-1, STEPS)
    ordered = np.sort(rows, axis=1)
    different = 1 + (np.diff(ordered, axis=1) != 0).sum(
        axis=1
    )  # NaN is different from all, and left out next
    for row in rows[(different >= _DIFFERENT) & ~np.isnan(rows).any(axis=1)]:
        yield row.tobytes()
