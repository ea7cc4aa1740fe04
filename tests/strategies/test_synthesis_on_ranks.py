"""Scores of synthetic windows on two gloo ranks are those of one process, of all windows."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_dp.privacy.ranks import Ranks
from lightning_dp.timeseries import synthesis_report
from lightning_dp.timeseries.data.simulator import HouseholdLoad
from lightning_dp.timeseries.masks import Synthesis
from lightning_dp.timeseries.synthesis_report import SynthesisReport

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Squares(LightningModule):
    """Its synthetic windows are the squares of the real ones."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.weight = folder, torch.nn.Parameter(torch.ones(()))

    def sample(self, batch, *, num_samples):
        return batch["values"].square()[:, None].expand(-1, num_samples, -1, -1)

    def test_step(self, batch, batch_idx):
        pass

    def on_test_end(self):
        scores = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        torch.save(scores, self.folder / f"rank{self.global_rank}.pt")


def scores_on(ranks: int, folder: Path) -> list[dict[str, float]]:
    """What each rank has logged."""
    folder.mkdir()
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=ranks,
        strategy="ddp_fork" if ranks > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SynthesisReport()],
    )
    # A window a batch, so that ranks' batches in turns are the windows in order.
    data = HouseholdLoad(
        10, num_days=24, context_length=12, horizon=12, eval_stride=24, batch_size=1, task=Synthesis()
    )
    trainer.test(Squares(folder), datamodule=data, verbose=False)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(ranks)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, float]:
    (scores,) = scores_on(1, tmp_path_factory.mktemp("ranks") / "one")
    return {name: value for name, value in scores.items() if name.startswith("test/")}


def test_two_ranks_score_as_one_process_does(alone, tmp_path):
    assert alone.keys() == {f"test/{name}" for name in synthesis_report._SCORES}
    for rank in scores_on(2, tmp_path / "two"):
        assert {name: rank[name] for name in alone} == pytest.approx(alone, rel=1e-6)


def test_scores_of_a_ranks_own_windows_are_caught(alone, tmp_path, monkeypatch):
    """Planted: nothing is gathered, so the first rank scores its half of the windows."""
    monkeypatch.setattr(Ranks, "gather", lambda self, own: [own])
    for rank in scores_on(2, tmp_path / "two"):
        for name in ("test/marginal_distance", "test/histogram_distance", "test/autocorrelation_distance"):
            assert rank[name] != pytest.approx(alone[name], rel=1e-3), name
