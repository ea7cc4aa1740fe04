"""Which matrices an adapter chose by their scores, in the run folder: a table and a picture."""

import json
from typing import final

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_dp.fit.facts import run_folder
from lightning_dp.privacy.report import replace_text
from lightning_dp.protocols import HasAdapter, provides
from lightning_dp.tracking.selection_figure import selection_figure


@final
class SelectionReport(Callback):
    """Writes `saliency.json` and `plots/saliency.png` once the choice is made.

    Both are made of what the release published, or of nothing private; where a fit without privacy chose by
    sums without noise they are in `nonprivate/`. Does nothing where the module's adapter chooses by no score.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        adapter = pl_module.adapter if provides(pl_module, HasAdapter) else None
        report = {} if adapter is None else adapter.report()
        if not report:
            return
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        if "nonprivate" in report:
            folder = folder / "nonprivate"
        (folder / "plots").mkdir(parents=True, exist_ok=True)
        replace_text(folder / "saliency.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        selection_figure(report).savefig(folder / "plots" / "saliency.png")
