"""Per-row gradients of one call by torch.func, for layers without a rule of their own."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from lightning_dp.privacy.clipping.trees import has_rows, map_tensors, tensors

Parameters = dict[str, Tensor]


@contextmanager
def unfussed() -> Iterator[None]:
    """No warning that vmap runs an operator in a loop: that is what a fallback is for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*performance drop because we have not yet implemented")
        yield


def per_row_gradients(
    function: Callable[..., Any],
    parameters: Mapping[str, Tensor],
    args: Any,
    kwargs: Any,
    *,
    grads: Mapping[int, Tensor],
    rows: int,
) -> Parameters:
    """Gradients of Σ_outputs ⟨output, grad⟩ with respect to `parameters`, one per row.

    The function is run again, on one row at a time and vectorised over rows; where vmap can't
    (data-dependent control flow, operators without a batching rule) row after row.

    Args:
        function: called as function(parameters, *args, **kwargs).
        parameters: by name, shared by all rows.
        args, kwargs: tensors with `rows` rows first are split, all else is passed whole.
        grads: by position among the outputs' tensors, (rows, …).
        rows: number of rows.

    Returns:
        By name (rows, *parameter.shape) fp32.
    """
    everything = [t for t in tensors((args, kwargs)) if has_rows(t, rows)]
    positions = list(grads)
    given = [grads[i] for i in positions]

    def one_row(row_tensors: list[Tensor], row_grads: list[Tensor]) -> Parameters:
        waiting = iter(row_tensors)

        def fill(tensor: Tensor) -> Tensor:
            return next(waiting).unsqueeze(0) if has_rows(tensor, rows) else tensor

        row_args, row_kwargs = map_tensors(fill, args), map_tensors(fill, kwargs)

        def outputs(own: Parameters) -> list[Tensor]:
            found = list(tensors(function(own, *row_args, **row_kwargs)))
            return [found[i] for i in positions]

        pull = vjp(outputs, dict(parameters))[1]
        (gradient,) = pull([g.unsqueeze(0) for g in row_grads])
        return {name: value.float() for name, value in gradient.items()}

    with torch.no_grad(), unfussed():
        try:
            return vmap(one_row, randomness="different")(everything, given)
        except RuntimeError:
            pieces = [one_row([t[i] for t in everything], [g[i] for g in given]) for i in range(rows)]
            return {name: torch.stack([piece[name] for piece in pieces]) for name in pieces[0]}
