"""Lookahead, several neighbours, votes of users in ℓ2, selection by rank, and what a resume refuses."""

import json
import math

import numpy as np
import pytest
import torch
from evolution_support import DELTA, NUM_UNITS, TARGET, Crowd, Plane, finished, run_of

from lightning_dp.evolution import evolution as evolution_file
from lightning_dp.evolution.api import SampleAPI
from lightning_dp.evolution.evolution import PrivateEvolution
from lightning_dp.evolution.population import Population
from lightning_dp.evolution.state import read_state
from lightning_dp.evolution.voting import nearest, per_unit
from lightning_dp.privacy import release
from lightning_dp.privacy.accounting import GaussianEvent
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.privacy.release import VoteCounts

# --- lookahead ------------------------------------------------------------------------------------------


class Steps(Plane):
    """Varies by 10, 20, 30, … times the degree, call after call; keeps the degrees."""

    def __init__(self) -> None:
        self.degrees: list[float] = []

    def vary(self, samples, labels, *, degree, rng):
        self.degrees.append(degree)
        return samples + 10 * degree * len(self.degrees)


def population() -> Population:
    return Population(samples=np.arange(8.0).reshape(4, 2), labels=np.array([0, 1, 0, 1]))


def test_lookahead_is_the_mean_of_variations_without_the_sample_itself(tmp_path):
    api = Steps()
    evolution = run_of(tmp_path, api=api, lookahead=3, iterations=3, first_degree=1.0, last_degree=0.5)
    standing = evolution._standing(population(), vote=2)
    assert api.degrees == [0.75] * 3, "that of the children after the same vote"
    assert torch.equal(standing, torch.arange(8.0).reshape(4, 2) + 0.75 * (10 + 20 + 30) / 3)


def test_lookahead_of_0_is_the_sample(tmp_path):
    api = Steps()
    standing = run_of(tmp_path, api=api, lookahead=0)._standing(population(), vote=1)
    assert torch.equal(standing, torch.arange(8.0).reshape(4, 2))
    assert not api.degrees


def test_lookahead_reads_nothing_private(tmp_path):
    task = Crowd()
    run_of(tmp_path, task=task, lookahead=4).run()
    assert task.charged_at_reading == [1]


def test_a_lookahead_at_private_rows_is_seen(tmp_path, monkeypatch):
    """The planted fault: candidates stand nearer to private rows than they are."""
    standing = PrivateEvolution._standing

    def peeks(self, candidates, *, vote):
        return standing(self, candidates, vote=vote) + float(self._task.read().samples.mean())

    monkeypatch.setattr(PrivateEvolution, "_standing", peeks)
    task = Crowd()
    run_of(tmp_path, task=task).run()
    assert task.charged_at_reading[0] == 0


# --- neighbours and users -------------------------------------------------------------------------------


def test_votes_are_for_the_k_nearest_of_ones_class():
    rng = np.random.default_rng(0)
    private, labels = rng.normal(size=(300, 3)).astype(np.float32), rng.integers(3, size=300)
    candidates, own = rng.normal(size=(40, 3)).astype(np.float32), rng.integers(3, size=40)
    found = nearest(
        torch.from_numpy(private),
        torch.from_numpy(candidates),
        private_labels=labels,
        candidate_labels=own,
        neighbours=5,
    )
    distance = np.linalg.norm(private[:, None] - candidates[None], axis=2)
    distance[labels[:, None] != own[None]] = np.inf
    assert np.array_equal(found, np.argsort(distance, axis=1)[:, :5])
    sums = VoteCounts(noise_multiplier=1.0, num_options=40).sums(found)
    assert sums == pytest.approx(np.bincount(found.astype(int).ravel(), minlength=40) / math.sqrt(5))


@pytest.mark.parametrize("count", [3, 300])
def test_of_equally_near_candidates_the_first_ones_get_the_votes(count):
    """Whatever else is voted on with a row: its votes must not depend on how many rows there are."""
    votes = nearest(
        torch.zeros(count, 2),
        torch.ones(50, 2),
        private_labels=np.zeros(count, dtype=int),
        candidate_labels=np.zeros(50, dtype=int),
        neighbours=2,
    )
    assert (votes == [0, 1]).all()


def test_fewer_candidates_than_neighbours_are_each_voted_for_once():
    candidates = torch.eye(3)
    votes = nearest(
        torch.zeros(1, 3),
        candidates,
        private_labels=np.array([0]),
        candidate_labels=np.array([0, 0, 1]),
        neighbours=4,
    )
    assert sorted(votes[0, :2].tolist()) == [0, 1]
    assert np.isnan(votes[0, 2:]).all()
    sums = VoteCounts(noise_multiplier=1.0, num_options=3).sums(votes)
    assert sums == pytest.approx([math.sqrt(0.5), math.sqrt(0.5), 0])


