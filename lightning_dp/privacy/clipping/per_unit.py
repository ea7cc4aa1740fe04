"""Per-unit gradients of one call by torch.func, for what has no rule of its own."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_dp.privacy.clipping.trees import map_tensors, tensors
from lightning_dp.privacy.rows import UnitDim

Result = TypeVar("Result")
Parameters = dict[str, Tensor]
Look = Callable[[Tensor], UnitDim | None]
"""Where a tensor has units."""


@contextmanager
def unfussed() -> Iterator[None]:
    """No warning that vmap runs an operator in a loop: that is what a fallback is for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*performance drop because we have not yet implemented")
        yield


def vectorised(run: Callable[[], Result]) -> Result:
    """run(), which uses vmap; where that fails, without fused kernels of attention.

    Under vmap those don't see that a mask has a gradient; without them some cases fail in half precision.
    """
    try:
        return run()
    except RuntimeError:
        with sdpa_kernel(SDPBackend.MATH):
            return run()


def per_unit_gradients(
    function: Callable[..., Any],
    parameters: Mapping[str, Tensor],
    args: Any,
    kwargs: Any,
    *,
    grads: Sequence[tuple[int, Tensor, UnitDim]],
    look: Look,
    units: int,
) -> Parameters:
    """Gradients of Σ_outputs ⟨output, grad⟩ with respect to `parameters`, one per unit.

    The function is run again, on one unit at a time and vectorised over units; where vmap can't
    (data-dependent control flow, operators without a batching rule) unit after unit.

    Args:
        function: called as function(parameters, *args, **kwargs).
        parameters: by name, shared by all units.
        args, kwargs: tensors with units are split, all else is passed whole.
        grads: position among the outputs' tensors, gradient, where it has units.
        look: where tensors of args and kwargs have units.
        units: U.

    Returns:
        By name (U, *parameter.shape) fp32.
    """
    whole = [(t, place) for t in tensors((args, kwargs)) if (place := look(t)) is not None]
    split = [place.split(t, units=units) for t, place in whole]  # (U, …)
    given = [place.split(grad, units=units) for _, grad, place in grads]

    def one_unit(own: list[Tensor], own_grads: list[Tensor]) -> Parameters:
        waiting = iter(own)

        def fill(tensor: Tensor) -> Tensor:
            return tensor if look(tensor) is None else next(waiting)

        own_args, own_kwargs = map_tensors(fill, args), map_tensors(fill, kwargs)

        def outputs(shared: Parameters) -> list[Tensor]:
            found = list(tensors(function(shared, *own_args, **own_kwargs)))
            return [found[position] for position, _, _ in grads]

        pull = vjp(outputs, dict(parameters))[1]
        (gradient,) = pull(own_grads)
        return {name: value.float() for name, value in gradient.items()}

    with torch.no_grad(), unfussed():
        try:
            return vectorised(lambda: vmap(one_unit, randomness="different")(split, given))
        except RuntimeError:
            pieces = [one_unit([t[u] for t in split], [g[u] for g in given]) for u in range(units)]
            return {name: torch.stack([piece[name] for piece in pieces]) for name in pieces[0]}
