"""Private Evolution: what a vote may move, what it costs and when, and whether it gets anywhere."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from evolution_support import DELTA, NUM_UNITS, SIGMA, TARGET, Crowd, Identity, finished, run_of
from image_support import CLASSES, npz_data, pictures, tiny_module, tiny_net, write_npz, write_png
from sd_support import write_checkpoint

from lightning_dp import load_run
from lightning_dp.cli import main
from lightning_dp.data_files import write_atomically
from lightning_dp.evolution import evolution as evolution_file
from lightning_dp.evolution.account import VotesAccount
from lightning_dp.evolution.evolution import PrivateEvolution
from lightning_dp.evolution.plan import VotesPlan, VotesPrivacy
from lightning_dp.evolution.population import Population
from lightning_dp.evolution.state import read_state
from lightning_dp.evolution.task import PrivateRows
from lightning_dp.evolution.voting import nearest, per_unit
from lightning_dp.images.evolution.diffusion_api import DiffusionAPI
from lightning_dp.images.evolution.pixel_embedding import PixelEmbedding
from lightning_dp.images.evolution.public_images import PublicImages
from lightning_dp.images.evolution.task import ImageTask
from lightning_dp.privacy import release
from lightning_dp.privacy.accounting import GaussianEvent, epsilon_pld
from lightning_dp.privacy.ledger import BudgetExceeded, Ledger, LedgerError
from lightning_dp.privacy.release import VoteCounts
from lightning_dp.privacy.secure_noise import SecureGaussianNoise


def spent_by_ledger() -> float:
    return Ledger().epsilon("crowd", unit="user")


# --- one unit's influence -----------------------------------------------------------------------------


def votes_of(samples: np.ndarray, labels: np.ndarray, owners: np.ndarray, *, num_units: int) -> np.ndarray:
    """The mechanism's raw input for private rows."""
    rng = np.random.default_rng(0)
    candidates, candidate_labels = rng.normal(0, 2, (30, 2)), np.arange(30) % 2
    votes = nearest(
        Identity().embed(samples),
        Identity().embed(candidates),
        private_labels=labels,
        candidate_labels=candidate_labels,
    )
    mechanism = VoteCounts(noise_multiplier=1.0, num_options=30)
    return mechanism.sums(per_unit(votes, owners=owners, num_units=num_units))


@pytest.mark.parametrize(
    "rows",
    [
        [[0.1, 0.2]],
        [[1e30, -1e30]],
        [[math.nan, 0.0]],
        [[math.inf, 0.0]],
        [[0.1, 0.2], [5.0, 5.0], [-5.0, 2.0]],
        [[0.1, 0.2]] * 7,
        [[math.nan, 0.0], [0.1, 0.2]],
    ],
    ids=["ordinary", "huge", "nan", "infinite", "several rows", "the same row often", "in part nan"],
)
@pytest.mark.parametrize("label", [0, 1, -1, 7])
def test_a_unit_moves_the_votes_by_one_at_most(rows, label):
    """Added at the end, so removed: nothing of the others' moves, and its own part is at most 1 in ℓ2."""
    rng = np.random.default_rng(3)
    others, labels, owners = (
        rng.normal(0, 2, (50, 2)),
        rng.integers(2, size=50),
        np.sort(rng.integers(9, size=50)),
    )
    before = votes_of(others, labels, owners, num_units=9)
    after = votes_of(
        np.concatenate([others, rows]),
        np.concatenate([labels, np.full(len(rows), label)]),
        np.concatenate([owners, np.full(len(rows), 9)]),
        num_units=10,
    )
    added = after - before
    assert (added >= -1e-12).all()
    assert np.linalg.norm(added) <= 1 + 1e-12
    abstains = label not in (0, 1) or not np.isfinite(np.asarray(rows, dtype=np.float32)).all(axis=1).any()
    assert np.linalg.norm(added) == pytest.approx(0 if abstains else 1)


def test_a_unit_that_votes_twice_is_seen():
    """The planted fault: rows counted as units give one user as many votes as it has rows."""
    rows = np.array([[0.1, 0.2], [0.1, 0.2]])
    as_user = votes_of(rows, np.zeros(2, int), np.zeros(2, int), num_units=1)
    as_two = votes_of(rows, np.zeros(2, int), np.arange(2), num_units=2)
    assert np.linalg.norm(as_user) == 1
    assert np.linalg.norm(as_two) == 2


