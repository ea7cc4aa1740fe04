"""One use of one parameter in one backward: its norms, its gradients, its clipped sum.

Shapes: U units, T tokens of a unit (rows × positions), p outputs, d inputs. All results are fp32.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_dp.privacy.clipping.cost import Way, cheapest, machine
from lightning_dp.privacy.clipping.exact import bmm, scaled_product

_CHUNK_BYTES = 1 << 20
"""Per-unit gradients formed at a time when they are not kept: about what a core's cache holds."""

_KEPT_BYTES = 1 << 20
"""Per-unit gradients kept in one piece; measured: 3 MiB cost a tenth more memory, 12 MiB a third."""


class Use(ABC):
    """A parameter's per-unit gradients, in whatever form is cheap."""

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """(U,) squared norms of the per-unit gradients."""

    @abstractmethod
    def per_unit(self, start: int, stop: int) -> Tensor:
        """(stop − start, *shape) gradients of some units."""

    @abstractmethod
    def weighted_sum(self, factors: Tensor) -> Tensor:
        """Σ_u factor_u · gradient_u, in the parameter's shape."""

    @abstractmethod
    def empty(self, units: Tensor) -> None:
        """Set the gradients of the units marked in (U,) bool to exactly 0, NaN and Inf included."""

    def spread(self) -> Tensor | None:
        """(U,) bound on the squared norm had nothing cancelled; None where norms are exact anyway."""
        return None


class KeptUse(Use):
    """Per-unit gradients themselves: (U, *shape) fp32. Biases, norms, small or kept weights."""

    def __init__(self, gradients: Tensor) -> None:
        self._shape = gradients.shape[1:]
        self._gradients = gradients.reshape(len(gradients), -1)

    def squared_norms(self) -> Tensor:
        return _row_squares(self._gradients)

    def per_unit(self, start: int, stop: int) -> Tensor:
        return self._gradients[start:stop].view(-1, *self._shape)

    def weighted_sum(self, factors: Tensor) -> Tensor:
        return (factors @ self._gradients).view(self._shape)

    def empty(self, units: Tensor) -> None:
        self._gradients = self._gradients.masked_fill(units[:, None], 0)


class ChunkedUse(Use):
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
        self._squares = torch.cat(norms).square()

    def squared_norms(self) -> Tensor:
        return self._squares

    def per_unit(self, start: int, stop: int) -> Tensor:
        gradients = torch.cat(self._chunks)[start:stop]
        return gradients.transpose(1, 2) if self._transposed else gradients

    def weighted_sum(self, factors: Tensor) -> Tensor:
        shape = self._chunks[0].shape[1:]
        out = self._chunks[0].new_zeros(shape.numel())
        for chunk, part in zip(self._chunks, factors.split(self._step), strict=True):
            out.addmv_(chunk.flatten(1).T, part)
        self._chunks = []
        return out.view(shape).T.contiguous() if self._transposed else out.view(shape)

    def empty(self, units: Tensor) -> None:
        parts = zip(self._chunks, units.split(self._step), strict=True)
        self._chunks = [chunk.masked_fill(part[:, None, None], 0) for chunk, part in parts]


