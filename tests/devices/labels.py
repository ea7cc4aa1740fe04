"""Which storages pretend to lie on a GPU, and the few places above autograd where Python asks or moves.

A label is an attribute of a storage object, so views, in-place results and parameters share it, and it goes
with the storage. Everything computes on the CPU as always.
"""

import weakref
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._device import _device_constructors

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
_LABEL = "pretends_to_be_on_a_gpu"
_device = torch._C.TensorBase.device  # as torch knows it


def on_gpu(tensor: Tensor) -> bool | None:
    """Whether it says so. What has no storage is on no device; None where it fits anywhere, as
    zeros do that autograd fills in for gradients that nobody knew of.
    """
    with torch._C.DisableTorchFunction():
        try:
            return getattr(tensor.untyped_storage(), _LABEL, False)
        except (NotImplementedError, RuntimeError):
            return False


def put(tensor: Tensor, gpu: bool | None) -> Tensor:
    """The same tensor; its storage, and so all that share it, are there from now on. None fits anywhere."""
    with torch._C.DisableTorchFunction(), suppress(NotImplementedError, RuntimeError):
        setattr(tensor.untyped_storage(), _LABEL, gpu)
    return tensor


def is_gpu(device: Any) -> bool:
    """Of what may be given for a device."""
    if isinstance(device, int):
        return True
    return device is not None and torch.device(device).type == "cuda"


def _says(tensor: Tensor) -> torch.device:
    if on_gpu(tensor):
        return GPU
    with torch._C.DisableTorchFunction():
        return _device.__get__(tensor)


class FakeGenerator(torch.Generator):
    """A CPU's generator that says where it was asked for."""

    _on_gpu: ClassVar[set[int]] = set()  # operators see the same generator in another object

    def __new__(cls, device: Any = "cpu") -> "FakeGenerator":
        return super().__new__(cls, device="cpu")

    def __init__(self, device: Any = "cpu") -> None:
        self._says = GPU if is_gpu(device) else CPU
        if self._says is GPU:
            self._on_gpu.add(self._cdata)
            weakref.finalize(self, self._on_gpu.discard, self._cdata)

    @classmethod
    def is_on_gpu(cls, generator: torch.Generator) -> bool:
        return generator._cdata in cls._on_gpu

    @property
    def device(self) -> torch.device:
        return self._says


@contextmanager
def labels(copied: Callable[[str], None]):
    """Tensors say what their labels say, and move by them.

    Args:
        copied: told about each move between host and device, and each read by the host.
    """
    to, deepcopied, parsed = Tensor.to, torch.UntypedStorage.clone, torch._C._nn._parse_to

    def move(tensor: Tensor, gpu: bool, *, how: str, always: bool, **options: Any) -> Tensor:
        if on_gpu(tensor) in (gpu, None) or tensor.is_meta:
            return to(tensor, **options, copy=True) if always else to(tensor, **options)
        copied(how if gpu else how.replace("to the device", "to the host"))
        return put(to(tensor, **options, copy=True), gpu)

    def moved(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):
            options = {"dtype": args[0].dtype, **options}
            device, later = args[0].device, args[1:]
            args = ()
            options |= dict(zip(("non_blocking", "copy"), later, strict=False))
        else:
            always = args[3:4] == (True,) or options.pop("copy", False)
            kept = {k: options.pop(k) for k in ("memory_format",) if k in options}
            device, dtype, non_blocking, _ = parsed(*args[:3], **options)
            options = {**kept, "copy": always, "non_blocking": non_blocking}
            if dtype is not None:
                options["dtype"] = dtype
        always = options.pop("copy", False)
        how = "copied to the device" + (", not waited for" if options.pop("non_blocking", False) else "")
        if device is not None and device.type == "meta":
            return to(tensor, device, **options)
        gpu = on_gpu(tensor) if device is None else is_gpu(device)
        return move(tensor, gpu, how=how, always=always, **{"dtype": tensor.dtype, **options})

    def array(tensor: Tensor, *args: Any, **options: Any) -> Any:
        if on_gpu(tensor):
            raise TypeError("can't convert a tensor on cuda:0 to numpy: copy it to the host first")
        return numpy(tensor, *args, **options)

    def listed(tensor: Tensor) -> Any:
        if on_gpu(tensor):
            copied("read by the host (tolist)")
        return tolist(tensor)

    def made(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def make(data: Any, *args: Any, device: Any = None, **options: Any) -> Tensor:
            source = on_gpu(data) if isinstance(data, Tensor) else False
            gpu = (source if function is not torch.tensor else False) if device is None else is_gpu(device)
            out = function(data, *args, **options)
            if gpu == source and isinstance(data, Tensor):
                return put(out, gpu)
            if gpu:
                copied("copied to the device")
            return put(out.clone() if out is data else out, gpu)

        return make

    def new(tensor: Tensor, data: Any, *, device: Any = None, **options: Any) -> Tensor:
        gpu = on_gpu(tensor) if device is None else is_gpu(device)
        if gpu:
            copied("copied to the device")
        return put(new_tensor(tensor, data, **options), gpu)

    def clone(storage: torch.UntypedStorage) -> torch.UntypedStorage:
        out = deepcopied(storage)
        setattr(out, _LABEL, getattr(storage, _LABEL, False))
        return out

    def alike(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Of what asks in C++ for its argument's true device, which can't be told from a choice."""

        def call(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
            return put(function(put(tensor.clone(), False), *args, **options), on_gpu(tensor))

        return call

    numpy, tolist, new_tensor = Tensor.numpy, Tensor.tolist, Tensor.new_tensor
    replaced: list[tuple[Any, str, Any]] = [
        (Tensor, "device", property(_says)),
        (Tensor, "is_cuda", property(lambda tensor: bool(on_gpu(tensor)))),
        (Tensor, "is_cpu", property(lambda tensor: not on_gpu(tensor))),
        (Tensor, "to", moved),
        (Tensor, "cpu", lambda tensor, **_: moved(tensor, CPU)),
        (Tensor, "cuda", lambda tensor, *_, **__: moved(tensor, GPU)),
        (Tensor, "numpy", array),
        (Tensor, "tolist", listed),
        (Tensor, "new_tensor", new),
        (torch.UntypedStorage, "clone", clone),
        (torch, "tensor", made(torch.tensor)),
        (torch, "as_tensor", made(torch.as_tensor)),
        (torch, "Generator", FakeGenerator),
        (torch.nn.functional, "one_hot", alike(torch.nn.functional.one_hot)),
    ]
    _device_constructors()  # remembers torch.tensor as it is now, for `with torch.device("meta")`
    with ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(patch.object(owner, name, value))
        yield