def test_each_vote_is_for_the_nearest_of_ones_class():
    rng = np.random.default_rng(0)
    private, labels = rng.normal(size=(5000, 3)).astype(np.float32), rng.integers(3, size=5000)
    candidates, own = rng.normal(size=(20, 3)).astype(np.float32), rng.integers(3, size=20)
    found = nearest(
        torch.from_numpy(private),
        torch.from_numpy(candidates),
        private_labels=labels,
        candidate_labels=own,
    )
    distance = ((private[:, None] - candidates[None]) ** 2).sum(axis=2)
    distance[labels[:, None] != own[None]] = np.inf
    found = found[:, 0].astype(int)
    assert (distance[np.arange(5000), found] <= distance.min(axis=1) + 1e-5).all()


# --- what it costs --------------------------------------------------------------------------------------


def test_epsilon_is_that_of_the_composed_votes(tmp_path):
    run_of(tmp_path, privacy=VotesPrivacy(noise_multiplier=3.0, delta=DELTA)).run()
    votes = [GaussianEvent(noise_multiplier=3.0)] * 6
    expected = epsilon_pld(votes, DELTA)
    # T Gaussian releases are one of σ/√T.
    assert expected == pytest.approx(
        epsilon_pld([GaussianEvent(noise_multiplier=3.0 / math.sqrt(6))], DELTA), rel=1e-3
    )
    report = json.loads((tmp_path / "privacy.json").read_text())
    results = json.loads((tmp_path / "results.json").read_text())
    assert Ledger().events("crowd", unit="user") == votes
    assert report["epsilon_spent"] == results["epsilon"] == pytest.approx(expected)
    assert spent_by_ledger() == pytest.approx(expected)
    assert report["num_units"] == NUM_UNITS
    assert report["epsilon_of_unit"]["user"] == pytest.approx(expected)
    assert report["status"] == "finished"
    notes = [entry.detail["note"] for entry in Ledger().entries() if entry.kind == "release"]
    assert notes[0].startswith("vote 1 of 6")


def test_a_target_is_met_and_just_met():
    plan = VotesPrivacy(target_epsilon=2.0, delta=1e-5).plan(5)
    assert 1.99 < plan.epsilon <= 2.0
    assert replace(plan, noise_multiplier=plan.noise_multiplier * 0.99).epsilon > 2.0


def test_the_ledger_is_charged_before_anything_is_read(tmp_path):
    task = Crowd()
    run_of(tmp_path, task=task).run()
    assert task.charged_at_reading == [1], "once, after the first charge"


def test_reading_first_is_seen(tmp_path, monkeypatch):
    """The planted fault: ballots are made, and so private rows read, before the vote is paid for."""
    pay = VotesAccount.vote

    def reads_first(self, ballots, *, num_options):
        ready = ballots()
        return pay(self, lambda: ready, num_options=num_options)

    monkeypatch.setattr(VotesAccount, "vote", reads_first)
    task = Crowd()
    run_of(tmp_path, task=task).run()
    assert task.charged_at_reading == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_epsilon": 1e-9, "delta": 1e-9}, "can't be met"),
        ({"target_epsilon": -1, "delta": DELTA}, "must be a number above 0"),
        ({"target_epsilon": 1, "delta": 2}, "delta must be above 0"),
        ({"noise_multiplier": 0.0, "delta": DELTA}, "noise_multiplier must be a number above 0"),
        ({"delta": DELTA}, "exactly one of"),
    ],
)
def test_an_impossible_plan_reads_nothing(tmp_path, options, message):
    task = Crowd()
    with pytest.raises(ValueError, match=message):
        run_of(tmp_path / "run", task=task, privacy=VotesPrivacy(**options)).run()
    assert task.prepared == 0
    assert not task.charged_at_reading
    assert not (tmp_path / "run").exists()


