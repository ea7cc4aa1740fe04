"""Record and replay (arXiv 2602.17454): a private fit on D, and the same fit on neighbours D′.

The fit on D is recorded: each mechanism's input before noise, its noisy output, everything that can be
seen from outside. On each D′ it is replayed with the noisy outputs of D. Then all that can be seen must be
equal, and each mechanism's input may have moved by at most the sensitivity that was paid for: its noise's
standard deviation, divided by the noise multiplier in the ledger. Together with Gaussian noise of that
size this is what (ε, δ) says; what is seen is then a function of noisy outputs alone.

Three things are put in place of what they would be, at the seams the project itself has: the noise source
of the callback and of releases, the generator of the Poisson sampler, and torch's global random numbers
(`draws.py`). For "one of weight 0" the weights of a physical batch are set after the project has made
it. Trainer, callback, engine, ledger, loggers and checkpoints are real.

To add a training path, call `replay` with a function that makes its module and one that makes its data
module. It serves any module, images as well as series, with any `preparations()`, and several gloo ranks
(`ranks=2`). The data module must keep its train set in an attribute. What it can't see is said in
docs/results/faults.md.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger, Logger

from lightning_dp.callbacks import differential_privacy
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.callbacks.followed_batches import FollowedBatches
from lightning_dp.privacy import noise, plan, release, sampling
from lightning_dp.privacy.accounting import GaussianEvent
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.sites import Sites
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.privacy.preflight import Accepted
from lightning_dp.strategies.private_ddp import PrivateDDP
from replay.draws import KeyedDraws, included, number, seed_with
from replay.neighbours import ALL, Fetches, Neighbour, Slot, Slots, show
from replay.observed import differences, files_of, ledger_of
from replay.tape import Call, Clock, Interrupted, Recorder, Source, Tape

TOLERANCE = 1e-5
"""Share of the sensitivity that rounding may add: two fp32 sums of twelve gradients of that length, each
rounded twelve times by up to 6e-8 of the sum. More than 1e-6 was seen."""
SAME = 1e-5
"""Share of the sensitivity below which two raw inputs count as equal but for rounding."""

Place = tuple[str, int]
"""Which mechanism: "release" or "step", and its number."""


@dataclass(frozen=True, kw_only=True)
class Violation:
    """Something that the guarantee does not allow.

    Attributes:
        kind: "sampling" (who was in a batch is not what was paid for), "noise" (not once per step that was
            paid for), "sensitivity" (a raw input moved too far), "coupling" (a unit's row changed what
            others contribute), "seen" (an observable differs), "exit" (the run ended otherwise).
        where: which run, and where in it.
    """

    kind: str
    where: str


@dataclass(kw_only=True)
class Replay:
    """What came of it.

    Attributes:
        violations: empty where the guarantee held.
        moved: by neighbour, the largest movement of a mechanism's raw input, in sensitivities.
        batches: by step on D, how many units were in the batch.
        exit: how the run on D ended.
    """

    violations: list[Violation]
    moved: dict[str, float]
    batches: list[int]
    exit: str

    @property
    def kinds(self) -> set[str]:
        """The kinds of violations."""
        return {violation.kind for violation in self.violations}


@dataclass(kw_only=True)
class _Run:
    """One run: what each rank of each process did, what was seen, what was paid for."""

    slots: Slots
    seed: int
    tapes: list[list[Tape]] = field(default_factory=list)
    accepted: list[Accepted] = field(default_factory=list)
    sites: Sites = field(default_factory=Sites)
    exit: str = ""
    seen: dict[str, Any] = field(default_factory=dict)
    charged: dict[str, list[GaussianEvent]] = field(default_factory=dict)

    def mechanisms(self) -> dict[Place, list[Call]]:
        """Additions of noise by mechanism. Rank 0 makes them."""
        found: dict[Place, list[Call]] = {}
        for call in (call for ranks in self.tapes for call in ranks[0].calls):
            releases = sum(kind == "release" for kind, _ in found)
            place = (call.kind, call.step if call.kind == "step" else releases)
            found.setdefault(place, []).append(call)
        return found

    def sensitivity(self, place: Place, calls: list[Call]) -> float:
        """What was paid for: the noise's standard deviation ÷ the noise multiplier in the ledger."""
        kind, number = place
        paid = self.charged[kind]
        event = paid[0] if kind == "step" else paid[number]
        return min(call.scale for call in calls) / event.noise_multiplier

    def batches(self) -> dict[int, list[int]]:
        """Units that were trained on, by step, as often as they were there."""
        found: dict[int, list[int]] = {}
        for tape in (tape for ranks in self.tapes for tape in ranks):
            for step, keys, weights in tape.trained:
                own = [key for key, weight in zip(keys, weights, strict=True) if weight > 0]
                found.setdefault(step, []).extend(own)
        return found


