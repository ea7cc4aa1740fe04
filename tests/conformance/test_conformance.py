"""The default engine on models nobody here wrote: a cut of the scan, and what its check sees."""

import pytest
import torch
from conformance_check import TOLERANCE, lengths_of, scan
from conformance_engine import make_ready, prepared_engine
from conformance_models import CASES
from torch import Tensor

from lightning_dp.privacy.clipping.book_keeping import BookKeeping

CUT = [
    "GPT-2, tied",
    "Llama, padded",
    "OPT",
    "BLOOM",
    "DeBERTa-v2",
    "T5",
    "BEiT",
    "Swin V2",
    "CLIP vision",
    "Wav2Vec2",
    "timm MLP-Mixer",
    "timm MaxViT",
    "Llama with DoRA",
    "torch LSTM",
    "torch TransformerEncoder, time first",
    "torch weight_norm, convolution",
    "scale × position table",
    "relative bias, Embedding(index)",
    "masked convolution, 16 channels",
    "experts on selected rows",
    "two views by cat",
]


@pytest.mark.parametrize("name", CUT)
def test_exact_or_refused_before_training(name):
    found = scan(CASES[name], prepared_engine, quick=True)
    assert not found.wrong
    assert not found.late
    assert found.refused is not None or 0.0 < found.worst <= TOLERANCE


class _Faulty(BookKeeping):
    """Right at every batch but one size."""

    rows = 12

    def expect(self, *, unit_weights: Tensor, rows_per_unit: int, loss_scale: float = 1.0) -> None:
        self.size, self.weights = len(unit_weights) * rows_per_unit, unit_weights
        super().expect(unit_weights=unit_weights, rows_per_unit=rows_per_unit, loss_scale=loss_scale)


class _OffByTenMillionths(_Faulty):
    def take(self) -> dict[str, Tensor]:
        return {n: s * (1 + 1e-4 * (self.size == self.rows)) for n, s in super().take().items()}


class _WrongNorms(_Faulty):
    def collect(self) -> Tensor:
        norms = super().collect()
        return norms.roll(1) if self.size == self.rows else norms


class _RaisesLate(_Faulty):
    def collect(self) -> Tensor:
        if self.size == self.rows:
            raise RuntimeError(f"{self.size} rows look like a table")
        return super().collect()


class _CountsPadding(_Faulty):
    def take(self) -> dict[str, Tensor]:
        return {n: s + 1e-20 * bool((self.weights == 0).all()) for n, s in super().take().items()}


def _prepared(engine):
    def prepare(module, step, batch, num_units, *, max_grad_norm):
        make_ready(engine, module, step, batch, num_units, max_grad_norm=max_grad_norm)
        return engine

    return prepare


def test_the_check_passes_a_sound_engine():
    found = scan(CASES["W @ x over tokens"], _prepared(BookKeeping()))
    assert (found.wrong, found.late, found.refused) == ({}, {}, None)
    assert set(range(1, 41)) <= set(found.batch_sizes)
    assert 12 in found.lengths


@pytest.mark.parametrize("engine", [_OffByTenMillionths, _WrongNorms])
def test_the_check_sees_a_silent_fault_at_one_size(engine):
    found = scan(CASES["W @ x over tokens"], _prepared(engine()), quick=True)
    assert list(found.wrong) == [12]


def test_the_check_sees_a_late_refusal():
    found = scan(CASES["W @ x over tokens"], _prepared(_RaisesLate()), quick=True)
    assert found.late == {"RuntimeError: 12 rows look like a table": [12]}


def test_the_check_sees_padding_that_counts():
    assert scan(CASES["W @ x over tokens"], _prepared(_CountsPadding()), quick=True).wrong


def test_lengths_are_those_that_do_not_grow_with_the_batch():
    torch.manual_seed(0)
    case = CASES["scale × position table"]
    assert {12, 6} <= lengths_of(case.build(), case)
    assert not {43, 47} & lengths_of(case.build(), case)
