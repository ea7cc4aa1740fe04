"""Half precision rounds, and how it rounds one unit's gradient may not depend on the others."""

from contextlib import nullcontext

import pytest
import torch
from engines import total_norm
from follow_steps import sites_of
from torch import Tensor, nn

from lightning_dp.privacy.clipping._book_keeping import per_unit_gradient
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.functions import Flat
from lightning_dp.privacy.clipping.materialised import Materialised
from lightning_dp.privacy.row_losses import mean_loss

UNITS = 33


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 16, 3, padding=1)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.gain = nn.Parameter(torch.ones(16))
        self.head = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.convolution(x).flatten(2).transpose(1, 2)
        return self.head(self.block(tokens) * self.gain)


def _clipped(
    model: nn.Module, x: Tensor, *, bound: float, engine, precision: str, of_the_mean: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Norms and sums; the loss's gradient is that of the rows' sum, or as it was once of their mean."""
    attached = engine()

    def losses() -> Tensor:
        return (model(x).float() - 1).square().flatten(1).mean(dim=1)

    attached.know(sites_of(model, losses, units=len(x)))
    attached.attach(model, function=Flat(), max_grad_norm=bound)
    rows = len(x)
    attached.expect(
        unit_weights=torch.ones(rows), rows_per_unit=1, loss_scale=1.0 if of_the_mean else float(rows)
    )
    with torch.autocast("cpu", torch.bfloat16) if precision == "bf16-mixed" else nullcontext():
        out = model(x)
    if precision == "bf16-mixed":
        out = out.float()
    loss = mean_loss((out - 1).square().flatten(1).mean(dim=1))
    if not of_the_mean:
        loss.register_hook(lambda gradient: gradient * rows)
    loss.backward()
    found = attached.collect(), attached.take()
    attached.detach()
    return found


def _moved(*, precision: str, removed: slice, engine=BookKeeping, **options) -> tuple[float, float]:
    """‖S(D) − S(D′)‖ and how far the other units moved in it, both in parts of the bound."""
    torch.manual_seed(0)
    model, x = _Net(), torch.randn(UNITS, 2, 6, 6)
    if precision == "bf16-true":
        model, x = model.bfloat16(), x.bfloat16()
    options = {"engine": engine, "precision": precision, **options}
    bound = 0.5 * float(_clipped(model, x, bound=1e9, **options)[0].median())
    rest = torch.ones(UNITS, dtype=torch.bool)
    rest[removed] = False
    whole, others, own = (_clipped(model, part, bound=bound, **options)[1] for part in (x, x[rest], x[~rest]))
    change = {name: whole[name] - others[name] for name in whole}
    return (
        total_norm(change) / bound,
        total_norm({name: change[name] - own[name] for name in own}) / bound,
    )


@pytest.mark.parametrize("engine", [BookKeeping, Materialised])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("unit", [0, 16, UNITS - 1])
def test_a_unit_removed_does_not_move_the_others(engine, precision, unit):
    change, others = _moved(precision=precision, removed=slice(unit, unit + 1), engine=engine)
    assert others <= 1e-5
    assert change <= 1 + 1e-5


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_planted_gradients_of_the_mean_move_the_others(precision):
    _, others = _moved(precision=precision, removed=slice(1), of_the_mean=True)
    assert others > 1e-3


def test_planted_rounding_to_the_largest_of_the_batch_moves_the_others(monkeypatch):
    """As a quantised gradient would be that has one scale for all units."""
    plain = per_unit_gradient.OuterProductGradient.__init__

    def quantised(self, inputs, grads):
        step = grads.abs().amax() / 128
        plain(self, inputs, (grads / step).round() * step)

    monkeypatch.setattr(per_unit_gradient.OuterProductGradient, "__init__", quantised)
    moved = [_moved(precision="32-true", removed=slice(unit, unit + 1))[1] for unit in range(6)]
    assert max(moved) > 1e-3