class Raw:
    """In the place of the noise: keeps what was counted, and publishes what a seed says instead."""

    def __init__(self) -> None:
        self.sums: list[np.ndarray] = []

    def add_to(self, sums: torch.Tensor, *, scale: float) -> torch.Tensor:
        self.sums.append(sums.numpy().copy())
        generator = torch.Generator().manual_seed(len(self.sums))
        # Whatever the sums are, so that two runs vote on the same candidates.
        return scale * torch.randn(sums.shape, generator=generator, dtype=sums.dtype)


class WithoutTheLast(Crowd):
    """The crowd without one unit, all of its rows."""

    def read(self):
        rows = super().read()
        kept = rows.owners < NUM_UNITS - 1
        return type(rows)(
            samples=rows.samples[kept], labels=rows.labels[kept], owners=rows.owners[kept], unit=rows.unit
        )


def _moved(folder, monkeypatch, **options) -> float:
    """The most that one user with 30 rows moves a vote of a run."""
    raws = []
    for kind in (Crowd, WithoutTheLast):
        raw = Raw()
        monkeypatch.setattr(release, "SecureGaussianNoise", lambda raw=raw: raw)
        monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(folder / f"{kind.__name__}.sqlite"))
        run_of(folder / kind.__name__, task=kind(rows_per_unit=30), iterations=3, **options).run()
        raws.append(raw.sums)
    return max(float(np.linalg.norm(a - b)) for a, b in zip(*raws, strict=True))


@pytest.mark.parametrize("neighbours", [1, 7])
def test_a_user_with_many_rows_moves_a_vote_by_one(tmp_path, monkeypatch, neighbours):
    assert _moved(tmp_path, monkeypatch, neighbours=neighbours) == pytest.approx(1, abs=1e-6)


def test_a_user_whose_rows_vote_for_themselves_is_seen(tmp_path, monkeypatch):
    """The planted fault: rows are taken for units."""

    def rows_as_units(votes, *, owners, num_units):
        return per_unit(votes, owners=np.arange(len(owners)), num_units=len(owners))

    monkeypatch.setattr(evolution_file, "per_unit", rows_as_units)
    assert _moved(tmp_path, monkeypatch) > 2


def test_neighbours_that_are_not_bounded_are_seen(tmp_path, monkeypatch):
    """The planted fault: k neighbours get a whole vote each, at the noise of one."""

    def whole(self, values):
        votes = np.concatenate([np.ravel(unit) for unit in values])
        return np.bincount(votes[~np.isnan(votes)].astype(int), minlength=self.num_options) * 1.0

    monkeypatch.setattr(VoteCounts, "sums", whole)
    assert _moved(tmp_path, monkeypatch, neighbours=7) > 2


def test_what_is_charged_is_the_mechanism_that_ran(tmp_path):
    run_of(tmp_path, neighbours=4, task=Crowd(rows_per_unit=5), iterations=2).run()
    entries = [entry for entry in Ledger().entries() if entry.kind == "release"]
    assert [entry.detail["note"].split(": ")[1] for entry in entries] == [
        "VoteCounts(noise_multiplier=4.0, sampling_rate=1.0, num_options=40)"
    ] * 2
    assert Ledger().events("crowd", unit="user") == [GaussianEvent(noise_multiplier=4.0)] * 2
    report = json.loads((tmp_path / "privacy.json").read_text())
    assert report["mechanism"] == "votes, a unit's bounded to an ℓ2 norm of 1, with Gaussian noise"
    assert report["delta"] == DELTA


# --- selection ------------------------------------------------------------------------------------------


def test_by_rank_the_best_of_each_class_have_all_children():
    votes = np.array([5.0, 1.0, 9.0, 2.0, 7.0, 3.0, -1.0, 8.0])
    labels = np.arange(8) % 2
    ranked = Population(samples=np.arange(8.0), labels=labels, votes=votes)
    options = {"threshold": 0.0, "rng": np.random.default_rng(0), "selection": "rank", "children": 2}
    parents = ranked.choose(labels, **options)
    assert sorted(parents[labels == 0]) == [2, 2, 4, 4]
    assert sorted(parents[labels == 1]) == [5, 5, 7, 7]
    # A finished set that is larger than the population comes of the same ones.
    more = ranked.choose(np.zeros(7, dtype=int), **options)
    assert np.bincount(more, minlength=5).tolist() == [0, 0, 4, 0, 3]


def test_children_of_a_drawn_parent_come_together():
    votes = np.array([0.0, 4.0, 4.0, 4.0])
    drawn = Population(samples=np.arange(4.0), labels=np.zeros(4, dtype=int), votes=votes)
    parents = drawn.choose(np.zeros(12, dtype=int), threshold=1.0, rng=np.random.default_rng(0), children=4)
    assert 0 not in parents
    assert parents.reshape(4, 3).tolist() == [parents[:3].tolist()] * 4


@pytest.mark.parametrize("keep_parents", [True, False])
def test_a_parent_lives_on_once_where_it_is_kept(tmp_path, keep_parents):
    evolution = run_of(tmp_path, selection="rank", children=4, keep_parents=keep_parents)
    before = Population(samples=np.arange(16.0).reshape(8, 2), labels=np.arange(8) % 2, votes=np.arange(8.0))
    children = evolution._children(before, before.labels, after=1)
    same = (children.samples[:, None] == before.samples[None]).all(axis=2).sum(axis=0)
    assert same.tolist() == ([0] * 6 + [1, 1] if keep_parents else [0] * 8)


