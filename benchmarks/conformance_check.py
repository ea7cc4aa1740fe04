"""One model under the default engine, at every batch size, against one autograd backward per unit.

The oracle is plain autograd on one row at a time: it knows no batch, so no length can agree with one. The
gradients of a pool of rows are computed once; batches are drawn from the pool in random order.
"""

import copy
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from conformance_models.case import Batch, Case, Step, randomized
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.row_losses import mean_loss

TOLERANCE = 1e-5
PROMISED = 40
_FEW = (1, 2, 3, 5)
_PROBES = (43, 47)

Prepare = Callable[..., ClippingEngine]


@dataclass
class Findings:
    """What the scan of one model found.

    Attributes:
        refused: the sentence with which the engine refused before training.
        wrong: by batch size, the relative error where it exceeds the tolerance, in fp64 as well. Silent:
            nothing was raised.
        rounded: by batch size, the relative error where it exceeds the tolerance in fp32 and in fp64 does
            not: the oracle is fp32 autograd, which is itself as far from fp64 there.
        late: by sentence, the batch sizes at which the engine raised while training; sentences that
            differ in numbers only count as the first of them.
    """

    batch_sizes: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    worst: float = 0.0
    refused: str | None = None
    wrong: dict[int, float] = field(default_factory=dict)
    rounded: dict[int, float] = field(default_factory=dict)
    late: dict[str, list[int]] = field(default_factory=dict)


def scan(case: Case, prepare: Prepare, *, quick: bool = False, seed: int = 0) -> Findings:
    """Try `case` at every promised batch size, and around each length that occurs in it.

    Args:
        prepare: `prepared_engine`.
        quick: only 1, 2, 3, 5 and the lengths and their neighbours, instead of every size.

    Raises:
        AssertionError: the case itself couples rows, so that it has no per-unit gradients.
    """
    torch.manual_seed(seed)
    model = randomized(case.build())
    lengths = {n for n in lengths_of(model, case) if n <= case.most}
    sizes = _sizes(lengths, most=case.most, quick=quick)
    found = Findings(lengths=sorted(lengths))
    pool = Pool(model, case, rows=max(sizes))
    generator = torch.Generator().manual_seed(seed)
    engine: ClippingEngine | None = None
    try:
        for rows in sizes:
            for rows_per_unit in (1, 2) if rows % 2 == 0 and rows <= 16 else (1,):
                if engine is None:
                    try:
                        engine = pool.prepared(prepare)
                    except (ValueError, RuntimeError) as error:
                        found.refused = _sentence(error)
                        return found
                try:
                    error = pool.error(engine, rows, rows_per_unit=rows_per_unit, generator=generator)
                except Exception as raised:
                    _add(found.late, _sentence(raised), rows)
                    engine.detach()
                    engine = None
                else:
                    found.worst = max(found.worst, error)
                    if not error <= TOLERANCE:
                        engine.detach()
                        engine = None
                        again = _in_double(pool, prepare, rows, rows_per_unit=rows_per_unit)
                        kind = found.rounded if again <= TOLERANCE else found.wrong
                        kind[rows] = max(error, kind.get(rows, 0.0))
            found.batch_sizes.append(rows)
        if engine is not None:
            try:
                if pool.left_by_padding(engine) != 0.0:
                    found.wrong[3] = math.inf
            except Exception as raised:
                _add(found.late, _sentence(raised), 3)
    finally:
        if engine is not None:
            engine.detach()
    return found


def _in_double(pool: "Pool", prepare: Prepare, rows: int, *, rows_per_unit: int) -> float:
    """The error of a batch of as many rows where roundings are a billion times smaller."""
    torch.manual_seed(0)
    double = Pool(copy.deepcopy(pool.model).double(), pool.case, rows=rows, dtype=torch.float64)
    engine = double.prepared(prepare)
    try:
        generator = torch.Generator().manual_seed(0)
        return double.error(engine, rows, rows_per_unit=rows_per_unit, generator=generator)
    finally:
        engine.detach()


def _sizes(lengths: set[int], *, most: int, quick: bool) -> list[int]:
    near = {n + shift for n in lengths for shift in (-1, 0, 1)}
    every = set() if quick else set(range(1, min(most, PROMISED) + 1))
    return sorted(n for n in {*_FEW, *near, *every} if 1 <= n <= most)


def _add(late: dict[str, list[int]], sentence: str, rows: int) -> None:
    kind = re.sub(r"\d+", "#", sentence)
    same = next((known for known in late if re.sub(r"\d+", "#", known) == kind), sentence)
    sizes = late.setdefault(same, [])
    if rows not in sizes:
        sizes.append(rows)


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}"[:400]


