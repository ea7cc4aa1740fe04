"""One use of one parameter in one backward: its norms, its gradients, its clipped sum.

Shapes: U units, T tokens of a unit (rows × positions), p outputs, d inputs. Gradients and sums are fp32,
squared norms fp64: fp32 has no room for the square of 1e-20 or 1e20. `floor` tells which units the fast
ways may have got wrong, by under- or overflow or by tokens that cancel; `exactly` is the slow way for those.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_dp.privacy.clipping._book_keeping.floors import (
    TINY,
    beyond,
    floor_of_grams,
    floor_of_kept,
    floor_of_sums,
)
from lightning_dp.privacy.clipping._book_keeping.norm_method import NormMethod, cheapest, machine
from lightning_dp.privacy.clipping.exact import bmm, scaled_product

_CHUNK_BYTES = 1 << 20
"""Per-unit gradients formed at a time when they are not kept: about what a core's cache holds."""

_KEPT_BYTES = 1 << 20
"""Per-unit gradients kept in one piece; measured: 3 MiB cost a tenth more memory, 12 MiB a third."""


class PerUnitGradient(ABC):
    """A parameter's per-unit gradients, in whatever form is cheap."""

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """(U,) fp64 squared norms of the per-unit gradients, right where `floor` has no objection."""

    @abstractmethod
    def per_unit(self, start: int, stop: int) -> Tensor:
        """(stop − start, *shape) gradients of some units."""

    @abstractmethod
    def weighted_sum(self, factors: Tensor) -> Tensor:
        """Σ_u factor_u · gradient_u, in the parameter's shape."""

    @abstractmethod
    def empty(self, units: Tensor) -> None:
        """Set the gradients of the units marked in (U,) bool to exactly 0, NaN and Inf included."""

    @abstractmethod
    def exactly(self, units: Tensor) -> Tensor:
        """(n, *shape) fp64 gradients of some units (indices), without under- or overflow."""

    def spread(self) -> Tensor | None:
        """(U,) fp64 bound on the squared norm had nothing cancelled; None where sums are of kept numbers."""
        return None

    def cheapest(self) -> "PerUnitGradient":
        """The form in which it waits for the clip factors."""
        return self

    def floor(self) -> Tensor | None:
        """(U,) fp64, valid after `squared_norms`: units with less in their whole squared norm need `exactly`.

        Inf where there may be overflow; None where squared norm and sum are of the same kept numbers.
        """
        return None

    def exact_squares(self, units: Tensor) -> Tensor:
        """(n,) fp64 squared norms of some units (indices), by `exactly`."""
        return torch.stack([self.exactly(unit).square().sum() for unit in units.split(1)])

    def exact_sum(self, units: Tensor, factors: Tensor) -> Tensor:
        """Σ factor · gradient of some units (indices), by `exactly`; factors are (n,) fp64."""
        # One unit at a time, as for the norm: the same numbers come back, whatever cancels in them.
        pairs = zip(units.split(1), factors, strict=True)
        return torch.stack([self.exactly(unit)[0].mul_(factor) for unit, factor in pairs]).sum(dim=0).float()


class KeptGradient(PerUnitGradient):
    """Per-unit gradients themselves: (U, *shape) fp32. Biases, norms, small or kept weights."""

    def __init__(self, gradients: Tensor) -> None:
        self._shape = gradients.shape[1:]
        self._gradients = gradients.reshape(len(gradients), -1)

    def squared_norms(self) -> Tensor:
        return _row_squares(self._gradients)

    def per_unit(self, start: int, stop: int) -> Tensor:
        part = self._gradients[start:stop]
        return part.view(len(part), *self._shape)

    def exactly(self, units: Tensor) -> Tensor:
        return self._gradients[units].double().view(len(units), *self._shape)

    def weighted_sum(self, factors: Tensor) -> Tensor:
        return (factors.to(self._gradients.dtype) @ self._gradients).view(self._shape)

    def empty(self, units: Tensor) -> None:
        self._gradients = self._gradients.masked_fill(units[:, None], 0)


