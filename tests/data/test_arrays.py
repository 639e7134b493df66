"""Data sets of arrays: the caller's images and labels, and other sizes of images."""

import jax
import numpy as np
import pytest

from fedjax_prune.data import load
from fedjax_prune.data.load import as_dataset, resize
from fedjax_prune.types import Dataset


def test_as_dataset_keeps_bytes_and_narrows_floats():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    dataset = as_dataset(images, [1, 0], num_classes=2)
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.dtype == np.int32
    floats = np.linspace(0, 1, 96).reshape(2, 4, 4, 3)
    dataset = as_dataset(floats, np.array([1, 0], np.uint8), num_classes=2)
    assert dataset.images.dtype == np.float32
    np.testing.assert_array_equal(dataset.images, floats.astype(np.float32))


def floats_with(value):
    images = np.zeros((3, 2, 2, 1))
    images[1, 0, 1, 0] = value
    return images


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (floats_with(np.nan), [0, 1, 1], "got nan at index (1, 0, 1, 0)"),
        (floats_with(np.inf), [0, 1, 1], "got inf at index (1, 0, 1, 0)"),
        (floats_with(255), [0, 1, 1], "in [0, 1], got 255.0 at index (1, 0, 1, 0)"),
        (floats_with(-0.1), [0, 1, 1], "in [0, 1], got -0.1 at index (1, 0, 1, 0)"),
        (floats_with(0), [0, 1, 2], "labels must be in [0, 2), got 2 at index 2"),
        (floats_with(0), [0, -1, 2], "labels must be in [0, 2), got -1 at index 1"),
        (floats_with(0), [0, 1], "labels must have shape (3,), one for each image"),
        (floats_with(0), [0.0, 1.0, 1.0], "labels must be integers, got float64"),
        (floats_with(0)[..., 0], [0, 1, 1], "got (3, 2, 2)"),
        (floats_with(0)[:0], [], "got (0, 2, 2, 1)"),
        (floats_with(0).astype(int), [0, 1, 1], "images must be uint8 or floats"),
    ],
)
def test_as_dataset_names_the_first_bad_value(images, labels, said):
    with pytest.raises(ValueError) as caught:
        as_dataset(images, labels, num_classes=2)
    assert said in str(caught.value)


def test_images_are_scaled_on_the_cpu(monkeypatch):
    """Other devices may round otherwise, and a run would not go on elsewhere."""
    used, scale = [], load._scale
    monkeypatch.setattr(
        load,
        "_scale",
        lambda *args: used.append(jax.config.jax_default_device) or scale(*args),
    )
    images = np.zeros((2, 4, 4, 1), np.uint8)
    resize(Dataset(images, np.zeros(2, np.int32)), 2)
    assert [device.platform for device in used] == ["cpu"]


def test_resized_images():
    """Resizing keeps a ramp a ramp and a constant the same."""
    ramp = np.tile(np.arange(8, dtype=np.uint8) * 30, (1, 8, 1))[..., None]
    images = np.concatenate([ramp, np.full_like(ramp, 77)])
    found = resize(Dataset(images, np.zeros(2, np.int32)), 4).images
    assert found.shape == (2, 4, 4, 1) and found.dtype == np.uint8
    assert (found[1] == 77).all()
    np.testing.assert_allclose(found[0, 0, 1:3, 0], [75, 135], atol=1)
