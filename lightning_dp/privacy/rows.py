"""Which dimension of a tensor is the units', and what mixes units: followed operator by operator.

The batch becomes a DTensor that is sharded over its units, on a pretended mesh of one place a unit; all else
is replicated. DTensor's sharding propagation then says of every operator which dimension of its result the
units are in. What it could do only by communication mixes units, and raises at the line that does it: no
values and no lengths are compared. Only the first unit is computed, so a step costs about what one unit does.

All of DTensor's API that this needs is in this file.
"""

import inspect
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.experimental import implicit_replication
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRETENDED = 37
"""Units that a followed batch pretends to have: nothing else is likely to count up to it.

What a step makes itself for as many rows, by the size of its batch (draws, zeros), is told by that.
"""

_READS = frozenset(
    {
        "item",
        "__bool__",
        "__float__",
        "__int__",
        "__index__",
        "__contains__",
        "tolist",
        "numpy",
        "__array__",
        "equal",
        "allclose",
        "is_nonzero",
        "unique",
        "unique_consecutive",
    }
)

_COUNTS = frozenset({"unique", "unique_consecutive"})
"""Of these, how many there are is what is read."""


class UnitsMixed(Exception):
    """An operator mixes units, or nobody knows whether it does; says where and what."""

    def __init__(self, what: str, *, place: str) -> None:
        super().__init__(f"{what} at {place}")
        self.what, self.place = what, place


class ReadByPython(UnitsMixed):
    """Python reads a number that came from several units."""


Reads = Literal["refused", "true", "other", "low", "high"]
"""What Python gets that reads a number of several units: an error, the first unit's, or another one."""


@dataclass(frozen=True)
class UnitDim:
    """Where the units of a tensor are: its dimension `dim` is (outer, units, inner), folded into one.

    Attributes:
        dim: ≥ 0.
        outer: ≥ 1; above 1 where another dimension lies outside of the units', as in (T·B, D).
    """

    dim: int
    outer: int = 1

    def split(self, tensor: Tensor, *, units: int) -> Tensor:
        """(…, outer · U · k, …) → (U, …, outer · k, …): what each unit has by itself, stacked."""
        folded = tensor.unflatten(self.dim, (self.outer, units, -1)).movedim(self.dim + 1, 0)
        result: Tensor = folded.flatten(self.dim + 1, self.dim + 2)
        return result

    def join(self, stacked: Tensor) -> Tensor:
        """The inverse of `split`."""
        folded = stacked.unflatten(self.dim + 1, (self.outer, -1)).movedim(0, self.dim + 1)
        result: Tensor = folded.flatten(self.dim, self.dim + 2)
        return result

    def fits(self, tensor: Tensor, *, units: int) -> bool:
        """Whether a tensor may have `units` units here."""
        return tensor.ndim > self.dim and tensor.shape[self.dim] % (self.outer * units) == 0

    def __str__(self) -> str:
        return f"dimension {self.dim}" + (f", inside of {self.outer}" if self.outer > 1 else "")


_mesh: DeviceMesh | None = None


def _pretended() -> DeviceMesh:
    global _mesh
    if _mesh is None:
        # Before DTensor's fake tensors pretend that there is a GPU: autograd would start a thread for it, and
        # no process could be forked any more that computes gradients.
        torch.zeros((), requires_grad=True).backward()
        _mesh = DeviceMesh("cpu", list(range(PRETENDED)), _init_backend=False, _rank=0)
    return _mesh


def spread(unit: Tensor, *, dim: int = 0) -> Tensor:
    """One unit's part of the batch, (k, …) on the CPU, as a batch of `PRETENDED` such units."""
    return _wrap(unit, Shard(dim))


def _wrap(local: Tensor, placement: Placement) -> Tensor:
    return DTensor.from_local(local, _pretended(), [placement], run_check=False)


def is_followed(tensor: Any) -> bool:
    """Whether a tensor was followed from the batch."""
    return isinstance(tensor, DTensor)


def units_of(tensor: Tensor) -> UnitDim | None:
    """Where a tensor has units; None where it is the same for all.

    Raises:
        UnitsMixed: it is a sum or mean over units that is still to be taken.
    """
    if not isinstance(tensor, DTensor):
        return None
    (placement,) = tensor.placements
    if isinstance(placement, Replicate):
        return None
    if isinstance(placement, _StridedShard):
        return UnitDim(placement.dim, int(placement.split_factor))
    if isinstance(placement, Shard):
        return UnitDim(placement.dim)
    raise UnitsMixed("a sum over units is used as if it were of one", place=user_line())