class ChunkedGradient(PerUnitGradient):
    """Kept per-unit gradients of a large weight, some units at a time.

    A chunk's norms are taken while it is in cache, and chunks the size of activations go where backward
    has just freed some: no fresh memory, which a CPU would have to map page by page.
    """

    def __init__(self, inputs: Tensor, grads: Tensor) -> None:
        units, _, outputs = grads.shape
        self._step = max(1, _KEPT_BYTES // (4 * outputs * inputs.shape[2]))
        # Products of few long rows are faster than of many short ones.
        self._transposed = outputs > inputs.shape[2]
        short, long = (inputs, grads) if self._transposed else (grads, inputs)
        self._chunks, norms = [], []
        for start in range(0, units, self._step):
            stop = start + self._step
            self._chunks.append(bmm(short[start:stop].transpose(1, 2), long[start:stop]))
            norms.append(torch.linalg.vector_norm(self._chunks[-1].flatten(1), dim=1))
        self._squares = torch.cat(norms).double().square()

    def squared_norms(self) -> Tensor:
        return self._squares

    def floor(self) -> Tensor:
        return torch.full_like(self._squares, floor_of_kept(self._chunks[0][0].numel()))

    def per_unit(self, start: int, stop: int) -> Tensor:
        gradients = torch.cat(self._chunks)[start:stop]
        return gradients.transpose(1, 2) if self._transposed else gradients

    def exactly(self, units: Tensor) -> Tensor:
        found = torch.stack([self._chunks[unit // self._step][unit % self._step] for unit in units.tolist()])
        return (found.transpose(1, 2) if self._transposed else found).double()

    def weighted_sum(self, factors: Tensor) -> Tensor:
        shape = self._chunks[0].shape[1:]
        out = self._chunks[0].new_zeros(shape.numel())
        for chunk, part in zip(self._chunks, factors.to(out.dtype).split(self._step), strict=True):
            out.addmv_(chunk.flatten(1).T, part)
        self._chunks = []
        return out.view(shape).T.contiguous() if self._transposed else out.view(shape)

    def empty(self, units: Tensor) -> None:
        parts = zip(self._chunks, units.split(self._step), strict=True)
        self._chunks = [chunk.masked_fill(part[:, None, None], 0) for chunk, part in parts]


class OuterProductGradient(PerUnitGradient):
    """A weight of a linear map: Σ_t g_t ⊗ a_t, (p, d).

    Args:
        inputs: (U, T, d), A.
        grads: (U, T, p), G.
    """

    def __init__(self, inputs: Tensor, grads: Tensor) -> None:
        self.inputs, self.grads = inputs, grads
        self._floor: Tensor | None = None

    def method(self) -> NormMethod:
        """What the cost model says."""
        units, tokens, outputs = self.grads.shape
        return cheapest(
            units=units,
            tokens=tokens,
            outputs=outputs,
            inputs=self.inputs.shape[2],
            itemsize=self.grads.element_size(),
            machine=machine(self.grads.device, self.grads.dtype),
        )

    def squared_norms(self, method: NormMethod | None = None) -> Tensor:
        method = method or self.method()
        if method == "outer":
            squares = [_row_squares(side) for side in (self.inputs, self.grads)]
            self._floor = beyond(*squares)
            return squares[0] * squares[1]
        if method == "ghost":
            return self._ghost()
        if method == "keep":
            kept = self.kept()
            self._floor = self._sum_floor(self._frobenius())
            return kept.squared_norms()
        return self._direct()

    def cheapest(self) -> PerUnitGradient:
        return self.kept() if self.method() == "keep" else self

    def kept(self) -> ChunkedGradient:
        """The same use with its per-unit gradients formed and A, G let go."""
        return ChunkedGradient(self.inputs, self.grads)

    def _ghost(self) -> Tensor:
        """⟨AAᵀ, GGᵀ⟩ by strips of rows: what lies left of the diagonal is what lies above it."""
        inputs, grads = self.inputs, self.grads
        units, tokens, outputs = grads.shape
        strip = -(-tokens // 4) if tokens >= 64 else tokens
        total = torch.zeros(units, device=grads.device)
        plain = torch.zeros(units, device=grads.device)
        lengths = torch.zeros(2, units, device=grads.device)  # Σ_t ‖a_t‖², Σ_t ‖g_t‖²
        for start in range(0, tokens, strip):
            stop = min(start + strip, tokens)
            left = bmm(inputs[:, start:stop], inputs[:, start:].transpose(1, 2))  # (U, strip, T − start)
            right = bmm(grads[:, start:stop], grads[:, start:].transpose(1, 2))
            square = left[:, :, : stop - start], right[:, :, : stop - start]
            diagonals = [gram.diagonal(dim1=1, dim2=2) for gram in square]
            plain += (diagonals[0].sqrt() * diagonals[1].sqrt()).sum(dim=1)
            lengths += torch.stack([diagonal.sum(dim=1) for diagonal in diagonals])
            on_diagonal = torch.linalg.vecdot(square[0].flatten(1), square[1].flatten(1))
            if stop == tokens:
                total += on_diagonal
            else:
                total += 2 * torch.linalg.vecdot(left.flatten(1), right.flatten(1)) - on_diagonal
        self._floor = floor_of_grams(*lengths, plain=plain, tokens=tokens, widths=(inputs.shape[2], outputs))
        # A sum of products of both signs: rounding may leave it just below 0.
        return total.double().clamp_min(0)

    def _direct(self) -> Tensor:
        """Per-unit gradients, a chunk at a time, thrown away."""
        inputs, grads = self.inputs, self.grads
        units, _, outputs = grads.shape
        step = max(1, _CHUNK_BYTES // (4 * outputs * inputs.shape[2]))
        chunks = [
            torch.linalg.vector_norm(
                bmm(grads[i : i + step].transpose(1, 2), inputs[i : i + step]).flatten(1), dim=1
            )
            for i in range(0, units, step)
        ]
        self._floor = self._sum_floor(self._frobenius())
        return torch.cat(chunks).double().square()

    def _frobenius(self) -> tuple[Tensor, Tensor]:
        """(U,) fp64 bounds on ‖A‖² and ‖G‖²."""
        inputs, grads = (
            torch.linalg.vector_norm(side.flatten(1).float(), dim=1).double().square()
            + TINY * side[0].numel()
            for side in (self.inputs, self.grads)
        )
        return inputs, grads

    def _sum_floor(self, sides: tuple[Tensor, Tensor]) -> Tensor:
        return floor_of_sums(*sides, numel=self.grads.shape[2] * self.inputs.shape[2])

    def spread(self) -> Tensor:
        inputs, grads = self._frobenius()
        return inputs * grads

    def floor(self) -> Tensor:
        return self._sum_floor(self._frobenius()) if self._floor is None else self._floor

    def exactly(self, units: Tensor) -> Tensor:
        return torch.bmm(self.grads[units].double().transpose(1, 2), self.inputs[units].double())

    def exact_squares(self, units: Tensor) -> Tensor:
        # Layers behind a gate that is still 0 are common; nothing is to be multiplied there.
        some = self.grads[units].flatten(1).ne(0).any(dim=1) & self.inputs[units].flatten(1).ne(0).any(dim=1)
        found = torch.zeros(len(units), dtype=torch.float64, device=units.device)
        if some.any():
            found[some] = super().exact_squares(units[some])
        return found

    def per_unit(self, start: int, stop: int) -> Tensor:
        return bmm(self.grads[start:stop].transpose(1, 2), self.inputs[start:stop])

    def weighted_sum(self, factors: Tensor) -> Tensor:
        return scaled_product(self.grads, self.inputs, factors.float())

    def empty(self, units: Tensor) -> None:
        # Not in place: A may be the user's own batch.
        mask = units[:, None, None]
        self.inputs, self.grads = self.inputs.masked_fill(mask, 0), self.grads.masked_fill(mask, 0)

    def joined(self, others: list["OuterProductGradient"]) -> "OuterProductGradient":
        """The sum of several uses of one weight: the same use with the tokens of all."""
        uses = [self, *others]
        return OuterProductGradient(
            torch.cat([u.inputs for u in uses], dim=1), torch.cat([u.grads for u in uses], dim=1)
        )


class EmbeddingGradient(PerUnitGradient):
    """An embedding table: Σ_t g_t at row index_t, (V, D).

    Args:
        index: (U, T) int.
        grads: (U, T, D); 0 where the index is the padding index.
        num_embeddings: V.
    """

    def __init__(self, index: Tensor, grads: Tensor, *, num_embeddings: int) -> None:
        self._num_embeddings = num_embeddings
        self._index, self._grads = index, grads.float()
        if index.shape[1] > 1:
            self._sum_equal()

    def _sum_equal(self) -> None:
        index, grads = self._index, self._grads
        # Tokens with equal index are summed first: norm and clipped sum are of the same kept numbers, so
        # that tokens may cancel. (U, T) of which distinct index of the unit a token is:
        order = index.argsort(dim=1, stable=True)
        self._index = index.gather(1, order)
        fresh = torch.ones_like(index, dtype=torch.bool)
        fresh[:, 1:] = self._index[:, 1:] != self._index[:, :-1]
        slot = (fresh.long().cumsum(dim=1) - 1)[:, :, None].expand_as(grads)
        sorted_grads = grads.gather(1, order[:, :, None].expand_as(grads))
        summed = torch.zeros_like(sorted_grads).scatter_add_(1, slot, sorted_grads)
        # Back to the first token with that index, 0 at the others.
        self._grads = summed.gather(1, slot).masked_fill_(~fresh[:, :, None], 0)

    def squared_norms(self) -> Tensor:
        return _row_squares(self._grads)

    def per_unit(self, start: int, stop: int) -> Tensor:
        grads = self._grads[start:stop]
        out = grads.new_zeros(stop - start, self._num_embeddings, grads.shape[2])
        return out.scatter_add_(1, self._index[start:stop, :, None].expand_as(grads), grads)

    def exactly(self, units: Tensor) -> Tensor:
        grads = self._grads[units].double()
        out = grads.new_zeros(len(units), self._num_embeddings, grads.shape[2])
        return out.scatter_add_(1, self._index[units, :, None].expand_as(grads), grads)

    def exact_squares(self, units: Tensor) -> Tensor:
        return _row_squares(self._grads[units])

    def weighted_sum(self, factors: Tensor) -> Tensor:
        weighted = self._grads * factors.float()[:, None, None]
        out = weighted.new_zeros(self._num_embeddings, weighted.shape[2])
        return out.index_add_(0, self._index.flatten(), weighted.flatten(0, 1))

    def empty(self, units: Tensor) -> None:
        self._grads = self._grads.masked_fill(units[:, None, None], 0)


class SummedGradient(PerUnitGradient):
    """Several uses of one parameter (tied, called twice): the norm of a sum is not that of its parts."""

    def __init__(self, uses: Sequence[PerUnitGradient], *, units: int) -> None:
        self._uses, self._units = list(uses), units
        self._numel = self._uses[0].per_unit(0, 1).numel()
        self._floor: Tensor | None = None

    @staticmethod
    def of(uses: Sequence[PerUnitGradient], *, units: int) -> PerUnitGradient:
        """One use that is all of `uses`."""
        if len(uses) == 1:
            return uses[0]
        outer = [use for use in uses if isinstance(use, OuterProductGradient)]
        return outer[0].joined(outer[1:]) if len(outer) == len(uses) else SummedGradient(uses, units=units)

    def squared_norms(self) -> Tensor:
        step = max(1, 32 * _CHUNK_BYTES // (4 * self._numel))
        found, apart = [], []
        for start in range(0, self._units, step):
            stop = min(start + step, self._units)
            pieces = [use.per_unit(start, stop) for use in self._uses]
            apart.append(torch.stack([_row_squares(piece) for piece in pieces]).sqrt())  # (uses, n)
            found.append(_row_squares(torch.stack(pieces).sum(dim=0)))
        lengths = torch.cat(apart, dim=1)
        for length, use in zip(lengths, self._uses, strict=True):
            spread = use.spread()
            if spread is not None:
                torch.maximum(length, spread.sqrt(), out=length)
        whole = lengths.sum(dim=0).square()
        self._floor = floor_of_sums(whole, torch.ones_like(whole), numel=self._numel)
        return torch.cat(found)

    def floor(self) -> Tensor | None:
        return self._floor

    def per_unit(self, start: int, stop: int) -> Tensor:
        return torch.stack([use.per_unit(start, stop) for use in self._uses]).sum(dim=0)

    def exactly(self, units: Tensor) -> Tensor:
        return torch.stack([use.exactly(units) for use in self._uses]).sum(dim=0)

    def weighted_sum(self, factors: Tensor) -> Tensor:
        return torch.stack([use.weighted_sum(factors) for use in self._uses]).sum(dim=0)

    def empty(self, units: Tensor) -> None:
        for use in self._uses:
            use.empty(units)


def _row_squares(tensor: Tensor) -> Tensor:
    """(U, …) → (U,) sums of squares in fp64."""
    rows = tensor.reshape(len(tensor), -1)  # (U,) of a parameter that is one number
    result: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()
    return result
