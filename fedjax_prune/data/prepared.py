"""Functions that read and make the folders in which TFDS prepares data sets.

A set can have either of the formats that TFDS writes by default (`array_record`,
`tfrecord`); TensorFlow is needed for neither. It is needed to download and prepare a
set, because TFDS encodes images with it.
"""

import importlib.util
import itertools
import json
import shlex
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_prune.data.datasets import DataError

FEATURES = tuple(
    f"tensorflow_datasets.core.features.{name}"
    for name in (
        "features_dict.FeaturesDict",
        "image_feature.Image",
        "class_label_feature.ClassLabel",
        "text_feature.Text",
        "tensor_feature.Tensor",
        "scalar.Scalar",
    )
)
"""The classes of features that are read. TFDS would import the module of any other."""


def find_version(tfds_name: str, folder: Path) -> Path | None:
    """Finds the newest prepared version; TFDS names a folder so when it is complete."""
    versions = [
        path.parent
        for path in (folder / tfds_name).glob("*/dataset_info.json")
        if path.parent.name.replace(".", "").isdecimal()
    ]
    return max(
        versions, key=lambda v: [int(n) for n in v.name.split(".")], default=None
    )


def command(tfds_name: str, folder: Path) -> str:
    """Gives the command that prepares a data set in a folder."""
    return (
        "pip install -e '.[prepare]' && tfds build "
        f"{tfds_name} --file_format=array_record --data_dir={shlex.quote(str(folder))}"
    )


def download(tfds_name: str, folder: Path) -> Path:
    """Downloads and prepares a data set, and returns its folder.

    TFDS writes into another folder, which it renames at the end.

    Raises:
      DataError: if TensorFlow is missing, or the set cannot be downloaded.
    """
    message = (
        f"{tfds_name} is not prepared in {folder}. If another folder has it, name that "
        "with --config.data.dir or TFDS_DATA_DIR. On a machine with internet, run: "
        f"{command(tfds_name, folder)}"
    )
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(message)
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(tfds_name, data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:
        # The advice is the same without network, space or permission.
        raise DataError(f"{message} (tried just now: {error})") from error
    return Path(builder.data_dir)


def open_version(version: Path) -> Any:
    """Makes TFDS's builder of a prepared folder, of known features only.

    Raises:
      ValueError: if the folder names another class of features. TFDS would import its
        module, even from that folder.
    """
    stored = json.loads((version / "features.json").read_text(encoding="utf-8"))
    for name in _classes(stored):
        if name not in FEATURES:
            raise ValueError(
                f"features.json must name only {', '.join(FEATURES)}, got {name!r}"
            )
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(version)


def _classes(node: Any) -> Iterator[str]:
    """Yields the classes that a part of features.json names.

    A text with a brace may be json with more classes, as older versions of TFDS wrote
    it. It is not the name of a class, so it is refused like an unknown one.
    """
    if isinstance(node, str) and "{" in node:
        yield node
    for child in node if isinstance(node, list) else ():
        yield from _classes(child)
    for key, child in node.items() if isinstance(node, dict) else ():
        if key in ("pythonClassName", "python_class_name", "type") and isinstance(
            child, str
        ):
            yield child
        else:
            yield from _classes(child)


def read_split(
    builder: Any, split: str, image_shape: tuple[int, int, int], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes the first examples of a split.

    Args:
      builder: the builder that `open_version` returns.
      split: name of the split.
      image_shape: (height, width, channels), as stored.
      count: number of examples, at most all of them.

    Returns:
      images [count, height, width, channels] uint8, and labels [count] int64.

    Raises:
      ValueError: if there are fewer examples or images of another shape. Damaged files
        raise any error of TFDS, array_record, protobuf or Pillow.
    """
    shape = (count, *image_shape)
    images = np.zeros(shape, np.uint8)
    labels = np.zeros(shape[:1], np.int64)
    number = 0
    for number, example in enumerate(_examples(builder, split, count), start=1):
        if example["image"].shape != image_shape:
            raise ValueError(
                f"{split} image {number - 1} must have shape {image_shape}, "
                f"got {example['image'].shape}"
            )
        images[number - 1], labels[number - 1] = example["image"], example["label"]
    if number != count:
        raise ValueError(f"{split} must have {count} examples, got {number}")
    return images, labels


def _examples(builder: Any, split: str, count: int) -> Iterator[dict[str, Any]]:
    """Yields the first examples of a split in stored order, decoded in thousands."""
    if builder.info.file_format.value == "tfrecord":
        paths = map(Path, builder.info.splits[split].filepaths)
        records = itertools.chain.from_iterable(map(_tfrecords, paths))
        for record in itertools.islice(records, count):
            yield builder.info.features.deserialize_example_np(record)
        return
    source = builder.as_data_source(split)
    for start in range(0, count, 1000):
        # Reading item by item takes twice as long.
        yield from source.__getitems__(range(start, min(start + 1000, count)))


def _tfrecords(path: Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file.

    A record is its length (uint64), a checksum (uint32), the data, and a checksum. The
    checksums are not compared, because images have checksums of their own.
    """
    content, start = path.read_bytes(), 0
    while start < len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        data = content[start + 12 : start + 12 + length]
        start += 12 + length + 4
        if start > len(content):
            raise ValueError(f"{path.name} ends inside a record")
        yield data
