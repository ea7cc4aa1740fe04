"""Private Evolution (Lin et al., arXiv 2305.15560; with simulators arXiv 2502.05505): no training.

A generation of public samples; each private row votes for the nearest of its class; the noisy counts
choose parents; an API makes the next generation of them. Private rows meet the samples in the votes and
nowhere else, so the cost is that of T noisy histograms, whatever API and embedding are.

Scope: any kind of data, in one process. What a row, a sample and a finished set are is the task's part.
"""

import csv
import json
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
from torch import Tensor
from tqdm import tqdm

from lightning_dp.evolution.account import VotesAccount
from lightning_dp.evolution.api import SampleAPI
from lightning_dp.evolution.embedding import Embedding
from lightning_dp.evolution.generations import Generations
from lightning_dp.evolution.plan import VotesPlan, VotesPrivacy
from lightning_dp.evolution.population import Population, balanced
from lightning_dp.evolution.settings import check_same, settings_of
from lightning_dp.evolution.state import State, has_state, read_state
from lightning_dp.evolution.task import EvolutionTask
from lightning_dp.evolution.voting import nearest, per_unit
from lightning_dp.privacy.accounting import event_to_dict
from lightning_dp.privacy.ledger import Ledger, LedgerError
from lightning_dp.privacy.plan import RELATION
from lightning_dp.privacy.release import PerUnit
from lightning_dp.privacy.report import (
    REPORT_NAME,
    json_ready,
    read_privacy_report,
    replace_text,
    write_privacy_report,
)
from lightning_dp.privacy.report.document import SCHEMA
from lightning_dp.privacy.report.facts import (
    NOT_COVERED,
    OF_END,
    compose,
    facts_of_end,
    noise_of,
    unit_in_words,
)
from lightning_dp.privacy.report.readable import remove_readable, write_readable
from lightning_dp.privacy.report.typed import to_json
from lightning_dp.privacy.secure_noise import SecureGaussianNoise
from lightning_dp.tracking.folder_lock import make_run_folder
from lightning_dp.tracking.layout import SAMPLES
from lightning_dp.tracking.run_folder import environment
from lightning_dp.tracking.sealed import seal_folder

_LOOKAHEAD = 1
"""Sets the randomness of lookahead before a vote apart from that of the children after it."""


@dataclass(frozen=True, kw_only=True)
class EvolutionRun:
    """Where a run lives.

    Attributes:
        dir: its folder; None makes `runs/<time>-<random>`.
        method: a short name for tables; None takes the folder's name.
    """

    dir: str | None = None
    method: str | None = None


