"""Poisson batches and OS-entropy noise, each with the broken variant that its check must catch."""

import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_dp.privacy.loading import Reading
from lightning_dp.privacy.noise import GaussianNoise, entropy_bits, generator_on
from lightning_dp.privacy.sampling import PoissonLoader, PoissonSampler, split


def is_poisson(batches: list[list[int]], *, num_units: int, rate: float) -> bool:
    """Whether sizes vary and units are hit as independent draws at `rate` would (5 standard errors)."""
    sizes = np.array([len(batch) for batch in batches])
    n = len(batches)
    variance = num_units * rate * (1 - rate)
    mean_is_right = abs(sizes.mean() - num_units * rate) < 5 * np.sqrt(variance / n)
    variance_is_right = abs(sizes.var() / variance - 1) < 5 * np.sqrt(2 / n)
    hits = np.bincount(np.concatenate([*batches, []]).astype(int), minlength=num_units)
    hits_vary = abs(hits.var() / (n * rate * (1 - rate)) - 1) < 5 * np.sqrt(2 / num_units)
    return bool(mean_is_right and variance_is_right and hits_vary)


def test_sampler_is_poisson():
    sampler = PoissonSampler(num_units=200, sampling_rate=0.05)
    assert is_poisson([sampler.draw() for _ in range(2000)], num_units=200, rate=0.05)


class Chosen:
    """In the place of a sampler's generator: uniform numbers that a test has chosen."""

    def __init__(self, values: list[float]) -> None:
        self.values = np.array(values)

    def random(self, size: int) -> np.ndarray:
        assert size == len(self.values)
        return self.values


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 3), (1, 3), (2, 3)])
def test_each_rank_samples_at_the_very_rate_that_is_paid_for(rank, world_size):
    """To 1e-9: counting batches sees changes of some per cent at best."""
    rate = 0.3
    sampler = PoissonSampler(num_units=12, sampling_rate=rate, rank=rank, world_size=world_size)
    own = list(range(rank, 12, world_size))
    below = [number % 2 == 0 for number in range(len(own))]
    sampler._generator = Chosen([rate - 1e-9 if less else rate + 1e-9 for less in below])
    assert sampler.draw() == [unit for unit, less in zip(own, below, strict=True) if less]


@pytest.mark.parametrize("rank", [-1, 2, 3])
def test_a_rank_outside_of_the_world_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank must be from 0 to 1, not {rank}"):
        PoissonSampler(num_units=12, sampling_rate=0.5, rank=rank, world_size=2)


@pytest.mark.parametrize("rate", [-0.5, 0.0, 1.001, 2.0, float("nan")])
def test_a_rate_that_is_no_chance_is_refused(rate):
    with pytest.raises(ValueError, match="sampling_rate must be in"):
        PoissonSampler(num_units=12, sampling_rate=rate)


def test_at_rate_one_every_unit_is_in_every_batch():
    assert PoissonSampler(num_units=5, sampling_rate=1).draw() == [0, 1, 2, 3, 4]


