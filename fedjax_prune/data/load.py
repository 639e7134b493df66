"""Functions that read labelled images into memory, as numpy arrays."""

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
    shorten it, because Python itself does most of the work.

    Args:
      name: a key of `DATASETS`.
      data_dir: folder of TFDS sets. If it is empty, the environment variable
        TFDS_DATA_DIR names the folder, or else it is `~/tensorflow_datasets`.
      num_train: number of training examples, from the first on; 0 = all.
      num_test: number of test examples, from the first on; 0 = all.

    Returns:
      (train, test) in stored order. Images are uint8 [num_examples, height, width,
      channels] and upright, labels are int32 [num_examples].

    Raises:
      ValueError: if `name` is unknown, or names a set that comes by client.
      DataError: if the set is missing and cannot be prepared, is damaged, or has
        fewer examples than asked for.

    Examples:
      >>> train, test = load("digits", num_test=100)
      >>> train.images.shape, test.labels.shape
      ((1442, 8, 8, 1), (100,))
    """
    if name not in DATASETS:
        known = ", ".join(DATASETS)
        raise ValueError(f"name must be one of {known}, got {name!r}.")
    info = DATASETS[name]
    if info.by_client:
        raise ValueError(f"{name} has no test set: read it with load_by_client.")
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
        # Damaged files raise any error of TFDS, array_record, protobuf or Pillow.
        raise DataError(
            f"cannot read {name} in {version}: {error}. Remove that folder and "
            f"prepare it again: {prepared.command(info.tfds_name, folder)}"
        ) from error


def resize(dataset: Dataset, size: int) -> Dataset:
    """Scales images to `size` times `size` pixels, with antialiasing.

    Args:
      dataset: a Dataset with uint8 images.
      size: new height and width, at least 1.

    Returns:
      The Dataset with uint8 images [num_examples, size, size, channels].
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
    """Checks arrays and makes a Dataset of them.

    Args:
      images: [num_examples, height, width, channels], uint8, or floats in [0, 1].
      labels: [num_examples] integers in [0, num_classes).
      num_classes: at least 1.

    Returns:
      A Dataset. Images of uint8 stay as they are, floats become float32, labels int32.

    Raises:
      ValueError: if a shape, dtype or value is wrong; it names the first bad index.

    Examples:
      >>> as_dataset(np.zeros((2, 8, 8, 1), np.uint8), [0, 1], num_classes=2).labels
      array([0, 1], dtype=int32)
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
        # Every comparison with NaN is false, so this form finds NaN, too.
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
    """Splits the 1,797 digits of scikit-learn: a fifth of each class is for testing."""
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
    """Checks stored examples; exchanges height and width if they are transposed."""
    if info.transposed:
        images = images.transpose(0, 2, 1, 3).copy()
    return as_dataset(images, labels, num_classes=info.num_classes)