def is_total(tensor: Tensor) -> bool:
    """Whether a tensor is a sum or mean over units."""
    return isinstance(tensor, DTensor) and isinstance(tensor.placements[0], Partial)


def own_part(tensor: Tensor) -> Tensor:
    """The first unit's part of a followed tensor; of any other, all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def mean_of(local: Tensor) -> Tensor:
    """A unit's part of a mean over units, as a followed tensor."""
    return _wrap(local, Partial("avg"))


def like(local: Tensor, where: UnitDim | None) -> Tensor:
    """A unit's part with its units at `where`, as a followed tensor."""
    if where is None:
        return local
    if where.outer > 1:
        return _wrap(local, _StridedShard(where.dim, split_factor=where.outer))
    return _wrap(local, Shard(where.dim))


def check_loss(loss: Tensor) -> None:
    """Raise UnitsMixed unless a loss is a mean or sum over units, or has one entry for each."""
    if isinstance(loss, DTensor):
        (placement,) = loss.placements
        if isinstance(placement, Partial) and placement.reduce_op not in ("sum", "avg"):
            raise UnitsMixed("the loss is made of one unit's part", place=user_line())


@contextmanager
def following(*, reads: Reads = "refused", mixing: bool = False) -> Iterator[None]:
    """Operators on followed tensors follow them; what mixes units raises UnitsMixed, at its line.

    Args:
        reads: what happens where Python reads a number of several units.
        mixing: let sums over units count as what is the same for all, where somebody answers for it.
    """
    with (
        warnings.catch_warnings(),
        _quiet("torch._subclasses.fake_tensor"),  # of operators that turn out to be impossible
        implicit_replication(),
        sdpa_kernel(SDPBackend.MATH),
        torch.autograd.set_multithreading_enabled(False),
        _checkpoints_unfolded(),
        _distributions_unchecked(),
        _Reads(reads),
        _Rules(mixing=mixing),
    ):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _checkpoints_unfolded() -> Iterator[None]:
    """Reentrant checkpointing runs its function without gradients first, and again in a backward."""

    class Unfolded:
        @staticmethod
        def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
            return function(*args)

    before = torch.utils.checkpoint.CheckpointFunction
    torch.utils.checkpoint.CheckpointFunction = Unfolded  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        torch.utils.checkpoint.CheckpointFunction = before  # type: ignore[misc]


@contextmanager
def _distributions_unchecked() -> Iterator[None]:
    """Distributions read whether all their numbers are valid, and raise where they are not: nothing else."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def any_unit(mask: Tensor) -> Tensor:
    """Positions at which (R, T) bool `mask` is True for any row, (t,) int64.

    For nets that leave out what no row asks for. Whoever uses it promises that leaving positions out changes
    nothing for rows that don't ask for them; while units are followed, all positions count as asked for.
    """
    if is_followed(mask):
        return torch.arange(mask.shape[1], device=mask.device)
    return mask.any(dim=0).nonzero().flatten()


def pieces(rows: Tensor, size: int) -> list[Tensor]:
    """(R, …) in pieces of at most `size` rows, for what is computed piece by piece to save memory."""
    return [rows] if is_followed(rows) else list(rows.split(size))


class _Reads(TorchFunctionMode):
    """Python may not read a number that came from several units."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _READS:
            for tensor in (*args, *kwargs.values()):
                if isinstance(tensor, DTensor) and not isinstance(tensor.placements[0], Replicate):
                    if self._reads == "refused" and name in _COUNTS:  # another number has no other length
                        raise UnitsMixed(
                            f"the values of several units are counted ({name})", place=user_line()
                        )
                    if self._reads == "refused":
                        raise ReadByPython(
                            f"Python reads a number that came from several units ({name})", place=user_line()
                        )
                    own = [own_part(one) if isinstance(one, DTensor) else one for one in args]
                    told = func(*own, **kwargs)
                    return told if self._reads == "true" else _untrue(told, self._reads)
        if name in ("cross_entropy", "nll_loss"):
            return _label_loss(func, args, kwargs)
        if name in _REWRITTEN:
            return _REWRITTEN[name](*args, **kwargs)
        return func(*args, **kwargs)