class Items(Dataset):
    """As many numbers as asked for."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


class ManyItems(Items):
    """The same, fetched at once."""

    def __getitem__(self, index: int) -> int:
        raise AssertionError("__getitems__ is there")

    def __getitems__(self, indices: list[int]) -> list[int]:
        return [-index for index in indices]


@pytest.mark.parametrize(("rate", "read"), [(1.0, range(10)), (1 - 1e-15, range(10)), (1e-12, ())])
def test_in_order_reads_the_sample_that_was_paid_for(rate, read):
    batches = PoissonLoader(Items(10), sampling_rate=0.5).in_order(units_per_batch=3, sampling_rate=rate)
    read = list(read)
    for _ in range(2):  # the same units again
        assert [batch.tolist() for batch in batches] == [read[k : k + 3] for k in range(0, len(read), 3)]


def test_in_order_reads_every_unit_where_no_rate_is_given():
    (batch,) = PoissonLoader(Items(4), sampling_rate=0.5).in_order(units_per_batch=9)
    assert batch.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("items", "sign"), [(Items(9), 1), (ManyItems(9), -1)])
@pytest.mark.parametrize("collate", [None, tuple])
def test_units_are_read_again_as_workers_read_them(items, sign, collate):
    loader = PoissonLoader(items, sampling_rate=0.5, reading=Reading(collate_fn=collate))
    batch = loader.collated([3, 8])
    assert isinstance(batch, tuple if collate else torch.Tensor)
    assert list(batch) == [3 * sign, 8 * sign]


def test_planted_shuffled_batches_are_caught():
    loader = DataLoader(range(200), batch_size=10, shuffle=True)
    batches = [batch.tolist() for _ in range(100) for batch in loader]
    assert not is_poisson(batches, num_units=200, rate=0.05)


def test_planted_wrong_rate_is_caught():
    sampler = PoissonSampler(num_units=200, sampling_rate=1 / (200 // 10 + 5))
    assert not is_poisson([sampler.draw() for _ in range(2000)], num_units=200, rate=0.05)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_yields_what_pending_describes(workers):
    data = TensorDataset(torch.arange(50))
    loader = PoissonLoader(
        data, sampling_rate=0.1, physical_batch_size=2, reading=Reading(num_workers=workers)
    )
    logical, parts = 0, 0
    for _ in range(3):
        for (batch,) in loader:
            part = loader.pending.popleft()
            assert batch.tolist() == list(part.indices)
            assert len(part.weights) == len(part.indices)
            logical += part.last
            parts += 1
        assert not loader.pending
    assert logical == 30  # three passes of ⌈1 / 0.1⌉
    assert parts > logical


def test_a_pass_is_drawn_lazily():
    loader = PoissonLoader(TensorDataset(torch.arange(3)), sampling_rate=1e-9)
    next(iter(loader))  # a pass of 10⁹ logical batches must not be drawn ahead
    assert loader.pending.popleft().weights == (0.0,)


def test_split_covers_each_unit_once_and_ends_once():
    for n in (1, 4, 9, 10):
        parts = list(split(list(range(n)), physical_batch_size=4))
        assert [i for part in parts for i in part.indices] == list(range(n))
        assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
        assert all(part.weights == (1.0,) * len(part.indices) for part in parts)
        assert all(len(part.indices) <= 4 for part in parts)
    for size in (4, None):
        (empty,) = split([], physical_batch_size=size)
        assert (empty.indices, empty.weights, empty.last) == ((0,), (0.0,), True)
    (whole,) = split([7, 8, 9], physical_batch_size=None)
    assert (whole.indices, whole.weights, whole.last) == ((7, 8, 9), (1.0, 1.0, 1.0), True)
    first, padding = split([5], physical_batch_size=4, parts=2)
    assert (first.indices, first.weights, first.last) == ((5,), (1.0,), False)
    assert (padding.weights, padding.last) == ((0.0,), True)


def test_a_logical_batch_is_one_physical_one_where_no_size_is_given():
    dataset = TensorDataset(torch.arange(40))
    loader = PoissonLoader(dataset, sampling_rate=0.5, reading=Reading.of(DataLoader(dataset)))
    batches = list(loader.draw())
    assert len(batches) == 2, "a pass is 1 / q of them"


def test_noise_is_standard_normal():
    noise = GaussianNoise().standard_normal(torch.Size([1000, 1000]), device=torch.device("cpu"))
    assert float(noise.mean()) == pytest.approx(0, abs=0.005)
    assert float(noise.std()) == pytest.approx(1, abs=0.005)
    assert float((noise.abs() > 3).float().mean()) == pytest.approx(0.0027, rel=0.1)


def draw(source: GaussianNoise) -> list[float]:
    return source.standard_normal(torch.Size([8]), device=torch.device("cpu")).tolist()


def test_noise_ignores_seeds():
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        drawn.append(draw(GaussianNoise()))
    assert drawn[0] != drawn[1]


def test_planted_seeded_noise_repeats():
    """The fault that the test above would catch in us."""
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        drawn.append(torch.randn(8).tolist())
    assert drawn[0] == drawn[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_fork_draws_other_noise():
    source = GaussianNoise()
    draw(source)  # the generator exists and would be inherited
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=lambda: writer.send(draw(source)))
    process.start()
    theirs = reader.recv()
    process.join()
    assert theirs != draw(source)


def test_noise_state_is_never_saved():
    with pytest.raises(TypeError, match="never saved"):
        pickle.dumps(GaussianNoise())


def test_generators_of_devices_have_all_the_entropy_that_their_seeds_take():
    seeds = [generator_on(torch.device("cpu")).initial_seed() for _ in range(64)]
    assert len(set(seeds)) == 64
    for bit in range(63):
        assert {seed >> bit & 1 for seed in seeds} == {0, 1}
    assert max(entropy_bits().bit_length() for _ in range(64)) == 256


def test_noise_on_a_cpu_comes_from_the_generator_that_keeps_all_its_entropy():
    source = GaussianNoise()
    draw(source)
    assert source._cpu is not None
    assert source._device_generators == {}, "torch's own on a CPU keeps 32 bits of its seed"


@pytest.mark.parametrize("shift", [-1, 1])
def test_another_process_has_another_state_whatever_its_number(shift):
    source = GaussianNoise()
    draw(source)
    before = source._cpu
    draw(source)
    assert source._cpu is before, "one state goes on"
    source._pid += shift  # as after a fork: numbers of processes start anew when they are used up
    draw(source)
    assert source._cpu is not before
