"""The autoencoder of an earlier stage, with its sizes."""

from pathlib import Path
from pydoc import locate
from typing import Any, final

from torch import Tensor

from lightning_dp.images.autoencoder import Autoencoder, TrainableAutoencoder
from lightning_dp.images.checkpoint import read_checkpoint
from lightning_dp.tracking.layout import CHECKPOINT


@final
class SavedAutoencoder(Autoencoder):
    """What a run of `AutoencoderTraining` made: its class, its sizes and its weights are read from there.

    Later checkpoints hold all of that too, so that samples can be drawn without the earlier run.

    Args:
        run: its folder, or its checkpoint.
        settings: class and sizes, for checkpoints of later stages; the weights then come from those. None
            reads everything from the run.

    Raises:
        ValueError: there is no such run, or it trained no autoencoder.
    """

    def __init__(self, run: str, *, settings: dict[str, Any] | None = None) -> None:
        super().__init__()
        self._settings = settings or _settings_of(run)
        self.model = _make(self._settings, run=run)
        if settings is None:
            self.model.load(str(_checkpoint(run)))
        self.num_channels = self.model.num_channels

    def latent_size(self, size: int) -> int:
        return self.model.latent_size(size)

    def encode(self, images: Tensor) -> Tensor:
        return self.model.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents)

    def settings(self) -> dict[str, Any]:
        return self._settings


def _checkpoint(run: str) -> Path:
    path = Path(run)
    return path / CHECKPOINT if path.is_dir() else path


def _settings_of(run: str) -> dict[str, Any]:
    checkpoint = read_checkpoint(_checkpoint(run))
    found = (checkpoint.get("hyper_parameters") or {}).get("autoencoder")
    if not isinstance(found, dict) or "class_path" not in found:
        raise ValueError(
            f"SavedAutoencoder.run={run} holds no configuration of an autoencoder: give a run of "
            "AutoencoderTraining that 'lightning-dp fit' made, or name the class with its sizes and weights."
        )
    # Weights that the run itself started from are not needed any more.
    arguments = {name: value for name, value in found.get("init_args", {}).items() if name != "weights"}
    return {"class_path": str(found["class_path"]), "init_args": arguments}


def _make(settings: dict[str, Any], *, run: str) -> TrainableAutoencoder:
    kind: Any = locate(settings["class_path"])
    if not (isinstance(kind, type) and issubclass(kind, TrainableAutoencoder)):
        raise ValueError(
            f"SavedAutoencoder.run={run} trained a {settings['class_path']}, which is no "
            "TrainableAutoencoder here: give a run of AutoencoderTraining."
        )
    return kind(**settings["init_args"])
