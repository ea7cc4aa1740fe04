"""Which data the weights of a fit have seen before it, so that "public first, private last" can be relied on.

A private fit's ε says what its own data lost in it. That is all there is to say only if the weights that
it starts from knew nothing of that data, and if whatever else they learnt was public or paid for. Every
checkpoint therefore carries the list of data sets behind it, over any number of starts and resumes.
"""

import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_dp.adapters.public_start import check_fresh, load_weights
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.callbacks.weights_seen import Origin, data_of, remember, seen_by, unique
from lightning_dp.diffusion.base_denoiser import with_current_names
from lightning_dp.fit.declared_unit import dataset_name
from lightning_dp.fit.facts import run_folder
from lightning_dp.lightning_internals import datamodule_of
from lightning_dp.privacy.ledger import Ledger, LedgerError
from lightning_dp.privacy.report import replace_text
from lightning_dp.protocols import is_public
from lightning_dp.tracking.folder_lock import make_run_folder
from lightning_dp.tracking.run_folder import CHECKPOINT

FILE = "weights_origin.json"


@final
class WeightsOrigin(Callback):
    """Loads weights to start from, if asked to, and keeps the list of what they have seen.

    A private fit starts only from weights whose every origin is public, by its data module's `public`
    or by a statement that is kept, or was paid for in the same ledger under another data set; never from
    weights that have seen its own data. A fit without privacy starts from anything; its checkpoints say so.

    Args:
        start_from: a run's folder or a checkpoint file; None starts from the model's own initial weights.
        public: why weights of unrecorded origin hold nothing private ("pretrained on the UCI electricity
            set"); None makes no such statement. Kept in every checkpoint and report.
        fresh: regular expressions of parameters that are not loaded, such as layers of another size.

    Raises:
        ValueError: the weights don't fit, or may not be the start of a private fit.
    """

    def __init__(
        self, *, start_from: str | None = None, public: str | None = None, fresh: list[str] | None = None
    ) -> None:
        if start_from is None and (public is not None or fresh):
            raise ValueError(
                "WeightsOrigin.public and fresh say something about start_from, which is not set"
            )
        if public is not None and len(public.split()) < 2:
            raise ValueError(
                f"WeightsOrigin.public is {public!r}; say in words which public data the weights come from"
            )
        self.start_from = start_from
        self.public = public
        self.fresh = fresh or []
        self._earlier: list[Origin] = []
        self._own: Origin | None = None
        self._missing: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check, then load: before anything private is read or written."""
        if stage != "fit":
            return
        data = datamodule_of(trainer)
        private = DifferentialPrivacy.of(trainer)
        name = private.dataset if private is not None else None
        if data is not None or name is not None:
            name = dataset_name(None, datamodule=data, dataset=name)
        self._own = Origin(dataset=name or "", public=is_public(data))
        self._earlier, self._missing = seen_by(pl_module), None
        # The fit that has just begun has left its mark already, where nobody else accounts for it.
        self._earlier = [origin for origin in self._earlier if origin != data_of(data)]
        if self.start_from is None:
            return
        path = Path(self.start_from)
        path = path / CHECKPOINT if path.is_dir() else path
        if not path.is_file():  # a resume, which nobody can tell from here, does without
            self._missing = path
            return
        checkpoint = _read(path)
        ledger = Ledger(private.ledger if private is not None else None)
        loaded = self._origins(checkpoint, ledger=ledger)
        if private is not None:
            for origin in loaded:
                _check(origin, own=self._own.dataset, ledger=ledger, path=path)
        load_weights(pl_module, with_current_names(checkpoint["state_dict"]), fresh=self.fresh)
        check_fresh(pl_module, self.fresh)
        remember(pl_module, *loaded)
        self._earlier = unique([*self._earlier, *loaded])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._missing is not None:
            raise ValueError(
                f"WeightsOrigin.start_from: {self._missing} is not a file; give a run's folder or checkpoint"
            )
        if self.start_from is None:
            return
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        make_run_folder(folder)
        replace_text(folder / FILE, json.dumps(self.report(), indent=2) + "\n")

    def report(self) -> dict[str, Any]:
        """For reports: where the weights started and what they had seen then."""
        return {"start_from": self.start_from, "origins": [asdict(origin) for origin in self._earlier]}

    def _origins(self, checkpoint: dict[str, Any], *, ledger: Ledger) -> list[Origin]:
        """What the weights of a checkpoint have seen; one of unknown data where it doesn't say."""
        states = checkpoint.get("callbacks", {})
        recorded = [Origin(**origin) for origin in states.get(type(self).__qualname__, {}).get("origins", [])]
        private: list[Origin] = []
        paid = states.get(DifferentialPrivacy.__qualname__)
        if paid:
            # The ledger, not the checkpoint, says which data a private run was charged to.
            datasets = _charged_to(paid["run"], ledger=ledger)
            seq, digest = paid["ledger"]
            private = [
                Origin(dataset=name, ledger=[int(seq), str(digest)], run=str(paid["run"]))
                for name in datasets or [""]
            ]
            recorded = [origin for origin in recorded if origin.dataset not in datasets or origin.public]
            private = [p for p in private if p.dataset not in {origin.dataset for origin in recorded}]
        if self.public is not None:
            recorded = [
                origin if origin.public or origin.ledger else replace(origin, statement=self.public)
                for origin in recorded or [Origin(dataset="")]
            ]
        return [*private, *recorded] or [Origin(dataset="")]

    # checkpoints

    def state_dict(self) -> dict[str, Any]:
        origins = [*self._earlier, *([self._own] if self._own is not None else [])]
        unique = {json.dumps(asdict(origin), sort_keys=True): asdict(origin) for origin in origins}
        return {"origins": list(unique.values())}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """What a resumed run has seen before stays with it, whatever data it goes on with."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        origins = [Origin(dataset="")] if state is None else [Origin(**origin) for origin in state["origins"]]
        self._earlier = [origin for origin in origins if origin != self._own]
        self._missing = None
        paid = checkpoint.get("callbacks", {}).get(DifferentialPrivacy.__qualname__)
        if state is None and not paid:
            remember(pl_module, *origins)


def _read(path: Path) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"WeightsOrigin.start_from: {path} is not a checkpoint of weights") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(
            f"WeightsOrigin.start_from: {path} has no state_dict, so it is no Lightning checkpoint"
        )
    return checkpoint


def _charged_to(run: str, *, ledger: Ledger) -> list[str]:
    """Data sets that a run has charges on; none where there is no such ledger."""
    try:
        return ledger.datasets_of(run)
    except LedgerError:
        return []


def _check(origin: Origin, *, own: str, ledger: Ledger, path: Path) -> None:
    """Raise ValueError unless a private fit on `own` may start from weights of this origin."""
    if origin.dataset and ledger.is_same(origin.dataset, own):
        raise ValueError(
            f"the weights in {path} have seen {own}, the data of this private fit, so its ε would not be all "
            "that this data lost: start from other weights, or resume that run by --ckpt_path"
        )
    if origin.ledger is not None:
        seq, digest = origin.ledger
        if origin.dataset and ledger.contains(int(seq), str(digest)):
            return
        raise ValueError(
            f"the weights in {path} were trained privately and this ledger has no entry of that run: use the "
            "ledger that paid for them"
        )
    if not origin.public and not origin.statement:
        raise ValueError(
            f"the weights in {path} have seen {origin.dataset or 'data that nobody recorded'} without "
            "privacy, so nothing protects it: start from a run on public data (a data module with public = "
            "True), or say why it is public in WeightsOrigin.public"
        )
