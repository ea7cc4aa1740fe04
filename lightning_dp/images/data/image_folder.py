"""Files on disk, one folder per class, and one per user inside it where there are users."""

from pathlib import Path
from typing import final

import numpy as np

from lightning_dp.images.data.decoding import read_encoded
from lightning_dp.images.data.metadata_file import read_captions
from lightning_dp.images.data.own_files import SUFFIXES, captions_of, check_inside, existing_folder, name_of
from lightning_dp.images.data.source import ImageSource, Split
from lightning_dp.images.data.table import EncodedTable


@final
class ImageFolder(ImageSource):
    """`PATH/train/CLASS/NAME.png` and `PATH/test/CLASS/NAME.png`; deeper folders count to their class.

    A folder without `train/` is all train and has no test split. The folders' names are the classes, which
    makes them public. With `users`, the folder below the class is the user: `PATH/train/CLASS/USER/NAME.png`.

    Args:
        path: the folder.
        users: whether the folder below the class names the user.
        labelled: False takes all images below as one unlabelled set; users then are the first folders.
        captions: whether metadata.jsonl or metadata.csv in the folder of a split has a text for each image,
            as private as the image, by file_name ("CLASS/NAME.png") and text.
        dataset_id: name in ledgers and results; None = the folder's name.
    """

    def __init__(
        self,
        path: str,
        *,
        users: bool = False,
        labelled: bool = True,
        captions: bool = False,
        dataset_id: str | None = None,
    ) -> None:
        self._root = existing_folder(path, field="ImageFolder.path")
        self._users = users
        self._labelled = labelled
        self.has_captions = captions
        self.dataset_id = name_of(path, dataset_id)
        folder = self._folder("train")
        assert folder is not None
        self.class_names = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir())) if labelled else ()
        if labelled and not self.class_names:
            raise ValueError(
                f"ImageFolder.path={path} has no folders inside, and each class needs one: sort the images "
                "into folders, or set labelled to false."
            )

    def files(self) -> list[Path]:
        """The folder that everything lies in."""
        return [self._root]

    def open(self, split: Split) -> EncodedTable | None:
        folder = self._folder(split)
        if folder is None:
            return None
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            raise ValueError(f"{folder} holds no image: it looks for {', '.join(SUFFIXES)}.")
        check_inside(files, folder=self._root)
        labels = np.array([self._label(path, folder) for path in files])
        users = [self._user(path, folder) for path in files] if self._users else None
        names = [str(path) for path in files]
        captions = None
        if self.has_captions:
            texts = read_captions(folder)
            captions = captions_of(
                [texts.get(path) for path in files],
                names=names,
                where="the metadata file",
                fix="captions to false",
            )
        return EncodedTable(
            names,
            load_fn=lambda index: read_encoded(files[index]),
            labels=labels,
            class_names=self.class_names,
            users=users,
            captions=captions,
        )

    def _folder(self, split: Split) -> Path | None:
        if (self._root / "train").is_dir():
            own = self._root / split
            return own if own.is_dir() else None
        return self._root if split == "train" else None

    def _label(self, path: Path, folder: Path) -> int:
        if not self._labelled:
            return -1
        name = path.relative_to(folder).parts[0]
        if name not in self.class_names:
            raise ValueError(
                f"{path} lies in {name!r}, which is no class of the train split "
                f"({', '.join(self.class_names)[:120]}): move it into a class's folder."
            )
        return self.class_names.index(name)

    def _user(self, path: Path, folder: Path) -> str:
        parts = path.relative_to(folder).parts
        depth = 1 if self._labelled else 0
        if len(parts) < depth + 2:
            raise ValueError(
                f"{path} lies in no user's folder, and users is true: put it into "
                f"{'CLASS/USER/' if self._labelled else 'USER/'}."
            )
        return parts[depth]
