"""What a user sees of a running sweep: a line for each running trial, or plain lines where nobody watches."""

import sys
from typing import final

from optuna.trial import TrialState
from tqdm import tqdm

from lightning_dp.sweeps.study import Outcome
from lightning_dp.sweeps.trial import TrialProcess

_WORDS = {TrialState.COMPLETE: "done", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@final
class SweepProgress:
    """Progress on stderr.

    Args:
        workers: ≥ 1 lines.
        total: trials there will be.
        ended: trials that had ended before.
    """

    def __init__(self, *, workers: int, total: int, ended: int) -> None:
        self._watched = sys.stderr.isatty()
        self._counts: dict[str, int] = {}
        options = {"disable": not self._watched, "dynamic_ncols": True}
        self._all = tqdm(desc="sweep", unit="trial", total=total, initial=ended, position=0, **options)
        self._lines = [
            tqdm(bar_format="{desc}", position=1 + worker, leave=False, **options)
            for worker in range(workers)
        ]

    def event(self, process: TrialProcess, what: str) -> None:
        """Something worth a line of its own."""
        self.note(f"{process.folder.name} {what}")

    def note(self, text: str) -> None:
        """A line above the bars."""
        tqdm.write(text, file=sys.stderr)

    def running(self, worker: int, process: TrialProcess) -> None:
        """Refresh the line of a running trial."""
        if self._watched:
            values = ", ".join(f"{name} {value:.4g}" for name, value in process.progress().items())
            self._lines[worker].set_description_str(f"  {process.folder.name}: {values or 'starting'}")

    def ended(self, worker: int, process: TrialProcess, outcome: Outcome) -> None:
        """Count it."""
        word = _WORDS[outcome.state]
        self._counts[word] = self._counts.get(word, 0) + 1
        detail = f": {outcome.reason}" if outcome.reason else ""
        value = "" if outcome.value is None else f", {outcome.value:.4g}"
        self.event(process, f"{word}{value}{detail}")
        self._lines[worker].set_description_str("")
        self._all.set_postfix(self._counts, refresh=False)
        self._all.update()

    def close(self) -> None:
        """Leave the terminal as it was."""
        for line in [*self._lines, self._all]:
            line.close()