@pytest.mark.parametrize(
    "options",
    [
        {"selection": "rank", "children": 4},
        {"selection": "rank", "children": 7, "keep_parents": False, "lookahead": 0},
        {"neighbours": 5, "selection": "rank", "children": 4, "lookahead": 0},
        {"neighbours": 5, "children": 2},
    ],
    ids=["ranked", "ranked, without parents", "as Aug-PE", "neighbours"],
)
def test_each_way_gets_there(tmp_path, options):
    run_of(tmp_path, iterations=12, **options).run()
    samples, labels = finished(tmp_path)
    for label, centre in ((0, TARGET), (1, -TARGET)):
        assert np.linalg.norm(samples[labels == label].mean(axis=0) - centre) < 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lookahead": -1}, "lookahead is -1"),
        ({"neighbours": 0}, "neighbours is 0"),
        ({"neighbours": 21}, "a class has 20 samples"),
        ({"children": 0}, "children is 0"),
        ({"selection": "best"}, "selection is 'best'"),
        ({"selection": "rank"}, "children is 1, so that by selection rank every sample"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run_of(tmp_path, **options)


# --- samples that are rendered --------------------------------------------------------------------------


class Polar(SampleAPI):
    """Points by angle and distance; the third number says that it was made here."""

    def random(self, labels, *, rng):
        drawn = rng.uniform([0, 0], [2 * np.pi, 2], (len(labels), 2))
        return np.concatenate([drawn, np.full((len(labels), 1), 7.0)], axis=1)

    def vary(self, samples, labels, *, degree, rng):
        assert samples.shape[1] == 3
        assert (samples[:, 2] == 7).all()
        step = degree * rng.normal(0, [0.5, 0.5, 0.0], samples.shape)
        return samples + step

    def render(self, samples):
        angle, distance = samples[:, 0], samples[:, 1]
        return np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=1)

    def facts(self):
        return {"api": "Polar"}


def test_parameters_travel_with_the_samples_and_only_what_is_seen_votes(tmp_path):
    run_of(tmp_path, api=Polar(), iterations=12).run()
    samples, labels = finished(tmp_path)
    assert samples.shape == (50, 2)
    assert np.linalg.norm(samples[labels == 0].mean(axis=0) - TARGET) < 0.6
    assert read_state(tmp_path).population.samples.shape == (40, 3)
    (tmp_path / "finished.npz").unlink()
    run_of(tmp_path, api=Polar(), iterations=12).run(resume=True)
    assert np.array_equal(finished(tmp_path)[0], samples)


# --- resume ---------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


def test_a_run_that_was_cut_off_goes_on_as_it_would_have(tmp_path, monkeypatch):
    """Of the same votes: with ranks, lookahead and parameters a resumed run makes the same choices."""
    options = {"api": Polar(), "selection": "rank", "children": 4, "lookahead": 2, "iterations": 4}

    def run(name: str, *, dies: bool = False) -> np.ndarray:
        raw = Raw()
        monkeypatch.setattr(release, "SecureGaussianNoise", lambda: raw)
        monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(tmp_path / f"{name}.sqlite"))
        if dies:
            standing = PrivateEvolution._standing

            def maybe(self, candidates, *, vote):
                if vote == 3:
                    raise Killed
                return standing(self, candidates, vote=vote)

            with monkeypatch.context() as patched:
                patched.setattr(PrivateEvolution, "_standing", maybe)
                with pytest.raises(Killed):
                    run_of(tmp_path / name, **options).run()
        run_of(tmp_path / name, **options).run(resume=dies)
        return finished(tmp_path / name)[0]

    assert np.array_equal(run("whole"), run("in parts", dies=True))
    assert len(Ledger(tmp_path / "in parts.sqlite").events("crowd", unit="user")) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lookahead": 0}, "generations.lookahead is 0, but the run was started with 8"),
        ({"neighbours": 2}, "generations.neighbours is 2, but the run was started with 1"),
        ({"population": 30}, "generations.population is 30"),
        ({"seed": 1}, "seed_everything is 1"),
    ],
)
def test_a_resume_with_other_settings_is_refused(tmp_path, change, message):
    run_of(tmp_path).run()
    with pytest.raises(ValueError, match=message):
        run_of(tmp_path, **change).run(resume=True)
    assert len(Ledger().events("crowd", unit="user")) == 6


def test_a_state_of_another_version_is_refused(tmp_path, monkeypatch):
    run_of(tmp_path).run()
    with np.load(tmp_path / "state.npz") as content:
        arrays = dict(content)
    facts = json.loads(str(arrays["facts"]))
    del facts["settings"]
    np.savez(tmp_path / "state.npz", **{**arrays, "facts": np.array(json.dumps(facts))})
    with pytest.raises(ValueError, match="states of an earlier version"):
        run_of(tmp_path).run(resume=True)
