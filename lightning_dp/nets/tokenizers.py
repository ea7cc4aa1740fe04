"""From captions to numbers. What a token means is public and known beforehand; captions are private."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor


class Tokenizer(ABC):
    """Captions to L numbers each, caption by caption. Two are equal if they make the same numbers.

    Attributes:
        vocabulary_size: V; tokens lie in [0, V).
        length: L.
    """

    vocabulary_size: int
    length: int

    @abstractmethod
    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(B, L) int64; what goes beyond L is cut off, and "" stands for no caption."""

    @abstractmethod
    def _key(self) -> tuple[object, ...]:
        """What makes it what it is."""

    @final
    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._key() == other._key()

    @final
    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._key()}"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Tokenizer":
        return self  # it has no state, and may be slow to copy


def check_length(tokenizer: Tokenizer, length: int) -> None:
    """Raise ValueError unless there is room for a beginning and a letter."""
    if length < 2:
        raise ValueError(
            f"{type(tokenizer).__name__}.length is {length}; it must be at least 2: 77 is usual."
        )


@final
class Bytes(Tokenizer):
    """A token for each byte of the text's UTF-8: any language, and no file.

    Args:
        length: L ≥ 2, a beginning included.
    """

    vocabulary_size = 258  # 256 bytes, what stands for nothing, and a beginning

    def __init__(self, *, length: int = 77) -> None:
        check_length(self, length)
        self.length = length

    def __call__(self, captions: Sequence[str]) -> Tensor:
        tokens = torch.full((len(captions), self.length), 256)
        tokens[:, 0] = 257
        for row, caption in enumerate(captions):
            own = list(caption.encode()[: self.length - 1])
            tokens[row, 1 : 1 + len(own)] = torch.tensor(own, dtype=torch.int64)
        return tokens  # (B, L)

    def _key(self) -> tuple[object, ...]:
        return (self.length,)


@final
class WordPieces(Tokenizer):
    """BERT's tokens, lower case, by a vocabulary file: what DP-LDM's text encoder reads.

    Args:
        vocabulary: `vocab.txt`, a token a line, such as that of bert-base-uncased.
        length: L ≥ 2.

    Raises:
        ValueError: the file is missing, or lacks BERT's own tokens.
    """

    def __init__(self, vocabulary: str, *, length: int = 77) -> None:
        from tokenizers import BertWordPieceTokenizer

        check_length(self, length)
        path = Path(vocabulary).expanduser()
        if not path.is_file():
            raise ValueError(
                f"WordPieces.vocabulary={vocabulary} is not a file: give a vocab.txt of BERT's form, or take "
                "Bytes, which needs none."
            )
        words = {word: number for number, word in enumerate(path.read_text().split("\n")) if word}
        for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]"):
            if word not in words:
                raise ValueError(
                    f"WordPieces.vocabulary={vocabulary} has no {word}: give a vocab.txt of BERT's form, a "
                    "token a line."
                )
        self.length = length
        self.vocabulary_size = 1 + max(words.values())
        self._words = tuple(words.items())
        self._tokenizer = BertWordPieceTokenizer(vocab=words, lowercase=True)
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(length=length, pad_id=words["[PAD]"], pad_token="[PAD]")

    def __call__(self, captions: Sequence[str]) -> Tensor:
        found = self._tokenizer.encode_batch(list(captions))
        return torch.tensor([own.ids for own in found], dtype=torch.int64)  # (B, L)

    def _key(self) -> tuple[object, ...]:
        return (self.length, hash(self._words))


@final
class ClipTokens(Tokenizer):
    """The tokens of a Stable Diffusion checkpoint's text encoder, where that trains (`train_text`).

    Args:
        path: the checkpoint's folder, with tokenizer/.

    Raises:
        ValueError: there is none.
    """

    def __init__(self, path: str) -> None:
        from transformers import CLIPTokenizer

        folder = Path(path).expanduser() / "tokenizer"
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise ValueError(
                f"ClipTokens.path={path} has no tokenizer/ with tokenizer.json or vocab.json: give a whole "
                "checkpoint folder, as diffusers' save_pretrained writes it."
            )
        self._folder = folder.resolve()
        self._tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.length = int(self._tokenizer.model_max_length)
        self.vocabulary_size = len(self._tokenizer)

    def __call__(self, captions: Sequence[str]) -> Tensor:
        found = self._tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return found.input_ids  # (B, L)

    def _key(self) -> tuple[object, ...]:
        return (str(self._folder),)
