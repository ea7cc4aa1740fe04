"""What an engine's refusal means for whoever wrote the model: where, what and the way out."""

from torch import nn

_MEANINGS = (
    (
        "once_differentiable",
        "differentiates a gradient (a gradient penalty), which no engine can clip per unit",
        "leave that term out of the loss",
    ),
    (
        "saw no per-row use of",
        None,
        "use BookKeeping, which sees more uses than other engines, and write a penalty on weights as the "
        "optimizer's weight_decay",
    ),
    (
        "PackedSequence",
        "packs its sequences, which mixes the rows of units",
        "pass the padded batch instead of pack_padded_sequence",
    ),
)


def explained(module: nn.Module, message: str, *, engine: str) -> tuple[str, str, str]:
    """Place, problem and fix.

    Args:
        module: that was tried.
        message: of the error, its first sentence the problem and the rest the way out.
        engine: its name.
    """
    place = type(module).__name__
    said, _, way_out = message.strip().rstrip(".").partition(". ")
    said = " ".join(said.split())
    for part, problem, fix in _MEANINGS:
        if part in message:
            return place, problem or f"can't be clipped per unit by {engine} ({said})", fix
    fix = (
        way_out[:1].lower() + way_out[1:]
        if way_out
        else "change the layer, or freeze it (requires_grad=False)"
    )
    if second := _rows_second(module):
        fix = f"set batch_first=True in '{second}', or {fix}"
    return place, f"can't be clipped per unit by {engine} ({said})", " ".join(fix.replace(". ", "; ").split())


def _rows_second(module: nn.Module) -> str | None:
    """A layer that torch builds with rows in the second dimension unless it is told otherwise."""
    for path, layer in module.named_modules():
        if isinstance(layer, nn.MultiheadAttention | nn.RNNBase) and not layer.batch_first:
            result: str | None = path
            return result
    return None
