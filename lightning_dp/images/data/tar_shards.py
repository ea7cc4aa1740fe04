"""A user's images in tar shards, in the layout of WebDataset."""

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from lightning_dp.archives import MAX_ENCODED, MAX_TEXT, parse_json, read_at_most
from lightning_dp.images.data.own_files import (
    SUFFIXES,
    captions_of,
    class_numbers,
    existing_folder,
    files_of,
    name_of,
)
from lightning_dp.images.data.source import ImageSource, Split
from lightning_dp.images.data.table import EncodedTable


@dataclass
class _Sample:
    """Members of one sample: where its image is, and what is said about it."""

    shard: Path
    key: str
    image: tuple[int, int] | None = None  # offset and size in the shard
    label: Any = None
    caption: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@final
class TarShards(ImageSource):
    """`PATH/train*.tar` and `PATH/test*.tar`; KEY.png (or .jpg …) and KEY.cls or KEY.json make a sample.

    Shards are not streamed: Poisson sampling needs every image by its number, so an index of the members is
    made once and images are read where they lie.

    Args:
        path: the folder.
        class_names: what the labels mean, as a public fact; [] leaves everything unlabelled.
        label_key: of KEY.json, where there is no KEY.cls.
        user_key: of KEY.json, who the image belongs to, or None.
        captions: whether KEY.txt holds a text for the image, as private as the image.
        dataset_id: name in ledgers and results; None = the folder's name.
    """

    def __init__(
        self,
        path: str,
        *,
        class_names: Sequence[str] = (),
        label_key: str = "label",
        user_key: str | None = None,
        captions: bool = False,
        dataset_id: str | None = None,
    ) -> None:
        self._folder = existing_folder(path, field="TarShards.path")
        self.class_names = tuple(class_names)
        self._label_key, self._user_key = label_key, user_key
        self.has_captions = captions
        self.dataset_id = name_of(path, dataset_id)

    def files(self) -> list[Path]:
        """The folder that everything lies in."""
        return [self._folder]

    def open(self, split: Split) -> EncodedTable | None:
        shards = files_of(self._folder, split=split, suffix=".tar")
        if not shards:
            return None
        samples = [sample for shard in shards for sample in _index(shard)]
        names = [f"{sample.shard}, {sample.key}" for sample in samples]
        labels = np.full(len(samples), -1)
        if self.class_names:
            found = [
                sample.facts.get(self._label_key) if sample.label is None else sample.label
                for sample in samples
            ]
            labels = class_numbers(found, class_names=self.class_names, names=names)
        users = None
        if self._user_key is not None:
            missing = [name for name, s in zip(names, samples, strict=True) if self._user_key not in s.facts]
            if missing:
                raise ValueError(
                    f"{missing[0]} has no {self._user_key!r} in its .json, and user_key asks for it: add it, "
                    "or set user_key to null."
                )
            users = [str(sample.facts[self._user_key]) for sample in samples]
        captions = None
        if self.has_captions:
            texts = [sample.caption for sample in samples]
            captions = captions_of(texts, names=names, where="its .txt", fix="captions to false")

        def load(index: int) -> bytes:
            sample = samples[index]
            assert sample.image is not None
            offset, size = sample.image
            with sample.shard.open("rb") as file:
                file.seek(offset)
                return file.read(size)

        return EncodedTable(
            names,
            load_fn=load,
            labels=labels,
            class_names=self.class_names,
            users=users,
            captions=captions,
        )


def _index(shard: Path) -> list[_Sample]:
    """The samples of a shard that have an image, in its order."""
    samples: dict[str, _Sample] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                if member.issparse():  # a size without bytes
                    raise ValueError(f"{shard} has a sparse member: write the shard again.")
                folder, _, name = member.name.rpartition("/")
                stem, _, kind = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                sample = samples.setdefault(key, _Sample(shard=shard, key=key))
                if f".{kind.lower()}" in SUFFIXES:
                    sample.image = (member.offset_data, member.size)
                    if member.size > MAX_ENCODED:
                        raise ValueError(
                            f"{shard}, {key} has an image of {member.size} bytes, more than {MAX_ENCODED}."
                        )
                elif kind in ("cls", "json", "txt"):
                    file = archive.extractfile(member)
                    assert file is not None
                    text = read_at_most(file, MAX_TEXT, where=f"{shard}, {key}.{kind}")  # type: ignore[arg-type]
                    _describe(sample, kind, text.decode(errors="replace").strip())
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(
            f"{shard} can't be read as an uncompressed tar file ({type(error).__name__}): write the shard "
            "again."
        ) from error
    return [sample for sample in samples.values() if sample.image is not None]


def _describe(sample: _Sample, kind: str, text: str) -> None:
    if kind == "cls":
        sample.label = text
        return
    if kind == "txt":
        sample.caption = text
        return
    facts = parse_json(text, where=f"{sample.shard}, {sample.key}.json")
    sample.facts = facts if isinstance(facts, dict) else {}
