"""Folders of pictures: what is read, and which folders are refused by name."""

import re

import numpy as np
import pytest
from PIL import Image

from fedjax_prune import DataError, from_image_folder
from fedjax_prune.data import image_folder
from fedjax_prune.data.image_folder import decode, scan
from tests.pictures import deep_png


def picture(file, value=0, size=(4, 6), mode="RGB", **options):
    """Writes a picture of one colour; `size` is (height, width)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fill = value if mode in ("L", "I;16") else (value,) * len(mode)
    Image.new(mode, size[::-1], fill).save(file, **options)


def test_each_folder_is_a_class(tmp_path):
    picture(tmp_path / "dog" / "b.png", 20)
    picture(tmp_path / "dog" / "a.bmp", 10)
    picture(tmp_path / "cat" / "z.tiff", 30)
    picture(tmp_path / ".cache" / "x.png")
    (tmp_path / "dog" / ".DS_Store").write_text("hidden")
    (tmp_path / "dog" / "Thumbs.db").write_text("hidden by Windows")
    (tmp_path / "desktop.ini").write_text("hidden by Windows")
    (tmp_path / "README.md").write_text("beside the folders")
    dataset, population, classes, clients = from_image_folder(tmp_path)
    assert dataset.images.shape == (3, 4, 6, 3) and dataset.images.dtype == np.uint8
    assert dataset.images[:, 0, 0, 0].tolist() == [30, 10, 20]
    assert dataset.labels.tolist() == [0, 1, 1] and dataset.labels.dtype == np.int32
    assert (population, classes, clients) == (None, ("cat", "dog"), ())


def test_each_client_has_folders_of_its_classes(tmp_path):
    for value, place in enumerate(["2/9/a", "2/10/a", "10/10/a", "10/10/b"]):
        picture(tmp_path / f"{place}.png", value)
    dataset, population, classes, clients = from_image_folder(tmp_path)
    assert (classes, clients) == (("9", "10"), ("2", "10"))
    assert dataset.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert dataset.labels.tolist() == [0, 1, 1, 1]
    assert [population.of(k).tolist() for k in range(2)] == [[0, 1], [2, 3]]


def test_grey_pictures_have_one_channel_unless_others_have_colours(tmp_path):
    picture(tmp_path / "cat" / "1.png", 7, mode="L")
    picture(tmp_path / "cat" / "0.png", 7, mode="LA")
    assert from_image_folder(tmp_path).dataset.images.shape == (2, 4, 6, 1)
    (tmp_path / "cat" / "0.png").unlink()
    picture(tmp_path / "cat" / "2.png", 9, mode="RGBA")
    images = from_image_folder(tmp_path).dataset.images
    assert images.shape == (2, 4, 6, 3)
    assert images[:, 2, 2].tolist() == [[7, 7, 7], [9, 9, 9]]


def test_a_photograph_is_turned_upright(tmp_path):
    """Orientation 6: the first row of the file is the right side of the scene."""
    pixels = np.arange(4 * 6, dtype=np.uint8).reshape(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "cat").mkdir()
    Image.fromarray(pixels).save(tmp_path / "cat" / "1.png", exif=exif)
    images = from_image_folder(tmp_path).dataset.images
    np.testing.assert_array_equal(images[0, :, :, 0], np.rot90(pixels, -1))


def test_pictures_of_several_sizes_are_scaled(tmp_path):
    picture(tmp_path / "cat" / "1.png", 50, size=(4, 6))
    picture(tmp_path / "cat" / "2.png", 90, size=(9, 2))
    images = from_image_folder(tmp_path, size=5).dataset.images
    assert images.shape == (2, 5, 5, 3)
    assert images.min(axis=(1, 2, 3)).tolist() == [50, 90]
    assert images.max(axis=(1, 2, 3)).tolist() == [50, 90]


def test_a_test_set_may_lack_classes(tmp_path):
    picture(tmp_path / "dog" / "1.png")
    (tmp_path / "cat").mkdir()
    data = from_image_folder(tmp_path, classes=["ant", "cat", "dog"])
    assert data.dataset.labels.tolist() == [2]
    assert data.classes == ("ant", "cat", "dog")


def refused(folder, message, **options):
    with pytest.raises(DataError, match=message):
        from_image_folder(folder, **options)


def test_another_size_is_named(tmp_path):
    picture(tmp_path / "cat" / "1.png")
    picture(tmp_path / "dog" / "2.png", size=(4, 7))
    refused(tmp_path, r"dog/2.png must be 4x6 pixels as .*cat/1.png, got 4x7: .*size")


def test_an_unreadable_picture_is_named(tmp_path):
    picture(tmp_path / "cat" / "1.png")
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    refused(tmp_path, r"cat/notes.txt cannot be read .* If it is none, remove it")


def test_a_picture_that_ends_early_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    (tmp_path / "cat").mkdir()
    for name in ("1.png", "2.jpg"):
        file = tmp_path / "cat" / name
        Image.fromarray(noise).save(file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        refused(tmp_path, rf"cat/{name} cannot be read as a picture")
        file.unlink()


def test_deep_pictures_are_refused(tmp_path):
    picture(tmp_path / "cat" / "1.png", 300, mode="I;16")
    refused(tmp_path, r"cat/1.png .*must have 8 bits a channel, got Pillow's mode I;16")


@pytest.mark.parametrize(
    "content", [b"P6 1 1 65535\n" + bytes(6), b"P3 1 1 65535\n1 2 3\n"]
)
def test_a_deep_ppm_is_refused(tmp_path, content):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.ppm").write_bytes(content)
    refused(tmp_path, r"cat/1.ppm .*8 bits a channel, got .* as \('RGB', 65535\)")


def test_deep_colours_are_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(deep_png())
    told = r"8 bits a channel, got Pillow's mode RGB, stored as RGB;16B"
    refused(tmp_path, told)
    # Of a test set nothing is read before the picture itself.
    file = tmp_path / "cat" / "1.png"
    with Image.open(file) as opened, pytest.raises(ValueError, match=told):
        image_folder._require_shape(file, opened, (1, 1, 3), 0)


def test_only_pictures_must_lie_in_the_folder_of_a_class(tmp_path):
    picture(tmp_path / "cat" / "1.png")
    for name in ("paper.pdf", "data.h5", "labels.csv"):
        (tmp_path / name).write_bytes(b"no picture")
    assert from_image_folder(tmp_path).classes == ("cat",)
    (tmp_path / "2.JPG").write_bytes(b"a picture")
    refused(tmp_path, "/2.JPG must lie in the folder of its class")


def test_empty_classes_and_clients_are_named(tmp_path):
    picture(tmp_path / "flat" / "cat" / "1.png")
    (tmp_path / "flat" / "dog").mkdir()
    refused(tmp_path / "flat", "at least one picture of each class, got none of dog")
    picture(tmp_path / "held" / "ann" / "cat" / "1.png")
    (tmp_path / "held" / "ben" / "cat").mkdir(parents=True)
    refused(tmp_path / "held", "held/ben must have at least one picture")
    (tmp_path / "held" / "ben" / "cat").rmdir()
    refused(tmp_path / "held", "held/ben must have at least one picture")
    (tmp_path / "none" / "cat").mkdir(parents=True)
    refused(tmp_path / "none", "none must have at least one pic", classes=["cat"])


def test_other_nestings_are_named(tmp_path):
    picture(tmp_path / "1.png")
    refused(tmp_path, r"/1.png must lie in the folder of its class")
    (tmp_path / "1.png").unlink()
    refused(tmp_path, r"a folder of pictures for each class, .* got no folder")
    refused(tmp_path / "none", r"none cannot be read as a folder: No such file")
    picture(tmp_path / "ann" / "cat" / "1.png")
    picture(tmp_path / "dog" / "1.png")
    refused(tmp_path, r"got pictures in dog and folders in ann")
    (tmp_path / "dog" / "1.png").unlink()
    (tmp_path / "dog").rmdir()
    picture(tmp_path / "ann" / "cat" / "deep" / "1.png")
    refused(tmp_path, r"ann/cat must hold pictures of a class, got .*ann/cat/deep")


@pytest.mark.parametrize(
    ("folders", "shown"),
    [
        (["train", "test"], "test and train"),
        (["Testing", "Training"], "Testing and Training"),
        (["train", "test", "unlabelled"], "test and train"),
        (["train"], "train"),
    ],
)
def test_parts_of_a_data_set_are_no_clients(tmp_path, folders, shown):
    for part in folders:
        picture(tmp_path / part / "cat" / "1.png")
    refused(tmp_path, f"has the folders {shown}: call them train and test, .* or read")


def test_a_client_may_have_the_name_of_a_part(tmp_path):
    for client in ("val", "ann"):
        picture(tmp_path / client / "cat" / "1.png")
    assert from_image_folder(tmp_path).clients == ("ann", "val")


def test_an_unknown_class_is_named(tmp_path):
    picture(tmp_path / "cat" / "1.png")
    refused(tmp_path, "folder cat, which is none of the classes ant", classes=["ant"])
    refused(tmp_path, "classes must differ, got cat, cat", classes=["cat", "cat"])
    refused(tmp_path, "classes must be a list of names or int", classes=[b"cat"])


def test_a_known_shape_leaves_the_headers_to_the_decoder(tmp_path):
    picture(tmp_path / "cat" / "1.png")
    (tmp_path / "cat" / "2.png").write_text("no picture")
    with pytest.raises(DataError, match=r"cat/2.png cannot be read as a picture"):
        scan(tmp_path)
    tree = scan(tmp_path, shape=(4, 6, 3))
    assert (len(tree.files), tree.shape) == (2, (4, 6, 3))
    with pytest.raises(DataError, match=r"cat/2.png cannot be read as a picture"):
        decode(tree)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (-1, "size must be at least 0, got -1"),
        (8.5, "size must be a whole number, got 8.5"),
        ("8", "size must be a whole number, got '8'"),
    ],
)
def test_a_size_that_is_none_is_refused(tmp_path, size, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_image_folder(tmp_path, size=size)
