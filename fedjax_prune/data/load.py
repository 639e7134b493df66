"""Reads labelled images into memory, once, as numpy arrays.

TFDS sets are read where they lie, in either of the formats TFDS writes by default
(`array_record`, `tfrecord`), and TensorFlow is needed for neither. It is needed to
download and prepare a set, because TFDS encodes images with it.
"""

import importlib.util
import itertools
import os
import shlex
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.types import Dataset


class DataError(ValueError):
    """A data set is not there or cannot be read; the message says what to do."""


class DatasetInfo(NamedTuple):
    """What is known of a data set before it is read.

    Attributes:
      num_classes: labels are in [0, num_classes).
      image_shape: (height, width, channels).
      flip: whether a mirrored image still belongs to its class.
      tfds_name: its name in TFDS; empty for a set that comes with scikit-learn.
      transposed: whether TFDS stores height and width exchanged.
      by_client: whether its examples come with their clients, in a folder.
      kind: what its examples are, `image` or `text`.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    flip: bool
    tfds_name: str
    transposed: bool = False
    by_client: bool = False
    kind: str = "image"


DATASETS: dict[str, DatasetInfo] = {
    "cifar10": DatasetInfo(10, (32, 32, 3), True, "cifar10"),
    "cifar100": DatasetInfo(100, (32, 32, 3), True, "cifar100"),
    "mnist": DatasetInfo(10, (28, 28, 1), False, "mnist"),
    "fashion_mnist": DatasetInfo(10, (28, 28, 1), True, "fashion_mnist"),
    # The split with equally many examples of each of its 47 classes.
    "emnist": DatasetInfo(47, (28, 28, 1), False, "emnist/balanced", transposed=True),
    "digits": DatasetInfo(10, (8, 8, 1), False, ""),
    "femnist": DatasetInfo(62, (28, 28, 1), False, "", by_client=True),
    # 80 symbols and the next one.
    "shakespeare": DatasetInfo(80, (80, 1, 1), False, "", by_client=True, kind="text"),
}


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
      num_train: the first so many training examples, or as many as there are; 0 = all.
      num_test: the same of the test examples.

    Returns:
      (train, test), images uint8 and upright, labels int32, in stored order.

    Raises:
      ValueError: if `name` is unknown.
      DataError: if the set is not there and cannot be prepared, or is damaged.
    """
    if name not in DATASETS:
        known = ", ".join(DATASETS)
        raise ValueError(f"dataset must be one of {known}, got {name!r}.")
    info = DATASETS[name]
    if not info.tfds_name:
        train, test = _digits()
        return _first(train, num_train), _first(test, num_test)
    folder = Path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    ).expanduser()
    version = _find(info.tfds_name, folder) or _prepare(info.tfds_name, folder)
    try:
        return (
            _read(version, "train", info, num_train),
            _read(version, "test", info, num_test),
        )
    except Exception as error:
        # Damage shows as any error of TFDS, array_record, protobuf or Pillow.
        raise DataError(
            f"cannot read {name} in {version}: {error}. Remove that folder and "
            f"prepare it again: {_command(info.tfds_name, folder)}"
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


def _find(tfds_name: str, folder: Path) -> Path | None:
    """The newest prepared version; TFDS names a folder so only when it is whole."""
    versions = [
        path.parent
        for path in (folder / tfds_name).glob("*/dataset_info.json")
        if path.parent.name.replace(".", "").isdecimal()
    ]
    return max(
        versions, key=lambda v: [int(n) for n in v.name.split(".")], default=None
    )


def _command(tfds_name: str, folder: Path) -> str:
    return (
        "pip install -e '.[prepare]' && tfds build "
        f"{tfds_name} --file_format=array_record --data_dir={shlex.quote(str(folder))}"
    )


def _prepare(tfds_name: str, folder: Path) -> Path:
    """Downloads and prepares a set; TFDS writes aside and renames at the end."""
    message = (
        f"{tfds_name} is not prepared in {folder}. On a machine with internet, run: "
        f"{_command(tfds_name, folder)}"
    )
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(message)
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(tfds_name, data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:
        # No network, no space, no permission: what helps is the same.
        raise DataError(f"{message} (tried just now: {error})") from error
    return Path(builder.data_dir)


def _first(dataset: Dataset, count: int) -> Dataset:
    stop = count or len(dataset.labels)
    return Dataset(dataset.images[:stop], dataset.labels[:stop])


def _read(version: Path, split: str, info: DatasetInfo, most: int) -> Dataset:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(version)
    stored = builder.info.splits[split]
    wanted = min(most or stored.num_examples, stored.num_examples)
    shape = (wanted, *info.image_shape)
    images = np.zeros(shape, np.uint8)
    labels = np.zeros(shape[:1], np.int64)
    count = 0
    for count, example in enumerate(_examples(builder, split, wanted), start=1):
        if example["image"].shape != info.image_shape:
            raise ValueError(
                f"{split} image {count - 1} must have shape {info.image_shape}, "
                f"got {example['image'].shape}"
            )
        images[count - 1], labels[count - 1] = example["image"], example["label"]
    if count != wanted:
        raise ValueError(f"{split} must have {wanted} examples, got {count}")
    if info.transposed:
        images = images.transpose(0, 2, 1, 3).copy()
    return as_dataset(images, labels, num_classes=info.num_classes)


def _examples(builder: Any, split: str, count: int) -> Iterator[dict[str, Any]]:
    """The first decoded examples of a split, in stored order, a thousand at a time."""
    if builder.info.file_format.value == "tfrecord":
        paths = map(Path, builder.info.splits[split].filepaths)
        records = itertools.chain.from_iterable(map(_tfrecords, paths))
        for record in itertools.islice(records, count):
            yield builder.info.features.deserialize_example_np(record)
        return
    source = builder.as_data_source(split)
    for start in range(0, count, 1000):
        # Item by item the same takes twice as long.
        yield from source.__getitems__(range(start, min(start + 1000, count)))


def _tfrecords(path: Path) -> Iterator[bytes]:
    """Records of a TFRecord file.

    Each is its length (uint64), a checksum (uint32), the data, a checksum. The
    checksums are not compared: images carry one of their own.
    """
    content, start = path.read_bytes(), 0
    while start < len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        data = content[start + 12 : start + 12 + length]
        start += 12 + length + 4
        if start > len(content):
            raise ValueError(f"{path.name} ends inside a record")
        yield data