def _label_loss(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The mean over labels that count, as the mean over units where each has one label.

    A unit whose label is ignored has no gradient of its own, and moves what others contribute by one part in
    as many as they are, each by at most the bound: together by the bound. With several labels a unit, or
    with weights of classes, that is not so.
    """
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    target = given["target"]
    plain = given["weight"] is None and given["size_average"] is None and given["reduce"] is None
    one_each = _units_first(target) and (target.is_floating_point() or own_part(target).numel() == 1)
    if not (plain and one_each and given["reduction"] == "mean"):
        return func(*args, **kwargs)
    given["reduction"] = "none"
    return func(*bound.args, **bound.kwargs).mean()


def _gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Any, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """Without a look at whether any variance is negative, for which torch raises."""
    var = var if isinstance(var, Tensor) else torch.full_like(input, var)
    var = var if var.ndim == input.ndim else var.unsqueeze(-1)
    loss = 0.5 * (var.clamp_min(eps).log() + (input - target) ** 2 / var.clamp_min(eps))
    result: Tensor = loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()
    return result


def _adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """The mean of everything by that name: torch changes strides in place for it."""
    if output_size in (1, (1, 1), [1, 1]):
        return input.mean(dim=(-2, -1), keepdim=True)
    return torch.nn.functional.adaptive_avg_pool2d(input, output_size)


def _adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """By way of that of images, as torch does it in place."""
    size = output_size[0] if isinstance(output_size, tuple | list) else output_size
    return _adaptive_avg_pool2d(input.unsqueeze(-2), (1, size)).squeeze(-2)


_REWRITTEN: dict[str, Callable[..., Tensor]] = {
    "gaussian_nll_loss": _gaussian_nll_loss,
    "adaptive_avg_pool1d": _adaptive_avg_pool1d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
}
"""Functions whose operators can't be followed, as others that give the same."""


def _untrue(told: Any, reads: Reads) -> Any:
    """Other numbers than the true ones, of a list or an array as well; far off, to be beyond thresholds."""
    if isinstance(told, list):
        return [_untrue(one, reads) for one in told]
    if isinstance(told, bool) or str(getattr(told, "dtype", "")) == "bool":
        return told ^ True if reads == "other" else told ^ told ^ (reads == "high")
    if reads == "other":
        return 2 * told + 1
    far = 1000 if isinstance(told, int) else 1_000_000  # a whole number may be the length of a loop
    return far * (abs(told) + 1) * (1 if reads == "high" else -1)


class _Rules(TorchDispatchMode):
    """Operators that DTensor has no rule for, or one that asks for a process group; then DTensor's own."""

    def __init__(self, *, mixing: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._mixing = mixing

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not any(issubclass(kind, DTensor) for kind in types):
            return _made(func, func(*args, **kwargs))
        rule = _RULES.get(func)
        try:
            if rule is not None:
                result = rule(func, args, kwargs)
                if result is not NotImplemented:
                    return result
            result = func(*args, **kwargs)
            _refuse_parts_of_totals((args, kwargs), result)
            return _made(func, result)
        except UnitsMixed:
            raise
        except Exception as error:
            why = _explained(func, error)
            if self._mixing and isinstance(why, UnitsMixed):
                return _as_if_apart(func, args, kwargs)
            raise why from error


def _as_if_apart(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operator that mixes units gives for the first alone, with units where operands have them."""
    apart = [one for one in args if isinstance(one, Tensor) and not is_total(one)]
    units = [(one, place) for one in apart if (place := units_of(one)) is not None]
    place = units[0][1] if units else None
    try:
        found = func(
            *(own_part(one) if isinstance(one, Tensor) else one for one in args),
            **{name: own_part(one) if isinstance(one, Tensor) else one for name, one in kwargs.items()},
        )
    except (IndexError, RuntimeError):  # an index of other units
        if not units:
            raise
        return units[0][0].clone()
    if not isinstance(found, Tensor) or place is None or found.ndim <= place.dim:
        return found
    return like(found, place)


def _refuse_parts_of_totals(operands: Any, result: Any) -> None:
    """Raise NotImplementedError where a sum over units became something that each unit has a part of.

    DTensor would have to take the sum first, which it can't here; torch 2.11 looks rows up in it as it is.
    """
    taken = [one.placements[0] for one in tree_leaves(operands) if isinstance(one, DTensor)]
    made = [one.placements[0] for one in tree_leaves(result) if isinstance(one, DTensor)]
    if any(isinstance(place, Partial) and place.reduce_op in ("sum", "avg") for place in taken) and any(
        isinstance(place, Shard | _StridedShard) for place in made
    ):
        raise NotImplementedError


def _made(func: Any, result: Any) -> Any:
    """What is made for the rows of the batch has units, as if each had made its own."""
    if func.overloadpacket.__name__ not in _MAKERS or not isinstance(result, Tensor):
        return result
    if isinstance(result, DTensor):
        if not isinstance(result.placements[0], Replicate):
            return result
        result = result.to_local()
    for dim, size in enumerate(result.shape):
        if size and size % PRETENDED == 0:
            return _wrap(result.narrow(dim, 0, size // PRETENDED).contiguous(), Shard(dim))
    return result


_MAKERS = frozenset(
    {
        "rand",
        "randn",
        "randint",
        "normal",
        "zeros",
        "ones",
        "full",
        "empty",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
    }
)


def _explained(func: Any, error: Exception) -> Exception:
    """UnitsMixed for what DTensor can't do without communication or at all; else the error itself."""
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if any(name.endswith("distributed/_functional_collectives.py") for name in frames):
        return UnitsMixed(f"units are mixed by {func.overloadpacket.__name__}", place=user_line())
    if isinstance(error, NotImplementedError) or "harding" in str(error) or "sharded" in str(error):
        return UnitsMixed(f"nothing is known of units in {func.overloadpacket.__name__}", place=user_line())
    return error


def user_line() -> str:
    """The innermost line that belongs neither to torch nor to this package's engine."""
    for frame in reversed(traceback.extract_stack()):
        name = frame.filename.replace("\\", "/")
        inside = "/torch/" in name or "/lightning_dp/privacy/" in name or "/lightning/" in name
        if not inside and not name.endswith("contextlib.py"):
            return f"{name.rsplit('/', 1)[-1]}:{frame.lineno}: {(frame.line or '')[:100]}"
    return "an unknown place"


_MEAN = 1  # of at::Reduction

Rule = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
_RULES: dict[Any, Rule] = {}


def _rule(*functions: Any) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(functions, rule))
        return rule

    return register


def _units_first(tensor: Any) -> bool:
    """Whether a tensor's units are its first dimension and nothing but."""
    return isinstance(tensor, DTensor) and tensor.placements[0] == Shard(0)


def _with_units_first(tensor: Tensor) -> Tensor:
    """A tensor that is the same everywhere, or has units first, as one with units first."""
    return tensor.redistribute(placements=[Shard(0)]) if isinstance(tensor, DTensor) else tensor


def _is_common(tensor: Any) -> bool:
    return not isinstance(tensor, DTensor) or isinstance(tensor.placements[0], Replicate)


@_rule(torch.ops.aten.convolution.default)
def _convolution(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Rows of a convolution are independent; DTensor's own rule splits images and asks for a group."""
    if not (_units_first(args[0]) and all(_is_common(one) for one in args[1:3])):
        return NotImplemented
    local = func(*(own_part(one) if isinstance(one, Tensor) else one for one in args), **kwargs)
    return _wrap(local, Shard(0))


@_rule(torch.ops.aten.nll_loss_forward.default, torch.ops.aten.nll_loss2d_forward.default)
def _nll_loss(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """How many labels count is a sum over units; torch 2.11's own rule takes their mean for one of units."""
    if args[3] == _MEAN:
        raise NotImplementedError
    return NotImplemented


@_rule(torch.ops.aten.native_group_norm.default)
def _group_norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Rows are independent; torch 2.11 has no rule."""
    x, weight, bias, _, *sizes = args
    if not (_units_first(x) and _is_common(weight) and _is_common(bias)):
        return NotImplemented
    own = own_part(x)
    scale = [own_part(one) if isinstance(one, Tensor) else one for one in (weight, bias)]
    return tuple(_wrap(one, Shard(0)) for one in func(own, *scale, len(own), *sizes))


@_rule(torch.ops.aten.native_group_norm_backward.default)
def _group_norm_backward(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    grad, x, mean, rstd, weight, _, *sizes = args
    if not (all(map(_units_first, (x, mean, rstd))) and _is_common(weight)):
        return NotImplemented
    parts = [own_part(one) for one in (_with_units_first(grad), x, mean, rstd)]
    scale = own_part(weight) if isinstance(weight, Tensor) else weight
    grad_x, *totals = func(*parts, scale, len(parts[1]), *sizes)
    return (
        None if grad_x is None else _wrap(grad_x, Shard(0)),
        *(None if total is None else _wrap(total, Partial("sum")) for total in totals),
    )


@_rule(torch.ops.aten.convolution_backward.default)
def _convolution_backward(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not (_units_first(args[1]) and _is_common(args[2])):
        return NotImplemented
    args = (_with_units_first(args[0]), *args[1:])
    grad_x, *totals = func(*(own_part(one) if isinstance(one, Tensor) else one for one in args), **kwargs)
    return (
        None if grad_x is None else _wrap(grad_x, Shard(0)),
        *(None if total is None else _wrap(total, Partial("sum")) for total in totals),
    )


@_rule(torch.ops.aten.select.int)
def _select(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """x[0]: one unit's part, which may be asked for its shape but not be used."""
    x, dim, _ = args
    if not (_units_first(x) and dim % x.ndim == 0):
        return NotImplemented
    return _wrap(func(own_part(x), 0, 0), Partial("max"))


@_rule(torch.ops.aten.split.Tensor)
def _split(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """x.split(n) into one piece: what is computed in pieces to save memory, here is not."""
    x, size, *dim = args
    whole = _units_first(x) and (dim or [0])[0] % x.ndim == 0 and size >= len(x)
    return [_wrap(own_part(x).view_as(own_part(x)), Shard(0))] if whole else NotImplemented


@_rule(torch.ops.aten.cat.default)
def _cat(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """cat([x]): the pieces of above."""
    return args[0][0].clone() if len(args[0]) == 1 else NotImplemented


def _of_own_row(x: Tensor, indices: Any) -> list[Tensor | None] | None:
    """A unit's part of x[arange(R), …], in which each row is asked for itself, once or several times.

    None where it is something else.
    """
    first, *others = indices
    if not (_units_first(x) and first is not None and _is_common(first)):
        return None
    every = own_part(first)
    if not every.ndim or not len(every) or len(every) % len(x):
        return None
    times = len(every) // len(x)
    counted = torch.arange(len(x), device=every.device).repeat_interleave(times)
    if not torch.equal(every, counted.view(-1, *(1,) * (every.ndim - 1))):
        return None
    if not all(one is None or _units_first(one) for one in others):
        return None
    own = every[: len(own_part(x)) * times]
    return [own, *(one if one is None else own_part(one) for one in others)]


@_rule(torch.ops.aten.index.Tensor)
def _index(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, indices = args
    own = _of_own_row(x, indices)
    return NotImplemented if own is None else _wrap(func(own_part(x), own), Shard(0))


@_rule(torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)
def _index_put(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """x[arange(R), …] = values: into each row what is its own."""
    x, indices, values, *more = args
    own = _of_own_row(x, indices)
    if own is None or not (_units_first(values) or (_is_common(values) and not values.ndim)):
        if all(one is None or _is_common(one) for one in (x, values, *indices)):
            return NotImplemented
        where = units_of(x)
        if where is None or (where.dim < len(indices) and indices[where.dim] is not None):
            raise NotImplementedError  # torch 2.11's own rule takes it for each unit's own
        return NotImplemented
    found = func(own_part(x), own, own_part(values), *more)
    return x if func is torch.ops.aten.index_put_.default else _wrap(found, Shard(0))


def _by_row(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Operators on images whose rows, all operands' first dimension, are independent of each other."""
    tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
    if not all(_units_first(one) for one in tensors):
        return NotImplemented
    local = func(
        *(own_part(one) if isinstance(one, Tensor) else one for one in args),
        **{name: own_part(one) if isinstance(one, Tensor) else one for name, one in kwargs.items()},
    )
    if isinstance(local, tuple):
        return tuple(_wrap(one, Shard(0)) if isinstance(one, Tensor) else one for one in local)
    return _wrap(local, Shard(0))


def _of_matrices(core: int) -> Rule:
    """Operators on the last `core` dimensions; units in any other one, the same for all operands."""

    def rule(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operands = [one for one in args if isinstance(one, Tensor)]
        places = {
            one.ndim - place.dim if (place := units_of(one)) is not None and place.outer == 1 else None
            for one in operands
        }
        (from_last,) = places if len(places) == 1 else (None,)
        if from_last is None or from_last <= core or len({one.ndim for one in operands}) != 1:
            return NotImplemented
        found = func(*(own_part(one) if isinstance(one, Tensor) else one for one in args), **kwargs)
        dim = operands[0].ndim - from_last
        whole = [_wrap(one, Shard(dim)) for one in (found if isinstance(found, tuple) else (found,))]
        return tuple(whole) if isinstance(found, tuple) else whole[0]

    return rule


@_rule(torch.ops.aten.diagonal.default)
def _diagonal(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Of matrices in the last two dimensions."""
    x, *more = args
    offset, first, second = (list(more) + [0, 0, 1][len(more) :])[:3]
    if {first % x.ndim, second % x.ndim} != {x.ndim - 2, x.ndim - 1}:
        return NotImplemented
    return _of_matrices(2)(func, (x, offset, first, second), kwargs)


@_rule(torch.ops.aten.constant_pad_nd.default)
def _pad(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Constants around each unit's own part; torch 2.11 would put the units together for it."""
    x, pad, *_ = args
    place = x.placements[0]
    if type(place) is not Shard:
        return NotImplemented
    of_units = pad[2 * (x.ndim - 1 - place.dim) :][:2]  # from the last dimension on
    if any(of_units):
        return NotImplemented
    return _wrap(func(own_part(x), *args[1:], **kwargs), place)


@_rule(torch.ops.aten.fill_.Tensor)
def _fill(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """x[…] = a number that all share; torch 2.11 has no rule."""
    x, value = args
    if not _is_common(value):
        return NotImplemented
    func(own_part(x), own_part(value))
    return x


@_rule(torch.ops.aten.unfold.default)
def _unfold(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Windows along another dimension than the units'."""
    x, along, size, step = args
    place = units_of(x)
    if place is None or place.outer > 1 or along % x.ndim == place.dim:
        return NotImplemented
    return _wrap(func(own_part(x), along, size, step), Shard(place.dim))


@_rule(torch.ops.aten._linalg_check_errors.default)
def _no_look(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises where a matrix is singular, and does nothing else."""


@_rule(torch.ops.aten.searchsorted.Tensor, torch.ops.aten._cdist_forward.default)
def _table_or_row(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operand may be a table that all units share, each unit's part being looked up in it."""
    left, right, *more = args
    if _units_first(left) == _units_first(right) or not (_is_common(left) or _is_common(right)):
        return _by_row(func, args, kwargs)
    local = func(own_part(left), own_part(right), *more, **kwargs)
    units = left if _units_first(left) else right
    return _wrap(local, Shard(0)) if local.shape[0] == own_part(units).shape[0] else NotImplemented


_aten = torch.ops.aten
_RULES.update(dict.fromkeys((_aten.tril.default, _aten.triu.default), _of_matrices(2)))
_RULES.update(
    dict.fromkeys(
        (
            _aten._linalg_svd.default,
            _aten.linalg_qr.default,
            _aten._linalg_eigh.default,
            _aten.linalg_inv_ex.default,
            _aten.linalg_cholesky_ex.default,
            _aten._linalg_det.default,
            _aten._linalg_slogdet.default,
            _aten._linalg_solve_ex.default,
            _aten.linalg_lu_factor_ex.default,
            _aten.reflection_pad2d.default,
            _aten.replication_pad2d.default,
        ),
        _of_matrices(2),
    )
)
_RULES.update(
    dict.fromkeys((_aten.reflection_pad1d.default, _aten.replication_pad1d.default), _of_matrices(1))
)
_RULES.update(
    dict.fromkeys(
        (
            _aten.im2col.default,
            _aten.col2im.default,
            _aten._adaptive_avg_pool2d.default,
            _aten._adaptive_avg_pool2d_backward.default,
            _aten._adaptive_avg_pool3d.default,
            _aten.adaptive_max_pool2d.default,
            _aten.reflection_pad3d.default,
            _aten.replication_pad3d.default,
            _aten.pixel_shuffle.default,
            _aten.pixel_unshuffle.default,
            _aten.upsample_bilinear2d.default,
            _aten.upsample_bilinear2d.vec,
            _aten.upsample_bicubic2d.default,
            _aten.upsample_bicubic2d.vec,
            _aten.grid_sampler_2d.default,
        ),
        _by_row,
    )
)
