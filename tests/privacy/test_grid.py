"""The grid of the privacy loss follows from the size of ε: a plan takes seconds, and memory that is there."""

import json
import subprocess
import sys
import time

import pytest

from lightning_dp.privacy import accounting
from lightning_dp.privacy.accounting import GaussianEvent, epsilon_pld, epsilon_rdp, grid_of, group_epsilon

DELTA, RATE, STEPS = 1e-4, 96 / 1434, 20_000
_PLAN = """
import json, time
from lightning_dp.privacy.accounting import GaussianEvent, epsilon_pld, grid_of
events = [GaussianEvent(noise_multiplier={sigma}, sampling_rate={rate}, steps={steps})]
events += [GaussianEvent(noise_multiplier=5.0)]  # a release before training
begun = time.process_time()
epsilon, grid = epsilon_pld(events, {delta}), grid_of(events, {delta})
status = open("/proc/self/status").read().split()  # what getrusage tells may be the parent's
peak = int(status[status.index("VmHWM:") + 1]) * 1024
print(json.dumps([epsilon, *grid, time.process_time() - begun, peak]))
"""


@pytest.mark.parametrize("sigma", [0.03, 0.05, 0.1, 0.2])
def test_a_plan_of_little_noise_takes_seconds_and_is_tight(sigma):
    """In a process of its own, whose peak of memory is known."""
    code = _PLAN.format(sigma=sigma, rate=RATE, steps=STEPS, delta=DELTA)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    epsilon, interval, error, seconds, peak = json.loads(done.stdout)
    assert seconds <= 5
    assert peak <= 1e9
    if sigma >= 0.1:  # the finer grids of the others take as long as all of this file
        events = [GaussianEvent(noise_multiplier=sigma, sampling_rate=RATE, steps=STEPS)]
        finer = accounting._epsilon_at([*events, GaussianEvent(noise_multiplier=5.0)], DELTA, interval / 4)
        assert finer <= epsilon <= (1 + 1e-3) * finer
        assert epsilon - finer <= error  # as the plan says


def test_a_fixed_grid_of_another_size_would_be_seen(monkeypatch):
    """Ten times coarser than it settles on, and nothing refined: off by more than a thousandth."""
    events = [GaussianEvent(noise_multiplier=0.2, sampling_rate=RATE, steps=STEPS)]
    epsilon = epsilon_pld(events, DELTA)
    monkeypatch.setattr(accounting, "_OF_SPREAD", 0.2)
    assert accounting._epsilon_at(events, DELTA, accounting._first_interval(events, DELTA)) > 1.001 * epsilon


def test_usual_plans_keep_the_finest_grid():
    events = [GaussianEvent(noise_multiplier=2.0, sampling_rate=0.05, steps=400)]
    interval, error = grid_of(events, 1e-5)
    assert interval == accounting.FINE_INTERVAL
    assert 0 <= error < 1e-4


@pytest.mark.parametrize("sigma", [1e-3, 1e-6])
def test_next_to_no_noise_is_answered_at_once_and_never_too_low(sigma):
    """A grid of it took minutes and ended in an IndexError; more noise, which a grid can hold, costs less."""
    events = [GaussianEvent(noise_multiplier=sigma, sampling_rate=RATE, steps=STEPS)]
    begun = time.process_time()
    epsilon = epsilon_pld(events, DELTA)
    assert epsilon == epsilon_rdp(events, DELTA)
    assert grid_of(events, DELTA) == (float("inf"), float("inf"))
    assert group_epsilon(events, DELTA, group_size=168) > 168 * epsilon
    assert time.process_time() - begun <= 5
    more = [GaussianEvent(noise_multiplier=0.2, sampling_rate=RATE, steps=STEPS)]
    assert epsilon_pld(more, DELTA) < epsilon


def test_a_group_with_little_noise_takes_seconds():
    """Grids twelve times wider are above it, and not by much."""
    events = [GaussianEvent(noise_multiplier=0.03, sampling_rate=RATE, steps=STEPS)]
    begun = time.process_time()
    epsilon = group_epsilon(events, DELTA, group_size=168)
    assert time.process_time() - begun <= 10
    wider = accounting._group_epsilon(events, DELTA, group_size=168, interval=400.0)
    assert epsilon <= wider <= 1.005 * epsilon
