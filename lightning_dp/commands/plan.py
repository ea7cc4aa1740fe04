"""`lightning-dp plan`: what a private run would cost, without touching data."""

import argparse
import json
import math
from typing import get_args

from lightning_dp.privacy.plan import DeltaRule, PrivacyPlan, delta_of
from lightning_dp.privacy.private_selection import NumberOfRuns, epsilon_of_best
from lightning_dp.privacy.units import PrivacyUnit

_EPILOG = """examples:
  noise for ε = 8 over 498 customers, 62 in an average batch:
    lightning-dp plan --epsilon 8 --delta 1e-4 --units 498 --batch 62 --steps 500 --unit user
  what a given noise costs, per window and per event (one hour lies in 120 windows):
    lightning-dp plan --noise_multiplier 1 --delta 1e-5 --units 8521 --batch 512 --steps 400 \\
        --unit window --windows_per_event 120
  and what a search would cost that publishes the best of 100 such runs, on average, and nothing else:
    lightning-dp plan --epsilon 3 --delta 1e-4 --units 498 --batch 62 --steps 500 --best_of 100
"""


def main(argv: list[str]) -> int:
    """Print the plan; raise ValueError where it is impossible."""
    parser = argparse.ArgumentParser(
        prog="lightning-dp plan",
        description="Plan DP-SGD with Poisson sampling before anything is trained.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    noise = parser.add_mutually_exclusive_group(required=True)
    noise.add_argument("--epsilon", type=float, metavar="E", help="target ε > 0: calibrates the noise")
    noise.add_argument("--noise_multiplier", type=float, metavar="S", help="σ > 0: noise std ÷ clipping norm")
    parser.add_argument(
        "--delta",
        type=delta,
        required=True,
        metavar="D",
        help="δ in (0, 1), at most 1/units; or '1/(N ln N)', of the units",
    )
    parser.add_argument(
        "--units", type=int, required=True, metavar="N", help="privacy units in the train set"
    )
    parser.add_argument("--batch", type=int, required=True, metavar="B", help="units in an average batch")
    parser.add_argument("--steps", type=int, required=True, metavar="T", help="optimizer steps")
    parser.add_argument(
        "--unit", choices=["record", "window", "user"], default="record", help="what a unit is"
    )
    parser.add_argument(
        "--windows_per_event",
        type=int,
        metavar="M",
        help="windows that one time step lies in; also prints the ε of an event",
    )
    parser.add_argument(
        "--best_of",
        type=float,
        metavar="K",
        help="also prints the ε of a search whose best run alone is released, where the number of runs is "
        "drawn at random with this mean and kept secret, settings are drawn at random for each, and scores "
        "depend on public data or on what a run released",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)

    unit = PrivacyUnit(
        name=arguments.unit,
        num_units=arguments.units,
        windows_per_event=arguments.windows_per_event,
        description=f"one {arguments.unit}",
    )
    plan = PrivacyPlan.make(
        unit,
        expected_batch_size=arguments.batch,
        num_steps=arguments.steps,
        target_epsilon=arguments.epsilon,
        noise_multiplier=arguments.noise_multiplier,
        max_grad_norm=1.0,
        delta=delta_of(arguments.delta, num_units=arguments.units),
    )
    number = None if arguments.best_of is None else NumberOfRuns.of_mean(arguments.best_of)
    facts = plan.to_dict()
    del facts["max_grad_norm"]  # ε does not depend on it
    best = math.nan
    if number is not None:
        best = epsilon_of_best(plan.events(plan.num_steps), plan.delta, number=number)
        facts["best_of"] = {"mean": arguments.best_of, "shape": number.shape, "epsilon": best}
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return 0
    print(f"noise_multiplier  {plan.noise_multiplier:.5g}")
    print(f"epsilon           {plan.epsilon:.6g}   (PLD; by Rényi composition {plan.epsilon_rdp:.6g})")
    interval, error = plan.grid
    print(f"                  losses on a grid of {interval:.2g}: at most about {error:.1g} above the finest")
    print(f"delta             {plan.delta:g}")
    print(f"sampling_rate     {plan.sampling_rate:.6g}   (Poisson, {arguments.batch} of {arguments.units})")
    print(f"num_steps         {plan.num_steps}")
    for name, epsilon in plan.epsilons().items():
        print(f"  ε per {name:<8}  {'undefined' if epsilon is None else f'{epsilon:.6g}'}")
    if number is not None:
        print(
            f"best of {arguments.best_of:g} runs on average: ε = {best:.6g} per {arguments.unit}, "
            f"{best / plan.epsilon:.3g} times one (truncated negative binomial, η = 0)"
        )
    if plan.delta > 1 / arguments.units:
        print(f"warning: delta is above 1/{arguments.units}; take a smaller one")
    return 0


def delta(text: str) -> float | DeltaRule:
    """A number, or a rule that makes one of the number of units."""
    return text if text in get_args(DeltaRule) else float(text)  # type: ignore[return-value]