def test_a_budget_that_does_not_cover_the_plan_reads_nothing(tmp_path):
    Ledger().register("crowd", unit="user", delta=DELTA, limit_epsilon=1.0)
    task = Crowd()
    with pytest.raises(BudgetExceeded):
        run_of(tmp_path / "run", task=task).run()
    assert task.prepared == 0
    assert not task.charged_at_reading
    assert not Ledger().events("crowd", unit="user")
    less = VotesPrivacy(noise_multiplier=8.0, delta=DELTA)
    run_of(tmp_path / "less", task=task, iterations=1, privacy=less).run()
    assert task.charged_at_reading == [1]


# --- record and replay ----------------------------------------------------------------------------------


class VoteTape:
    """In the place of the votes' noise: keeps raw counts, and says again what an earlier run published."""

    def __init__(self, published: list[torch.Tensor] | None = None) -> None:
        self.raw: list[torch.Tensor] = []
        self.published: list[torch.Tensor] = []
        self._frozen = published

    def add_to(self, sums: torch.Tensor, *, scale: float) -> torch.Tensor:
        self.raw.append(sums.clone())
        own = SecureGaussianNoise().add_to(sums.clone(), scale=scale)
        self.published.append(own if self._frozen is None else self._frozen[len(self.published)])
        return self.published[-1].clone()


class Neighbour(Crowd):
    """The crowd, and one unit more."""

    def __init__(self, rows: list[list[float]], label: int) -> None:
        super().__init__()
        self._extra, self._label = np.array(rows), label

    def read(self) -> PrivateRows:
        rows = super().read()
        extra = len(self._extra)
        return PrivateRows(
            samples=np.concatenate([rows.samples, self._extra]),
            labels=np.concatenate([rows.labels, np.full(extra, self._label)]),
            owners=np.concatenate([rows.owners, np.full(extra, NUM_UNITS)]),
            unit=replace(rows.unit, num_units=NUM_UNITS + 1),
        )


def _replayed(folder: Path, monkeypatch, task: Crowd, published=None) -> VoteTape:
    tape = VoteTape(published)
    monkeypatch.setattr(release, "SecureGaussianNoise", lambda: tape)
    run_of(folder, task=task).run()
    return tape


@pytest.mark.parametrize(
    "rows", [[[0.1, 0.2]], [[1e30, 1e30]], [[math.nan] * 2], [[3, -2], [-9, 9], [math.inf, 0]]]
)
def test_all_that_is_seen_follows_from_the_noisy_votes(tmp_path, monkeypatch, rows):
    """A run on a neighbour that publishes the same counts leaves the same samples, state and metrics."""
    on_d = _replayed(tmp_path / "D", monkeypatch, Crowd())
    theirs = _replayed(tmp_path / "neighbour", monkeypatch, Neighbour(rows, 0), published=on_d.published)
    moved = [float((a - b).norm()) for a, b in zip(on_d.raw, theirs.raw, strict=True)]
    assert len(moved) == 6
    assert max(moved) <= 1 + 1e-9
    assert max(moved) > 0.5 or not np.isfinite(rows).any()
    for a, b in zip(finished(tmp_path / "D"), finished(tmp_path / "neighbour"), strict=True):
        assert np.array_equal(a, b)
    before, after = (read_state(tmp_path / name).population for name in ("D", "neighbour"))
    assert np.array_equal(before.votes, after.votes)
    assert np.array_equal(before.samples, after.samples)
    metrics = [(tmp_path / name / "metrics.csv").read_text() for name in ("D", "neighbour")]
    assert metrics[0] == metrics[1]


def test_a_private_row_among_the_samples_is_seen(tmp_path, monkeypatch):
    """The planted fault: what is finished takes one private row along."""
    finish = PrivateEvolution._finish

    def leaks(self, population):
        rows = self._task.read()
        population.samples[-1] = rows.samples[-1]
        finish(self, population)

    monkeypatch.setattr(PrivateEvolution, "_finish", leaks)
    monkeypatch.setattr(Population, "choose", lambda self, labels, **_: np.arange(len(labels)) % 40)
    on_d = _replayed(tmp_path / "D", monkeypatch, Crowd())
    _replayed(tmp_path / "neighbour", monkeypatch, Neighbour([[7, 7]], 0), published=on_d.published)
    assert not np.array_equal(finished(tmp_path / "D")[0], finished(tmp_path / "neighbour")[0])


