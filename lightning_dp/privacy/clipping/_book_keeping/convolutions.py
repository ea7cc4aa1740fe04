"""One use of a convolution's kernel in one backward.

A unit's gradient is what the weight gradient of a convolution would be for its rows alone, and costs about
as much. Where maps are small its norm is cheaper by Gram matrices: the Gram matrix of patches is a sum of
shifted Gram matrices of pixels, so no patch is ever formed.

Shapes: U units of k rows, p outputs, d inputs, maps h × w in and h' × w' out, T = k · h' · w' tokens.
"""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_dp.privacy.clipping._book_keeping.floors import floor_of_grams, floor_of_sums
from lightning_dp.privacy.clipping._book_keeping.norm_method import (
    NormMethod,
    cheapest_of_convolution,
    machine,
)
from lightning_dp.privacy.clipping._book_keeping.per_unit_gradient import KeptGradient, PerUnitGradient
from lightning_dp.privacy.clipping.exact import bmm, exact_convolutions

_GRAM_BYTES = 1 << 21
"""Gram matrices of pixels or per-unit gradients formed at a time: what a core's cache holds."""
_LAUNCH_BYTES = 1 << 26
"""The same, and patches, on a GPU, where each step waits for its launches."""
_TOGETHER = 8, 1 << 16
"""Units whose gradients one grouped convolution forms, as long as kernels have at most so many entries."""


