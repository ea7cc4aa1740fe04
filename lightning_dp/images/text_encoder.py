"""From captions to what cross-attention reads: the frozen text encoder of a Stable Diffusion checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dp.extras import needed_by
from lightning_dp.images.diffusers_files import load_weights

_AT_ONCE = 64


class _Shared:
    """What has no state, is slow to copy, and so is the same for all copies of a module."""

    def __init__(self, shared: Any) -> None:
        self.shared = shared

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Shared":
        return self


class TextEncoder(nn.Module):
    """CLIP's text model and its tokenizer, as diffusers' pipelines use them.

    Each caption is encoded by itself, so what is private about one stays within its unit. "" stands for no
    caption.

    Args:
        folder: of the checkpoint, with text_encoder/ and tokenizer/.

    Attributes:
        width: of the states.

    Raises:
        ValueError: a file is missing or damaged, or transformers is not installed.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        with needed_by("a text encoder"):
            from transformers import CLIPTextModel, CLIPTokenizer
            from transformers.utils import logging
        vocabulary = folder / "tokenizer"
        if not any((vocabulary / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise ValueError(
                f"{vocabulary} has neither tokenizer.json nor vocab.json: give a whole checkpoint folder, as "
                "diffusers' save_pretrained writes it."
            )
        logging.disable_progress_bar()  # for a second of reading
        self.model: Any = load_weights(CLIPTextModel, folder / "text_encoder").requires_grad_(False).eval()
        self._tokenizer = _Shared(CLIPTokenizer.from_pretrained(vocabulary, local_files_only=True))
        self._length = self.model.config.max_position_embeddings
        self.width = int(self.model.config.hidden_size)

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> Tensor:
        """States (B, L, width) of the tokens of B captions; what goes beyond L tokens is cut off."""
        device = next(self.model.parameters()).device
        states = []
        for start in range(0, len(captions), _AT_ONCE):
            tokens = self._tokenizer.shared(
                list(captions[start : start + _AT_ONCE]),
                padding="max_length",
                truncation=True,
                max_length=self._length,
                return_tensors="pt",
            )
            mask = tokens.attention_mask.to(device) if self.hides_padding else None
            states.append(self.model(tokens.input_ids.to(device), attention_mask=mask)[0])  # (b, L, width)
        return torch.cat(states)

    @property
    def hides_padding(self) -> bool:
        """Whether padding is hidden from the other tokens; Stable Diffusion was trained without."""
        return bool(getattr(self.model.config, "use_attention_mask", False))