def replay(
    make_module: Callable[[], LightningModule],
    make_data: Callable[[], LightningDataModule],
    *,
    folder: Path,
    steps: int,
    num_units: int,
    privacy: Mapping[str, Any],
    neighbours: Sequence[Neighbour] = ALL,
    callbacks: Callable[[Path], list[Callback]] = lambda folder: [],
    observers: Callable[[], list[Callback]] = list,
    loggers: Callable[[Path], list[Logger]] = lambda folder: [CSVLogger(folder, name=None, version="")],
    trainer: Mapping[str, Any] | None = None,
    interrupt_after: int | None = None,
    ranks: int = 1,
    seed: int = 0,
) -> Replay:
    """Fit on D, replay on each neighbour, compare.

    Args:
        make_module: called for each process of each fit, with torch seeded the same.
        make_data: the same; a pool of more than `num_units` train units, of which D shows the first ones.
        folder: each run gets a folder of its own in it.
        steps: optimizer steps of the plan.
        num_units: units of D. Public, and N of the plan on every D′, unless `privacy` says otherwise.
        privacy: options of `DifferentialPrivacy`.
        neighbours: data sets to replay on, those that others are `like` first.
        callbacks: further callbacks of a fit, from its run folder.
        observers: callbacks that have to come before `DifferentialPrivacy`.
        loggers: of one process of a fit, from a folder in the run folder.
        trainer: further options of the Trainer.
        interrupt_after: end the process after this step and go on in a new one from its checkpoint.
        ranks: gloo processes.
        seed: of everything that the harness decides.
    """
    rate = privacy["expected_batch_size"] / num_units
    new = num_units

    def times(seed: int) -> list[int]:
        """How often each unit, and the one that only D′ has, is drawn."""
        batches = [included(seed, keys=range(num_units + 1), draw=draw, rate=rate) for draw in range(steps)]
        return [sum(key in batch for batch in batches) for key in range(num_units + 1)]

    # A run in which nobody of interest is drawn would show nothing.
    seed = seed_with(lambda seed: times(seed)[new] >= 2 and max(times(seed)[:new]) >= 2, first=seed)
    old = max(range(num_units), key=lambda key: times(seed)[key])

    def fit(name: str, slots: Slots, frozen: _Run | None) -> _Run:
        home = folder / name.replace(" ", "-")
        ledger, run_folder = home / "ledger.sqlite", home / "run"
        run_folder.mkdir(parents=True)
        run = _Run(slots=slots, seed=seed)
        draws = KeyedDraws(seed)
        for process, end in enumerate([interrupt_after, None] if interrupt_after else [None]):
            torch.manual_seed(seed)
            module, data = make_module(), make_data()
            tape, clock, fetches = Tape(), Clock(), Fetches(draws)
            show(data, slots, fetches)
            options = {"num_units": num_units, "dataset": "replayed", "ledger": str(ledger), **privacy}
            # It would stop planted faults before they show, and reads units again, which the coins count.
            options.setdefault("spot_check", 0)
            private = DifferentialPrivacy(**options)
            said = None if frozen is None else frozen.tapes[process][0]
            private._noise = Source(tape, clock, kind="step", real=private._noise, frozen=said)
            real = release.SecureGaussianNoise()
            releases = Source(tape, clock, kind="release", real=real, frozen=said)
            kept = home / f"process{process}"
            recorder = Recorder(
                tape,
                clock,
                slots=slots,
                fetches=fetches,
                seed=seed,
                folder=run_folder,
                keep_as=kept,
                first_step=(interrupt_after or 0) if process else 0,
                interrupt_after=end,
            )
            others = callbacks(run_folder)
            training = Trainer(
                **{
                    "default_root_dir": run_folder,
                    "accelerator": "cpu",
                    "devices": ranks,
                    "strategy": "auto" if ranks == 1 else PrivateDDP(start_method="fork"),
                    "max_steps": steps,
                    "logger": loggers(run_folder / f"process{process}"),
                    "enable_checkpointing": any(isinstance(other, Checkpoint) for other in others),
                    "enable_progress_bar": False,
                    "enable_model_summary": False,
                    "log_every_n_steps": 1,
                    "callbacks": [*observers(), private, *others, recorder],
                    **(trainer or {}),
                }
            )
            checkpoint = run_folder / "interrupted.ckpt" if process else None
            # Of several processes none tells what its preflight found.
            known = None if frozen is None or ranks > 1 else (frozen.accepted, deepcopy(frozen.sites))
            with _seams(releases, slots, seed, known):
                try:
                    training.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=False)
                    run.exit += "finished"
                except Interrupted:
                    run.exit += "interrupted, "
                except Exception as error:  # how a run ends can be seen
                    run.exit += f"{type(error).__name__}: {error}"
            run.accepted, run.sites = (
                list(private._account.accepted) if private._account else [],
                private.clipping_engine.sites,
            )
            paths = [kept.with_suffix(f".rank{rank}.pt") for rank in range(ranks)]
            run.tapes.append([tape] if ranks == 1 else [_read_tape(path) for path in paths])
        _observe(run, run_folder, ledger)
        return run

    D = tuple(Slot(key=number, item=number) for number in range(num_units))
    runs = {"D": fit("D", D, None)}
    violations = _own_faults("D", runs["D"])
    moved = {}
    for neighbour in neighbours:
        name = neighbour.name
        theirs = runs[name] = fit(name, neighbour.edit(D, old, new), runs["D"])
        violations += _own_faults(name, theirs)
        for where in differences(runs["D"].seen, theirs.seen):
            kind = "exit" if where.startswith("exit") else "seen"
            violations.append(Violation(kind=kind, where=f"{name}: {where}"))
        movements = _movements(runs["D"], theirs)
        moved[name] = max(movements.values(), default=0.0)
        allowed = _allowed(neighbour, runs["D"])
        for place, movement in movements.items():
            if not movement <= allowed * (1 + TOLERANCE) + (0 if allowed else SAME):
                where = f"{name}: {place} moved by {movement:.6g}, not {allowed:g}"
                violations.append(Violation(kind="sensitivity", where=where))
        if neighbour.like is not None:
            for place, movement in _movements(runs[neighbour.like], theirs).items():
                if not movement <= SAME:
                    where = f"{name}: {place} is {movement:.3g} away from '{neighbour.like}'"
                    violations.append(Violation(kind="coupling", where=where))
    batches = runs["D"].batches()
    return Replay(
        violations=violations,
        moved=moved,
        batches=[len(batches[step]) for step in sorted(batches)],
        exit=runs["D"].exit,
    )


