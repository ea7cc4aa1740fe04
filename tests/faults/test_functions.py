"""P25, P31: what one unit does to others through a clipping function, and a count that is priced too low."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_dp.privacy.clipping.functions import ClippingFunction, Flat
from lightning_dp.privacy.clipping.loop import Loop
from lightning_dp.privacy.clipping.unit_sums import UnitSums
from lightning_dp.privacy.follow_rows import follow_rows
from lightning_dp.privacy.release import Mechanism

C = 1.0


class _TimesTheShareBelow(Flat):
    """AdaClip's count, not noised: the bound follows the share of units below it."""

    def factors(self, norms: Tensor, *, max_grad_norm: float) -> Tensor:
        below = (norms <= 0.7 * max_grad_norm).double().mean()
        return super().factors(norms, max_grad_norm=max_grad_norm) * (0.5 + 0.5 * below)


class _ToTheMedian(Flat):
    """The bound is the batch's median, where that is lower."""

    def factors(self, norms: Tensor, *, max_grad_norm: float) -> Tensor:
        return super().factors(norms, max_grad_norm=min(max_grad_norm, float(norms.median())))


class _ByRank(Flat):
    """The longest of a batch is left out."""

    def factors(self, norms: Tensor, *, max_grad_norm: float) -> Tensor:
        return super().factors(norms, max_grad_norm=max_grad_norm) * (norms < norms.max())


def _sum(function: ClippingFunction, x: Tensor) -> Tensor:
    model = nn.Linear(3, 2, bias=False)
    nn.init.ones_(model.weight)
    engine = Loop()
    engine.know(follow_rows(model, lambda net, rows: net(rows).sum(dim=1), x, num_units=len(x)))
    engine.attach(model, function=function, max_grad_norm=C)
    engine.expect(unit_weights=torch.ones(len(x)), rows_per_unit=1)
    model(x).sum(dim=1).mean().backward()
    engine.collect()
    (found,) = engine.take().values()
    engine.detach()
    return found


def _units() -> Tensor:
    return torch.linspace(0.05, 2, 40)[:, None] * torch.ones(40, 3) / 6**0.5


FUNCTIONS = [_TimesTheShareBelow(), _ToTheMedian(), _ByRank()]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("units", [1, 2, 40])
def test_a_factor_that_depends_on_others_is_refused(function, units):
    with pytest.raises(
        RuntimeError, match=rf"{type(function).__name__}\.factors gives a unit another factor"
    ):
        _sum(function, _units()[-units:] / 4)


def test_what_others_do_through_a_factor_is_more_than_the_bound(monkeypatch):
    """The planted fault: each unit contributes C at most, and one more of them moves the sum by more."""
    x = torch.cat([torch.full((20, 3), 0.05), torch.full((20, 3), 0.4)])  # norms of 0.12 and 0.98

    def moved(function: ClippingFunction) -> float:
        return float((_sum(function, x) - _sum(function, x[1:])).norm())

    assert moved(Flat()) <= C
    monkeypatch.setattr(UnitSums, "_refuse_others_influence", lambda *_: None)
    assert moved(_ToTheMedian()) > 10 * C


@dataclass(frozen=True, kw_only=True)
class _Count(Mechanism[float]):
    """How many units are below a norm of 1: sensitivity ½, if each adds ±½."""

    shift: float

    @property
    def sensitivity(self) -> float:
        return 0.5

    def sums(self, values) -> np.ndarray:
        return np.array([sum(float(unit[0] <= 1) - self.shift for unit in values)])

    def answer(self, noisy) -> float:
        return float(noisy[0])


def _moved(mechanism: Mechanism[float]) -> float:
    units = [[0.5], [2.0], [0.1]]
    whole = mechanism.sums(units)
    return max(
        float(abs(whole - mechanism.sums(units[:one] + units[one + 1 :]))[0]) for one in range(len(units))
    )


def test_a_count_that_is_priced_at_a_half_is_seen():
    """Opacus' and opake's adaptive clipping released the {0, 1} count at the price of ±½."""
    assert _moved(_Count(noise_multiplier=1.0, shift=0.5)) <= 0.5
    assert _moved(_Count(noise_multiplier=1.0, shift=0.0)) > 0.5
