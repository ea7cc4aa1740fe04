"""What a net for images is told of its rows: the class, and the caption as tokens or as states.

Shapes: B images, n images that are asked for, R rows, L tokens, W width of a text encoder's states.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_dp.images.batch import ImageBatch
from lightning_dp.nets.image_net import ImageNet


def told_of_batch(
    net: ImageNet, text_encoder: Any, batch: ImageBatch, *, owner: Tensor, dropped: Tensor
) -> dict[str, Tensor]:
    """Of each row that is trained its image's label, and its caption where there is one.

    Args:
        net: that is told.
        text_encoder: of the captions, where the net does not read their tokens itself; else None.
        batch: B images.
        owner: (R,) int64 in [0, B), the image of each row.
        dropped: (R,) bool, the rows that are told nothing.
    """
    if net.num_classes:
        labels = torch.where(dropped, -1, batch["labels"][owner])  # (R,)
    else:
        labels = torch.full_like(owner, -1)  # (R,)
    if "tokens" in batch:
        assert net.tokenizer is not None  # see check_agreement
        nothing = net.tokenizer([""]).to(owner.device)  # (1, L)
        return {"labels": labels, "tokens": torch.where(dropped[:, None], nothing, batch["tokens"][owner])}
    if "captions" not in batch:
        return {"labels": labels}
    assert text_encoder is not None  # see check_agreement
    states = text_encoder(["", *batch["captions"]])  # (1 + B, L, W)
    return {"labels": labels, "states": states[torch.where(dropped, 0, owner + 1)]}  # (R, L, W)


def check_asked(net: ImageNet, text_encoder: Any, labels: Tensor, *, captions: Sequence[str] | None) -> None:
    """Raise ValueError where images are asked for by a label or a caption that means nothing to the net."""
    if len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < net.num_classes:
        raise ValueError(
            f"labels go from {int(labels.min())} to {int(labels.max())}, but this model knows "
            f"{net.num_classes} classes, counted from 0, and −1 for none."
        )
    if captions is not None and text_encoder is None and net.tokenizer is None:
        raise ValueError(f"{type(net).__name__} reads no captions: ask for classes instead.")


def told_when_sampling(
    net: ImageNet, text_encoder: Any, labels: Tensor, captions: Sequence[str] | None
) -> dict[str, Tensor]:
    """Of each image that is asked for its label (n,), −1 for none, and its caption where there is one."""
    told = {"labels": labels}
    if captions is not None and net.tokenizer is not None:
        told["tokens"] = net.tokenizer(captions).to(labels.device)  # (n, L)
    elif captions is not None and text_encoder is not None:
        told["states"] = text_encoder(captions)  # (n, L, W)
    return told


def told_nothing(told: dict[str, Tensor]) -> dict[str, Tensor]:
    """For the same rows, what guidance compares with: no class, and so no caption either."""
    return {"labels": torch.full_like(told["labels"], -1)}