@final
class PrivateEvolution:
    """One run, into one folder.

    Guarantee: everything in the folder is (ε, δ)-DP for adding or removing one privacy unit: in each
    iteration the votes of all its rows together move the counts by at most 1 in ℓ2 (proof: `VoteCounts`),
    and each vote is one Gaussian release, charged to the ledger before the first private row is read.

    Args:
        task: the private data.
        api: makes samples.
        embedding: where distances are measured.
        generations: how the population evolves.
        privacy: what may be spent.
        folder: of the run.
        method: its name in tables.
        seed: of everything that is not noise.

    Raises:
        ValueError: no noise meets the target; nothing was read.
    """

    def __init__(
        self,
        task: EvolutionTask,
        *,
        api: SampleAPI,
        embedding: Embedding,
        generations: Generations,
        privacy: VotesPrivacy,
        folder: Path,
        method: str = "private evolution",
        seed: int = 0,
    ) -> None:
        generations.check_classes(len(task.class_names))
        self.plan: VotesPlan = privacy.plan(generations.iterations)
        self._task = task
        self._api = api
        self._embedding = embedding
        self._generations = generations
        self._privacy = privacy
        self._folder = folder
        self._method = method
        self._seed = seed
        self._electorate: _Electorate | None = None
        self._facts: dict[str, object] = {}

    def run(self, *, config: str = "", resume: bool = False) -> None:
        """Evolve and write the run folder.

        Args:
            config: the whole configuration, kept as config.yaml.
            resume: go on from the folder's state. Votes that were charged and lost stay charged, so a
                resumed run takes fewer.

        Raises:
            ValueError: the folder holds another run, the run that is resumed was started with other
                settings, or what the API makes is not what the data holds.
            LedgerError: the budget does not cover the plan; nothing was read.
        """
        if not resume and has_state(self._folder):
            raise ValueError(
                f"{self._folder} holds a run already: go on with it by --resume, or choose another folder"
            )
        settings = settings_of(config, generations=self._generations, seed=self._seed)
        before = read_state(self._folder) if resume else None
        if before:
            check_same(before.settings, settings)
        account = VotesAccount(
            Ledger(self._privacy.ledger),
            self.plan,
            dataset=self._privacy.dataset or self._task.dataset_id,
            unit=self._task.unit_name,
            run=before.run if before else uuid.uuid4().hex,
            parent=before.ledger if before else None,
        )
        try:
            with account:
                self._task.prepare()
                state = before or self._start(account, config=config, settings=settings)
                population = self._evolve(state, account)
        except BaseException:
            if account.spent:
                self._report(account, status="interrupted")
            raise
        self._report(account, status="finished")
        self._finish(population)
        if (self._folder / SAMPLES.parent / REPORT_NAME).is_file():
            seal_folder(self._folder / SAMPLES.parent, sign=account.signed, kind="samples")
        self._write_results()

    def _evolve(self, state: State, account: VotesAccount) -> Population:
        """The last generation with its votes."""
        total = self.plan.iterations
        with tqdm(
            total=total, initial=account.spent, unit="vote", desc="evolving", disable=None, leave=False
        ) as progress:
            while account.left:
                state = self._iterate(state, account)
                progress.set_postfix(epsilon=f"{self.plan.epsilon_after(account.spent):.4g}", refresh=False)
                progress.update()
        if state.population.votes is None:
            raise LedgerError(
                f"run {state.run} was charged for all its {total} votes and lost every one of "
                "them in crashes; they stay charged. Start a new run to spend more."
            )
        return state.population

    def _start(self, account: VotesAccount, *, config: str, settings: dict[str, str]) -> State:
        labels = balanced(self._generations.population, num_classes=len(self._task.class_names))
        samples = self._api.random(labels, rng=self._rng(0))
        shape = self._api.render(samples[:1]).shape[1:]
        if shape != self._task.sample_shape:
            raise ValueError(
                f"{type(self._api).__name__} makes samples of shape {shape}, and the data has "
                f"{self._task.sample_shape}: give both the same size and mode."
            )
        make_run_folder(self._folder)
        (self._folder / "config.yaml").write_text(config)
        (self._folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
        population = Population(samples=samples, labels=labels)
        state = State(
            run=account.run, ledger=account.head, iteration=0, settings=settings, population=population
        )
        state.save(self._folder)
        return state

    def _iterate(self, state: State, account: VotesAccount) -> State:
        """The next generation, and what the private units think of it."""
        number = state.iteration + 1
        labels = balanced(self._generations.population, num_classes=len(self._task.class_names))
        candidates = state.population
        if state.iteration:
            candidates = self._children(state.population, labels, after=state.iteration)
        embedded = self._standing(candidates, vote=number)
        known = bool(self._facts or read_privacy_report(self._folder))
        if known:
            self._report(account, status="running", votes=account.spent + 1)  # before the ledger is charged

        def ballots() -> PerUnit:
            cast = self._ballots(embedded, candidates.labels)
            if not known:  # how many units there are is read after the charge: reported before the release
                self._report(account, status="running")
            return cast

        votes = account.vote(ballots, num_options=len(candidates.labels))
        population = Population(samples=candidates.samples, labels=candidates.labels, votes=votes)
        # The report first: it covers whatever the state holds, wherever a crash comes.
        self._report(account, status="running")
        self._log(population, account, iteration=number)
        state = replace(state, ledger=account.head, iteration=number, population=population)
        state.save(self._folder)
        return state

    def _standing(self, candidates: Population, *, vote: int) -> Tensor:
        """(M, D): where each candidate stands for a vote, by lookahead at what its children will be like.

        With lookahead k it is the mean of the embeddings of k variations of the candidate, made at the degree
        of the children that follow the vote (Lin et al., §4; their own draws, not those children). The
        candidate itself is not among them; k = 0 is the candidate. It is made of public things, before
        the vote is charged and without a private row, so a unit's votes are still for numbers of public
        candidates and the sensitivity of the counts is what it was.
        """
        made = self._generations
        if not made.lookahead:
            return self._embedding.embed(self._api.render(candidates.samples))
        rng, degree = self._rng(vote, _LOOKAHEAD), made.degree(vote)
        total: Tensor | None = None
        for _ in range(made.lookahead):  # one after another: memory for one generation
            varied = self._api.vary(candidates.samples, candidates.labels, degree=degree, rng=rng)
            embedded = self._embedding.embed(self._api.render(varied))
            total = embedded if total is None else total + embedded
        assert total is not None
        return total / made.lookahead

    def _children(self, population: Population, labels: np.ndarray, *, after: int) -> Population:
        """Variations of parents that the votes choose, and the parents themselves where they are kept."""
        rng = self._rng(after)
        made = self._generations
        parents = population.choose(
            labels, threshold=self._threshold, rng=rng, selection=made.selection, children=made.children
        )
        samples = population.samples[parents]
        varied = np.ones(len(parents), dtype=bool)
        if made.keep_parents:
            varied[np.unique(parents, return_index=True)[1]] = False
        if varied.any():
            degree = made.degree(after)
            samples[varied] = self._api.vary(samples[varied], labels[varied], degree=degree, rng=rng)
        return Population(samples=samples, labels=labels)

    def _ballots(self, candidates: Tensor, labels: np.ndarray) -> PerUnit:
        """For each unit the candidates that its rows vote for; only ever called after a charge."""
        if self._electorate is None:
            rows = self._task.read()
            known = rows.labels if self._task.class_names else np.full(len(rows.labels), -1)
            self._electorate = _Electorate(
                embedded=self._embedding.embed(rows.samples),
                labels=known,
                owners=rows.owners,
                num_units=rows.unit.num_units,
            )
            self._facts = {
                **self.plan.to_dict(rows.unit),
                "unit_in_words": unit_in_words(rows.unit.name, rows.unit.description),
            }
        own = self._electorate
        votes = nearest(
            own.embedded,
            candidates,
            private_labels=own.labels,
            candidate_labels=labels,
            neighbours=self._generations.neighbours,
        )
        return per_unit(votes, owners=own.owners, num_units=own.num_units)

    def _finish(self, population: Population) -> None:
        """The finished set: post-processing of the last votes."""
        labels = balanced(self._generations.num_samples, num_classes=len(self._task.class_names))
        finished = self._children(population, labels, after=self._generations.iterations)
        self._task.write(self._folder, self._api.render(finished.samples), labels)

    def _rng(self, iteration: int, *purpose: int) -> np.random.Generator:
        """Of the public choices after a vote, the same whether or not the run was resumed there."""
        return np.random.default_rng([self._seed, iteration, *purpose])

    @property
    def _threshold(self) -> float:
        return self._generations.threshold * self.plan.noise_multiplier

    # what the folder says

    def _report(self, account: VotesAccount, *, status: str, votes: int | None = None) -> None:
        seq, digest = account.head
        charged = account.spent if votes is None else votes
        epsilon, event = self.plan.epsilon_after(charged), self.plan.event(charged)
        # A process that takes no vote has not read N, but finds it in the report of the one that did.
        facts = self._facts or read_privacy_report(self._folder)
        composition = compose(
            [event],
            released="for every candidate, how many units vote for it, with noise, in each iteration",
            dataset=account.dataset,
            unit=self._task.unit_name,
            runs=[account.run],
        )
        spent = {
            "schema": SCHEMA,
            "kind": "evolution",
            "status": status,
            "epsilon_spent": epsilon,
            "delta": self.plan.delta,
            "unit": self._task.unit_name,
            "relation": RELATION,
            "steps_charged": charged,
            "composition": to_json(composition),
            "mechanisms": [event_to_dict(event)],
            "noise": to_json([noise_of(SecureGaussianNoise, of="votes")]),
            "dataset": account.dataset,
            "run": account.run,
            "ledger_seq": seq,
            "ledger_hash": digest,
            "not_covered": list(NOT_COVERED),
        }
        if status != "running":
            total = account.total([event], epsilon=epsilon)
            spent |= facts_of_end([event], delta=self.plan.delta, epsilon=epsilon, total=total)
        path = self._folder / REPORT_NAME
        remove_readable(path)  # they claim less from now on
        content = account.signed({**{n: v for n, v in facts.items() if n not in OF_END}, **spent})
        write_privacy_report(self._folder, content)
        if status != "running":
            write_readable(path, content)

    def _log(self, population: Population, account: VotesAccount, *, iteration: int) -> None:
        """One line of metrics.csv, from noisy votes."""
        survivors = population.weights(threshold=self._threshold) > 0
        line = {
            "step": iteration,
            "privacy/epsilon": self.plan.epsilon_after(account.spent),
            "privacy/steps": account.spent,
            "evolution/degree": self._generations.degree(iteration),
            "evolution/survivors": float(survivors.mean()),
        }
        path = self._folder / "metrics.csv"
        new = not path.is_file()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(line))
            if new:
                writer.writeheader()
            writer.writerow(line)

    def _write_results(self) -> None:
        report = read_privacy_report(self._folder)
        results = {
            "method": self._method,
            "dataset": self._task.dataset_id,
            "seed": self._seed,
            "facts": {
                **self._task.facts(),
                **self._api.facts(),
                "embedding": type(self._embedding).__name__,
                **asdict(self._generations),
            },
            "epsilon": report["epsilon_spent"],
            "delta": report["delta"],
            "unit": report["unit"],
            "epsilon_of_unit": report["epsilon_of_unit"],
            "noise_multiplier": report["noise_multiplier"],
            "steps": report["steps_charged"],
            "ledger": [report["ledger_seq"], report["ledger_hash"]],
            "metrics": {},
        }
        replace_text(self._folder / "results.json", json.dumps(json_ready(results), indent=2) + "\n")


@dataclass(frozen=True, kw_only=True)
class _Electorate:
    """The private rows as voters; never leaves the process.

    Attributes:
        embedded: (R, D).
        labels, owners: (R,).
        num_units: N.
    """

    embedded: Tensor
    labels: np.ndarray
    owners: np.ndarray
    num_units: int