class Geometry(NamedTuple):
    """Pairs as in `torch.nn.functional.conv2d`."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


class ConvolutionGradient(PerUnitGradient):
    """A convolution's kernel, (p, d / groups, kh, kw).

    Args:
        inputs: (U · k, d, h, w), already padded as far as the mode is not zeros.
        grads: (U · k, p, h', w').
        units: U.
        shape: the kernel's shape.
        stride, padding, dilation: pairs, as in `torch.nn.functional.conv2d`.
        groups: as there.
    """

    def __init__(
        self,
        inputs: Tensor,
        grads: Tensor,
        *,
        units: int,
        shape: torch.Size,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> None:
        self._inputs, self._grads, self._units, self._shape = inputs, grads, units, shape
        self._at, self._groups = Geometry(stride, padding, dilation), groups
        self._floor: Tensor | None = None

    @property
    def _rows(self) -> int:
        """k, rows of a unit."""
        return len(self._grads) // self._units

    def method(self) -> NormMethod:
        """What the cost model says."""
        sizes = [size + 2 * pad for size, pad in zip(self._inputs.shape[2:], self._at.padding, strict=True)]
        return cheapest_of_convolution(
            tokens=self._rows * self._grads[0, 0].numel(),
            pixels=self._rows * sizes[0] * sizes[1],
            outputs=self._shape[0],
            inputs=self._inputs.shape[1],
            kernel=(self._shape[2], self._shape[3]),
            groups=self._groups,
            bytes_replaced=(self._inputs.nbytes + self._grads.nbytes) // self._units,
            machine=machine(self._grads.device, self._grads.dtype),
        )

    def cheapest(self) -> PerUnitGradient:
        return KeptGradient(self.per_unit(0, self._units)) if self.method() == "keep" else self

    def squared_norms(self, method: NormMethod | None = None) -> Tensor:
        if (method or self.method()) == "ghost":
            return self._ghost()
        step = self._step(self._shape.numel())
        found = [
            torch.linalg.vector_norm(self.per_unit(i, min(i + step, self._units)).flatten(1), dim=1)
            for i in range(0, self._units, step)
        ]
        self._floor = floor_of_sums(*self._frobenius(), numel=self._shape.numel())
        return torch.cat(found).double().square()

    def _step(self, entries: int) -> int:
        """Units at a time where each takes so many fp32 entries."""
        together = _LAUNCH_BYTES if self._grads.device.type == "cuda" else _GRAM_BYTES
        return max(1, together // (4 * entries))

    def _frobenius(self) -> tuple[Tensor, Tensor]:
        """(U,) fp64 bounds on the squared lengths of all patches of a unit and of its gradients."""
        sides = [
            torch.linalg.vector_norm(side.view(self._units, -1), dim=1, dtype=torch.float64).square()
            for side in (self._inputs.contiguous(), self._grads.contiguous())
        ]
        return sides[0] * self._shape[2] * self._shape[3], sides[1]

    def _ghost(self) -> Tensor:
        """⟨AAᵀ, GGᵀ⟩, A being patches: Σ over the kernel's positions of the pixels' Gram, shifted."""
        k, groups = self._rows, self._groups
        height, width = (
            size + 2 * pad for size, pad in zip(self._inputs.shape[2:], self._at.padding, strict=True)
        )
        out = self._grads.shape[2:]
        step = self._step(groups * (k * height * width) ** 2)
        squares, plain, traces = [], [], []
        for start in range(0, self._units, step):
            rows = slice(start * k, min(start + step, self._units) * k)
            padding = [pad for pad in reversed(self._at.padding) for _ in range(2)]
            pixels = self._tokens(F.pad(self._inputs[rows], padding))  # (n·groups, d / groups, k·H·W)
            grads = self._tokens(self._grads[rows])
            gram = bmm(pixels.transpose(1, 2), pixels).view(-1, k, height, width, k, height, width)
            for axis, along in enumerate((2, 3)):
                gram = self._shifted(gram, axis=axis, dims=(along, along + 3), size=out[axis])
            left, right = gram.reshape(len(grads), grads.shape[2], -1), bmm(grads.transpose(1, 2), grads)
            diagonals = [matrix.diagonal(dim1=1, dim2=2).clamp_min(0) for matrix in (left, right)]
            squares.append(torch.linalg.vecdot(left.flatten(1), right.flatten(1)))
            plain.append((diagonals[0].sqrt() * diagonals[1].sqrt()).sum(dim=1))
            traces.append(torch.stack([diagonal.sum(dim=1) for diagonal in diagonals]))
        whole = partial(_of_groups, groups=groups)
        lengths = whole(torch.cat(traces, dim=1))
        self._floor = floor_of_grams(
            *lengths,
            plain=whole(torch.cat(plain)),
            tokens=groups * self._grads[0, 0].numel() * k,
            widths=(self._shape[1:].numel(), self._shape[0]),
        )
        return whole(torch.cat(squares).double()).clamp_min(0)

    def _tokens(self, maps: Tensor) -> Tensor:
        """(n·k, c, …) → (n·groups, c / groups, k·…)."""
        channels = maps.shape[1] // self._groups
        split = maps.view(-1, self._rows, self._groups, channels, maps[0, 0].numel())
        return split.permute(0, 2, 3, 1, 4).reshape(-1, channels, self._rows * maps[0, 0].numel())

    def _shifted(self, gram: Tensor, *, axis: int, dims: tuple[int, int], size: int) -> Tensor:
        """Σ over the kernel's positions along one axis of both pixels' coordinates moved by it."""
        stride, dilation = self._at.stride[axis], self._at.dilation[axis]
        total = None
        for position in range(self._shape[2 + axis]):
            first = position * dilation
            places = slice(first, first + stride * (size - 1) + 1, stride)
            index = [places if dim in dims else slice(None) for dim in range(gram.ndim)]
            part = gram[tuple(index)]
            total = part.clone(memory_format=torch.contiguous_format) if total is None else total.add_(part)
        assert total is not None
        return total

    def per_unit(self, start: int, stop: int) -> Tensor:
        k, units = self._rows, stop - start
        inputs, grads = self._inputs[start * k : stop * k].float(), self._grads[start * k : stop * k].float()
        if inputs.device.type == "cuda":
            patches = k * grads[0, 0].numel() * inputs.shape[1] * self._shape[2] * self._shape[3]
            parts = [side.split(k * self._step(patches)) for side in (inputs, grads)]
            return torch.cat([self._by_patches(a, g) for a, g in zip(*parts, strict=True)])
        together, most = _TOGETHER
        with exact_convolutions():
            if k > 1 or self._shape.numel() > most:
                rows = [slice(i * k, (i + 1) * k) for i in range(units)]
                return torch.stack([self._gradient(inputs[own], grads[own]) for own in rows])
            parts = [side.split(together) for side in (inputs, grads)]
            return torch.cat([self._side_by_side(a, g) for a, g in zip(*parts, strict=True)])

    def _side_by_side(self, inputs: Tensor, grads: Tensor) -> Tensor:
        """(n, …) of n units of one row each: their channels are groups of one convolution."""
        units = len(inputs)
        found = self._gradient(inputs.flatten(0, 1)[None], grads.flatten(0, 1)[None], units=units)
        result: Tensor = found.unflatten(0, (units, -1))
        return result

    def _gradient(self, inputs: Tensor, grads: Tensor, *, units: int = 1) -> Tensor:
        """Σ over rows of the kernel's gradient; of several units whose channels lie side by side."""
        kernel = inputs.new_empty((units * self._shape[0], *self._shape[1:]))
        at = (*self._at, False, (0, 0), units * self._groups)
        backward = torch.ops.aten.convolution_backward
        result: Tensor = backward(grads, inputs, kernel, None, *at, (False, True, False))[1]
        return result

    def _by_patches(self, inputs: Tensor, grads: Tensor) -> Tensor:
        """The same by one large product, where many small convolutions would wait for their launches."""
        at = {"stride": self._at.stride, "padding": self._at.padding, "dilation": self._at.dilation}
        a, g = self._tokens(F.unfold(inputs, self._shape[2:], **at)), self._tokens(grads)
        return bmm(g, a.transpose(1, 2)).view(-1, *self._shape)

    def exactly(self, units: Tensor) -> Tensor:
        inputs, grads = (
            side.unflatten(0, (self._units, self._rows))[units] for side in (self._inputs, self._grads)
        )
        found = self._inputs.new_zeros((len(units), *self._shape), dtype=torch.float64)
        for out, a, g in zip(found, inputs, grads, strict=True):
            if g.any():  # maps behind a gate that is still 0 are common
                out.copy_(self._gradient(a.double(), g.double()))
        return found

    def weighted_sum(self, factors: Tensor) -> Tensor:
        rows = factors.float().repeat_interleave(self._rows)[:, None, None, None]
        with exact_convolutions():
            return self._gradient(self._inputs.float(), self._grads.float() * rows)

    def empty(self, units: Tensor) -> None:
        rows = units.repeat_interleave(self._rows)[:, None, None, None]
        self._inputs, self._grads = self._inputs.masked_fill(rows, 0), self._grads.masked_fill(rows, 0)

    def spread(self) -> Tensor:
        inputs, grads = self._frobenius()
        return inputs * grads

    def floor(self) -> Tensor:
        if self._floor is None:
            return floor_of_sums(*self._frobenius(), numel=self._shape.numel())
        return self._floor


def _of_groups(values: Tensor, *, groups: int) -> Tensor:
    """(…, U · groups) → (…, U)."""
    result: Tensor = values.unflatten(-1, (-1, groups)).sum(dim=-1)
    return result
