"""Steps that are paid ahead, over processes that die."""

from dataclasses import replace

import numpy as np
import pytest

from lightning_dp.privacy.charging import StepCharges
from lightning_dp.privacy.ledger import BudgetExceeded, Ledger, LedgerError
from lightning_dp.privacy.plan import PrivacyPlan
from lightning_dp.privacy.release import Histogram
from lightning_dp.privacy.units import PrivacyUnit

PLAN = PrivacyPlan(
    unit=PrivacyUnit(name="record", num_units=100, description="one record"),
    expected_batch_size=10,
    num_steps=20,
    noise_multiplier=2.0,
    max_grad_norm=1.0,
    delta=1e-5,
)


def charges(parent=None) -> StepCharges:
    return StepCharges(Ledger(), PLAN, dataset="meters", run="run", parent=parent, reserve_steps=2)


def take(account: StepCharges, steps: int) -> None:
    for _ in range(steps):
        account.cover()
        account.take()


@pytest.mark.parametrize(("taken", "charged"), [(6, 6), (5, 6), (1, 2)])
def test_a_resume_after_a_crash_counts_every_reservation(taken, charged):
    first = charges()
    take(first, 1)
    checkpoint = first.head
    take(first, taken - 1)  # and dies: nothing is closed
    second = charges(parent=checkpoint)
    assert (second.charged_before, second.left) == (charged, 20 - charged)
    take(second, 3)  # and dies as well
    third = charges(parent=checkpoint)
    assert third.charged_before == charged + 4
    take(third, third.left)
    with pytest.raises(LedgerError, match="all 20 steps"):
        third.cover()
    assert sum(event.steps for event in Ledger().events("meters", unit="record")) == 20


def test_numbers_along_the_way():
    account = charges()
    assert (account.spent, account.charged, account.left) == (0, 0, 20)
    with pytest.raises(LedgerError, match="does not cover"):
        account.take()
    assert account.cover()
    assert (account.spent, account.charged, account.left) == (0, 2, 20)
    account.take()
    assert not account.cover(), "one is left of two"
    assert (account.spent, account.charged, account.left) == (1, 2, 19)
    account.take()
    assert (account.spent, account.charged, account.left) == (2, 2, 18)
    assert account.cover()
    assert (account.spent, account.charged, account.left) == (2, 4, 18)


def test_numbers_along_the_way_of_a_resumed_run():
    first = charges()
    take(first, 3)
    second = charges(parent=first.head)
    take(second, 5)
    assert (second.charged_before, second.taken) == (4, 5)
    assert (second.spent, second.charged, second.left) == (9, 10, 11)


def test_a_resume_asks_the_budget_for_what_is_left_of_the_plan():
    """20 steps and 4 of an earlier run fit the limit, so a resume of 6 and 4 has room for 14 more, not 18."""
    Ledger().register("meters", unit="record", delta=PLAN.delta)
    other = StepCharges(Ledger(), PLAN, dataset="meters", run="other", parent=None, reserve_steps=2)
    take(other, 4)
    other.close()
    first = charges()
    take(first, 6)
    Ledger().set_limit("meters", unit="record", limit_epsilon=1.5)  # ε of 24 is 1.46
    second = charges(parent=first.head)
    take(second, second.left)
    assert second.charged == 20


@pytest.mark.parametrize("taken", [1, 2, 3])
def test_closing_gives_back_what_was_reserved_and_not_taken(taken):
    account = charges()
    take(account, taken)
    account.close()
    assert account.charged == account.spent == taken
    assert sum(event.steps for event in Ledger().events("meters", unit="record")) == taken
    account.close()
    again = charges(parent=account.head)
    assert again.charged_before == taken


def test_the_last_step_of_a_plan_is_one_that_may_be_taken():
    first = charges()
    take(first, 19)
    assert (first.left, first.cover()) == (1, False)
    first.take()
    with pytest.raises(LedgerError, match="all 20 steps"):
        first.cover()
    with pytest.raises(LedgerError, match="has been charged for all its 20 steps"):
        charges(parent=first.head)


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 1.5},
        {"noise_multiplier": 2.5},
        {"expected_batch_size": 9},
        {"expected_batch_size": 11},
    ],
)
def test_a_run_does_not_go_on_under_another_plan(change):
    first = charges()
    take(first, 1)
    plan = replace(PLAN, **change)
    with pytest.raises(LedgerError, match="resume with the settings of its"):
        StepCharges(Ledger(), plan, dataset="meters", run="run", parent=first.head, reserve_steps=2)
    assert sum(event.steps for event in Ledger().events("meters", unit="record")) == 2


def test_what_somebody_answers_for_is_in_the_ledger():
    reasons = ("preflight batch-norm: accepted: frozen", "another")
    StepCharges(Ledger(), PLAN, dataset="meters", run="run", parent=None, reserve_steps=2, overrides=reasons)
    said = [entry.detail.get("reason") for entry in Ledger().entries("meters")]
    assert [one for one in said if one] == list(reasons)


def test_the_facts_of_a_run_are_in_the_ledger():
    facts = {"engine": "book_keeping"}
    StepCharges(Ledger(), PLAN, dataset="meters", run="run", parent=None, reserve_steps=2, facts=facts)
    (opened,) = (entry for entry in Ledger().entries("meters") if entry.kind == "open")
    assert opened.detail["facts"] == facts


def test_only_releases_that_the_plan_holds_are_made():
    planned, other = (Histogram(noise_multiplier=sigma, edges=(0.0, 1.0, 2.0)) for sigma in (4.0, 2.0))
    plan = replace(PLAN, prior=(planned.event,))
    account = StepCharges(Ledger(), plan, dataset="meters", run="run", parent=None, reserve_steps=2)
    with pytest.raises(LedgerError, match="which the plan does not hold"):
        account.release(other, lambda: pytest.fail("values were read"), note="a histogram")
    assert len(account.release(planned, lambda: np.array([0.5, 1.5]), note="a histogram")) == 2
    assert Ledger().events("meters", unit="record") == [planned.event]


def test_a_budget_pays_for_releases_before_training_too():
    planned = Histogram(noise_multiplier=0.5, edges=(0.0, 1.0))
    Ledger().register("meters", unit="record", delta=PLAN.delta)
    Ledger().set_limit("meters", unit="record", limit_epsilon=1.2 * PLAN.epsilon_rdp)
    with pytest.raises(BudgetExceeded):
        StepCharges(
            Ledger(),
            replace(PLAN, prior=(planned.event,)),
            dataset="meters",
            run="run",
            parent=None,
            reserve_steps=2,
        )
    assert charges().left == 20