# --- crashes --------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("place", ["before the noise", "before the report", "before the state"])
def test_a_crash_never_under_reports(tmp_path, monkeypatch, place):
    """After each of several crashes the folder and the ledger cover all votes that were read."""
    votes_read = 0
    left = {2, 4}  # the report of a vote is written before it is charged too: each crash comes once, after it
    ballots = PrivateEvolution._ballots

    def counted(self, *arguments):
        nonlocal votes_read
        votes_read += 1
        found = ballots(self, *arguments)
        if place == "before the noise" and votes_read in (2, 4):
            raise Killed
        return found

    def dies_at_second(name):
        real = getattr(evolution_file, name)

        def maybe(*arguments, **options):
            if votes_read in left:
                left.remove(votes_read)
                raise Killed
            return real(*arguments, **options)

        monkeypatch.setattr(evolution_file, name, maybe)

    monkeypatch.setattr(PrivateEvolution, "_ballots", counted)
    if place == "before the report":
        dies_at_second("write_privacy_report")
    if place == "before the state":
        monkeypatch.setattr(
            "lightning_dp.evolution.state.write_atomically",
            lambda content, *, path: _write_unless(votes_read in (2, 4), content, path=path),
        )
    starts = 0
    while not (tmp_path / "finished.npz").exists():
        starts += 1
        try:
            run_of(tmp_path).run(resume=starts > 1)
        except Killed:
            assert len(Ledger().events("crowd", unit="user")) == votes_read
            kept = read_state(tmp_path).iteration
            report = json.loads((tmp_path / "privacy.json").read_text())
            assert report["steps_charged"] >= kept + (starts - 1)
            assert report["epsilon_spent"] >= epsilon_pld(
                [GaussianEvent(noise_multiplier=SIGMA, steps=kept)], DELTA
            )
    assert starts == 3
    assert votes_read == 6, "the votes that were lost come off what is left"
    assert read_state(tmp_path).iteration == 4
    report = json.loads((tmp_path / "privacy.json").read_text())
    assert report["steps_charged"] == 6
    assert report["epsilon_spent"] == pytest.approx(spent_by_ledger())


def _write_unless(fails: bool, content: bytes, *, path: Path) -> None:
    if fails:
        raise Killed
    write_atomically(content, path=path)


def test_an_error_after_the_charge_is_reported_as_spent(tmp_path, monkeypatch):
    def fails(self):
        raise ValueError("image 7 can't be read")

    monkeypatch.setattr(Crowd, "read", fails)
    with pytest.raises(ValueError, match="image 7"):
        run_of(tmp_path).run()
    report = json.loads((tmp_path / "privacy.json").read_text())
    assert (report["status"], report["steps_charged"]) == ("interrupted", 1)
    assert report["epsilon_spent"] == pytest.approx(spent_by_ledger())


def test_a_resumed_run_makes_the_same_public_choices(tmp_path):
    """Its noise is fresh; parents and variations of the same votes are the same."""
    run_of(tmp_path).run()
    before = finished(tmp_path)
    (tmp_path / "finished.npz").unlink()
    run_of(tmp_path).run(resume=True)  # nothing is left to vote on
    assert all(np.array_equal(a, b) for a, b in zip(before, finished(tmp_path), strict=True))
    assert len(Ledger().events("crowd", unit="user")) == 6


def test_a_resume_needs_its_own_ledger_and_plan(tmp_path, monkeypatch):
    run_of(tmp_path).run()
    with pytest.raises(LedgerError, match="was charged for"):
        run_of(tmp_path, privacy=VotesPrivacy(noise_multiplier=2.0, delta=DELTA)).run(resume=True)
    with pytest.raises(ValueError, match="holds a run already"):
        run_of(tmp_path).run()
    with pytest.raises(ValueError, match="nothing to resume"):
        run_of(tmp_path / "other").run(resume=True)
    monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(tmp_path / "another.sqlite"))
    Ledger().register("crowd", unit="user", delta=DELTA)
    with pytest.raises(LedgerError, match="use the ledger that the run was started with"):
        run_of(tmp_path).run(resume=True)