class OuterUse(Use):
    """A weight of a linear map: Σ_t g_t ⊗ a_t, (p, d).

    Args:
        inputs: (U, T, d), A.
        grads: (U, T, p), G.
    """

    def __init__(self, inputs: Tensor, grads: Tensor) -> None:
        self.inputs, self.grads = inputs, grads
        self._spread: Tensor | None = None
        self._gradients: Tensor | None = None

    def way(self) -> Way:
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

    def squared_norms(self, way: Way | None = None) -> Tensor:
        way = way or self.way()
        if way == "outer":
            return _row_squares(self.inputs) * _row_squares(self.grads)
        if way == "ghost":
            return self._ghost()
        if way == "keep":
            return self.kept().squared_norms()
        return self._direct()

    def kept(self) -> ChunkedUse:
        """The same use with its per-unit gradients formed and A, G let go."""
        return ChunkedUse(self.inputs, self.grads)

    def _ghost(self) -> Tensor:
        """⟨AAᵀ, GGᵀ⟩ by strips of rows: what lies left of the diagonal is what lies above it."""
        inputs, grads = self.inputs, self.grads
        units, tokens, _ = grads.shape
        strip = -(-tokens // 4) if tokens >= 64 else tokens
        total = torch.zeros(units, device=grads.device)
        plain = torch.zeros(units, device=grads.device)
        for start in range(0, tokens, strip):
            stop = min(start + strip, tokens)
            left = bmm(inputs[:, start:stop], inputs[:, start:].transpose(1, 2))  # (U, strip, T − start)
            right = bmm(grads[:, start:stop], grads[:, start:].transpose(1, 2))
            square = left[:, :, : stop - start], right[:, :, : stop - start]
            diagonals = [gram.diagonal(dim1=1, dim2=2) for gram in square]
            plain += (diagonals[0] * diagonals[1]).clamp_min(0).sqrt().sum(dim=1)
            on_diagonal = torch.linalg.vecdot(square[0].flatten(1), square[1].flatten(1))
            if stop == tokens:
                total += on_diagonal
            else:
                total += 2 * torch.linalg.vecdot(left.flatten(1), right.flatten(1)) - on_diagonal
        self._spread = plain.square()
        # A sum of products of both signs: rounding may leave it just below 0.
        return total.clamp_min(0)

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
        lengths = [torch.linalg.vector_norm(side, dim=2, dtype=torch.float32) for side in (inputs, grads)]
        self._spread = (lengths[0] * lengths[1]).sum(dim=1).square()
        return torch.cat(chunks).square()

    def spread(self) -> Tensor | None:
        return self._spread

    def directly(self, units: Tensor) -> Tensor:
        """Squared norms in fp64 of some units (indices), for those that cancellation spoilt."""
        gradients = torch.bmm(self.grads[units].double().transpose(1, 2), self.inputs[units].double())
        return gradients.square().sum(dim=(1, 2)).float()

    def per_unit(self, start: int, stop: int) -> Tensor:
        return bmm(self.grads[start:stop].transpose(1, 2), self.inputs[start:stop])

    def weighted_sum(self, factors: Tensor) -> Tensor:
        return scaled_product(self.grads, self.inputs, factors)

    def empty(self, units: Tensor) -> None:
        # Not in place: A may be the user's own batch.
        mask = units[:, None, None]
        self.inputs, self.grads = self.inputs.masked_fill(mask, 0), self.grads.masked_fill(mask, 0)

    def joined(self, others: list["OuterUse"]) -> "OuterUse":
        """The sum of several uses of one weight: the same use with the tokens of all."""
        uses = [self, *others]
        return OuterUse(torch.cat([u.inputs for u in uses], dim=1), torch.cat([u.grads for u in uses], dim=1))


class LookupUse(Use):
    """An embedding table: Σ_t g_t at row index_t, (V, D).

    Args:
        index: (U, T) int.
        grads: (U, T, D); 0 where the index is the padding index.
        num_embeddings: V.
    """

    def __init__(self, index: Tensor, grads: Tensor, *, num_embeddings: int) -> None:
        self._index, self._grads, self._num_embeddings = index, grads, num_embeddings

    def squared_norms(self) -> Tensor:
        if self._index.shape[1] == 1:
            return _row_squares(self._grads)
        # Summing tokens with equal index first leaves nothing to cancel between Gram entries.
        order = self._index.argsort(dim=1)
        index = self._index.gather(1, order)
        grads = self._grads.float().gather(1, order[:, :, None].expand_as(self._grads))
        fresh = torch.ones_like(index, dtype=torch.bool)
        fresh[:, 1:] = index[:, 1:] != index[:, :-1]
        slot = fresh.long().cumsum(dim=1) - 1  # (U, T): which distinct index of the unit
        summed = torch.zeros_like(grads).scatter_add_(1, slot[:, :, None].expand_as(grads), grads)
        return _row_squares(summed)

    def per_unit(self, start: int, stop: int) -> Tensor:
        grads = self._grads[start:stop].float()
        out = grads.new_zeros(stop - start, self._num_embeddings, grads.shape[2])
        return out.scatter_add_(1, self._index[start:stop, :, None].expand_as(grads), grads)

    def weighted_sum(self, factors: Tensor) -> Tensor:
        weighted = self._grads.float() * factors[:, None, None]
        out = weighted.new_zeros(self._num_embeddings, weighted.shape[2])
        return out.index_add_(0, self._index.flatten(), weighted.flatten(0, 1))

    def empty(self, units: Tensor) -> None:
        self._grads = self._grads.masked_fill(units[:, None, None], 0)


class ConvUse(Use):
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
        self._stride, self._padding, self._dilation, self._groups = stride, padding, dilation, groups

    def _as_outer(self, start: int, stop: int) -> OuterUse:
        """Units start … stop as a linear map on patches, its groups counted as units."""
        k = len(self._grads) // self._units
        outputs, groups = self._shape[0], self._groups
        patches = F.unfold(
            self._inputs[start * k : stop * k].float(),
            self._shape[2:],
            stride=self._stride,
            padding=self._padding,
            dilation=self._dilation,
        )  # (n·k, d·kh·kw, L)
        grads = self._grads[start * k : stop * k].float().flatten(2)  # (n·k, p, L)
        units = stop - start

        def tokens(tensor: Tensor, width: int) -> Tensor:
            split = tensor.view(units, k, groups, width, -1)
            return split.permute(0, 2, 1, 4, 3).reshape(units * groups, -1, width)

        return OuterUse(tokens(patches, patches.shape[1] // groups), tokens(grads, outputs // groups))

    def _step(self) -> int:
        k = len(self._grads) // self._units
        positions = self._grads[0, 0].numel()
        per_unit = 4 * (k * positions + self._shape[0]) * self._shape[1:].numel() * self._groups
        return max(1, 16 * _CHUNK_BYTES // per_unit)

    def squared_norms(self) -> Tensor:
        step, found = self._step(), []
        for start in range(0, self._units, step):
            outer = self._as_outer(start, min(start + step, self._units))
            way = outer.way()
            found.append(outer.squared_norms("direct" if way != "outer" else way).view(-1, self._groups))
        return torch.cat(found).sum(dim=1)

    def per_unit(self, start: int, stop: int) -> Tensor:
        gradients = self._as_outer(start, stop)
        return gradients.per_unit(0, (stop - start) * self._groups).view(stop - start, *self._shape)

    def weighted_sum(self, factors: Tensor) -> Tensor:
        k = len(self._grads) // self._units
        rows = factors.repeat_interleave(k)[:, None, None, None]
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return torch.ops.aten.convolution_backward(
                self._grads.float() * rows,
                self._inputs.float(),
                self._inputs.new_empty(self._shape, dtype=torch.float32),
                None,
                self._stride,
                self._padding,
                self._dilation,
                False,
                (0, 0),
                self._groups,
                (False, True, False),
            )[1]

    def empty(self, units: Tensor) -> None:
        rows = units.repeat_interleave(len(self._grads) // self._units)[:, None, None, None]
        self._inputs, self._grads = self._inputs.masked_fill(rows, 0), self._grads.masked_fill(rows, 0)


def squared_norms_of_sum(uses: list[Use], *, units: int) -> Tensor:
    """(U,) squared norms where a parameter's gradient is the sum of several uses (tied, called twice)."""
    one = next(iter(uses)).per_unit(0, 1)
    step = max(1, 32 * _CHUNK_BYTES // (4 * one.numel()))
    found = []
    for start in range(0, units, step):
        stop = min(start + step, units)
        total = uses[0].per_unit(start, stop).clone()
        for use in uses[1:]:
            total += use.per_unit(start, stop)
        found.append(torch.linalg.vector_norm(total.flatten(1), dim=1))
    return torch.cat(found).square()


def _row_squares(tensor: Tensor) -> Tensor:
    """(U, …) → (U,) sums of squares in fp32."""
    return torch.linalg.vector_norm(tensor.flatten(1), dim=1, dtype=torch.float32).square()
