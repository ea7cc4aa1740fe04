"""What a module was fitted on stays with its weights, and the ε of a private fit is that of the weights."""

import copy
import io
import json
import pickle

import pytest
import torch
from support import Records, Regression, make_trainer
from torch.utils.data import DataLoader

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.callbacks.ema import EMA
from lightning_dp.callbacks.weights_seen import seen_by
from lightning_dp.privacy.ledger import Ledger

N = 8


class Public(Records):
    public = True


def private(**options) -> DifferentialPrivacy:
    defaults = {"noise_multiplier": 4.0, "delta": 1e-3, "expected_batch_size": 4, "unit": "record"}
    return DifferentialPrivacy(**{**defaults, **options})


def fit(folder, module, *, name="meters", ckpt_path=None, steps=2, **options) -> dict:
    trainer = make_trainer(folder, steps=steps, privacy=private(**options))
    trainer.fit(module, datamodule=Records(N, dataset_id=name), ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "last.ckpt")
    return json.loads((folder / "privacy.json").read_text())


def fit_openly(folder, module, *, data=None, loader=None, **options):
    trainer = make_trainer(folder, steps=2, privacy=None, **options)
    trainer.fit(module, loader, datamodule=data)
    return trainer


def refused(folder, module, match, **options) -> None:
    entries = len(Ledger().entries()) if Ledger().path.exists() else 0
    with pytest.raises(ValueError, match=match):
        fit(folder, module, **options)
    assert (len(Ledger().entries()) if Ledger().path.exists() else 0) == entries, "nothing may be charged"


def _of_one_run(report) -> float:
    return Ledger().epsilon_of_run(report["run"], dataset="meters", unit=report["unit"])


def by_the_same(module, folder):
    return module


def by_deepcopy(module, folder):
    return copy.deepcopy(module)


def by_pickle(module, folder):
    return pickle.loads(pickle.dumps(module))


def by_checkpoint(module, folder):
    return Regression.load_from_checkpoint(folder / "last.ckpt", weights_only=True)


def by_state_dict(module, folder):
    fresh, file = Regression(), io.BytesIO()
    torch.save(module.state_dict(), file)
    fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    return fresh


def by_an_inner_net(module, folder):
    fresh = Regression()
    fresh.net = module.net
    return fresh


def by_an_inner_state_dict(module, folder):
    fresh = Regression()
    fresh.net.load_state_dict(copy.deepcopy(module.net.state_dict()))
    return fresh


WAYS = [
    by_the_same,
    by_deepcopy,
    by_pickle,
    by_checkpoint,
    by_state_dict,
    by_an_inner_net,
    by_an_inner_state_dict,
]


def test_three_fits_of_one_module_report_what_the_ledger_adds_up(tmp_path):
    module = Regression()
    reports = [fit(tmp_path / str(number), module) for number in range(3)]
    alone = Ledger().epsilon_of_run(reports[0]["run"], dataset="meters", unit="record")
    assert reports[0]["epsilon_spent"] == pytest.approx(alone, rel=1e-6)
    total = Ledger().epsilon("meters", unit="record")
    assert reports[2]["epsilon_spent"] == pytest.approx(total, rel=1e-6)
    assert reports[2]["epsilon"] == reports[2]["epsilon_of_unit"]["record"] == reports[2]["epsilon_spent"]
    assert alone < reports[1]["epsilon_spent"] < total
    (before,) = reports[2]["weights_seen"]
    assert before["runs"] == [reports[0]["run"], reports[1]["run"]]
    opened = [entry for entry in Ledger().entries() if entry.kind == "open"]
    assert opened[2].detail["facts"]["weights_seen"] == reports[2]["weights_seen"]


@pytest.mark.parametrize("way", WAYS)
def test_a_private_fit_is_counted_however_its_weights_come_along(tmp_path, way):
    module = Regression()
    fit(tmp_path / "one", module)
    report = fit(tmp_path / "two", way(module, tmp_path / "one"))
    assert report["epsilon_spent"] == pytest.approx(Ledger().epsilon("meters", unit="record"), rel=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_fit_without_privacy_is_refused_however_its_weights_come_along(tmp_path, way):
    module = Regression()
    trainer = fit_openly(tmp_path / "one", module, data=Records(N, dataset_id="diaries"))
    trainer.save_checkpoint(tmp_path / "one" / "last.ckpt")
    refused(tmp_path / "two", way(module, tmp_path / "one"), "trained on diaries without privacy")


def test_fresh_weights_beside_trained_ones_are_not_counted(tmp_path):
    fit_openly(tmp_path / "one", Regression(), data=Records(N))
    module = Regression()
    fit(tmp_path / "two", module)
    report = fit(tmp_path / "three", Regression())
    assert report["epsilon_spent"] == pytest.approx(_of_one_run(report), rel=1e-6)
    assert report["weights_seen"] == []


def test_a_shared_part_without_weights_carries_nothing_over(tmp_path):
    shared = torch.nn.Tanh()
    fit_openly(tmp_path / "one", Regression(extra=shared), data=Records(N))
    assert seen_by(Regression(extra=shared)) == []


def test_the_own_data_without_privacy_is_refused_whatever_is_said_of_it(tmp_path):
    module = Regression()
    fit_openly(tmp_path / "one", module, data=Public(N, dataset_id="meters"))
    refused(tmp_path / "two", module, "trained on meters, the data", public_start="it is public, really")


@pytest.mark.parametrize("plain", [False, True])
def test_public_data_before_is_said_by_the_data_or_in_words(tmp_path, plain):
    module, data = Regression(), Records(N)
    if plain:
        fit_openly(tmp_path / "one", module, loader=DataLoader(data.dataset, batch_size=4))
        refused(tmp_path / "no", module, "data that nobody recorded")
        report = fit(tmp_path / "two", module, public_start="drawn from a simulator")
    else:
        fit_openly(tmp_path / "one", module, data=Public(N, dataset_id="open"))
        report = fit(tmp_path / "two", module)
    assert report["epsilon_spent"] == pytest.approx(_of_one_run(report), rel=1e-6)
    (seen,) = report["weights_seen"]
    assert (seen["public"], seen["statement"]) == (not plain, "drawn from a simulator" if plain else "")


def test_other_private_data_before_is_stated_on_its_own(tmp_path, monkeypatch):
    module = Regression()
    fit(tmp_path / "one", module, name="others")
    report = fit(tmp_path / "two", module, name="meters", unit="user")
    assert report["epsilon_spent"] == pytest.approx(_of_one_run(report), rel=1e-6)
    (seen,) = report["weights_seen"]
    assert (seen["dataset"], seen["unit"]) == ("others", "record")
    assert seen["epsilon"] == pytest.approx(report["epsilon_spent"], rel=1e-6)  # of a like run
    monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(tmp_path / "another.sqlite"))
    refused(tmp_path / "three", module, "has no entry of that run")


