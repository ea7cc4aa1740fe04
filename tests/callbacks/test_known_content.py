"""A fit compares what its data holds with what the ledger knows, before anything is charged."""

import json
from collections.abc import Iterator

import pytest
from support import Records, Regression, make_trainer

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.privacy.ledger import BudgetExceeded, Ledger, UnclearData


class Known(Records):
    """Records that say what they are made of."""

    def content_pieces(self) -> Iterator[bytes]:
        return (row.numpy().tobytes() for row in self.dataset.tensors[0])


def fit(folder, data, **privacy) -> dict:
    callback = DifferentialPrivacy(
        target_epsilon=8, delta=1e-3, expected_batch_size=8, **{"unit": "record"} | privacy
    )
    make_trainer(folder, steps=2, privacy=callback).fit(Regression(), datamodule=data)
    return json.loads((folder / "privacy.json").read_text())


def test_data_that_was_charged_can_not_be_charged_by_another_name(tmp_path, ledger_path):
    report = fit(tmp_path / "one", Known())
    assert report["content"] == "compared with what the ledger knows"
    charged = Ledger(ledger_path).head()
    with pytest.raises(UnclearData, match="'moved' and 'records', which the ledger knows, have about 100%"):
        fit(tmp_path / "two", Known(dataset_id="moved"))
    assert Ledger(ledger_path).head() == charged
    assert not (tmp_path / "two" / "privacy.json").exists()
    fit(tmp_path / "three", Known(dataset_id=" records "))
    assert Ledger(ledger_path).accounts() == [("records", "record")]


def test_without_the_hook_nothing_is_compared_and_the_report_says_so(tmp_path, ledger_path):
    fit(tmp_path / "one", Known())
    report = fit(tmp_path / "two", Records(dataset_id="moved"))
    assert report["content"] == "not compared: it has no fingerprint"
    assert report["ledger_elsewhere"] is False


def test_a_limit_before_the_first_run_holds_and_another_ledger_is_said(tmp_path, ledger_path):
    Ledger(ledger_path).register("records", unit="user", delta=None, limit_epsilon=0.5)
    for unit in ("user", "record", "window"):
        with pytest.raises(BudgetExceeded):
            fit(tmp_path / unit, Records(), unit=unit)
    report = fit(tmp_path / "elsewhere", Records(), ledger=str(tmp_path / "other.sqlite"))
    assert report["ledger_elsewhere"] is True
    assert str(tmp_path) not in json.dumps(report)
