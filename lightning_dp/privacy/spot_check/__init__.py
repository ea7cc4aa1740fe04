"""Real units of a real step run again, to see whether what was measured of them bounds them.

Preflight tries a step on made-up units. What only some values, steps or sizes of batches wake is left for
this: of one physical batch a few units are run alone, and two beside each other, with the random draws that
they had, by plain autograd. The norms that the clipping engine measured in the batch must be theirs.

Nothing here decides when to look, and nothing here reads what is not in the batch: `callbacks.spot_check`
does.
"""

from lightning_dp.privacy.spot_check.comparison import Disagreement, SecondLook, Tolerance
from lightning_dp.privacy.spot_check.cutting import NotCut, cut, same_values
from lightning_dp.privacy.spot_check.draws import HandedOut, Recording
from lightning_dp.privacy.spot_check.rerun import CouldNotRun, Rerun, snapshot

__all__ = [
    "CouldNotRun",
    "Disagreement",
    "HandedOut",
    "NotCut",
    "Recording",
    "Rerun",
    "SecondLook",
    "Tolerance",
    "cut",
    "same_values",
    "snapshot",
]
