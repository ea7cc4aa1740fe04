"""The pieces of a data set that no run has read yet, for `lightning-dp ledger register --data`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def pieces_at(path: Path) -> Iterable[bytes]:
    """Pieces of what a configuration's section `data` reads, or of the images in a folder.

    Raises:
        ValueError: it is neither, or its data can't be known again.
    """
    if path.suffix in (".yaml", ".yml"):
        return _of_configuration(path)
    if path.is_dir():
        return _of_images(path)
    raise ValueError(
        f"--data {path} is neither a folder of images nor a configuration: what the columns of a table mean "
        "is in a run's configuration, so give that."
    )


def data_module_of(path: Path) -> Any:
    """The data module that a configuration's section `data` describes; nothing is read.

    Raises:
        ValueError: there is no such section.
    """
    import yaml
    from jsonargparse import ArgumentParser
    from lightning.pytorch import LightningDataModule

    content = yaml.safe_load(path.read_text())
    if not isinstance(content, dict) or "data" not in content:
        raise ValueError(f"{path} has no section data.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    return parser.instantiate_classes(parser.parse_object({"data": content["data"]})).data


def _of_configuration(path: Path) -> Iterable[bytes]:
    from lightning_dp.protocols import HasContentPieces, provides

    data = data_module_of(path)
    told: object = data
    if not provides(told, HasContentPieces):
        raise ValueError(f"--data {path} reads {type(data).__name__}, which has no content_pieces().")
    data.prepare_data()
    data.setup("fit")
    return told.content_pieces()


def _of_images(folder: Path) -> Iterator[bytes]:
    import numpy as np
    from PIL import Image

    from lightning_dp.images.data.own_files import SUFFIXES
    from lightning_dp.images.data.pixels import piece_of

    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            with Image.open(path) as image:
                yield piece_of(np.asarray(image))
