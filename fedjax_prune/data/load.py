"""Functions that read labelled images into memory, as numpy arrays."""

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.data import prepared
from fedjax_prune.data.datasets import (
    DATASETS,
    DataError,
    DatasetInfo,
    data_folder,
    resolve_count,
)
from fedjax_prune.data.pairs import check_pairs
from fedjax_prune.fields import Count, checked
from fedjax_prune.types import Dataset

_CHUNK_BYTES = 2**24
"""Bytes of the float32 images that `resize` scales at once, if one is not larger."""


def count_examples(
    name: str, data_dir: str = "", *, num_train: int = 0, num_test: int = 0
) -> tuple[int, int]:
    """Counts the examples that `load` reads, before it reads any of them.

    Args:
      name: as in `load`.
      data_dir: as in `load`.
      num_train: as in `load`.
      num_test: as in `load`.

    Returns:
      The numbers of training and test examples.

    Raises:
      ValueError, DataError: as `load`.

    Examples:
      >>> count_examples("digits", num_test=100)
      (1442, 100)
    """
    if _info(name).tfds_name:
        version = _version(name, data_dir)
        with _telling_of(name, version):
            splits = prepared.open_version(version).info.splits
            stored = [splits[split].num_examples for split in ("train", "test")]
    else:
        stored = [len(part.labels) for part in _digits()]
    return (
        resolve_count(name, "train", num_train, stored[0]),
        resolve_count(name, "test", num_test, stored[1]),
    )


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
    info = _info(name)
    counts = count_examples(name, data_dir, num_train=num_train, num_test=num_test)
    if not info.tfds_name:
        train, test = _digits()
        return train.at(slice(counts[0])), test.at(slice(counts[1]))
    version = _version(name, data_dir)
    with _telling_of(name, version):
        builder = prepared.open_version(version)
        train, test = (
            prepared.read_split(builder, split, info.image_shape, count)
            for split, count in zip(("train", "test"), counts, strict=True)
        )
        return _upright(info, *train), _upright(info, *test)


def is_at_hand(name: str, data_dir: str = "") -> bool:
    """Whether a data set can be read without a download.

    Args:
      name: as in `load`.
      data_dir: as in `load`.

    Raises:
      ValueError, DataError: as `load`.
    """
    tfds_name = _info(name).tfds_name
    return not tfds_name or bool(prepared.find_version(tfds_name, _folder(data_dir)))


