"""Every operator of a program, seen below autograd: on which device it would run, what it would wait for."""

import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from labels import CPU, FakeGenerator, is_gpu, on_gpu, put
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# An index may come from the host, and so may what an operator copies between devices.
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
_COPYING = ("copy_", "_to_copy", "_copy_from")
# Numbers in tensors of no dimension may come from the host where an operator goes elementwise.
_TAKES_NUMBERS = (
    "index_put_",
    "index_put",
    "_index_put_impl_",
    "masked_fill",
    "masked_fill_",
    "fill_",
    "div_",
)
_READING = (
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
)
_VIEWS = "view _unsafe_view t t_ transpose permute expand slice select unsqueeze unsqueeze_ squeeze squeeze_"
_VIEWS += (
    " detach detach_ alias as_strided split split_with_sizes unbind diagonal unfold _reshape_alias chunk"
)
_MEMORY = "empty empty_like new_empty empty_strided new_empty_strided set_ resize_ lift_fresh"
_NO_KERNEL = frozenset(f"{_VIEWS} {_MEMORY}".split())
_WIDER = ("mm", "bmm")  # with a result of another dtype, which a CPU does not have
# Frames of modes that stand above this one and hand an operator on.
_PASSING_ON = ("__torch_dispatch__", "other", "draw", "__call__")


@dataclass
class Seen:
    """What was noticed so far; places are `file:line` in the project, or "elsewhere".

    Attributes:
        mixed: operators whose tensors lie on two devices: a GPU would have raised.
        syncs: times that the host waits for the device, or the device for the host.
        kernels: operators that start something on the device, about one kernel each.
    """

    mixed: Counter[tuple[str, str]] = field(default_factory=Counter)
    syncs: Counter[tuple[str, str]] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)

    def copied(self, how: str) -> None:
        self.syncs[how, place()] += 1


def place() -> str:
    """The innermost line of the project that is running."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        head, found, tail = frame.f_code.co_filename.rpartition("/lightning_dp/")
        if found and "site-packages" not in head and frame.f_code.co_name not in _PASSING_ON:
            return f"{tail}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def _asked_by_autograd() -> bool:
    """Whether an operator is called by autograd's own code rather than by a line of Python."""
    frame: Any = sys._getframe(2)
    while frame.f_code.co_name in _PASSING_ON:
        frame = frame.f_back
    return frame.f_code.co_name == "_engine_run_backward"


class Watched(TorchDispatchMode):
    """Makes what is asked for on a GPU, with a label, and notes what a GPU would do.

    Args:
        seen: where it is noted.
    """

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self._seen = seen

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs: list[Tensor] = []
        _tensors(args, inputs)
        if kwargs:
            _tensors(kwargs.values(), inputs)
        if not any(on_gpu(tensor) is not False for tensor in inputs) and not (
            "device" in kwargs or "generator" in kwargs
        ):
            return func(*args, **kwargs)  # on the host, as it always was
        name, kwargs = func.overloadpacket.__name__, dict(kwargs)
        labelled = [(tensor, on_gpu(tensor)) for tensor in inputs]
        known = [(tensor, gpu) for tensor, gpu in labelled if gpu is not None]
        gpu: bool | None = any(gpu for _, gpu in known)
        if gpu:
            self._note(func, name, [tensor for tensor, _ in known], [bool(gpu) for _, gpu in known])
        elif inputs and not known:
            gpu = None
        where = [gpu for _, gpu in labelled]
        wanted = kwargs.get("device")
        if wanted is not None and not is_gpu(wanted) and _asked_by_autograd():
            # It asks for the device that it knows, the true one, of a tensor that may have been anywhere.
            wanted, gpu = None, where[0] if where else None
        if name in _INDEXING and inputs:
            gpu = where[0]
        if wanted is not None:
            gpu = is_gpu(wanted)
            if gpu:
                kwargs["device"] = CPU
        elif inputs and name in _COPYING:
            gpu = where[0]
        generator = kwargs.get("generator")
        if generator is not None and FakeGenerator.is_on_gpu(generator) != gpu:
            kinds = ("cuda", "cpu") if gpu else ("cpu", "cuda")
            raise RuntimeError(
                f"Expected a '{kinds[0]}' device type for generator but found '{kinds[1]}' ({place()})"
            )
        if func._overloadname == "dtype" and name in _WIDER:  # of half-precision factors, in fp32
            func, args = func.overloadpacket.default, tuple(factor.to(args[2]) for factor in args[:2])
        out = func(*args, **kwargs)
        results: list[Tensor] = []
        _tensors([out], results)
        for result in results:
            if not any(result is tensor for tensor in inputs):
                put(result, gpu)
        return out

    def _note(self, func: Any, name: str, inputs: list[Tensor], where: list[bool]) -> None:
        seen = self._seen
        if not all(where):
            if name in _COPYING:
                seen.syncs["copied", place()] += 1
            elif name in _INDEXING and where[0]:
                values = inputs[-1]
                if name != "index" and not where[-1] and values.dim():
                    seen.mixed[name, place()] += 1
                else:
                    seen.syncs["an index from the host", place()] += 1
            elif not name.startswith("_foreach"):  # optimizers keep their counts of steps on the host
                strangers = [tensor for tensor, gpu in zip(inputs, where, strict=True) if not gpu]
                numbers = torch.Tag.pointwise in func.tags or name in _TAKES_NUMBERS
                if not (numbers and all(tensor.dim() == 0 for tensor in strangers)):
                    seen.mixed[name, place()] += 1
        masked = name in _INDEXING and any(t.dtype in (torch.bool, torch.uint8) for t in inputs[1:])
        if name in _READING or masked:
            seen.syncs[f"read by the host ({name})", place()] += 1
        if name not in _NO_KERNEL:
            seen.kernels[name] += 1


def _tensors(parts: Any, found: list[Tensor]) -> None:
    for part in parts:
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, list | tuple):
            _tensors(part, found)