class Pool:
    """Rows of one case with the gradient of each row alone, by plain autograd in `dtype`."""

    def __init__(
        self, model: nn.Module, case: Case, *, rows: int, dtype: torch.dtype = torch.float32
    ) -> None:
        self.model, self.case, self.rows, self._dtype = model, case, rows, dtype
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._buffers = [(b, b.detach().clone()) for b in model.buffers()]
        self.batch = self._inputs(rows)
        self.gradients: dict[str, Tensor] = {
            n: torch.zeros(rows, *p.shape, dtype=dtype) for n, p in self.parameters.items()
        }
        losses = []
        for row in range(rows):
            loss, gradients = self.autograd(torch.tensor([row]))
            losses.append(loss)
            for name, gradient in gradients.items():
                self.gradients[name][row] = gradient
        self.losses = torch.tensor(losses, dtype=torch.float64)
        self._assert_uncoupled()
        self.max_grad_norm = max(float(self._norms(torch.arange(rows)[:, None]).median()), 1e-6)

    def _inputs(self, rows: int) -> Batch:
        batch = self.case.inputs(rows)
        return {
            name: part.to(self._dtype) if part.is_floating_point() else part for name, part in batch.items()
        }

    def _assert_uncoupled(self) -> None:
        rows = min(self.rows, 5)
        _, together = self.autograd(torch.arange(rows))
        mean = {n: g[:rows].double().mean(dim=0) for n, g in self.gradients.items()}
        whole = _norm(mean)
        apart = _norm({n: mean[n] - (together[n].double() if n in together else 0) for n in mean})
        assert apart <= 1e-4 * whole, f"the rows see each other: {apart / whole:.1e} of the gradient"

    def step(self, rows: Tensor) -> Any:
        """The scalar loss of these rows, everything random and remembered as in every other step."""
        with torch.no_grad():
            for buffer, value in self._buffers:
                buffer.copy_(value)
        torch.manual_seed(0)
        return mean_loss(self.case.step(self.model, _pick(self.batch, rows)))

    def autograd(self, rows: Tensor) -> tuple[float, dict[str, Tensor]]:
        """The loss and its ordinary gradient."""
        loss = self.step(rows)
        grads = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        found = zip(self.parameters, grads, strict=True)
        return float(loss.detach()), {name: grad for name, grad in found if grad is not None}

    def _norms(self, units: Tensor) -> Tensor:
        """(U, rows_per_unit) row numbers → (U,) fp64 norms of the mean over each unit's rows."""
        squares = torch.zeros(len(units), dtype=torch.float64)
        for gradient in self.gradients.values():
            squares += gradient[units].double().mean(dim=1).reshape(len(units), -1).square().sum(dim=1)
        return squares.sqrt()

    def prepared(self, prepare: Prepare) -> ClippingEngine:
        """An engine that was shown three made-up rows."""
        step: Step = self.case.step
        torch.manual_seed(0)
        batch = self._inputs(3)
        return prepare(self.model, step, batch, 3, max_grad_norm=self.max_grad_norm)

    def left_by_padding(self, engine: ClippingEngine) -> float:
        """Largest entry of the sums of a batch of padding alone, which must be exactly 0."""
        engine.expect(unit_weights=torch.zeros(3), rows_per_unit=1)
        with engine.stepping():
            loss = self.step(torch.arange(3))
        loss.backward()
        engine.collect()
        return max(float(s.abs().max()) for s in engine.take().values())

    def error(
        self, engine: ClippingEngine, rows: int, *, rows_per_unit: int, generator: torch.Generator
    ) -> float:
        """Largest relative error of a unit's norm or of a parameter's clipped sum, one batch.

        Units have weights 0, 1 and something between. A sum's error is relative to its own norm or to a third
        of all sums together, whichever is larger: fp32 autograd itself is that far from fp64 in parameters
        whose gradient is 0 but for rounding (biases of keys). What is attributed to wrong rows is still seen
        in parameters of a ten-thousandth of the gradient.
        """
        order = torch.randperm(self.rows, generator=generator)[:rows].reshape(-1, rows_per_unit)
        weights = torch.rand(len(order), generator=generator) * 0.75 + 0.25
        weights[torch.rand(len(order), generator=generator) < 0.3] = 1.0
        if len(order) > 1:
            weights[int(torch.randint(len(order), (), generator=generator))] = 0.0
        scale = 1.0 if rows % 3 else 8.0
        engine.expect(unit_weights=weights, rows_per_unit=rows_per_unit, loss_scale=scale)
        with engine.stepping():
            loss = self.step(order.flatten())
        (loss * scale).backward()
        norms, sums = engine.collect().double(), engine.take()
        expected = self._norms(order)
        largest = expected.max().clamp_min(1e-30)
        worst: list[Any] = [((norms - expected).abs() / expected.clamp_min(1e-3 * float(largest))).max()]
        worst += [(loss.detach().double() - self.losses[order].mean()).abs() / self.losses.abs().max() / 10]
        assert sums.keys() == self.parameters.keys(), "a parameter has no sum"
        factors = weights.double() * (self.max_grad_norm / expected.clamp_min(1e-300)).clamp(max=1.0)
        oracle = {
            n: torch.einsum("u,ur...->...", factors, g[order].double()) / rows_per_unit
            for n, g in self.gradients.items()
        }
        # Contributions of units may cancel in the sum; its rounding does not.
        whole = max(_norm(oracle), float((factors * expected).max()), 1e-3 * self.max_grad_norm)
        for name, value in oracle.items():
            size = max(float(value.norm()), whole / 3)
            worst.append((sums[name].double() - value).norm() / size)
        return float(torch.stack([torch.as_tensor(w, dtype=torch.float64) for w in worst]).max())


def _pick(batch: Batch, rows: Tensor) -> Batch:
    return {name: tensor[rows] for name, tensor in batch.items()}


def _norm(tensors: dict[str, Tensor]) -> float:
    return float(torch.stack([t.double().square().sum() for t in tensors.values()]).sum().sqrt())


class _Lengths(TorchDispatchMode):
    """Every length of every tensor that any operator sees."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor):
                self.found.update(leaf.shape)
        return result


def lengths_of(model: nn.Module, case: Case) -> set[int]:
    """Lengths that occur in parameters, buffers and one forward, whatever the batch."""
    fixed = {n for t in [*model.parameters(), *model.buffers()] for n in t.shape}
    seen = []
    for rows in _PROBES:
        with _watched() as lengths:
            torch.manual_seed(0)
            case.step(model, case.inputs(rows))
        seen.append(lengths)
    return fixed | (seen[0] & seen[1])


@contextmanager
def _watched() -> Iterator[set[int]]:
    mode = _Lengths()
    with torch.no_grad(), mode:
        yield mode.found
