"""A user's images in parquet files, in the layout of Hugging Face's data sets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from lightning_dp.archives import check_packed
from lightning_dp.extras import needed_by
from lightning_dp.images.data.own_files import captions_of, class_numbers, existing_folder, files_of, name_of
from lightning_dp.images.data.source import ImageSource, Split
from lightning_dp.images.data.table import EncodedTable
from lightning_dp.told import told_error

_MAX_ROWS = 100_000_000


@final
class Parquet(ImageSource):
    """`PATH/train*.parquet` and `PATH/test*.parquet`; a row is an image as encoded bytes.

    Args:
        path: the folder.
        class_names: what the labels mean, as a public fact; [] leaves everything unlabelled.
        image_column: bytes, or a struct with a field `bytes`.
        label_column: a number or one of `class_names`.
        user_column: who the image belongs to, or None.
        caption_column: a text for each image, as private as the image, or None.
        dataset_id: name in ledgers and results; None = the folder's name.
    """

    def __init__(
        self,
        path: str,
        *,
        class_names: Sequence[str] = (),
        image_column: str = "image",
        label_column: str = "label",
        user_column: str | None = None,
        caption_column: str | None = None,
        dataset_id: str | None = None,
    ) -> None:
        self._folder = existing_folder(path, field="Parquet.path")
        self.class_names = tuple(class_names)
        self._image, self._label, self._user = image_column, label_column, user_column
        self._caption = caption_column
        self.has_captions = caption_column is not None
        self.dataset_id = name_of(path, dataset_id)

    def files(self) -> list[Path]:
        """The folder that everything lies in."""
        return [self._folder]

    def open(self, split: Split) -> EncodedTable | None:
        files = files_of(self._folder, split=split, suffix=".parquet")
        if not files:
            return None
        wanted = [
            self._image,
            *([self._label] if self.class_names else []),
            *([self._user] if self._user else []),
            *([self._caption] if self._caption else []),
        ]
        names: list[str] = []
        columns: dict[str, list[Any]] = {column: [] for column in wanted}
        for path in files:
            table = _read(str(path), columns=wanted)
            names += [f"{path}, row {row}" for row in range(len(table[self._image]))]
            for column, values in table.items():
                columns[column] += values
        images = [value.get("bytes") if isinstance(value, dict) else value for value in columns[self._image]]
        labels = np.full(len(images), -1)
        if self.class_names:
            labels = class_numbers(columns[self._label], class_names=self.class_names, names=names)
        captions = None
        if self._caption is not None:
            where = f"the column {self._caption!r}"
            captions = captions_of(
                columns[self._caption], names=names, where=where, fix="caption_column to null"
            )

        def load(index: int) -> bytes:
            content: Any = images[index]
            return content if isinstance(content, bytes) else b""

        return EncodedTable(
            names,
            load_fn=load,
            labels=labels,
            class_names=self.class_names,
            users=[str(user) for user in columns[self._user]] if self._user else None,
            captions=captions,
        )


def _read(path: str, *, columns: list[str]) -> dict[str, list[Any]]:
    with needed_by("a Parquet file"):
        from pyarrow import ArrowException, parquet
    try:
        present = parquet.read_schema(path).names
        missing = [column for column in columns if column not in present]
        if missing:
            raise ValueError(
                f"{path} has no column {missing[0]!r} (it has {', '.join(present)}): name the right one in "
                "image_column, label_column, user_column or caption_column."
            )
        described = parquet.read_metadata(path)
        groups = (described.row_group(number) for number in range(described.num_row_groups))
        check_packed(
            path, packed=Path(path).stat().st_size, unpacked=sum(group.total_byte_size for group in groups)
        )
        if described.num_rows > _MAX_ROWS:
            raise ValueError(f"{path} announces {described.num_rows} images, more than {_MAX_ROWS}.")
        return parquet.read_table(path, columns=columns).to_pydict()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} can't be read as parquet ({told_error(error)}): write it again.") from error
