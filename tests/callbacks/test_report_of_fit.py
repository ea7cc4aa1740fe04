"""What a fit says of itself in its privacy report, and what the pages beside it show."""

import json
import subprocess
import time
from pathlib import Path

import pytest
from lightning.pytorch import Callback
from support import Records, Regression, make_trainer

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.cli import main
from lightning_dp.privacy.accounting import GaussianEvent, count_releases, epsilon_pld, event_from_dict
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.privacy.report import facts
from lightning_dp.privacy.report.document import PrivacyReport
from lightning_dp.privacy.report.facts import curve_of, noise_of
from lightning_dp.privacy.secure_noise import SecureGaussianNoise

N = 40
PAGES = ["privacy_report.html", "privacy_report.md"]


def fit(folder: Path, module=None, *, steps=3, callbacks=(), name="meters", **options) -> dict:
    defaults = {"noise_multiplier": 2.0, "delta": 1e-3, "expected_batch_size": 4, "unit": "record"}
    privacy = DifferentialPrivacy(**{**defaults, **options})
    trainer = make_trainer(folder, steps=steps, privacy=privacy)
    trainer.callbacks.extend(callbacks)
    trainer.fit(module or Regression(), datamodule=Records(N, dataset_id=name))
    return json.loads((folder / "privacy.json").read_text())


def pages(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("privacy_report.*"))


def test_everything_that_was_composed_is_listed_where_it_was_charged(tmp_path, capsys):
    module = Regression()
    first = fit(tmp_path / "one", module)
    second = fit(tmp_path / "two", module, noise_multiplier=3.0, secure=True)
    assert [one["runs"] for one in second["composition"]] == [[first["run"]], [second["run"]]]
    assert [one["event"]["noise_multiplier"] for one in second["composition"]] == [2.0, 3.0]
    assert {(one["dataset"], one["unit"]) for one in second["composition"]} == {("meters", "record")}
    composed = count_releases([event_from_dict(one["event"]) for one in second["composition"]])
    assert composed == count_releases([event_from_dict(one) for one in second["mechanisms"]])
    assert second["noise"][0] | {"generator": ""} == {
        "of": "training",
        "source": "SecureGaussianNoise",
        "secure": True,
        "generator": "",
    }
    assert first["noise"][0]["secure"] is False
    assert second["total"]["epsilon"] >= second["epsilon_spent"] > first["epsilon_spent"]
    assert (first["total"]["runs"], second["total"]["runs"]) == (1, 2)
    assert first["total"]["epsilon"] == first["epsilon_spent"]
    for folder in ("one", "two"):
        assert main(["verify", str(tmp_path / folder)]) == 0, capsys.readouterr().err
    # Who forgets the earlier fit, and signs that, has the ledger against it.
    less = fit(tmp_path / "three", noise_multiplier=3.0)
    forged = {**second, "composition": [second["composition"][1]], "mechanisms": [second["mechanisms"][-1]]}
    forged |= {"epsilon_spent": less["epsilon_spent"], "curve": None, "weights_seen": []}
    forged |= {name: less[name] for name in ("epsilon", "epsilon_of_unit")}
    (tmp_path / "two" / "privacy.json").write_text(json.dumps(Ledger().sign_report(forged)))
    for page in PAGES:
        (tmp_path / "two" / page).unlink()
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "two")]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "what its run was charged costs" in said


def test_a_total_that_forgets_a_run_is_found_by_the_ledger(tmp_path, capsys):
    fit(tmp_path / "one", noise_multiplier=1.0)
    report = fit(tmp_path / "two")
    report["total"]["epsilon"] = report["epsilon_spent"]
    (tmp_path / "two" / "privacy.json").write_text(json.dumps(Ledger().sign_report(report)))
    for page in PAGES:
        (tmp_path / "two" / page).unlink()
    assert main(["verify", str(tmp_path / "two")]) == 1
    assert "what all runs on meters were charged up to entry" in capsys.readouterr().err


def test_pages_are_gone_before_a_fit_into_the_same_folder_charges_more(tmp_path):
    seen = []

    class Looks(Callback):
        def on_train_batch_start(self, *_):
            seen.append(pages(tmp_path))

    fit(tmp_path)
    assert pages(tmp_path) == PAGES
    fit(tmp_path, callbacks=[Looks()])
    assert seen[-3:] == [[], [], []]  # the preflight's trial steps charge nothing
    assert pages(tmp_path) == PAGES


def test_an_interrupted_fit_says_so_on_its_page(tmp_path):
    class Fails(Regression):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 2:
                raise ArithmeticError("as planned")
            return super().training_step(batch, batch_idx)

    with pytest.raises(ArithmeticError):
        fit(tmp_path, Fails(), steps=5)
    assert "The run is interrupted." in (tmp_path / "privacy_report.md").read_text()
    assert "Steps charged: 2 of 5 planned" in (tmp_path / "privacy_report.md").read_text()


def test_a_full_disk_costs_the_pages_and_not_the_report(tmp_path, monkeypatch):
    from lightning_dp.privacy.report import readable

    def full(path, text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(readable, "replace_text", full)
    with pytest.warns(UserWarning, match="could not be shown as HTML"):
        report = fit(tmp_path)
    assert report["status"] == "finished"
    assert pages(tmp_path) == []


EVENTS = [
    GaussianEvent(noise_multiplier=1.0, sampling_rate=0.01, steps=10_000),
    GaussianEvent(noise_multiplier=5.0, sampling_rate=1.0, steps=1),
]


def test_the_curve_is_never_below_what_a_fine_grid_says_and_takes_little_time():
    epsilon = epsilon_pld(EVENTS, 1e-5)
    times = []
    for _ in range(3):
        start = time.process_time()
        curve = curve_of(EVENTS, delta=1e-5, epsilon=epsilon)
        times.append(time.process_time() - start)
    assert min(times) < 0.3
    assert len(curve) == 11
    for point in curve[::5]:
        exact = epsilon_pld(EVENTS, point.delta)
        assert exact * (1 - 1e-9) <= point.epsilon <= exact * 1.01
    # A headline that was rounded up stays the least of what is claimed at a smaller δ.
    higher = curve_of(EVENTS, delta=3e-6, epsilon=epsilon * 2)
    assert [p.epsilon for p in higher] == sorted((p.epsilon for p in higher), reverse=True)
    assert all(p.epsilon >= epsilon * 2 for p in higher if p.delta <= 3e-6)
    PrivacyReport.of({"epsilon_spent": epsilon, "delta": 1e-5, "curve": [vars(point) for point in curve]})


def test_the_commit_is_that_of_the_packages_own_clone_alone(tmp_path, monkeypatch):
    inside = tmp_path / "repository" / "environment" / "lightning_dp" / "privacy" / "report" / "facts.py"
    inside.parent.mkdir(parents=True)
    git = ["git", "-C", str(tmp_path / "repository"), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "somebody else's"], check=True)
    monkeypatch.setattr(facts, "__file__", str(inside))
    assert facts._commit() == (None, None)
    own = tmp_path / "repository" / "lightning_dp" / "privacy" / "report" / "facts.py"
    monkeypatch.setattr(facts, "__file__", str(own))
    assert len(facts._commit()[0]) == 40


def test_noise_of_a_source_that_nobody_knows_is_not_called_secure():
    class Own:
        secure = True  # what it says of itself counts for nothing

    assert noise_of(Own(), of="training").secure is False
    assert noise_of(SecureGaussianNoise, of="training").secure is True
