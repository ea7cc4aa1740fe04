"""Attacks on finished models: losses of candidates, and samples that are too near."""

import numpy as np
import pytest
from images.image_support import awake, npz_data, tiny_module, tiny_net, write_npz

from lightning_dp.audits.judged import judge
from lightning_dp.audits.membership import Membership, attack_losses
from lightning_dp.audits.white_box import Setting
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.privacy.audit.extraction import nearest_rows
from lightning_dp.privacy.audit.likelihood_ratio import offline_ratio


def test_losses_of_a_private_model_show_no_more_than_is_claimed(tmp_path):
    data = npz_data(write_npz(tmp_path, train=60))
    data.setup("fit")
    privacy = DifferentialPrivacy(noise_multiplier=1.0, delta=1e-5, expected_batch_size=12)
    scores = attack_losses(
        tiny_module(net=awake(tiny_net())),
        data,
        setting=Setting(steps=8, canaries=40, others=16, batch=8),
        membership=Membership(draws=12, outliers=True),
        privacy=privacy,
    )
    assert [one.adversary.partition(", ")[2] for one in scores] == ["all t", "early t", "middle t", "late t"]
    assert all(len(one.null) + len(one.canary) >= 30 for one in scores)
    assert not any(row.exceeds for row in judge(scores, delta=1e-5, alpha=0.05))


def test_one_shadow_model_is_refused():
    with pytest.raises(ValueError, match="--shadows is 1"):
        Membership(shadows=1)


def test_shadow_models_take_away_what_units_have_of_their_own():
    """Units differ by ten times what training on them changes: of no use without shadow models."""
    rng = np.random.default_rng(0)
    ease = 10 * rng.standard_normal(400)
    member, shadow_members = rng.random(400) < 0.5, rng.random((4, 400)) < 0.5
    target = ease + 2 * member + 0.3 * rng.standard_normal(400)
    shadows = ease + 2 * shadow_members + 0.3 * rng.standard_normal((4, 400))
    scores = offline_ratio(target, shadows, trained_on=shadow_members)
    plain = abs(target[member].mean() - target[~member].mean()) / target.std()
    assert plain < 0.4
    assert scores[member].mean() - scores[~member].mean() > 2 * scores[~member].std()


def test_copies_are_seen_and_honest_samples_are_not():
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((80, 5, 4))
    copies = rows[:40] + 0.05 * rng.standard_normal((40, 5, 4))
    found = nearest_rows(copies, train=rows[:40], held_out=rows[40:], permutations=500)
    assert (found.samples, found.nearer_to_train, found.expected) == (40, 40, 20.0)
    assert found.p_value < 0.01


def test_nearest_rows_raise_no_more_false_alarms_than_their_level():
    """200 honest sets of samples; some rows lie in the thick of them, and are the nearest to many."""
    rng = np.random.default_rng(2)
    alarms = 0
    for _ in range(200):
        rows = rng.standard_normal((40, 3)) * rng.choice([0.1, 3], size=(40, 1))
        samples = 0.2 * rng.standard_normal((60, 3))
        found = nearest_rows(samples, train=rows[:20], held_out=rows[20:], permutations=200)
        alarms += found.p_value < 0.05
    assert alarms <= 22, "5 % are 10, and more than 22 come about once in 4,000 times"


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="no held-out rows"):
        nearest_rows(np.zeros((2, 3)), train=np.zeros((2, 3)), held_out=np.zeros((0, 3)))
