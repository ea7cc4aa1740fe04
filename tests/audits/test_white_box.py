"""Audits of the training path: what is honest passes, what is broken is seen by the adversary that is for it.

The whole of it, four faults in both families, is benchmarks/audit.py; here are a clean one and one fault by
real fits, and all four adversaries on simulated releases.
"""

import json

import numpy as np
import pytest
from audits.planted import half_the_noise
from images.image_support import awake, npz_data, tiny_module, tiny_net, write_npz

from lightning_dp.audits.judged import counts_of, judge
from lightning_dp.audits.releases import Releases
from lightning_dp.audits.white_box import Setting, attack, scores_of
from lightning_dp.audits.written import sentence
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.cli import main
from lightning_dp.privacy.audit.curve import curve_of
from lightning_dp.privacy.audit.joint import p_value

SHORT = Setting(steps=48, canaries=64, others=32, batch=12)
RECIPE = "conf/experiment/demo_simulator.yaml"
TINY = [
    "--data.init_args.num_households=60",
    "--data.init_args.num_days=10",
    "--data.init_args.windows_per_user=1",
    "--model.init_args.net.init_args.hidden_size=16",
    "--model.init_args.noise_draws=1",
]


def flagged(rows) -> set[str]:
    return {row.adversary for row in rows if row.exceeds}


def test_the_command_passes_an_honest_series_module_and_leaves_its_files(tmp_path, capsys):
    short = ["--steps", "48", "--canaries", "64", "--others", "32"]
    assert main(["audit", RECIPE, *short, "--out", str(tmp_path / "audit"), *TINY]) == 0
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert found["passed"]
    assert len(found["rows"]) == 18
    assert all(row["bound"] <= row["claimed"] for row in found["rows"])
    assert "No adversary showed more" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "audit").iterdir()} == {
        "audit.json",
        "scores.png",
        "trade_off.png",
    }


def test_half_the_noise_is_seen_in_an_image_module(tmp_path):
    data = npz_data(write_npz(tmp_path, train=60))
    data.setup("fit")
    module = tiny_module(net=awake(tiny_net()))
    privacy = DifferentialPrivacy(noise_multiplier=1.0, delta=1e-5, expected_batch_size=12)
    with half_the_noise():
        scores = attack(module, data, setting=SHORT, privacy=privacy)
    rows = judge(scores[:1], delta=1e-5, alpha=0.01)
    assert flagged(rows) == {"step"}
    assert "noise too small" in sentence(rows, alpha=0.01)


def test_a_wrong_alpha_is_refused(capsys):
    assert main(["audit", RECIPE, "--alpha", "5"]) == 2
    assert "--alpha is 5.0" in capsys.readouterr().err


# --- simulated releases ---------------------------------------------------------------------------------


class Simulated:
    """What a path with a fault, or none, releases of canaries; the same seed is the same path again."""

    def __init__(self, setting: Setting, *, fault: str = "", seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        units, rate = setting.others + setting.canaries, setting.event.sampling_rate
        self.setting, self.fault = setting, fault
        self.present = rng.random(setting.canaries) < 0.5
        self._rng = rng
        self._batches = rng.random((setting.steps, units)) < rate
        if fault == "shuffled":
            per_epoch = units // setting.batch
            epochs = [
                rng.permutation(units).reshape(per_epoch, -1) for _ in range(setting.steps // per_epoch)
            ]
            self._batches[:] = False
            for step, batch in enumerate(np.concatenate(epochs)):
                self._batches[step, batch] = True
        self._noise = rng.standard_normal((setting.steps, setting.canaries)) * setting.noise_multiplier

    def run(self) -> Releases:
        return self._releases(self.present, self._batches, self._noise)

    def twin(self) -> Releases:
        rate, shape = self.setting.event.sampling_rate, self._batches.shape
        again = self.fault in ("seed", "batches from the seed")
        batches = self._batches if again else self._rng.random(shape) < rate
        noise = self._noise if self.fault == "seed" else self._rng.permuted(self._noise, axis=0)
        return self._releases(np.zeros_like(self.present), batches, noise)

    def _releases(self, present, batches, noise) -> Releases:
        inside = batches[:, self.setting.others :]
        size = 5.0 if self.fault == "unclipped" else 1.0
        quiet = 0.5 if self.fault == "noise" else 1.0
        releases = Releases()
        releases.scores = list(size * (inside & present) + quiet * noise)
        releases.inside = list(inside)
        releases.sizes = batches.sum(axis=1).tolist()
        return releases

    def scores(self):
        return scores_of(self.run(), self.twin(), present=self.present, setting=self.setting)


@pytest.mark.parametrize(
    ("fault", "adversary"),
    [
        ("noise", "step"),
        ("unclipped", "step"),
        ("shuffled", "batches"),
        ("seed", "seed"),
        ("batches from the seed", "seed"),
    ],
)
def test_each_fault_is_seen_by_the_adversary_that_is_for_it(fault, adversary):
    scores = {one.adversary: one for one in Simulated(Setting(), fault=fault, seed=1).scores()}
    assert adversary in flagged(judge([scores[adversary]], delta=1e-5, alpha=0.02))


def test_an_honest_path_raises_no_more_alarms_than_alpha_says():
    """Over 100 simulated runs, each adversary against its own claimed curve."""
    alarms: dict[str, int] = {}
    for seed in range(100):
        for one in Simulated(Setting(), seed=seed).scores():
            p = float(p_value(counts_of(one), least_fnr=curve_of(one.event).fnr))
            alarms[one.adversary] = alarms.get(one.adversary, 0) + (p < 0.05)
    assert set(alarms) == {"step", "run", "batches", "seed"}
    assert max(alarms.values()) <= 13, "5 % of 100 are 5, and more than 13 come about once in 3,000 times"


def test_an_honest_path_passes_by_every_estimator():
    assert flagged(judge(Simulated(Setting(), seed=3).scores(), delta=1e-5, alpha=0.05)) == set()
