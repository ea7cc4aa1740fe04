"""Weights of another run as the start of this one. Whether they may be is the caller's question."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_dp.adapters.lora import BASE
from lightning_dp.adapters.norm_affine import AddedAffine


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], *, fresh: Sequence[str] = ()) -> list[str]:
    """Copy parameters into `module`; buffers stay its own, for they describe its data.

    Works before and after an adapter has put in parameters of its own, which always start anew: LoRA's
    matrices, and the scale and shift of norms that had none.

    Args:
        module: changed in place, or not at all.
        weights: a state dict of the same architecture.
        fresh: regular expressions, searched for in names: parameters that keep their own start, whatever
            the other run had there.

    Returns:
        The names that were loaded.

    Raises:
        ValueError: names or shapes don't fit, or an expression matches nothing.
    """
    patterns = [re.compile(pattern) for pattern in fresh]
    added = {
        id(p) for layer in module.modules() if isinstance(layer, AddedAffine) for p in layer.parameters()
    }
    own = {
        name.replace(BASE, ""): parameter
        for name, parameter in module.named_parameters()
        if not _is_lora(name) and id(parameter) not in added
    }
    for pattern in patterns:
        if not any(pattern.search(name) for name in (*own, *weights)):
            raise ValueError(f"fresh={pattern.pattern!r} matches no parameter, neither here nor there")

    def is_fresh(name: str) -> bool:
        return any(pattern.search(name) for pattern in patterns)

    buffers = {name.replace(BASE, "") for name, _ in module.named_buffers()}
    wanted = {name: parameter for name, parameter in own.items() if not is_fresh(name)}
    missing = [name for name in wanted if name not in weights]
    left_over = [name for name in weights if name not in own and name not in buffers and not is_fresh(name)]
    misshapen = [
        f"{name} {tuple(weights[name].shape)} for {tuple(parameter.shape)}"
        for name, parameter in wanted.items()
        if name in weights and weights[name].shape != parameter.shape
    ]
    for problem, names in (("lack", missing), ("have besides", left_over), ("don't fit", misshapen)):
        if names:
            shown = ", ".join([*names[:5], *(["…"] if len(names) > 5 else [])])
            raise ValueError(
                f"the weights to start from {problem} {shown}: "
                "build the same model, or list what may start anew in fresh"
            )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(weights[name])
    return list(wanted)


def check_fresh(module: nn.Module, fresh: Sequence[str]) -> None:
    """Raise ValueError if parameters that start anew are frozen, and so would stay at random."""
    frozen = [
        name.replace(BASE, "")
        for name, parameter in module.named_parameters()
        if not parameter.requires_grad
        and not _is_lora(name)
        and any(re.search(pattern, name.replace(BASE, "")) for pattern in fresh)
    ]
    if frozen:
        shown = ", ".join([*frozen[:3], *(["…"] if len(frozen) > 3 else [])])
        raise ValueError(
            f"{shown} start{'s' if len(frozen) == 1 else ''} anew (fresh) and the adapter freezes what "
            "starts at random, so it would never learn: let the adapter train it (Several, with Matching or "
            "Embedder), or take weights that fit"
        )


def _is_lora(name: str) -> bool:
    return ".lora_" in name or name.startswith("lora_")