def test_noise_is_fresh_and_of_the_size_that_was_paid_for(tmp_path):
    """Between runs of one seed the first votes differ by two draws of noise and nothing else."""
    plan = VotesPlan(noise_multiplier=5.0, iterations=2, delta=DELTA)
    Ledger().register("crowd", unit="user", delta=DELTA)
    counts = []
    for run in ("a", "b"):
        with VotesAccount(Ledger(), plan, dataset="crowd", unit="user", run=run, parent=None) as account:
            counts.append(account.vote(lambda: [np.array([3.0])], num_options=4000))
    assert (counts[0] - counts[1]).std() / math.sqrt(2) == pytest.approx(5.0, rel=0.05)


# --- does it evolve -------------------------------------------------------------------------------------


def distance_to_go(folder: Path) -> float:
    """From the mean of a class to where it should be, for the class that is further away."""
    samples, labels = finished(folder)
    means = [samples[labels == label].mean(axis=0) for label in (0, 1)]
    return max(np.linalg.norm(mean - centre) for mean, centre in zip(means, (TARGET, -TARGET), strict=True))


@pytest.mark.parametrize("keep_parents", [True, False])
def test_votes_move_the_population_to_the_private_distribution(tmp_path, keep_parents):
    """Random samples lie around the origin, both classes alike; no public label says where a class is."""
    run_of(tmp_path, iterations=12, population=30, keep_parents=keep_parents).run()
    assert distance_to_go(tmp_path) < 0.5
    assert np.bincount(finished(tmp_path)[1]).tolist() == [25, 25]
    metrics = (tmp_path / "metrics.csv").read_text().splitlines()
    assert len(metrics) == 13


def test_without_votes_it_does_not_get_there(tmp_path, monkeypatch):
    """The control: noise alone leads nowhere near, but for one class in a run now and then by chance."""
    monkeypatch.setattr(PrivateEvolution, "_ballots", lambda self, *_: [np.array([np.nan])])
    monkeypatch.setattr(PrivateEvolution, "_report", lambda self, *_, **__: None)
    monkeypatch.setattr(PrivateEvolution, "_write_results", lambda self: None)
    folders = [tmp_path / str(number) for number in range(3)]
    for folder in folders:
        run_of(folder, iterations=12, population=60).run()
    assert np.median([distance_to_go(folder) for folder in folders]) > 1.5


def test_users_with_several_rows(tmp_path):
    run_of(tmp_path, task=Crowd(rows_per_unit=3)).run()
    assert json.loads((tmp_path / "privacy.json").read_text())["num_units"] == NUM_UNITS


