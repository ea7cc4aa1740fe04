"""Engines against the oracle on models nobody here wrote."""

import pytest
import torch
from engines import compare
from torch import nn
from whole_models import CASES

from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.functions import PerLayer
from lightning_dp.privacy.clipping.materialised import Materialised

TOLERANCE = 1e-5
MATERIALISED_REFUSES = {
    "timm CaiT": "can't be run on one unit",
    "timm EVA02": "saw no per-row use",
    "transformers BERT, tied": "token_type_embeddings returned",
    "transformers DistilBERT": "position_embeddings returned",
    "transformers GPT-2, tied": "wpe returned",
    "transformers T5 encoder": "relative_attention_bias returned",
    "transformers CLIP vision": "position_embedding returned",
}


def _built(name: str) -> nn.Module:
    model = CASES[name].build()
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Zero initialisation (adaLN-Zero, LayerScale) would leave gradients out of the comparison.
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2)
            else:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("name", CASES)
def test_book_keeping_equals_the_oracle(name):
    model, case = _built(name), CASES[name]
    x = case.inputs(6)
    found = compare(BookKeeping(), model, lambda: case.loss(model, x), units=3, rows_per_unit=2)
    assert found <= TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_materialised_equals_the_oracle_or_says_why_not(name):
    model, case = _built(name), CASES[name]
    x = case.inputs(3)
    if name in MATERIALISED_REFUSES:
        with pytest.raises(RuntimeError, match=MATERIALISED_REFUSES[name]):
            compare(Materialised(), model, lambda: case.loss(model, x), units=3)
        return
    assert compare(Materialised(), model, lambda: case.loss(model, x), units=3) <= TOLERANCE


@pytest.mark.parametrize(
    "name", ["timm ViT", "diffusers DiT", "diffusers UNet2DCondition", "transformers BERT, tied"]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_with_frozen_parameters_weights_and_layers_apart(name, seed):
    model, case = _built(name), CASES[name]
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(bool(torch.rand(()) < 0.5))
    x = case.inputs(4)
    weights = torch.tensor([1.0, 0.0, 1.0, 0.5])
    config = {"units": 4, "weights": weights, "function": PerLayer()}
    assert compare(BookKeeping(), model, lambda: case.loss(model, x), **config) <= TOLERANCE
    assert all(p.grad is None for p in model.parameters())