def test_a_resume_counts_its_own_run_once_and_earlier_ones_as_well(tmp_path):
    class Stops(Regression):
        def on_train_batch_end(self, *_):
            self.trainer.should_stop = True

    stops = {"private-monitor": "it stops after a step whatever the data"}
    fit(tmp_path / "one", Stops(), accept=stops)
    again = Regression()
    report = fit(tmp_path / "one", again, ckpt_path=tmp_path / "one" / "last.ckpt")
    assert report["epsilon_spent"] == pytest.approx(Ledger().epsilon("meters", unit="record"), rel=1e-6)
    assert report["weights_seen"] == []
    assert {origin.run for origin in seen_by(again)} == {report["run"]}
    half = Stops()
    half.load_state_dict(again.state_dict())
    fit(tmp_path / "two", half, accept=stops)
    report = fit(tmp_path / "two", Regression(), ckpt_path=tmp_path / "two" / "last.ckpt")
    assert report["epsilon_spent"] == pytest.approx(Ledger().epsilon("meters", unit="record"), rel=1e-6)
    assert len(report["weights_seen"]) == 1


def test_averaged_weights_remember(tmp_path):
    fit_openly(tmp_path, Regression(), data=Records(N, dataset_id="diaries"), callbacks=[EMA(decay=0.9)])
    trainer = make_trainer(tmp_path, steps=2, privacy=None, callbacks=[EMA(decay=0.9)])
    trainer.fit(Regression(), datamodule=Records(N, dataset_id="diaries"))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    refused(tmp_path / "two", by_checkpoint(None, tmp_path), "trained on diaries")


def test_a_loop_of_ones_own_is_seen(tmp_path):
    module = Regression()
    optimizer = torch.optim.Adam(module.net[0].parameters(), lr=0.1)
    module.net(torch.randn(3, 4)).sum().backward()
    fit(tmp_path / "one", copy.deepcopy(module))
    optimizer.step()
    refused(tmp_path / "two", module, "data that nobody recorded without privacy")
    inner = Regression()
    inner.net = module.net
    refused(tmp_path / "two", inner, "data that nobody recorded without privacy")
    report = fit(tmp_path / "two", module, public_start="made-up rows, see above")
    assert report["weights_seen"] == [
        {"dataset": "", "public": False, "statement": "made-up rows, see above"}
    ]


def test_a_fit_that_made_no_step_leaves_no_mark(tmp_path):
    class Broken(Regression):
        def configure_optimizers(self):
            raise KeyError("lr")

    module = Broken()
    with pytest.raises(KeyError):
        fit_openly(tmp_path, module, data=Records(N))
    assert seen_by(module) == []
    with pytest.raises(ValueError, match="between 1 and"):
        fit(tmp_path, module, expected_batch_size=100)
    assert seen_by(module) == []


def test_a_fit_that_broke_off_leaves_its_mark(tmp_path):
    class Breaks(Regression):
        def on_train_batch_end(self, *_):
            raise KeyError("disk")

    module = Breaks()
    with pytest.raises(KeyError):
        fit_openly(tmp_path, module, data=Records(N, dataset_id="diaries"))
    assert [origin.dataset for origin in seen_by(module)] == ["diaries"]


@pytest.mark.parametrize("bad", ["yes", "", 3])
def test_a_statement_needs_words(bad):
    with pytest.raises(ValueError, match=r"privacy.public_start is"):
        private(public_start=bad)


def test_state_dicts_hold_what_they_held(tmp_path):
    """Marks lie in the metadata: whoever reads tensors by name finds no others."""
    module = Regression()
    names, before = list(module.state_dict()), copy.deepcopy(module.state_dict())
    fit(tmp_path, module)
    assert list(module.state_dict()) == names
    module.load_state_dict(before)
    assert len(seen_by(module)) == 1  # who has seen something has seen it
