"""Whether products of fp32 numbers are fp32, by whichever of PyTorch's two kinds of switches.

What runs goes by the newer kind, `fp32_precision` of a backend or of one of its operations (PyTorch 2.9 and
later). The older one (`torch.set_float32_matmul_precision`, `allow_tf32`) sets the newer along; but once the
newer was set to something else, reading the older raises RuntimeError.
"""

from typing import Any

import torch

_backends: Any = torch.backends
_PRODUCTS = (_backends.cuda.matmul, _backends.mkldnn.matmul)
# Recurrent layers go with convolutions: cuDNN's older switch is one for both.
_CONVOLUTIONS = (_backends.cudnn.conv, _backends.cudnn.rnn, _backends.mkldnn.conv, _backends.mkldnn.rnn)
_FULL = ("ieee", "none")  # "none": neither the operation nor anything above it was told


def products_reduced() -> bool:
    """Whether factors of a matrix product may be rounded to TF32 or bf16 on some device.

    Asked once per layer and backward, hence by the one quick call where it has an answer.
    """
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # the newer switches say something else
        return any(operation.fp32_precision not in _FULL for operation in _PRODUCTS)


def is_reduced(device: torch.device) -> bool:
    """Whether factors of a product, convolution or recurrence may be rounded like that on one device."""
    backends = ("cuda", "cudnn") if device.type == "cuda" else ("mkldnn",)
    operations = (
        getattr(getattr(_backends, backend), name)
        for backend in backends
        for name in ("matmul", "conv", "rnn")
        if hasattr(getattr(_backends, backend), name)
    )
    return any(operation.fp32_precision not in _FULL for operation in operations)


class full_precision:
    """Context: fp32 operations as exact as fp32 gets; afterwards every switch is as it was found.

    Args:
        products: matrix products.
        convolutions: convolutions and recurrent layers; cuDNN's trials of algorithms, which round differently
            and would be anew for each size of a batch, are off as well.
    """

    def __init__(self, *, products: bool = True, convolutions: bool = True) -> None:
        self._operations = _PRODUCTS * products + _CONVOLUTIONS * convolutions
        self._switches: list[Any] = [_MatmulSwitch] * products + [_CudnnSwitch] * convolutions
        self._trials = convolutions and torch.backends.cudnn.benchmark

    def __enter__(self) -> None:
        self._before = [operation.fp32_precision for operation in self._operations]
        # The older switches too, where they can be read: else code inside could not read them any more.
        self._older = [(switch, switch.read()) for switch in self._switches]
        for switch, value in self._older:
            if value is not None:
                switch.write(switch.full)
        for operation in self._operations:
            operation.fp32_precision = "ieee"
        if self._trials:
            torch.backends.cudnn.benchmark = False

    def __exit__(self, *_: object) -> None:
        for switch, value in self._older:
            if value is not None:
                switch.write(value)
        for operation, before in zip(self._operations, self._before, strict=True):
            operation.fp32_precision = "none"  # and so again what is said above it, if that is what it was
            if operation.fp32_precision != before:
                operation.fp32_precision = before
        if self._trials:
            torch.backends.cudnn.benchmark = True


class _MatmulSwitch:
    full = "highest"

    @staticmethod
    def read() -> Any:
        """Its value; None where it can't be read."""
        try:
            return torch.get_float32_matmul_precision()
        except RuntimeError:
            return None

    @staticmethod
    def write(value: Any) -> None:
        torch.set_float32_matmul_precision(value)


class _CudnnSwitch:
    full = False

    @staticmethod
    def read() -> Any:
        """Its value; None where it can't be read."""
        try:
            return torch.backends.cudnn.allow_tf32
        except RuntimeError:
            return None

    @staticmethod
    def write(value: Any) -> None:
        torch.backends.cudnn.allow_tf32 = value
