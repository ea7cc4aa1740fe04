"""The CSPRNG-backed noise: its distribution, its grid, and the weak sources that its checks must catch."""

import math
import multiprocessing
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import kstest, norm
from torch import Tensor

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.privacy import secure_noise
from lightning_dp.privacy.noise import GaussianNoise
from lightning_dp.privacy.secure_noise import GRID, MARGIN, SecureGaussianNoise

CPU = torch.device("cpu")


def draw(count: int = 200_000) -> np.ndarray:
    return SecureGaussianNoise().standard_normal(torch.Size([count]), device=CPU).numpy()


def defects(values: np.ndarray) -> set[str]:
    """What is wrong with values that should be independent N(0, 1); each false alarm is below 1 in 10⁶."""
    n = len(values)
    found = set()
    if kstest(values, "norm").pvalue < 1e-7:
        found.add("shape")
    if abs(values.std() - 1) > 6 / math.sqrt(2 * n):
        found.add("scale")
    for bound in (2, 3, 4):
        expected = 2 * norm.sf(bound) * n
        if abs((np.abs(values) > bound).sum() - expected) > 6 * math.sqrt(expected) + 1:
            found.add("tails")
    # Neighbours, and the two halves: one pair of Box and Muller's gives one value to each.
    for one, two in ((values[:-1], values[1:]), (values[: n // 2], values[n // 2 : 2 * (n // 2)])):
        for power in (1, 2):
            if abs(np.corrcoef(one**power, two**power)[0, 1]) > 6 / math.sqrt(len(one)):
                found.add("dependence")
    # On a grid of 2⁻²⁶ some of 200,000 values meet by chance, about n² · GRID / (4√π) pairs of them.
    repeats = n - len(np.unique(values))
    expected = n**2 * GRID / (4 * math.sqrt(math.pi))
    if repeats > expected + 7 * math.sqrt(expected):
        found.add("repeats")
    return found


def test_values_are_independent_and_standard_normal():
    assert defects(draw()) == set()


@pytest.mark.parametrize("scale", [2 / 3, 0.99, 1.01, 3 / 2])
def test_planted_wrong_scale_is_caught(scale):
    assert "scale" in defects(scale * draw(800_000))


def weak_bytes(entropy: int):
    """A generator whose every 8 bytes hold only so many bits of entropy, spread by a fixed function."""
    table = np.frombuffer(random.Random(0).randbytes(8 << entropy), dtype=np.int64)

    def read(count: int) -> bytes:
        return table[np.random.default_rng().integers(len(table), size=-(-count // 8))].tobytes()[:count]

    return read


@pytest.mark.parametrize("entropy", [4, 8])
def test_planted_source_of_little_entropy_is_caught(monkeypatch, entropy):
    monkeypatch.setattr(secure_noise.os, "urandom", weak_bytes(entropy))
    assert "repeats" in defects(draw())


def test_planted_source_that_repeats_its_block_is_caught(monkeypatch):
    block = os.urandom(800_000)
    monkeypatch.setattr(secure_noise.os, "urandom", lambda count: (block * 2)[:count])
    assert {"repeats"} <= defects(np.concatenate([draw(50_000), draw(50_000)]))


def test_planted_source_of_linked_halves_is_caught(monkeypatch):
    def linked(count: int) -> bytes:
        bits = np.random.default_rng().integers(-(2**62), 2**62, size=count // 16)
        return np.concatenate([2 * bits, bits]).astype(np.int64).tobytes()

    monkeypatch.setattr(secure_noise.os, "urandom", linked)
    assert defects(draw())


def test_extreme_bits_give_finite_values(monkeypatch):
    for byte in (b"\x00", b"\xff", b"\x80", b"\x7f", b"\x00\x00\x00\x00\x00\x00\x00\x80"):
        monkeypatch.setattr(secure_noise.os, "urandom", lambda count, b=byte: (b * count)[:count])
        assert np.isfinite(draw(8)).all()
    monkeypatch.setattr(secure_noise.os, "urandom", lambda count: b"\x00" * count)
    assert draw(2).max() == pytest.approx(math.sqrt(2 * math.log(2**64)))  # the tail ends at 9.42


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 0, 4)])
def test_any_shape(shape):
    value = SecureGaussianNoise().standard_normal(torch.Size(shape), device=CPU)
    assert value.shape == shape
    sums = torch.zeros(shape)
    assert SecureGaussianNoise().add_to(sums, scale=1.0) is sums


# --- the grid -------------------------------------------------------------------------------------


def test_the_grid_stated_is_the_grid_observed():
    cells = draw() / GRID
    assert (cells == np.round(cells)).all()
    assert np.gcd.reduce(cells.astype(np.int64)) == 1  # and no coarser one
    odd = (cells.astype(np.int64) % 2).mean()
    assert abs(odd - 0.5) < 6 * 0.5 / math.sqrt(len(cells))


def off_grid(noisy: Tensor, *, scale: float) -> float:
    """How far released values are from whole cells, at most; below 1e-3 is rounding in fp64."""
    cells = noisy.double() / (scale * (1 + MARGIN) * GRID)
    return float((cells - cells.round()).abs().max())


def test_data_and_noise_meet_on_the_grid():
    data = torch.randn(10_000, dtype=torch.float64) * 3
    noisy = SecureGaussianNoise().add_to(data.clone(), scale=0.7)
    assert off_grid(noisy, scale=0.7) < 1e-3


def test_planted_grid_noise_on_data_off_the_grid_is_caught():
    """What adding `standard_normal` straight to the data would do: its low bits stay as they were."""
    data = torch.full((10_000,), 0.123456789, dtype=torch.float64)
    noise = SecureGaussianNoise().standard_normal(data.shape, device=CPU)
    spacing = 0.7 * (1 + MARGIN)
    assert off_grid(data + spacing * noise, scale=0.7) > 0.1
    fractions = ((data + spacing * noise) / (spacing * GRID)) % 1
    assert fractions.std() < 1e-3  # all values give the same fraction of the data away


def test_what_lies_below_the_grid_is_not_released(monkeypatch):
    noise = SecureGaussianNoise().standard_normal(torch.Size([1000]), device=CPU)
    source = SecureGaussianNoise()
    monkeypatch.setattr(SecureGaussianNoise, "standard_normal", lambda *_, **__: noise.clone())
    cell = (1 + MARGIN) * GRID
    centre = torch.randint(-(2**20), 2**20, (1000,)).double() * cell
    for shift in (-0.4, -1e-9, 0.3):
        assert torch.equal(source.add_to(centre + shift * cell, scale=1.0), source.add_to(centre, scale=1.0))


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40), st.floats(0.01, 100), st.integers(0)
)
@settings(max_examples=200, deadline=None)
def test_rounding_is_paid_for(values, scale, seed):
    """Sensitivity after rounding ÷ noise is never above the promised 1 / scale for ‖Δ‖ = 1."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SecureGaussianNoise, "standard_normal", lambda _, shape, **__: torch.zeros(shape))
        source = SecureGaussianNoise()
        one = torch.tensor(values, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed % 2**31)
        step = torch.randn(len(values), generator=generator, dtype=torch.float64)
        two = one + step / step.norm().clamp(min=1e-9)
        moved = source.add_to(one.clone(), scale=scale) - source.add_to(two.clone(), scale=scale)
        length = (one - two).norm()
    std = scale * (1 + MARGIN)
    assert moved.norm() / std <= length / scale * (1 + 1e-9)


def test_infinite_data_is_cut_off():
    data = torch.tensor([math.inf, -math.inf, 1e30, -1e30])
    noisy = SecureGaussianNoise().add_to(data.clone(), scale=1.0)
    assert noisy.abs().max() < 2**20 * (1 + MARGIN) + 16


@pytest.mark.parametrize("source", [GaussianNoise(), SecureGaussianNoise()])
def test_whole_numbers_would_round_the_noise_and_are_refused(source):
    with pytest.raises((TypeError, RuntimeError), match=r"round the noise|can't be cast"):
        source.add_to(torch.zeros(3, dtype=torch.int64), scale=1.0)


@pytest.mark.parametrize("source", [GaussianNoise(), SecureGaussianNoise()])
def test_add_to_has_the_scale_that_it_is_told(source):
    sums = torch.full((400_000,), 5.0)
    noisy = source.add_to(sums, scale=2.5)
    assert noisy is sums
    assert noisy.dtype == torch.float32
    assert float(noisy.mean()) == pytest.approx(5.0, abs=6 * 2.5 / math.sqrt(400_000))
    assert float(noisy.std()) == pytest.approx(2.5, rel=0.01)


# --- never twice ----------------------------------------------------------------------------------


def few() -> list[float]:
    return draw(8).tolist()


def test_noise_ignores_seeds():
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        drawn.append(few())
    assert drawn[0] != drawn[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_forks_draw_other_noise():
    source = SecureGaussianNoise()
    source.standard_normal(torch.Size([8]), device=CPU)
    context = multiprocessing.get_context("fork")
    theirs = context.SimpleQueue()

    def child() -> None:
        theirs.put(source.standard_normal(torch.Size([8]), device=CPU).tolist())

    children = [context.Process(target=child) for _ in range(2)]
    for process in children:
        process.start()
    drawn = [theirs.get() for _ in children]
    for process in children:
        process.join()
    drawn.append(source.standard_normal(torch.Size([8]), device=CPU).tolist())
    assert len(set(map(tuple, drawn))) == 3


def test_restarts_draw_other_noise():
    code = (
        "import torch; torch.manual_seed(0)\n"
        "from lightning_dp.privacy.secure_noise import SecureGaussianNoise\n"
        "print(SecureGaussianNoise().standard_normal(torch.Size([4]), device=torch.device('cpu')).tolist())"
    )
    said = {subprocess.check_output([sys.executable, "-c", code], text=True) for _ in range(2)}
    assert len(said) == 2


def test_planted_seeded_source_repeats_over_restarts(monkeypatch):
    """The fault that the three tests above would catch in us."""
    drawn = []
    for _ in range(2):
        monkeypatch.setattr(secure_noise.os, "urandom", random.Random(0).randbytes)
        drawn.append(few())
    assert drawn[0] == drawn[1]


def test_the_source_is_never_saved():
    with pytest.raises(TypeError, match="never saved"):
        pickle.dumps(SecureGaussianNoise())


@pytest.mark.parametrize(("secure", "kind"), [(False, GaussianNoise), (True, SecureGaussianNoise)])
def test_the_callback_chooses_it(secure, kind):
    callback = DifferentialPrivacy(target_epsilon=1.0, delta=1e-5, expected_batch_size=2, secure=secure)
    assert type(callback._noise) is kind
