"""The cost model picks what was measured to be the cheapest, and keeps its promise about memory."""

import pytest
import torch

from lightning_dp.privacy.clipping._book_keeping.norm_method import cheapest, machine

CPU = machine(torch.device("cpu"), torch.float32)
GPU = machine(torch.device("cuda"), torch.bfloat16)


def _way(tokens: int, outputs: int, inputs: int, *, units: int = 64, on=CPU, itemsize: int = 4) -> str:
    return cheapest(units=units, tokens=tokens, outputs=outputs, inputs=inputs, itemsize=itemsize, machine=on)


def test_layers_without_tokens_are_free():
    assert _way(1, 768, 128) == "outer"
    assert _way(1, 768, 128, on=GPU) == "outer"


@pytest.mark.parametrize(("outputs", "inputs"), [(384, 128), (128, 128), (512, 128), (128, 512)])
def test_narrow_layers_with_many_tokens_keep_their_gradients(outputs, inputs):
    assert _way(96, outputs, inputs) == "keep"


@pytest.mark.parametrize(("outputs", "inputs"), [(768, 256), (1024, 256), (256, 1024)])
def test_wide_layers_with_few_tokens_use_gram_matrices(outputs, inputs):
    assert _way(64, outputs, inputs) == "ghost"
    assert _way(256, 3072, 768, units=256, on=GPU, itemsize=2) == "ghost"


@pytest.mark.parametrize("tokens", [2, 16, 64, 256, 1024, 4096])
@pytest.mark.parametrize("width", [4, 64, 512])
def test_kept_gradients_stay_within_their_memory(tokens, width):
    if _way(tokens, width, width) == "keep":
        assert 4 * width * width <= CPU.keep_bytes_ratio * 4 * tokens * 2 * width
