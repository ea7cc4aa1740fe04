"""Plans: calibrated to the accountant, refused where impossible, never below the truth on the way."""

import json
import math

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant

from lightning_dp.cli import main
from lightning_dp.privacy.accounting import (
    GaussianEvent,
    LaplaceEvent,
    epsilon_pld,
    epsilon_rdp,
    grid_of,
    group_epsilon,
)
from lightning_dp.privacy.plan import (
    PrivacyPlan,
    calibrate_noise_multiplier,
    check_delta_or_rule,
    check_sampling,
    delta_of,
)
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


SMALL = PrivacyUnit(name="record", num_units=100, description="one record")
PRIOR, EARLIER = GaussianEvent(noise_multiplier=3.0), LaplaceEvent(noise_multiplier=2.5)


def small(**fields) -> PrivacyPlan:
    return make_plan(
        **{
            "unit": SMALL,
            "expected_batch_size": 20,
            "num_steps": 12,
            "noise_multiplier": 2.0,
            "prior": (PRIOR,),
            "earlier": (EARLIER,),
            **fields,
        }
    )


def test_every_figure_of_a_plan_counts_what_was_released_before_it():
    plan = small()
    step = GaussianEvent(noise_multiplier=2.0, sampling_rate=0.2, steps=12)
    assert plan.events(12) == [PRIOR, step], "a run is not charged for what earlier ones were"
    released = [EARLIER, PRIOR, step]
    assert plan.epsilon == plan.epsilon_after(12) == epsilon_pld(released, 1e-5)
    assert plan.epsilon_rdp == epsilon_rdp(released, 1e-5)
    assert plan.grid == grid_of(released, 1e-5)
    for steps in (0, -1):
        assert plan.epsilon_after(steps) == epsilon_pld([EARLIER, PRIOR], 1e-5)
    assert epsilon_pld([EARLIER, PRIOR, plan.event(5)], 1e-5) <= plan.epsilon_after(5) < plan.epsilon
    assert plan.epsilon_after(20) >= epsilon_pld([EARLIER, PRIOR, plan.event(20)], 1e-5), "past its end too"
    assert plan.epsilons() == {"record": plan.epsilon, "window": None, "event": None, "user": None}


def test_of_other_releases_than_gaussian_ones_no_group_is_known():
    unit = PrivacyUnit(name="window", num_units=100, windows_per_event=2, description="a window")
    assert small(unit=unit).epsilons()["event"] == math.inf


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 30, 79])
def test_epsilon_on_the_way_is_next_to_the_truth(steps):
    plan = small(num_steps=80, earlier=())
    exact = epsilon_pld(plan.events(steps), 1e-5)
    assert exact <= plan.epsilon_after(steps) <= 1.1 * exact


def test_what_a_plan_says_of_itself():
    facts = small().to_dict()
    assert {name: facts[name] for name in ("sampling_rate", "num_steps", "noise_multiplier", "delta")} == {
        "sampling_rate": 0.2,
        "num_steps": 12,
        "noise_multiplier": 2.0,
        "delta": 1e-5,
    }
    assert facts["prior_releases"] == [
        {"type": "GaussianEvent", "noise_multiplier": 3.0, "sampling_rate": 1.0, "steps": 1}
    ]


def test_batches_of_one_unit_and_of_all_are_possible_and_others_are_not():
    for size in (1, 100):
        check_sampling(SMALL, size, 1)
    for size in (0, -1, 101):
        with pytest.raises(ValueError, match="between 1 and the 100 units"):
            check_sampling(SMALL, size, 1)
    for steps in (0, -1):
        with pytest.raises(ValueError, match="num_steps must be ≥ 1"):
            check_sampling(SMALL, 1, steps)


def test_a_delta_is_a_chance_or_the_rule():
    for delta in (1e-9, 0.999, "1/(N ln N)"):
        check_delta_or_rule(delta)
    for delta in (0.0, 1.0, -0.5, 1.5, math.nan, "1/N"):
        with pytest.raises(ValueError, match=r"privacy\.delta"):
            check_delta_or_rule(delta)
    assert delta_of(0.25, num_units=1) == 0.25
    assert delta_of("1/(N ln N)", num_units=2) == 1 / (2 * math.log(2))
    assert delta_of("1/(N ln N)", num_units=1000) == pytest.approx(1.44765e-4, rel=1e-5)
    with pytest.raises(ValueError, match="needs at least 2 units, not 1"):
        delta_of("1/(N ln N)", num_units=1)


def calibrated(epsilon: float, *, steps: int = 5, **options) -> float:
    return calibrate_noise_multiplier(
        target_epsilon=epsilon, delta=1e-5, sampling_rate=0.2, num_steps=steps, **options
    )


@pytest.mark.parametrize("prior", [(), (PRIOR,)])
def test_the_least_noise_has_five_digits_and_counts_releases_before(prior):
    def epsilon(sigma: float) -> float:
        return epsilon_pld([*prior, GaussianEvent(noise_multiplier=sigma, sampling_rate=0.2, steps=5)], 1e-5)

    sigma = calibrated(2.5, prior=prior)
    last = 10.0 ** (math.floor(math.log10(sigma)) - 4)
    assert sigma / last == pytest.approx(round(sigma / last), abs=1e-6)
    assert epsilon(sigma) <= 2.5 < epsilon(sigma - 2 * last)


def test_a_target_at_the_end_of_what_is_possible():
    assert calibrated(1e6) == 0.05, "the least noise there is"
    spent = epsilon_pld([PRIOR], 1e-5)
    for target in (spent, spent / 2):
        with pytest.raises(ValueError, match="the releases before training cost"):
            calibrated(target, prior=[PRIOR])
    with pytest.raises(ValueError, match=r"can't be met with sampling rate 0\.2 and 5 steps"):
        calibrated(1e-9)
    for target in (0.0, -0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match="target_epsilon must be"):
            calibrated(target)


def test_a_plan_is_made_of_a_target_or_of_a_noise_multiplier():
    options = {"expected_batch_size": 20, "num_steps": 5, "max_grad_norm": 0.5, "delta": 1e-5}
    given = PrivacyPlan.make(SMALL, target_epsilon=None, noise_multiplier=3.0, prior=[PRIOR], **options)
    assert given == small(num_steps=5, noise_multiplier=3.0, max_grad_norm=0.5, earlier=())
    made = PrivacyPlan.make(SMALL, target_epsilon=2.5, noise_multiplier=None, prior=[PRIOR], **options)
    assert made.noise_multiplier == calibrated(2.5, prior=[PRIOR])
    assert 2.49 < made.epsilon <= 2.5
