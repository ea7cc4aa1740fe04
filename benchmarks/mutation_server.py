"""Tests under one changed file, in forks of a process that has imported everything else.

The checkout is shown through a folder of links in which one file is a real one; processes that a test starts
read that folder too. A first run without a change notes which lines each test reaches; a mutant is met by the
tests that reach its statement, the fast ones and those that caught most so far first. A line that runs at
import, or that no test was seen to reach (another process may), is met by all.
"""

import contextlib
import gc
import hashlib
import importlib
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from mutation_mutants import Mutant, change

ROOT = Path(__file__).parents[1]
_PACKAGE = "lightning_dp"
_HIDDEN = {".git", ".venv", "runs", ".hypothesis"}
_MEMORY = 12 << 30
"""Bytes: a changed grid may ask for any number of them."""


class View:
    """The checkout as links, but for one file.

    Args:
        folder: to make it in; replaced.
        module: path of the real file, from the checkout.
    """

    def __init__(self, folder: Path, *, module: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.folder = folder
        self.file = folder / module
        self._link(ROOT, folder, Path(module).parts)
        self.show((ROOT / module).read_text(encoding="utf-8"))

    def _link(self, source: Path, target: Path, parts: Sequence[str]) -> None:
        target.mkdir(parents=True)
        for entry in source.iterdir():
            if entry.name not in _HIDDEN and entry.name != parts[0]:
                (target / entry.name).symlink_to(entry)
        if len(parts) > 1:
            self._link(source / parts[0], target / parts[0], parts[1:])

    def show(self, source: str) -> None:
        """Let the real file read like this."""
        self.file.write_text(source, encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Reached:
    """Of a run without a change: what each test took and which lines of the file it reached."""

    seconds: dict[str, float]
    lines: dict[str, list[int]]
    always: list[int]
    modules: list[str]

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that can notice, all where that is not known."""
        if any(line in self.always for line in mutant.statement):
            return list(self.seconds)
        found = [test for test, lines in self.lines.items() if any(n in mutant.statement for n in lines)]
        return found or list(self.seconds)


class _Tracer:
    """Notes the lines of one file by test; what a fixture reaches counts for all tests beside."""

    def __init__(self, file: Path) -> None:
        self._file = str(file)
        self._hits: dict[tuple[str, str], set[int]] = defaultdict(set)
        self._now = self._hits["", "collect"]
        self.seconds: Counter[str] = Counter()
        self.failed: list[str] = []

    def start(self) -> None:
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    def _enter(self, frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != self._file:
            return None
        self._now.add(frame.f_lineno)
        return self._line

    def _line(self, frame: Any, event: str, _: Any) -> Any:
        self._now.add(frame.f_lineno)
        return self._line

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        self._now = self._hits[item.nodeid, "setup"]
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        self._now = self._hits[item.nodeid, "call"]
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def said(self) -> dict[str, Any]:
        sys.settrace(None)
        lines: dict[str, set[int]] = defaultdict(set)
        for (test, phase), hit in self._hits.items():
            for other in self.seconds:
                beside = phase == "setup" and other.partition("::")[0] == test.partition("::")[0]
                if other == test or beside:
                    lines[other] |= hit
        return {
            "seconds": dict(self.seconds),
            "lines": {test: sorted(hit) for test, hit in lines.items()},
            "always": sorted(self._hits["", "collect"]),
            "modules": [name for name, module in sys.modules.items() if _foreign(name, module)],
            "failed": self.failed,
        }


def _foreign(name: str, module: Any) -> bool:
    """Whether a module is nobody's here, so that it may be imported once for all mutants."""
    file = getattr(module, "__file__", None) or ""
    own = name.split(".")[0] == _PACKAGE or "/tests/" in file or file.startswith(str(ROOT / "benchmarks"))
    return not own and name != "__main__" and "site-packages" in file


class _Chosen:
    """Runs some of the collected tests, in a given order, and notes the first that fails."""

    def __init__(self, tests: Sequence[str]) -> None:
        self._place = {test: place for place, test in enumerate(tests)}
        self.failed = ""
        self.ran = 0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self._place), key=lambda one: self._place[one.nodeid]
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran += report.when == "call"
        if report.failed and not self.failed:
            self.failed = report.nodeid


def _run_pytest(view: View, files: Iterable[str], plugin: Any) -> int:
    """In a fork: one run of pytest that sees the view."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    os.chdir(view.folder)
    sys.path.insert(0, str(view.folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(view.folder), os.environ.get("PYTHONPATH", "")])
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True  # of a changed file nothing may stay
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silent, stream)
    options = ["-x", "-q", "-p", "no:cacheprovider", f"--rootdir={view.folder}", "-c", "pyproject.toml"]
    beside = view.folder.with_name(view.folder.name + "_tmp")
    if isinstance(plugin, _Tracer):
        plugin.start()
    return int(pytest.main([*options, f"--basetemp={beside}", *files], plugins=[plugin]))


def _fork(answer: Path, work: Any) -> int:
    """The process id of a fork that writes what `work` returns and leaves."""
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        answer.write_text(json.dumps(work()))
    finally:
        os._exit(0)


class Server:
    """Answers which test notices a mutant of one file.

    Args:
        module: path of the file, from the checkout.
        files: of tests.
        work: scratch folder.
        jobs: forks at once.
    """

    def __init__(self, *, module: str, files: Sequence[str], work: Path, jobs: int) -> None:
        self._module, self._files, self._work = module, list(files), work
        self._source = (ROOT / module).read_text(encoding="utf-8")
        work.mkdir(parents=True, exist_ok=True)
        self._views = [View(work / f"view{number}", module=module) for number in range(jobs)]
        self.reached = self._reach()
        for name in self.reached.modules:
            with contextlib.suppress(BaseException):
                importlib.import_module(name)
        assert _PACKAGE not in sys.modules, "a fork has to import the changed file itself"
        gc.collect()
        gc.freeze()
        self._caught: Counter[str] = Counter()

    def _reach(self) -> Reached:
        """A run without a change, or what one told of the same file and tests."""
        parts = [self._source, *((ROOT / file.partition("::")[0]).read_text("utf-8") for file in self._files)]
        state = hashlib.sha1("\0".join([*self._files, *parts]).encode()).hexdigest()[:16]
        answer = self._work / f"reached-{state}.json"
        if not answer.exists():
            view, asked = self._views[0], self._work / "asked.json"
            tracer = _Tracer(view.file)

            def work() -> dict[str, Any]:
                code = _run_pytest(view, self._files, tracer)
                return {**tracer.said(), "code": code}

            os.waitpid(_fork(asked, work), 0)
            said = json.loads(asked.read_text())
            if said["code"] or said["failed"]:
                raise SystemExit(f"the tests of {self._module} fail without a change: {said['failed']}")
            asked.rename(answer)
        said = json.loads(answer.read_text())
        return Reached(**{name: said[name] for name in ("seconds", "lines", "always", "modules")})

    def tried(self, mutants: Sequence[Mutant], *, seconds: float) -> Iterator[tuple[Mutant, dict[str, Any]]]:
        """Each mutant with its `outcome` (survived, caught, timeout), `change`, `by` which test, `seconds`.

        It is met by so many seconds of the tests that reach it, or by all there are where that is infinite.
        """
        waiting, running = list(reversed(mutants)), {}
        free = list(range(len(self._views)))
        while waiting or running:
            while free and waiting:
                place = free.pop()
                mutant = waiting.pop()
                tests = self._first(mutant, seconds)
                patience = 30 + 5 * sum(self.reached.seconds[test] for test in tests)
                changed = mutant.of(self._source)
                pid = self._start(place, changed, tests)
                said = change(self._source, changed)
                running[pid] = (place, mutant, said, time.monotonic(), patience)
            time.sleep(0.01)
            for pid, (place, mutant, said, since, patience) in list(running.items()):
                took = time.monotonic() - since
                done = os.waitpid(pid, os.WNOHANG)[0] == pid
                if not done and took < patience:
                    continue
                with contextlib.suppress(ProcessLookupError):  # what the tests started goes too
                    os.killpg(pid, signal.SIGKILL)
                if not done:
                    os.waitpid(pid, 0)
                del running[pid]
                free.append(place)
                result = self._result(place) if done else {"outcome": "timeout", "by": "", "tests": 0}
                self._caught[result["by"]] += 1
                yield mutant, {**result, "change": said, "seconds": round(took, 2)}

    def _first(self, mutant: Mutant, seconds: float) -> list[str]:
        took = self.reached.seconds
        tests = self.reached.tests_of(mutant) if math.isfinite(seconds) else list(took)
        tests.sort(key=lambda one: (took[one] + 0.02) / (1 + self._caught[one]))
        sums = accumulate(took[test] for test in tests)
        return [test for test, so_far in zip(tests, sums, strict=True) if so_far <= seconds] or tests[:1]

    def _start(self, place: int, changed: str, tests: list[str]) -> int:
        view = self._views[place]
        view.show(changed)
        files = dict.fromkeys(test.partition("::")[0] for test in tests)
        chosen = _Chosen(tests)

        def work() -> dict[str, Any]:
            random.seed()
            code = _run_pytest(view, files, chosen)
            outcome = "survived" if code == 0 else "caught"
            return {"outcome": outcome, "by": chosen.failed, "tests": chosen.ran}

        return _fork(self._work / f"answer{place}.json", work)

    def _result(self, place: int) -> dict[str, Any]:
        """What a fork said; one that died without a word was caught too."""
        try:
            return json.loads((self._work / f"answer{place}.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {"outcome": "caught", "by": "", "tests": 0}
