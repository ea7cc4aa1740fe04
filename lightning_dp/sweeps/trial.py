"""One trial: a process with the sweep's command, and what it writes into its folder.

```
trials/NNN-…/    the run's folder, and beside what every run has:
  trial.json     number, parameters, command, times of its starts
  stdout.txt     what it printed; stderr.txt likewise
```
"""

import contextlib
import csv
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, final

from lightning_dp.archives import parse_json
from lightning_dp.privacy.report import json_ready, replace_text
from lightning_dp.sweeps.trial_lock import TrialLock
from lightning_dp.tracking.layout import CHECKPOINT

_FROM_OTHERS = (
    "LIGHTNING_DP_RUN_FOLDER",
    "PL_GLOBAL_SEED",
    "LOCAL_RANK",
    "SLURM_NTASKS",
    "LIGHTNING_DP_DEBUG",
)
"""What would tell a trial that it is part of something else, such as the job that its agent is; and what
would have it quote private cells, as its messages are kept in files and in the study."""

_ERROR_LINES = 5


@final
class TrialProcess:
    """A trial at work; its folder belongs to it alone.

    Args:
        number: of the trial.
        parameters: as they are handed over.
        command: without the run's folder.
        claim: on its folder.
        environment: variables beside this process's own.
    """

    def __init__(
        self,
        *,
        number: int,
        parameters: Mapping[str, Any],
        command: list[str],
        lock: TrialLock,
        environment: Mapping[str, str],
    ) -> None:
        self.number = number
        self.lock = lock
        self.folder = lock.folder
        self.stopped_at: float | None = None
        self._parameters = dict(parameters)
        self._command = [*command, f"--run.dir={self.folder}"]
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> str:
        """What a user would type to run it again."""
        return shlex.join(self._command)

    def start(self) -> None:
        """Start it, from its last checkpoint where there is one."""
        resume = ["--ckpt_path=last"] if self.has_checkpoint() else []
        record = self.folder / "trial.json"
        starts = json.loads(record.read_text())["starts"] if record.exists() else []
        starts.append(datetime.now(UTC).isoformat(timespec="seconds"))
        content = {
            "number": self.number,
            "parameters": json_ready(self._parameters),
            "command": self._command,
            "starts": starts,
        }
        kept = {name: value for name, value in os.environ.items() if name not in _FROM_OTHERS}
        with (self.folder / "stdout.txt").open("ab") as out, (self.folder / "stderr.txt").open("ab") as err:
            self._process = subprocess.Popen(
                [*self._command, *resume],
                env=kept | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=[self.lock.handle_for_process()],
                start_new_session=True,  # Ctrl-C reaches it through us, once, with all of its processes
            )
        self.lock.handed_over()
        # For whoever goes on after this process was killed; used only while the trial's lock is held.
        replace_text(record, json.dumps({**content, "pid": self._process.pid}, indent=2) + "\n")

    def has_ended(self) -> bool:
        """Whether its process is gone, whoever started it."""
        return not self.lock.is_running() if self._process is None else self._process.poll() is not None

    @property
    def exit_code(self) -> int | None:
        """Of the ended process; None where an earlier agent started it, which took that with it."""
        return None if self._process is None else self._process.returncode

    def stop(self, kind: signal.Signals) -> None:
        """Send a signal to all of its processes."""
        self.stopped_at = self.stopped_at or time.monotonic()
        if not self.has_ended():
            pid = json.loads((self.folder / "trial.json").read_text())["pid"]
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, kind)

    def has_begun(self) -> bool:
        """Whether it was started before."""
        return (self.folder / "trial.json").exists()

    def has_checkpoint(self) -> bool:
        """Whether a start goes on from where an earlier one was."""
        return (self.folder / CHECKPOINT).exists()

    def has_results(self) -> bool:
        """Whether it got to its end."""
        return (self.folder / "results.json").exists()

    def value(self, metric: str) -> float | None:
        """The metric in the results, else the last one logged.

        Raises:
            ValueError: the results are damaged.
        """
        if self.has_results():
            content = parse_json(
                (self.folder / "results.json").read_bytes(), where=str(self.folder / "results.json")
            )
            metrics = content.get("metrics") if isinstance(content, dict) else None
            if not isinstance(metrics, dict):
                raise ValueError(f"{self.folder / 'results.json'} holds no metrics")
            if metrics.get(metric) is not None:
                return float(metrics[metric])
        return next(reversed(self.logged(metric)), None)

    def logged(self, metric: str) -> list[float]:
        """Every value of the metric so far, in order."""
        return [float(row[metric]) for row in self._rows() if row.get(metric)]

    def progress(self) -> dict[str, float]:
        """Steps, ε spent and the losses of the moment, as far as they are logged."""
        shown: dict[str, float] = {}
        for row in self._rows()[-20:]:
            for column, name in (
                ("step", "step"),
                ("privacy/epsilon", "ε"),
                ("nonprivate/train_loss", "loss"),
            ):
                if row.get(column):
                    shown[name] = float(row[column])
        return shown

    def last_errors(self) -> list[str]:
        """The end of what it wrote to stderr, without progress bars."""
        path = self.folder / "stderr.txt"
        text = path.read_text(errors="replace") if path.exists() else ""
        lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.splitlines()]
        return [line for line in lines if line][-_ERROR_LINES:]

    def _rows(self) -> list[dict[str, str]]:
        path = self.folder / "metrics.csv"
        if not path.exists():
            return []
        text = path.read_text()
        whole = text[: text.rfind("\n") + 1]  # a line that is being written is not read yet
        return list(csv.DictReader(whole.splitlines()))
