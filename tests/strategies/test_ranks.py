"""What processes that train together tell each other, on real gloo ranks without a fit around them."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed as dist

from lightning_dp.privacy.ranks import Ranks, RankZeroError

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*")


class Known:
    """In the place of noise: a value of the rank that adds it."""

    def __init__(self, value: float) -> None:
        self.value = value

    def standard_normal(self, shape: torch.Size, *, device: torch.device) -> Tensor:
        return torch.full(shape, self.value, device=device)

    def add_to(self, sums: Tensor, *, scale: float) -> Tensor:
        return sums.add_(self.standard_normal(sums.shape, device=sums.device), alpha=scale)


def on_ranks(world_size: int, ask: Callable[[Ranks], Any], *, folder: Path) -> list[Any]:
    """The answer of each of several forked ranks."""

    def work(rank: int, writer: Any) -> None:
        store = f"file://{folder / ask.__name__}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
        writer.send(ask(Ranks()))
        dist.destroy_process_group()

    context = multiprocessing.get_context("fork")
    readers, processes = [], []
    for rank in range(world_size):
        reader, writer = context.Pipe(duplex=False)
        processes.append(context.Process(target=work, args=(rank, writer), daemon=True))
        processes[-1].start()
        writer.close()
        readers.append(reader)
    answers = [reader.recv() for reader in readers]
    for process in processes:
        process.join()
    return answers


def released(ranks: Ranks) -> list[list[float]]:
    sums = {"weight": torch.full((2, 2), ranks.rank + 1.0), "bias": torch.tensor([10.0 * ranks.rank])}
    noisy = ranks.release(sums, noise=Known(8.0 + 1000 * ranks.rank), scale=0.25)
    assert {name: value.shape for name, value in noisy.items()} == {"weight": (2, 2), "bias": (1,)}
    return [value.flatten().tolist() for value in noisy.values()]


def told(ranks: Ranks) -> dict[str, Any]:
    asked: list[int] = []

    def answer() -> str:
        asked.append(ranks.rank)
        return f"of rank {ranks.rank}"

    def fails() -> None:
        raise LookupError("not there")

    found = {
        "who": (ranks.rank, ranks.world_size, ranks.is_first),
        "on_rank_zero": ranks.on_rank_zero(answer),
        "asked": asked,
        "gather": ranks.gather(10 - ranks.rank),
        "most": ranks.most((ranks.rank + 1) % 3),
        "total": ranks.total(torch.tensor([ranks.rank + 1.0])).tolist(),
    }
    with pytest.raises((LookupError, RankZeroError)) as caught:
        ranks.on_rank_zero(fails)
    return {**found, "failure": repr(caught.value)}


WORLDS = pytest.mark.parametrize("world_size", [2, 3])


@WORLDS
def test_what_the_first_rank_does_for_all_and_what_all_add_up(tmp_path, world_size):
    for rank, found in enumerate(on_ranks(world_size, told, folder=tmp_path)):
        assert found.pop("asked") == ([0] if rank == 0 else [])
        failure = "LookupError('not there')" if rank == 0 else "RankZeroError('LookupError: not there')"
        assert found == {
            "who": (rank, world_size, rank == 0),
            "on_rank_zero": "of rank 0",
            "gather": [10, 9, 8][:world_size],
            "most": 2,
            "total": [sum(range(world_size + 1))],
            "failure": failure,
        }


@WORLDS
def test_the_total_is_noised_once_by_the_first_rank(tmp_path, world_size):
    weight, bias = {2: (3.0, 10.0), 3: (6.0, 30.0)}[world_size]
    expected = [[weight + 2] * 4, [bias + 2]]
    assert on_ranks(world_size, released, folder=tmp_path) == [expected] * world_size


def test_one_process_is_its_own_first():
    assert released(Ranks()) == [[3.0] * 4, [2.0]]
    found = told(Ranks())
    assert (found["who"], found["asked"], found["on_rank_zero"]) == ((0, 1, True), [0], "of rank 0")
    assert (found["gather"], found["most"], found["total"]) == ([10], 1, [1.0])
    assert found["failure"] == "LookupError('not there')"
