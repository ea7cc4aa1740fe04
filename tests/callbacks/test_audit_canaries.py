"""`audit=True`: canaries in any fit's gradients, what its report says of them, and what they leave alone."""

import json

import numpy as np
import pytest
import torch
from audits.planted import half_the_noise
from lightning.pytorch import Trainer
from replay.neighbours import HUGE, REMOVED
from replay.test_replay import of_line
from replay.toys import Points, Still

from lightning_dp.callbacks import audit_canaries
from lightning_dp.callbacks.audit_canaries import AuditCanaries
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.privacy import sampling
from lightning_dp.privacy.accounting import GaussianEvent, epsilon_pld
from lightning_dp.privacy.noise import GaussianNoise
from lightning_dp.privacy.plan import PrivacyPlan
from lightning_dp.privacy.ranks import Ranks
from lightning_dp.privacy.units import PrivacyUnit

STEPS = 60


def report(folder, *, audit=True, **options):
    options = {"expected_batch_size": 7, **options}
    privacy = DifferentialPrivacy(
        noise_multiplier=1.0,
        delta=1e-5,
        max_grad_norm=0.3,
        ledger=str(folder / "ledger.sqlite"),
        spot_check=0,
        audit=audit,
        **options,
    )
    Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_steps=STEPS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[privacy],
    ).fit(Still(), datamodule=Points())
    return json.loads((folder / "privacy.json").read_text())


def test_a_report_says_what_the_audit_shows_and_claims_the_same_as_without(tmp_path):
    with_it, without = report(tmp_path / "with"), report(tmp_path / "without", audit=False)
    found = with_it["audit"]
    assert without["audit"] is None
    assert (found["n"], found["alpha"], found["steps"]) == (8, 0.05, STEPS)
    assert found["claimed"] == with_it["epsilon_spent"]
    assert not found["exceeds"]
    for claim in ("epsilon_spent", "num_units", "sampling_rate", "noise_multiplier", "mechanisms"):
        assert with_it[claim] == without[claim], "canaries are nobody's, so no figure of a unit changes"


def test_half_the_noise_is_seen_in_the_report_of_a_fit(tmp_path):
    """64 canaries, some 240 times in a batch: chance takes neither bound near the other's side."""
    stated = {"num_units": 3200, "expected_batch_size": 400}
    honest = report(tmp_path / "honest", **stated)["audit"]["per_step"]
    with half_the_noise():
        planted = report(tmp_path / "planted", **stated)["audit"]["per_step"]
    assert planted["exceeds"]
    assert planted["noise_multiplier_at_most"] < 0.75 < honest["noise_multiplier_at_most"]
    assert planted["claimed"] == honest["claimed"] == 1.0


def test_units_move_a_sum_with_canaries_no_further_than_without(tmp_path, monkeypatch):
    """Record and replay: with the canaries' coins held fixed, D and D′ look alike."""
    monkeypatch.setattr(audit_canaries, "entropy_bits", lambda: 1)
    monkeypatch.setattr(sampling, "entropy_bits", lambda: 2)
    found = of_line(tmp_path, neighbours=[REMOVED, HUGE], privacy={"audit": True})
    assert found.violations == []
    assert found.exit == "finished"
    assert found.moved["one removed"] > 0.9
    content = json.loads(next(tmp_path.glob("D/run/**/privacy.json")).read_text())
    assert content["audit"]["steps"] > 0


# --- the mechanism, without a fit -----------------------------------------------------------------------


def plan(*, sigma: float = 1.0, steps: int = 40) -> PrivacyPlan:
    unit = PrivacyUnit(name="record", num_units=3200, description="made up")
    return PrivacyPlan(
        unit=unit,
        expected_batch_size=400,
        num_steps=steps,
        noise_multiplier=sigma,
        max_grad_norm=0.5,
        delta=1e-5,
    )


def started(sigma: float = 1.0) -> AuditCanaries:
    canaries = AuditCanaries(True)
    canaries.start(plan(sigma=sigma), Ranks())
    return canaries


def audited(*, sigma: float, noise: float, steps: int = 40) -> dict:
    """What a report says of so many steps whose noise has standard deviation noise · C."""
    canaries, source = started(sigma), GaussianNoise()
    for _ in range(steps):
        sums = canaries.add_to({"a": torch.zeros(40, 100), "b": torch.zeros(500)})
        canaries.look({name: source.add_to(value, scale=noise * 0.5) for name, value in sums.items()})
    event = GaussianEvent(noise_multiplier=sigma, sampling_rate=1 / 8, steps=steps)
    found = canaries.to_dict(epsilon_pld([event], 1e-5, interval=1e-3))
    assert found is not None
    return found


def test_what_joins_a_sum_is_orthogonal_and_as_long_as_a_unit_may_be():
    canaries = started()
    seen = []
    while len(seen) < 20:
        sums = canaries.add_to({"a": torch.zeros(40, 100), "b": torch.zeros(500)})
        flat = torch.cat([value.flatten() for value in sums.values()])
        number = int(canaries._inside.sum())
        assert float(flat.norm()) == pytest.approx(0.5 * number**0.5, rel=1e-4)
        seen.append(number)
    assert max(seen) > 0
    assert not canaries._inside[~canaries._present].any()


def test_bounds_are_above_the_claim_no_more_often_than_alpha():
    """Of 60 audits of the claimed mechanism; of 200 fits: benchmarks/audit.py."""
    found = [audited(sigma=1.0, noise=1.0) for _ in range(60)]
    assert sum(one["exceeds"] for one in found) <= 3
    assert sum(one["per_step"]["exceeds"] for one in found) <= 9


def test_planted_noise_is_seen_by_both_bounds():
    """A tenth of the noise is told apart run by run, half of it step by step."""
    assert audited(sigma=1.0, noise=0.5)["per_step"]["exceeds"]
    found = audited(sigma=8.0, noise=0.05)
    assert found["bound"] > found["claimed"]
    assert found["right"] == found["guessed"]


def test_nothing_is_said_where_nobody_asked():
    canaries = AuditCanaries(False)
    canaries.start(plan(), Ranks())
    sums = {"a": torch.zeros(3)}
    assert canaries.add_to(sums) is sums
    canaries.look(sums)
    assert canaries.to_dict(1.0) is None
    assert np.all(sums["a"].numpy() == 0)


def test_a_model_with_fewer_weights_than_canaries_is_refused():
    with pytest.raises(ValueError, match=r"set privacy\.audit=false"):
        started().add_to({"a": torch.zeros(5)})