@checked
def resize(dataset: Dataset, size: Count) -> Dataset:
    """Scales images to `size` times `size` pixels, with antialiasing.

    Args:
      dataset: a Dataset with uint8 images.
      size: new height and width, at least 1.

    Returns:
      The Dataset with uint8 images [num_examples, size, size, channels].

    Raises:
      ValueError: if `size` is out of range or images are not uint8.
    """
    if dataset.images.dtype != np.uint8:
        raise ValueError(
            f"images must be uint8 to be scaled, got {dataset.images.dtype}."
        )
    count, *shape = dataset.images.shape
    images = np.empty((count, size, size, shape[-1]), np.uint8)
    chunk = min(count, max(1, _CHUNK_BYTES // _scaled_bytes(shape, size)))
    with jax.default_device(_cpu()):
        for start in range(0, count, chunk):
            # The last chunk begins early, so that all of them have one shape.
            part = slice(min(start, count - chunk), min(start + chunk, count))
            images[part] = _scale(dataset.images[part], size)
    return dataset._replace(images=images)


def _cpu() -> Any:
    """JAX's CPU; None if JAX_PLATFORMS leaves it out.

    From 32 to 24 pixels one pixel in twenty lies half way between two bytes, and other
    devices may round it otherwise. A run could then not go on on a CPU.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def resized_bytes(count: int, shape: Sequence[int], size: int) -> int:
    """Bytes that `resize` takes: the new images, and what it holds meanwhile.

    Args:
      count: number of images.
      shape: (height, width, channels) of an image before.
      size: new height and width.

    Examples:
      >>> resized_bytes(1797, (8, 8, 1), 3000)  # 9 MB and, for one image, 4 * 36 MB
      16317000000
    """
    chunk = max(_CHUNK_BYTES, _scaled_bytes(shape, size))
    # XLA holds the results of both products and of the transposition after them.
    return count * size * size * shape[-1] + 4 * chunk


def _scaled_bytes(shape: Sequence[int], size: int) -> int:
    """Bytes of an image as float32, before or after it is scaled."""
    height, width, channels = shape
    return 4 * max(height, size) * max(width, size) * channels


@functools.partial(jax.jit, static_argnums=1)
def _scale(images: jax.Array, size: int) -> jax.Array:
    shape = (len(images), size, size, images.shape[-1])
    scaled = jax.image.resize(images.astype(np.float32), shape, "linear")
    return jnp.clip(jnp.round(scaled), 0, 255).astype(np.uint8)


@checked
def as_dataset(images: Any, labels: Any, *, num_classes: Count) -> Dataset:
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
    check_pairs(Dataset(images, labels))
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


def draw_fifths(
    labels: np.ndarray, rng: np.random.Generator | np.random.RandomState
) -> np.ndarray:
    """Draws a fifth of each class, rounded down, for a test set.

    Args:
      labels: [num_examples] integers from 0 on.
      rng: draws one class after another.

    Returns:
      [num_examples] bool, True for what is drawn.
    """
    drawn = np.zeros(len(labels), bool)
    for label in range(labels.max() + 1):
        members = rng.permutation(np.flatnonzero(labels == label))
        drawn[members[: len(members) // 5]] = True
    return drawn


def _check_all(field: str, wanted: str, values: np.ndarray, bad: np.ndarray) -> None:
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        where = index[0] if len(index) == 1 else index
        raise ValueError(
            f"{field} must be {wanted}, got {values[index]} at index {where}."
        )


def _info(name: str) -> DatasetInfo:
    """Looks up a data set that does not come by client."""
    if name not in DATASETS:
        raise ValueError(f"name must be one of {', '.join(DATASETS)}, got {name!r}.")
    if DATASETS[name].own:
        raise ValueError(f"{name} is your own: read it with from_{name}.")
    if DATASETS[name].by_client:
        reader = "generate" if DATASETS[name].generated else "load_by_client"
        raise ValueError(f"{name} comes by client: read it with {reader}.")
    return DATASETS[name]


def _version(name: str, data_dir: str) -> Path:
    """Finds or prepares the folder of a TFDS set."""
    tfds_name, folder = DATASETS[name].tfds_name, _folder(data_dir)
    version = prepared.find_version(tfds_name, folder)
    return version or prepared.download(tfds_name, folder)


def _folder(data_dir: str) -> Path:
    """The folder of the TFDS sets."""
    return data_folder(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    )


@contextmanager
def _telling_of(name: str, version: Path) -> Iterator[None]:
    """Turns any error into one that says how to replace the folder.

    Damaged files raise any error of TFDS, array_record, protobuf or Pillow.
    """
    try:
        yield
    except Exception as error:
        tfds_name = DATASETS[name].tfds_name
        folder = version.parents[len(Path(tfds_name).parts)]
        raise DataError(
            f"cannot read {name} in {version}: {error}. If that folder is damaged, "
            f"remove it and prepare it again: {prepared.command(tfds_name, folder)}"
        ) from error


def _digits() -> tuple[Dataset, Dataset]:
    """Splits the 1,797 digits of scikit-learn: a fifth of each class is for testing."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    # The legacy generator never changes, so neither does the split.
    is_test = draw_fifths(labels, np.random.RandomState(0))
    whole = as_dataset(images, labels, num_classes=10)
    return whole.at(~is_test), whole.at(is_test)


def _upright(info: DatasetInfo, images: np.ndarray, labels: np.ndarray) -> Dataset:
    """Checks stored examples; exchanges height and width if they are transposed."""
    if info.transposed:
        images = images.transpose(0, 2, 1, 3).copy()
    return as_dataset(images, labels, num_classes=info.num_classes)
