"""Two private fits on made-up units with canaries, and what four adversaries make of their releases.

All of them see each released update and know everything about the data but one canary ("white-box", Nasr et
al. 2021, arXiv 2101.04535; one run serves all canaries, whose directions are orthogonal). What each is for:

- `step`: was the canary in this batch? Noise too small, contributions too large.
- `run`: was it in the data at all? All of the path together, by the likelihood ratio that is best against it.
- `batches`: the same for somebody who knows how many of the others were in each batch. Poisson coins are
  independent, so that says nothing; a shuffled batch that lacks one unit is the canary's.
- `seed`: the same for somebody who repeats the run with its published seed, without the canaries. Batches
  and noise are then either all known or new.
"""

import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything

from lightning_dp.audits.canary_data import CanaryData
from lightning_dp.audits.canary_module import with_canaries
from lightning_dp.audits.releases import Releases
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.privacy.accounting import GaussianEvent
from lightning_dp.privacy.noise import entropy_bits
from lightning_dp.privacy.preflight import CODES

_WHY = "made-up units of an audit, which looks for itself"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What an audit runs: the mechanism of a recipe on a plan of its own, where faults would show.

    Attributes:
        noise_multiplier: σ > 0.
        steps: T, whole epochs of N / B steps.
        batch: B, expected.
        others: units that are no canaries.
        canaries: m; N is others + m.
        delta: δ of what is claimed.
        seed: of both fits, and published.
    """

    noise_multiplier: float = 1.0
    steps: int = 160
    batch: int = 12
    others: int = 64
    canaries: int = 128
    delta: float = 1e-5
    seed: int = 7

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("others", 2), ("canaries", 8)):
            if getattr(self, name) < least:
                raise ValueError(f"an audit's {name} is {getattr(self, name)}; it must be at least {least}")

    @property
    def event(self) -> GaussianEvent:
        """What is claimed of all steps together."""
        rate = self.batch / (self.others + self.canaries)
        return GaussianEvent(noise_multiplier=self.noise_multiplier, sampling_rate=rate, steps=self.steps)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Of one adversary: higher where a canary seems to be there; 0 divides best, whatever the scores.

    Attributes:
        adversary: "step", "run", "batches" or "seed".
        null: (n,) where there was none.
        canary: (k,) where there was one.
        event: the mechanism that was attacked, as claimed.
    """

    adversary: str
    null: np.ndarray
    canary: np.ndarray
    event: GaussianEvent


def attack(
    module: LightningModule,
    data: LightningDataModule,
    *,
    setting: Setting,
    privacy: DifferentialPrivacy,
    progress: Callable[[str, int, int], None] = lambda what, step, steps: None,
) -> list[Scores]:
    """Train twice and let the adversaries look.

    Args:
        module: of the recipe; it is copied.
        data: of the recipe, set up, for shapes and collation.
        setting: of the audit.
        privacy: of the recipe: its C, clipping function, engine and kind of noise are taken.
        progress: told which fit it is, the step and the number of steps.
    """
    coins = np.random.default_rng(entropy_bits()).random(setting.canaries) < 0.5
    source = CanaryData(data, num_others=setting.others, num_canaries=setting.canaries)

    def fit(present: np.ndarray, name: str, steps: int) -> Releases:
        audited = with_canaries(
            module, present=torch.from_numpy(present), max_grad_norm=privacy.max_grad_norm
        )
        releases = Releases()
        own = replace(setting, steps=steps)
        private_fit(audited, source, releases, setting=own, privacy=privacy, progress=progress, name=name)
        return releases

    run = fit(coins, "the run", setting.steps)
    # Noise that is known is known after a few steps.
    twin = fit(np.zeros_like(coins), "its twin without canaries", math.ceil(setting.steps / 2))
    return scores_of(run, twin, present=coins, setting=setting)


def scores_of(run: Releases, twin: Releases, *, present: np.ndarray, setting: Setting) -> list[Scores]:
    """What each adversary makes of it.

    Args:
        run: with the canaries that are `present`.
        twin: without any, of the same seed, and not longer.
        present: (m,) bool.
        setting: of both.
    """
    seen, inside = np.stack(run.scores), np.stack(run.inside)  # (T, m)
    event, rate = setting.event, setting.event.sampling_rate
    there = inside & present
    # ln(1 − q + q e^x), which does not overflow
    exponent = np.clip((seen - 0.5) / setting.noise_multiplier**2, -700, 700)
    ratio = np.logaddexp(np.log1p(-rate), np.log(rate) + exponent).sum(axis=0)  # (m,)
    others = np.asarray(run.sizes)[:, None] - inside  # (T, m)
    lacking = np.where(others == setting.batch - 1, seen - 0.5, 0.0).sum(axis=0)
    again, when = np.stack(twin.scores), np.stack(twin.inside)
    # How much of the noise is the twin's: all of it or nothing, by what both released elsewhere.
    first = seen[: len(again)]
    elsewhere = ~(when | inside[: len(again)])
    known = float(np.clip(np.corrcoef(first[elsewhere], again[elsewhere])[0, 1], 0, 1).round(1))
    replayed = np.where(when, first - known * again - 0.5, 0.0).sum(axis=0)
    one = GaussianEvent(noise_multiplier=setting.noise_multiplier, steps=1)
    return [
        Scores(adversary="step", null=seen[~there] - 0.5, canary=seen[there] - 0.5, event=one),
        *(
            Scores(adversary=name, null=values[~present], canary=values[present], event=event)
            for name, values in (("run", ratio), ("batches", lacking), ("seed", replayed))
        ),
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Advice of the trainer, and the news of a ledger that is thrown away, are for fits."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning_dp.privacy.ledger")]
    levels = [one.level for one in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        for one in loggers:
            one.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for one, level in zip(loggers, levels, strict=True):
                one.setLevel(level)


class _Steps(Callback):
    def __init__(self, name: str, steps: int, progress: Callable[[str, int, int], None]) -> None:
        self._name, self._steps, self._progress = name, steps, progress

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._progress(self._name, trainer.global_step, self._steps)


def private_fit(
    module: LightningModule,
    data: CanaryData,
    *observers: Callback,
    setting: Setting,
    privacy: DifferentialPrivacy,
    progress: Callable[[str, int, int], None],
    name: str,
) -> None:
    """One private fit by Lightning's trainer; its ledger and folder are thrown away: the data is nobody's."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        seed_everything(setting.seed, verbose=False)
        private = DifferentialPrivacy(
            noise_multiplier=setting.noise_multiplier,
            delta=setting.delta,
            expected_batch_size=setting.batch,
            num_units=setting.others + setting.canaries,
            max_grad_norm=privacy.max_grad_norm,
            clipping_function=deepcopy(privacy.clipping_function),
            clipping_engine=type(privacy.clipping_engine)(),
            secure=privacy.secure,
            accept={code: _WHY for code in CODES if code != "nothing-trains"} | privacy.accept,
            ledger=str(Path(folder) / "ledger.sqlite"),
            spot_check=0,  # it would stop some faults before the audit sees them
            public_start="weights of an audit see made-up units alone",
        )
        Trainer(
            default_root_dir=folder,
            accelerator="cuda" if torch.cuda.is_available() else "cpu",
            devices=1,
            max_steps=setting.steps,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[private, *observers, _Steps(name, setting.steps, progress)],
        ).fit(module, datamodule=data)
