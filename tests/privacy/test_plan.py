"""Plans: calibrated to the accountant, refused where impossible, never below the truth on the way."""

import json
import math

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant

from lightning_dp.cli import main
from lightning_dp.privacy.accounting import epsilon_pld, group_epsilon
from lightning_dp.privacy.plan import PrivacyPlan, calibrate_noise_multiplier
from lightning_dp.privacy.units import PrivacyUnit


def make_plan(**fields) -> PrivacyPlan:
    unit = PrivacyUnit(name="window", num_units=8521, windows_per_event=120, description="a window")
    defaults = {
        "unit": unit,
        "expected_batch_size": 512,
        "num_steps": 300,
        "noise_multiplier": 1.0,
        "max_grad_norm": 1.0,
        "delta": 1e-5,
    }
    return PrivacyPlan(**{**defaults, **fields})


@pytest.mark.parametrize(
    ("epsilon", "delta", "q", "steps"),
    [(8, 1e-4, 62 / 498, 500), (3, 1e-4, 62 / 498, 500), (1, 1e-5, 0.01, 2000), (0.05, 1e-6, 0.01, 500)],
)
def test_calibration_is_tight_and_never_above_the_target(epsilon, delta, q, steps):
    sigma = calibrate_noise_multiplier(target_epsilon=epsilon, delta=delta, sampling_rate=q, num_steps=steps)

    def by_dp_accounting(noise_multiplier: float) -> float:
        accountant = PLDAccountant()
        event = dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(noise_multiplier))
        return accountant.compose(event, steps).get_epsilon(delta)

    assert by_dp_accounting(sigma) <= epsilon
    assert by_dp_accounting(sigma * 0.999) > epsilon


def test_plan_command_agrees_with_dp_accounting(capsys):
    command = [
        "plan",
        "--epsilon",
        "8",
        "--delta",
        "1e-4",
        "--units",
        "498",
        "--batch",
        "62",
        "--steps",
        "500",
        "--unit",
        "user",
        "--json",
    ]
    assert main(command) == 0
    facts = json.loads(capsys.readouterr().out)
    accountant = PLDAccountant()
    event = dp_event.PoissonSampledDpEvent(62 / 498, dp_event.GaussianDpEvent(facts["noise_multiplier"]))
    assert facts["epsilon"] == pytest.approx(accountant.compose(event, 500).get_epsilon(1e-4), abs=1e-6)
    assert facts["sampling_rate"] == 62 / 498
    assert facts["epsilon_of_unit"] == {
        "record": None,
        "window": None,
        "event": None,
        "user": facts["epsilon"],
    }


def test_plan_command_prints_every_unit(capsys):
    command = (
        "plan --noise_multiplier 1 --delta 1e-5 --units 8521 --batch 64 --steps 100 "
        "--unit window --windows_per_event 120"
    )
    assert main(command.split()) == 0
    out = capsys.readouterr().out
    assert "ε per user      undefined" in out
    assert "ε per event     undefined" not in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--epsilon": "0"}, "target_epsilon must be"),
        ({"--epsilon": "-3"}, "target_epsilon must be"),
        ({"--epsilon": "nan"}, "target_epsilon must be"),
        ({"--delta": "1"}, "delta must be"),
        ({"--delta": "0"}, "delta must be"),
        ({"--delta": "1/(N ln N)", "--units": "1"}, "needs at least 2 units, not 1"),
        ({"--batch": "499"}, "between 1 and the 498 units"),
        ({"--batch": "0"}, "between 1 and the 498 units"),
        ({"--steps": "0"}, "num_steps must be"),
        ({"--units": "0"}, "num_units"),
        ({"--epsilon": "1e-9"}, "can't be met"),
    ],
)
def test_impossible_plans_are_refused_in_one_sentence(capsys, change, message):
    fields = {
        "--epsilon": "8",
        "--delta": "1e-4",
        "--units": "498",
        "--batch": "62",
        "--steps": "500",
        **change,
    }
    assert main(["plan", *(part for pair in fields.items() for part in pair)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_a_delta_of_the_number_of_units(capsys):
    command = ["plan", "--noise_multiplier", "1", "--units", "50000", "--batch", "4096", "--steps", "3"]
    assert main([*command, "--delta", "1/(N ln N)", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["delta"] == 1 / (50_000 * math.log(50_000))


def test_epsilon_on_the_way_is_an_upper_bound_that_ends_exactly():
    plan = make_plan()
    on_the_way = [plan.epsilon_after(steps) for steps in range(301)]
    assert on_the_way[0] == 0
    assert on_the_way == sorted(on_the_way)
    assert on_the_way[-1] == plan.epsilon == epsilon_pld([plan.event(300)], 1e-5)
    for steps in (1, 7, 50, 150, 299):
        exact = epsilon_pld([plan.event(steps)], 1e-5)
        assert exact <= on_the_way[steps] <= 1.1 * exact + 0.2
    assert plan.epsilon_after(310) >= epsilon_pld([plan.event(310)], 1e-5)


def test_units_are_named_and_printed_together():
    epsilons = make_plan().epsilons()
    assert set(epsilons) == {"record", "window", "event", "user"}
    assert epsilons["record"] is None
    assert epsilons["user"] is None
    assert epsilons["event"] > 100 * epsilons["window"]


def test_an_event_is_a_group_of_as_many_windows_as_it_touches():
    unit = PrivacyUnit(name="window", num_units=8521, windows_per_event=3, description="a window")
    plan = PrivacyPlan.make(
        unit,
        expected_batch_size=64,
        num_steps=200,
        target_epsilon=None,
        noise_multiplier=2.0,
        max_grad_norm=1.0,
        delta=1e-5,
    )
    event, fewer = (group_epsilon(plan.events(200), 1e-5, group_size=windows) for windows in (3, 2))
    assert plan.epsilons()["event"] == event
    assert event > 1.2 * fewer, "one window less would be seen"


@pytest.mark.parametrize("field", ["noise_multiplier", "max_grad_norm"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_plans_with_impossible_numbers_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        make_plan(**{field: value})