@contextmanager
def _seams(
    releases: Source, slots: Slots, seed: int, known: tuple[list[Accepted], Sites] | None
) -> Iterator[None]:
    """While this is open, the noise of releases and the weights of rows are the harness's."""
    split = sampling.split

    def weighed(logical: list[int], **options: Any) -> Iterator[sampling.PhysicalBatch]:
        for part in split(logical, **options):
            pairs = zip(part.indices, part.weights, strict=True)
            yield replace(part, weights=tuple(w if slots[index].present else 0.0 for index, w in pairs))

    with ExitStack() as stack:
        stack.enter_context(patch.object(release, "SecureGaussianNoise", lambda: releases))
        if not all(slot.present for slot in slots):
            stack.enter_context(patch.object(sampling, "split", weighed))
        # On D the noise is the project's own, from bits that let a test say the same twice.
        stack.enter_context(patch.object(noise, "entropy_bits", lambda: number("noise", seed)))
        # What follows saves most of the time: preflight knows made-up units alone, which are the same for
        # every D′, and the same plan has the same price.
        # Following runs steps of its own, whose draws the harness would count; preflight has shown the same.
        stack.enter_context(patch.object(FollowedBatches, "look", lambda *_, **__: False))
        if known is not None:
            accepted, sites = known

            def remembered(*_: Any, engine: ClippingEngine, **__: Any) -> list[Accepted]:
                engine.know(sites)
                return accepted

            stack.enter_context(patch.object(differential_privacy, "run_preflight", remembered))
        for name in ("epsilon_pld", "epsilon_rdp", "group_epsilon"):
            stack.enter_context(patch.object(plan, name, _remembering(getattr(plan, name))))
        yield