def test_a_threshold_gives_noise_no_children():
    votes = np.array([0.5, -1.0, 9.0, 0.1, 0.2, 0.3])
    labels = np.array([0, 0, 0, 1, 1, 1])
    population = Population(samples=np.arange(6.0), labels=labels, votes=votes)
    assert population.weights(threshold=1.0).tolist() == [0, 0, 8, 1, 1, 1], "a class never dies out"
    parents = population.choose(np.array([0, 1, 0]), threshold=1.0, rng=np.random.default_rng(0))
    assert labels[parents].tolist() == [0, 1, 0]
    assert parents[0] == parents[2] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations is 0"),
        ({"population": 1}, "population is 1, but there are 2 classes"),
        ({"threshold": -1.0}, "threshold is -1.0"),
        ({"last_degree": 1.5}, "last_degree is 1.5"),
    ],
)
def test_settings_that_cannot_be(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run_of(tmp_path, **options)


# --- images ---------------------------------------------------------------------------------------------


def _recipe(folder: Path, **options) -> Path:
    """Private pictures, and public ones that look a little different."""
    write_npz(folder / "mine", train=90)
    rng = np.random.default_rng(5)
    images, _ = pictures(60, seed=9)
    (folder / "public").mkdir(parents=True, exist_ok=True)
    shuffled = rng.permutation(60)  # which are of a class is not said
    np.savez(folder / "public" / "train.npz", images=(images * 0.9).astype(np.uint8)[shuffled])

    def npz(name: str, **more) -> dict:
        source = {"class_path": "lightning_dp.images.data.npz.NPZ"}
        source["init_args"] = {"path": str(folder / name), **more.pop("source", {})}
        return {
            "class_path": "lightning_dp.images.data.image_data.ImageData",
            "init_args": {"source": source, "size": 8, **more},
        }

    home = "lightning_dp.images.evolution"
    config = {
        "data": npz("mine", source={"class_names": CLASSES}),
        "task": {"class_path": f"{home}.task.ImageTask"},
        "api": {
            "class_path": f"{home}.public_images.PublicImages",
            "init_args": {"data": npz("public", public=True), "neighbours": 5, "flip": True},
        },
        "embedding": {"class_path": f"{home}.pixel_embedding.PixelEmbedding", "init_args": {"side": 4}},
        "generations": {"iterations": 3, "population": 30, "num_samples": 120},
        "privacy": {"noise_multiplier": 1.0, "delta": 1e-3},
        "run": {"dir": str(folder / "run"), "method": "evolved"},
        **options,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_from_the_command_line_to_metrics(tmp_path, capsys):
    assert main(["evolve", f"--config={_recipe(tmp_path)}"]) == 0
    assert "3 votes with noise of 1 each" in capsys.readouterr().out
    run = tmp_path / "run"
    with np.load(run / "samples" / "train.npz") as content:
        images, labels = content["images"], content["labels"]
    assert images.shape == (120, 8, 8)
    # The votes alone say which public image is of which class.
    assert images[labels == 0].mean() > 150 > 60 > images[labels == 1].mean()
    assert (run / "plots" / "sample_grid.png").stat().st_size > 1000
    report = json.loads((run / "privacy.json").read_text())
    of_samples = json.loads((run / "samples" / "privacy.json").read_text())
    assert sorted(of_samples.pop("files")) == ["about.json", "croissant.json", "train.npz"]
    assert of_samples.pop("kind") == "samples"
    for own in (of_samples, report):
        assert own.pop("signature")["public_key"]
    assert of_samples == {name: value for name, value in report.items() if name != "kind"}
    assert report["status"] == "finished"
    assert main(["evaluate", str(run), "--parts", "cnn", "--epochs", "2"]) == 0
    results = json.loads((run / "results.json").read_text())
    assert results["method"] == "evolved"
    assert results["epsilon"] == report["epsilon_spent"]
    assert 0 <= results["metrics"]["test/accuracy_cnn"] <= 100
    assert results["evaluation"]["samples"] == 120
    assert main(["evaluate", str(run), "--guidance", "2"]) == 2
    # Its samples are what 'sample' hands on.
    opened, out = load_run(run), tmp_path / "out"
    assert opened.epsilon == report["epsilon_spent"]
    assert np.array_equal(opened.sample()[0][:, 0], images)
    assert main(["sample", str(run), "--num=8", f"--output={out}", "--format=npz"]) == 0
    with np.load(out / "train.npz") as content:
        assert np.bincount(content["labels"]).tolist() == [3, 3, 2]
        assert all((images == one).all(axis=(1, 2)).any() for one in content["images"])
    assert json.loads((out / "privacy.json").read_text())["epsilon_spent"] == report["epsilon_spent"]
    for option, message in (
        ("--num=121", "holds 120"),
        ("--steps=3", "no model"),
        ("--guidance=2", "no option"),
    ):
        assert main(["sample", str(run), option, f"--output={tmp_path / 'no'}"]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="trains no module"):
        opened.module  # noqa: B018
    # The folder's own configuration repeats the run.
    assert main(["evolve", f"--config={run / 'config.yaml'}", f"--run.dir={tmp_path / 'again'}"]) == 0
    assert main(["evolve", f"--config={run / 'config.yaml'}"]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_references_follow_the_command_line(tmp_path):
    recipe = [
        "evolve",
        f"--config={_recipe(tmp_path)}",
        "--generations.num_samples=${generations.population}",
    ]
    assert main([*recipe, "--generations.population=20", "--generations.iterations=1"]) == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["generations"]["num_samples"] == saved["generations"]["population"] == 20


_PUBLIC = "--api.init_args.data.init_args"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--api.init_args.blend=2"], "PublicImages.blend is 2.0"),
        ([f"{_PUBLIC}.public=false"], "nobody says is public"),
        ([f"{_PUBLIC}.size=9", f"{_PUBLIC}.other_sizes=pad"], "same size"),
        (["--embedding.init_args.side=0"], "side is 0"),
        (["--generations.populatoin=3"], "populatoin"),
        (["--privacy.noise_multiplier=null"], "exactly one of"),
        (["--privacy.delta=${privacy.detla}"], "privacy.delta: Interpolation key 'privacy.detla' not found"),
    ],
)
def test_mistakes_are_one_sentence_and_cost_nothing(tmp_path, capsys, arguments, message):
    assert main(["evolve", f"--config={_recipe(tmp_path)}", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "privacy.json").exists()
    ledger = Ledger()
    assert not ledger.path.exists() or not [e for e in ledger.entries() if e.kind == "release"]


HOME = Path(__file__).parents[2] / "conf" / "evolution"
RECIPES = sorted(HOME.glob("**/*.yaml"))


def _toys(path: Path, folder: Path) -> tuple[list[str], int]:
    """What a recipe lacks here, made up, and the number of units that it then has."""
    if path.name != "cats_stable_diffusion.yaml":
        return [], 60_000
    for number in range(6):
        name = ("cookie", "doudou")[number % 2]
        write_png(folder / "cats" / "train" / name / f"{number}.png", size=(20, 16), mode="RGB", level=number)
    return [
        f"--data.init_args.source.init_args.path={folder / 'cats'}",
        f"--api.init_args.path={write_checkpoint(folder / 'checkpoint')}",
        "--api.init_args.num_steps=2",
        *(f"--{part}.init_args.size=16" for part in ("data", "api")),
    ], 6


@pytest.mark.skipif(not os.environ.get("LIGHTNING_DP_DATA"), reason="needs images: set LIGHTNING_DP_DATA")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_votes_once(path, tmp_path):
    short = ["--generations.iterations=1", "--generations.population=20", "--generations.num_samples=20"]
    noise = ["--privacy.target_epsilon=null", "--privacy.noise_multiplier=4"]
    toys, num_units = _toys(path, tmp_path)
    # Rules are a fragment: they go on top of a recipe.
    whole = [path] if path.parent == HOME else [HOME / "fashion_mnist.yaml", path]
    recipe = [f"--config={one}" for one in whole]
    assert main(["evolve", *recipe, *short, *noise, *toys, f"--run.dir={tmp_path / 'run'}"]) == 0
    assert json.loads((tmp_path / "run" / "privacy.json").read_text())["num_units"] == num_units


def test_images_of_users(tmp_path):
    """A user has all of their images counted, and one vote."""
    task = ImageTask(npz_data(write_npz(tmp_path, users=7), unit="user", images_per_user=2))
    rows = task.read()
    assert len(rows.samples) == 60
    assert rows.unit.num_units == 7
    votes = per_unit(np.zeros(60), owners=rows.owners, num_units=7)
    assert [len(own) for own in votes] == np.bincount(np.arange(60) % 7).tolist()
    assert VoteCounts(noise_multiplier=1.0, num_options=3).sums(votes) == pytest.approx([7, 0, 0])


def test_variations_grow_with_their_degree(tmp_path):
    data = npz_data(write_npz(tmp_path), public=True)
    api = PublicImages(data, neighbours=10)
    labels = np.arange(30) % 3
    samples = api.random(labels, rng=np.random.default_rng(0))
    assert len(np.unique(samples.reshape(30, -1), axis=0)) == 30

    def distance(degree: float) -> float:
        varied = api.vary(samples, labels, degree=degree, rng=np.random.default_rng(1))
        assert varied.shape == samples.shape
        assert varied.dtype == np.uint8
        embedding = PixelEmbedding()
        return float((embedding.embed(varied) - embedding.embed(samples)).norm(dim=1).mean())

    assert distance(0.0) == 0
    assert 0 < distance(0.3) < distance(1.0)


def _public_run(tmp_path: Path, *, public: bool, **model: object) -> Path:
    """A fit on public pictures, short and at high learning rate: samples need not be good."""
    config = {
        "data": {
            "class_path": "lightning_dp.images.data.image_data.ImageData",
            "init_args": {
                "source": {
                    "class_path": "lightning_dp.images.data.npz.NPZ",
                    "init_args": {"path": str(write_npz(tmp_path / "public")), "class_names": CLASSES},
                },
                "size": 8,
                "public": public,
            },
        },
        "model": {
            "class_path": "lightning_dp.images.module.LatentDiffusion",
            "init_args": {
                "net": {
                    "class_path": "lightning_dp.nets.image_dit.ImageDiT",
                    "init_args": {
                        "conditioning": {"class_path": "lightning_dp.nets.conditioning.adaln_zero.AdaLNZero"},
                        "in_channels": 1,
                        "num_classes": len(CLASSES),
                        "size": 8,
                        "patch_size": 4,
                        "hidden_size": 16,
                        "depth": 1,
                        "num_heads": 2,
                    },
                },
                "guidance_scale": 1.5,
                **model,
            },
        },
        "privacy": None,
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 2, "limit_val_batches": 0},
        "run": {"wandb": "disabled", "test": False, "dir": str(tmp_path / f"run-{public}")},
    }
    config["trainer"] |= {"enable_model_summary": False, "enable_progress_bar": False}
    (tmp_path / "public.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", f"--config={tmp_path / 'public.yaml'}"]) == 0
    return tmp_path / f"run-{public}"


