"""What a sweep will charge is said before it starts, and is what the ledger then says."""

from pathlib import Path

import pytest
from support import Records, Regression, make_trainer

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.commands.sweep import main
from lightning_dp.privacy.accounting import GaussianEvent, epsilon_pld
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.privacy.units import PrivacyUnit
from lightning_dp.sweeps.cost import TrialCost, cost_of_trial, describe_costs, ledger_totals
from lightning_dp.timeseries.data.simulator import HouseholdLoad

EVENT = GaussianEvent(noise_multiplier=1.0, sampling_rate=0.25, steps=4)


def cost(**changes: object) -> TrialCost:
    facts = {
        "dataset": "d",
        "unit": "user",
        "delta": 1e-3,
        "epsilon": 2.5,
        "events": (EVENT,),
        "ledger": None,
    }
    return TrialCost(**{**facts, **changes})


def charge(event: GaussianEvent) -> None:
    ledger = Ledger()
    ledger.register("d", unit="user", delta=1e-3)
    with ledger.open_run("d", unit="user", run="earlier") as lease:
        lease.reserve(event, kind="release", note="earlier")


def test_a_trial_costs_what_its_plan_says():
    data = HouseholdLoad(60, num_days=12)
    privacy = DifferentialPrivacy(noise_multiplier=1.0, delta=1e-3, expected_batch_size=12)
    found = cost_of_trial(privacy, module=object(), data=data, num_steps=4)
    assert found.events == (EVENT,)
    assert (found.dataset, found.unit) == (data.dataset_id, "user")
    assert found.epsilon == pytest.approx(epsilon_pld([EVENT], 1e-3))
    impossible = DifferentialPrivacy(noise_multiplier=1.0, delta=1e-3, expected_batch_size=120)
    with pytest.raises(ValueError, match="expected_batch_size"):
        cost_of_trial(impossible, module=object(), data=data, num_steps=4)


def test_trials_add_up_with_what_was_spent_before():
    (line,) = describe_costs([cost(), cost()], at_most=False)
    together = epsilon_pld([EVENT, EVENT], 1e-3)
    assert f"2 private trials with ε per user of 2.5, together ε = {together:.4g}" in line
    charge(EVENT)
    (line,) = describe_costs([cost(), cost()], at_most=True)
    total = epsilon_pld([EVENT] * 3, 1e-3)
    assert f"together at most ε = {together:.4g}" in line
    assert f"with what the ledger has, at most ε = {total:.4g}" in line
    assert f"ε = {epsilon_pld([EVENT], 1e-3):.4g}" in ledger_totals([cost()])[0]


def test_a_sweep_above_the_limit_is_refused_before_its_first_trial():
    charge(EVENT)
    Ledger().set_limit("d", unit="user", limit_epsilon=6.0)
    assert describe_costs([cost()], at_most=False)
    with pytest.raises(ValueError, match="above its limit of 6"):
        describe_costs([cost()] * 20, at_most=False)


def test_an_account_has_one_delta():
    with pytest.raises(ValueError, match="delta differs between trials"):
        describe_costs([cost(), cost(delta=1e-4)], at_most=False)


def test_a_mistake_in_one_configuration_is_found_before_any_trial(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    wrong = "--override=privacy.noise_multiplier=[1.0, -1.0]"
    with pytest.raises(ValueError, match="noise_multiplier must be a number above 0"):
        main(["run", "sweeps/smoke.yaml", f"--out={tmp_path / 'out'}", "--override=seed_everything=0", wrong])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"unit": "window"},
        {"num_units": 20},
        {"dataset": "another name"},
        {"unit": PrivacyUnit(name="user", num_units=24, description="a user's only record")},
    ],
)
def test_a_fit_charges_the_account_that_its_trial_named(tmp_path, ledger_path, options):
    settings = {"noise_multiplier": 1.0, "delta": 1e-3, "expected_batch_size": 4, **options}
    named = cost_of_trial(DifferentialPrivacy(**settings), module=Regression(), data=Records(24), num_steps=2)
    privacy = DifferentialPrivacy(**settings)
    make_trainer(tmp_path, steps=2, privacy=privacy).fit(Regression(), datamodule=Records(24))
    assert (named.dataset, named.unit, named.delta) == (
        privacy.facts.dataset,
        privacy.facts.unit.name,
        privacy.plan.delta,
    )
    assert Ledger(ledger_path).accounts() == [(named.dataset, named.unit)]
    assert epsilon_pld(named.events, named.delta) == pytest.approx(privacy.epsilon_spent)


def test_a_misspelt_hook_is_refused_before_a_trial_is_paid_for(ledger_path):
    module = type("Mine", (Regression,), {"row_per_example": 2})()
    privacy = DifferentialPrivacy(noise_multiplier=1.0, delta=1e-3, expected_batch_size=4)
    with pytest.raises(ValueError, match=r"Mine.row_per_example .* hook rows_per_example"):
        cost_of_trial(privacy, module=module, data=Records(24), num_steps=2)