@cache
def _remembering(price: Callable[..., float]) -> Callable[..., float]:
    remembered = cache(price)

    def of(events: Sequence[Any], delta: float, **options: Any) -> float:
        return remembered(tuple(events), delta, **options)

    return of


def _read_tape(path: Path) -> Tape:
    return Tape(**torch.load(path, weights_only=False)) if path.exists() else Tape()


def _observe(run: _Run, folder: Path, ledger: Path) -> None:
    """Fill in what was seen of a run and what was paid for it."""
    run.seen["ledger"], names = ledger_of(ledger)
    names[str(folder)] = "the run folder"
    run.seen |= files_of(folder, names)
    run.seen["exit"] = run.exit
    run.seen["process"] = [[tape.shown for tape in ranks] for ranks in run.tapes]
    run.seen["noise"] = [
        (call.kind, call.step, call.scale, tuple(call.raw.shape))
        for ranks in run.tapes
        for call in ranks[0].calls
    ]
    account = Ledger(ledger)
    for dataset, unit in account.accounts() if ledger.exists() else []:
        run.charged["step"] = account.events(dataset, unit=unit, kind="reserve")  # type: ignore[assignment]
        run.charged["release"] = account.events(dataset, unit=unit, kind="release")  # type: ignore[assignment]


def _own_faults(name: str, run: _Run) -> list[Violation]:
    """What one run shows by itself: who was sampled, how often noise was added, whether that was paid for."""
    paid = run.charged.get("step", [])
    if len({(event.noise_multiplier, event.sampling_rate) for event in paid}) != 1:
        return [Violation(kind="noise", where=f"{name}: steps were paid for as {paid}; exit: {run.exit}")]
    violations = []
    keys = [slot.key for slot in run.slots if slot.present]
    for step, trained in run.batches().items():
        wanted = sorted(included(run.seed, keys=keys, draw=step, rate=paid[0].sampling_rate))
        if sorted(trained) != wanted:
            where = (
                f"{name}: step {step} has units {sorted(trained)}, and the coins that were paid for {wanted}"
            )
            violations.append(Violation(kind="sampling", where=where))
    mechanisms = run.mechanisms()
    if sum(kind == "release" for kind, _ in mechanisms) > len(run.charged["release"]):
        violations.append(Violation(kind="noise", where=f"{name}: a release was not paid for"))
    if sum(kind == "step" for kind, _ in mechanisms) > sum(event.steps for event in paid):
        violations.append(Violation(kind="noise", where=f"{name}: a step was not paid for"))
    for ranks in run.tapes:
        if any(tape.calls for tape in ranks[1:]):
            violations.append(
                Violation(kind="noise", where=f"{name}: another rank than the first added noise")
            )
        for rank, tape in enumerate(ranks[1:], start=1):
            for where in differences(
                [shown.get("weight") for shown in ranks[0].shown],
                [shown.get("weight") for shown in tape.shown],
            ):
                violations.append(Violation(kind="seen", where=f"{name}: rank {rank} differs: {where}"))
        for shown in ranks[0].shown:
            if "gradient" not in shown:
                continue
            values = sum(gradient.numel() for gradient in shown["gradient"].values() if gradient is not None)
            noised = sum(call.raw.numel() for call in mechanisms.get(("step", shown["step"] - 1), []))
            if values != noised:
                where = f"{name}: step {shown['step']} moves {values} values, {noised} were noised"
                violations.append(Violation(kind="noise", where=where))
    return violations


def _movements(ours: _Run, theirs: _Run) -> dict[Place, float]:
    """By mechanism, ‖raw input on one − raw input on the other‖, in sensitivities."""
    found = {}
    mine, yours = ours.mechanisms(), theirs.mechanisms()
    for place in mine.keys() & yours.keys():
        moved = [
            (one.raw - other.raw).flatten() for one, other in zip(mine[place], yours[place], strict=False)
        ]
        found[place] = float(torch.cat(moved).norm()) / ours.sensitivity(place, mine[place])
    return found


def _allowed(neighbour: Neighbour, run: _Run) -> float:
    """How many sensitivities a raw input may move: by what the report says the guarantee is about."""
    reports = [content for name, content in run.seen.items() if name.endswith("privacy.json")]
    relation = str(reports[-1]["relation"]) if reports else ""
    # A guarantee about replacing a unit gives a replacement no more room than any other change.
    return (
        min(neighbour.units_moved, 1.0)
        if "replac" in relation or "substit" in relation
        else neighbour.units_moved
    )