def test_a_public_model_as_the_api(tmp_path):
    run = _public_run(tmp_path, public=True)
    api = DiffusionAPI(str(run), num_steps=4, images_at_once=5)
    labels = np.arange(12) % 3
    images, _ = pictures(12)
    samples = images[:, None]

    def vary(degree: float, seed: int = 0) -> np.ndarray:
        return api.vary(samples, labels, degree=degree, rng=np.random.default_rng(seed)).astype(float)

    assert np.array_equal(vary(0.6), vary(0.6))
    assert not np.array_equal(vary(0.6), vary(0.6, seed=1))
    assert abs(vary(0.01) - samples).mean() < abs(vary(0.4) - samples).mean()
    options = {"class_path": "lightning_dp.images.evolution.diffusion_api.DiffusionAPI"}
    options["init_args"] = {"run": str(run), "num_steps": 2}
    assert main(["evolve", f"--config={_recipe(tmp_path / 'evolve', api=options)}"]) == 0
    assert (tmp_path / "evolve" / "run" / "samples" / "train.npz").is_file()


def test_a_model_of_private_images_is_no_api(tmp_path):
    with pytest.raises(ValueError, match="nobody says is public"):
        DiffusionAPI(str(_public_run(tmp_path, public=False)))


def test_a_small_edit_by_a_perfect_model_stays_where_it_was(tmp_path, monkeypatch):
    """DDIM with the true answer ends at the clean image, whatever the degree: the arithmetic of `_edit`."""
    api = DiffusionAPI(str(_public_run(tmp_path, public=True)))
    module = tiny_module(net=tiny_net())
    clean = torch.rand(4, 1, 8, 8) * 2 - 1

    def perfect(x, timesteps, *, condition):
        alpha, sigma = module.schedule.alpha_sigma(timesteps, ndim=4)
        noise = (x - alpha * clean) / sigma
        return module.prediction.target(clean, noise, alpha=alpha, sigma=sigma)

    monkeypatch.setattr(api._module, "denoise", perfect)
    for degree in (0.05, 0.5, 1.0):
        generator = torch.Generator().manual_seed(0)
        edited = api._edit(clean, torch.zeros(4, dtype=torch.long), degree=degree, generator=generator)
        assert torch.allclose(edited, clean, atol=1e-3)


def test_variations_go_by_the_whole_model(tmp_path):
    """A net that says nothing beside a base denoiser: variations are as near to public images as samples."""
    prior = {"class_path": "lightning_dp.images.class_gaussians.ClassGaussians", "init_args": {"rank": 8}}
    run = _public_run(tmp_path, public=True, base_denoiser=prior)
    api = DiffusionAPI(str(run), num_steps=10)
    with torch.no_grad():
        for parameter in api._module.net.parameters():
            parameter.zero_()
    public = pictures(60)[0].reshape(60, -1) / 255
    labels = np.arange(30) % 3

    def distance(samples: np.ndarray) -> float:
        return float(np.mean([abs(public - one.reshape(-1) / 255).mean(axis=1).min() for one in samples]))

    drawn = api.random(labels, rng=np.random.default_rng(0))
    varied = api.vary(drawn, labels, degree=0.9, rng=np.random.default_rng(1))
    assert not np.array_equal(drawn, varied)
    assert distance(varied) < 1.5 * distance(drawn) < 0.2
    noise = np.random.default_rng(2).integers(0, 256, drawn.shape)
    assert distance(noise) > 5 * distance(varied)  # which is what a bare net made of them
