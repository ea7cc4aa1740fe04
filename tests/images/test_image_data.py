"""The image data module: wrong images are named with a fix, and units are what the callback is told."""

import numpy as np
import pytest
import torch
from image_support import npz_data, pictures, write_npz, write_png
from PIL import Image
from torch.utils.data import DataLoader

from lightning_dp.images.data.dataset import ImageDataset, to_bytes, to_floats
from lightning_dp.images.data.image_data import ImageData
from lightning_dp.images.data.image_folder import ImageFolder
from lightning_dp.images.data.npz import NPZ


def _folder(tmp_path, **options) -> ImageData:
    return ImageData(ImageFolder(str(tmp_path)), **{"size": 8, **options})


def test_bytes_and_floats_are_inverse():
    values = np.arange(256, dtype=np.uint8)
    assert to_bytes(to_floats(values)).tolist() == values.tolist()
    assert to_floats(values).min() == -1
    assert to_floats(values).max() == 1


def test_a_corrupt_image_is_named_or_skipped_and_counted_on_request(tmp_path):
    for number in range(3):
        write_png(tmp_path / "train" / "a" / f"{number}.png", level=number)
    bad = tmp_path / "train" / "a" / "1.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(ValueError, match=rf"{bad} can't be read as an image .*unreadable to skip"):
        _folder(tmp_path).setup("fit")
    data = _folder(tmp_path, unreadable="skip")
    with pytest.warns(UserWarning, match="1 of 3 images can't be read"):
        data.setup("fit")
    assert len(data.train_dataset) == data.privacy_unit().num_units == 2
    assert data.facts()["nonprivate/skipped_images"] == 1
    shown = data.train_dataset.pixels.get(np.arange(2))
    assert shown[:, 0, 0, 0].tolist() == [0, 2]


@pytest.mark.parametrize("memory_gb", [4.0, 0.0])
def test_mixed_sizes_and_modes(tmp_path, memory_gb):
    write_png(tmp_path / "train" / "a" / "0.png")
    odd = write_png(tmp_path / "train" / "a" / "1.png", size=(12, 8))
    with pytest.raises(ValueError, match=rf"{odd} has 12 × 8 pixels, and data.size=8"):
        _folder(tmp_path).setup("fit")
    write_png(odd, mode="RGB", level=200)
    with pytest.raises(ValueError, match=rf"{odd} has the mode RGB, and data.mode=grey"):
        _folder(tmp_path).setup("fit")
    write_png(odd, size=(12, 8), mode="RGB", level=200)
    data = _folder(tmp_path, other_sizes="pad", other_modes="convert", memory_gb=memory_gb)
    (image,) = data.train_dataset.pixels.get(np.array([1]))
    assert image.shape == (1, 8, 8)
    assert image[0, 0].max() == 0  # the bar above
    assert image[0, 4].min() > 50
    cropped = _folder(tmp_path, other_sizes="crop", other_modes="convert", mode="rgb", memory_gb=memory_gb)
    (image,) = cropped.train_dataset.pixels.get(np.array([1]))
    assert image[:, 4, 4].tolist() == [200, 10, 20]


def test_transparent_and_deep_images_convert_sensibly(tmp_path):
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(folder / "0.png")
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(folder / "1.png")
    pixels = _folder(tmp_path, other_modes="convert").train_dataset.pixels.get(np.arange(2))
    assert pixels[0].min() == 255  # transparent means the white ground shows
    assert abs(int(pixels[1].max()) - 128) <= 1  # scaled, not cut off


def test_empty_classes_and_labels_out_of_range(tmp_path):
    write_png(tmp_path / "train" / "a" / "0.png")
    (tmp_path / "train" / "b").mkdir()
    with pytest.raises(ValueError, match="the class 'b' has no image in train"):
        _folder(tmp_path).setup("fit")
    _folder(tmp_path, empty_classes="allow").setup("fit")
    np.savez(tmp_path / "train.npz", images=np.zeros((3, 8, 8), np.uint8), labels=[0, 7, 0])
    with pytest.raises(ValueError, match=r"train\.npz, image 1 has the label 7, but there are 3 classes"):
        npz_data(tmp_path).setup("fit")


def test_no_test_split_is_said_when_it_is_asked_for(tmp_path):
    write_npz(tmp_path)
    (tmp_path / "test.npz").unlink()
    data = npz_data(tmp_path)
    data.setup("fit")
    with pytest.raises(ValueError, match="has no test split"):
        data.setup("test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 4}, "size is 4"),
        ({"mode": "blue"}, "mode is 'blue'"),
        ({"unit": "family"}, "unit is 'family'"),
        ({"unreadable": "maybe"}, "unreadable is 'maybe'"),
        ({"images_per_user": 0}, "images_per_user is 0"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        ImageData(NPZ(str(tmp_path)), **{"size": 8, **options})


def test_a_unit_can_be_a_user(tmp_path):
    write_npz(tmp_path, train=30, users=10)
    data = npz_data(tmp_path, unit="user", images_per_user=2)
    unit = data.privacy_unit()
    assert (unit.name, unit.num_units, unit.rows_per_unit) == ("user", 10, 2)
    # User u owns the images u, u + 10 and u + 20.
    images, _ = pictures(30)
    batch = data.train_dataset.__getitems__([4, 7])
    for row, user in enumerate((4, 4, 7, 7)):
        shown = to_bytes(batch["images"][row])[0]
        assert any(np.array_equal(shown, images[user + 10 * k]) for k in range(3))
    assert not torch.equal(batch["images"][0], batch["images"][1])  # drawn without replacement
    few = npz_data(tmp_path, unit="user", images_per_user=5)
    assert len(few.train_dataset[0]["labels"]) == 5
    write_npz(tmp_path)
    with pytest.raises(ValueError, match="does not say whose the images are"):
        npz_data(tmp_path, unit="user").setup("fit")


@pytest.mark.parametrize("unit", ["image", "user"])
def test_synthetic_units_look_like_a_train_batch(tmp_path, unit):
    write_npz(tmp_path, users=6)
    data = npz_data(tmp_path, unit=unit)
    made_up, real = data.synthetic_units(4), data.train_dataset.__getitems__([0, 1, 2, 3])
    assert made_up.keys() == real.keys()
    for name, value in real.items():
        assert made_up[name].shape == value.shape
        assert made_up[name].dtype == value.dtype
    assert float(made_up["images"].min()) >= -1
    # Made of public facts: another data set of the same description gives the same.
    other = npz_data(write_npz(tmp_path / "other", users=6), unit=unit)
    assert torch.equal(other.synthetic_units(4)["images"], made_up["images"])


def test_items_collate_one_by_one_or_at_once_and_latents_replace_images(tmp_path):
    dataset = npz_data(write_npz(tmp_path)).train_dataset
    at_once = dataset.__getitems__([3, 1])
    one_by_one = ImageDataset.collate([dataset[3], dataset[1]])
    assert all(torch.equal(at_once[name], one_by_one[name]) for name in at_once)
    dataset.encode_with(lambda images: images[:, None, :, ::4, ::4])
    loader = DataLoader(dataset, batch_size=7, collate_fn=ImageDataset.collate)
    batch = next(iter(loader))
    assert batch.keys() == {"latents", "labels"}
    assert batch["latents"].shape == (7, 1, 1, 2, 2)
    images, labels = pictures(60)
    assert torch.equal(batch["latents"][2, 0, 0], to_floats(images[2, ::4, ::4]))
    assert batch["labels"].tolist() == labels[:7].tolist()
