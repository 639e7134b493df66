"""Reads labelled images into memory, once, as numpy arrays."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.data import prepared
from fedjax_prune.data.datasets import DATASETS, DataError, DatasetInfo, resolve_count
from fedjax_prune.types import Dataset


def load(
    name: str, data_dir: str = "", *, num_train: int = 0, num_test: int = 0
) -> tuple[Dataset, Dataset]:
    """Reads a data set, or the beginning of it.

    A TFDS set that is not in the folder is prepared there if the extra `prepare`
    is installed. CIFAR-10 takes about 20 seconds to decode; a thread pool would not
    shorten it, as most of the work is Python's.

    Args:
      name: a key of `DATASETS`.
      data_dir: where TFDS sets lie. Empty: the environment variable
        TFDS_DATA_DIR, or else TFDS's default, `~/tensorflow_datasets`.
      num_train: the first so many training examples, at most all; 0 = all.
      num_test: the same of the test examples.

    Returns:
      (train, test), images uint8 and upright, labels int32, in stored order.

    Raises:
      ValueError: if `name` is unknown, or that of a set by client.
      DataError: if the set is not there and cannot be prepared, is damaged, or has
        fewer examples than asked for.
    """
    if name not in DATASETS:
        known = ", ".join(DATASETS)
        raise ValueError(f"dataset must be one of {known}, got {name!r}.")
    info = DATASETS[name]
    if info.by_client:
        raise ValueError(f"{name} has no test set: it is read by load_by_client.")
    if not info.tfds_name:
        train, test = _digits()
        return (
            _first(train, resolve_count(name, "train", num_train, len(train.labels))),
            _first(test, resolve_count(name, "test", num_test, len(test.labels))),
        )
    folder = Path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    ).expanduser()
    version = prepared.find_version(info.tfds_name, folder)
    version = version or prepared.prepare(info.tfds_name, folder)
    counts = {"train": num_train, "test": num_test}
    try:
        builder = prepared.open_version(version)
        for split, count in counts.items():
            stored = builder.info.splits[split].num_examples
            counts[split] = resolve_count(name, split, count, stored)
        train, test = (
            prepared.read_split(builder, split, info.image_shape, count)
            for split, count in counts.items()
        )
        return _upright(info, *train), _upright(info, *test)
    except DataError:
        raise
    except Exception as error:
        # Damage shows as any error of TFDS, array_record, protobuf or Pillow.
        raise DataError(
            f"cannot read {name} in {version}: {error}. Remove that folder and "
            f"prepare it again: {prepared.command(info.tfds_name, folder)}"
        ) from error


def resize(dataset: Dataset, size: int) -> Dataset:
    """Scales images to `size` times `size` pixels, with antialiasing.

    Args:
      dataset: uint8 images.
      size: at least 1.
    """
    count, _, _, channels = dataset.images.shape
    images = np.empty((count, size, size, channels), np.uint8)
    scale = jax.jit(
        lambda x: jnp.round(
            jax.image.resize(x, (len(x), size, size, channels), "linear")
        )
    )
    for start in range(0, count, 1000):
        part = dataset.images[start : start + 1000].astype(np.float32)
        images[start : start + 1000] = np.clip(scale(part), 0, 255)
    return dataset._replace(images=images)


def as_dataset(images: Any, labels: Any, *, num_classes: int) -> Dataset:
    """Checks arrays of the caller's own and makes them a Dataset.

    Args:
      images: [num_examples, height, width, channels], uint8, or floats in [0, 1].
      labels: [num_examples] integers in [0, num_classes).
      num_classes: at least 1.

    Returns:
      A Dataset; uint8 images stay so, float images become float32.

    Raises:
      ValueError: if shape, dtype or a value is wrong, with the first bad index.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or images.size == 0:
        raise ValueError(
            "images must have shape [num_examples, height, width, channels] without "
            f"an empty axis, got {images.shape}."
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must have shape {images.shape[:1]}, one for each image, "
            f"got {labels.shape}."
        )
    if np.issubdtype(images.dtype, np.floating):
        # Written so that NaN, for which every comparison fails, counts as bad.
        _check_all(
            "images", "finite and in [0, 1]", images, ~(abs(images - 0.5) <= 0.5)
        )
        images = images.astype(np.float32)
    elif images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 or floats, got {images.dtype}.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}.")
    outside = (labels < 0) | (labels >= num_classes)
    _check_all("labels", f"in [0, {num_classes})", labels, outside)
    return Dataset(images, labels.astype(np.int32))


def _check_all(field: str, wanted: str, values: np.ndarray, bad: np.ndarray) -> None:
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        where = index[0] if len(index) == 1 else index
        raise ValueError(
            f"{field} must be {wanted}, got {values[index]} at index {where}."
        )


def _digits() -> tuple[Dataset, Dataset]:
    """The 1,797 digits that come with scikit-learn, a fifth of each class for test."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    # The legacy generator never changes, so neither does the split.
    rng = np.random.RandomState(0)
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        members = rng.permutation(np.flatnonzero(labels == label))
        is_test[members[: len(members) // 5]] = True
    whole = as_dataset(images, labels, num_classes=10)
    return (
        Dataset(whole.images[~is_test], whole.labels[~is_test]),
        Dataset(whole.images[is_test], whole.labels[is_test]),
    )


def _first(dataset: Dataset, count: int) -> Dataset:
    return Dataset(dataset.images[:count], dataset.labels[:count])


def _upright(info: DatasetInfo, images: np.ndarray, labels: np.ndarray) -> Dataset:
    """Checks what was stored, and exchanges height and width where they are."""
    if info.transposed:
        images = images.transpose(0, 2, 1, 3).copy()
    return as_dataset(images, labels, num_classes=info.num_classes)
