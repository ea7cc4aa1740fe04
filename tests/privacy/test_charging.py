"""Steps that are paid ahead, over processes that die."""

import pytest

from lightning_dp.privacy.charging import StepCharges
from lightning_dp.privacy.ledger import Ledger, LedgerError
from lightning_dp.privacy.plan import PrivacyPlan
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
