"""Exact products under every switch of PyTorch's that makes products inexact, older and newer."""

import multiprocessing

import pytest
import torch
from torch import nn

from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.exact import exact_convolutions, exact_products
from lightning_dp.privacy.clipping.functions import Flat
from lightning_dp.privacy.follow_rows import follow_rows
from lightning_dp.privacy.fp32_precision import full_precision, is_reduced, products_reduced

BACKENDS = torch.backends
OPERATIONS = [
    getattr(getattr(BACKENDS, backend), name)
    for backend, name in (
        ("cuda", "matmul"),
        ("cudnn", "conv"),
        ("cudnn", "rnn"),
        ("mkldnn", "matmul"),
        ("mkldnn", "conv"),
        ("mkldnn", "rnn"),
    )
]
SWITCHES = {
    "none": lambda: None,
    "all": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    "all, exact": lambda: setattr(BACKENDS, "fp32_precision", "ieee"),
    "cuda": lambda: setattr(BACKENDS.cudnn, "fp32_precision", "tf32"),
    "cuda products": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
    "cudnn convolutions, exact": lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
    "cpu products": lambda: setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "bf16"),
    "older": lambda: torch.set_float32_matmul_precision("medium"),
    "older, cudnn": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
}


def state():
    """All that the switches say, the older ones where they can be read."""

    def read(switch):
        try:
            return switch()
        except RuntimeError:
            return "can't be read"

    older = [read(torch.get_float32_matmul_precision), read(lambda: BACKENDS.cudnn.allow_tf32)]
    return [operation.fp32_precision for operation in OPERATIONS], older, BACKENDS.fp32_precision


def check_that_nothing_inside_is_reduced_and_all_is_as_found_afterwards():
    before = state()
    with full_precision():
        assert [operation.fp32_precision for operation in OPERATIONS] == ["ieee"] * 6
        assert not any(is_reduced(torch.device(kind)) for kind in ("cpu", "cuda"))
        assert not products_reduced()
        with exact_products(), exact_convolutions():
            pass
    assert state() == before
    with exact_products(), exact_convolutions():
        assert {operation.fp32_precision for operation in OPERATIONS} <= {"ieee", "none"}
    assert state() == before


def check_what_is_known_to_be_reduced(name):
    expected = {
        "all": (True, True, True),
        "cuda": (True, True, False),
        "cuda products": (True, True, False),
        "cpu products": (True, True, True),
        "older": (True, True, True),
        "all, exact": (False, False, False),
        "older, cudnn": (False, False, False),
    }.get(name, (False, True, False))  # cuDNN's convolutions use TF32 where nobody says other
    found = products_reduced(), *(is_reduced(torch.device(kind)) for kind in ("cuda", "cpu"))
    assert found == expected


def check_that_sums_are_clipped_to_the_bound():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(24, 3))
    batch = torch.randn(1, 2, 8)

    def losses(module, rows):
        return module(rows).square().sum(dim=1) * 100

    engine = BookKeeping()
    engine.know(follow_rows(model, losses, batch, num_units=1))
    engine.attach(model, function=Flat(), max_grad_norm=1.0)
    engine.expect(unit_weights=torch.ones(1), rows_per_unit=1)
    losses(model, batch).mean().backward()
    engine.collect()
    total = sum(value.double().square().sum() for value in engine.take().values()).sqrt()
    assert float(total) == pytest.approx(1.0, abs=1e-5)


def in_a_switched_process(name):
    SWITCHES[name]()
    check_what_is_known_to_be_reduced(name)
    check_that_nothing_inside_is_reduced_and_all_is_as_found_afterwards()
    check_that_sums_are_clipped_to_the_bound()


@pytest.mark.parametrize("name", SWITCHES)
def test_switch(name):
    """In a process where no other switch ever was set."""
    context = multiprocessing.get_context("forkserver")  # from one in which no other test ran either
    process = context.Process(target=in_a_switched_process, args=(name,))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_trials_of_algorithms_pause():
    BACKENDS.cudnn.benchmark = True
    try:
        with full_precision():
            assert not BACKENDS.cudnn.benchmark
        assert BACKENDS.cudnn.benchmark
    finally:
        BACKENDS.cudnn.benchmark = False
