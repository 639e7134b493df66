"""The known data sets, and what is known of each before it is read.

Examples:
  >>> DATASETS["cifar10"].image_shape
  (32, 32, 3)
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from fedjax_prune.fields import TYPES, Rule


class DataError(ValueError):
    """A data set is missing or cannot be read; the message says what to do.

    Examples:
      >>> fedjax_prune.load("digits", num_train=2000)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ...
      fedjax_prune.data.datasets.DataError: num_train ... must be in [0, 1442], ...
    """


class DatasetInfo(NamedTuple):
    """The facts about a data set that are known before it is read.

    Attributes:
      num_classes: number of classes; labels are in [0, num_classes).
      image_shape: (height, width, channels), or (length, 1, 1) of a text or vector.
      flip: whether a mirrored image still belongs to its class.
      tfds_name: the set's name in TFDS; empty if TFDS does not have it.
      transposed: whether TFDS stores height and width exchanged.
      by_client: whether the examples come with their clients, in a folder or
        generated. Such a set has the partitioner by_client, and validation is held out.
      kind: `image` if stored bytes are scaled to [0, 1]; `text` if they are symbols,
        and `vector` if they are any floats. Only images can be augmented, normalised
        and resized.
      generated: whether `synthetic.generate` makes the examples. Only such a set by
        client has a test set of its own.
      own: whether the examples are the user's own, in a folder. Their classes and shape
        are not known here; `info_of` knows them.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    flip: bool
    tfds_name: str
    transposed: bool = False
    by_client: bool = False
    kind: Literal["image", "text", "vector"] = "image"
    generated: bool = False
    own: bool = False

    @property
    def reads_folder(self) -> bool:
        """Whether the examples are read from a folder, that of `data.dir`."""
        by_client = self.by_client and not self.generated
        return bool(self.tfds_name) or self.own or by_client


DATASETS: dict[str, DatasetInfo] = {
    "cifar10": DatasetInfo(10, (32, 32, 3), True, "cifar10"),
    "cifar100": DatasetInfo(100, (32, 32, 3), True, "cifar100"),
    "mnist": DatasetInfo(10, (28, 28, 1), False, "mnist"),
    "fashion_mnist": DatasetInfo(10, (28, 28, 1), True, "fashion_mnist"),
    # This split has equally many examples of each of its 47 classes.
    "emnist": DatasetInfo(47, (28, 28, 1), False, "emnist/balanced", transposed=True),
    "digits": DatasetInfo(10, (8, 8, 1), False, ""),
    "femnist": DatasetInfo(62, (28, 28, 1), False, "", by_client=True),
    # An example is 80 symbols; its label is the symbol after them.
    "shakespeare": DatasetInfo(80, (80, 1, 1), False, "", by_client=True, kind="text"),
    "synthetic": DatasetInfo(
        10, (60, 1, 1), False, "", by_client=True, kind="vector", generated=True
    ),
    "synthetic_images": DatasetInfo(
        10, (8, 8, 1), False, "", by_client=True, generated=True
    ),
    # Nobody knows whether a mirrored image still belongs to its class.
    "arrays": DatasetInfo(0, (0, 0, 0), False, "", own=True),
    "image_folder": DatasetInfo(0, (0, 0, 0), False, "", own=True),
}
"""Name of a data set -> what is known of it before it is read."""

SHAPE = Rule(
    lambda text: re.fullmatch(r"|[1-9]\d*(x[1-9]\d*x[1-9]\d*)?", text) is not None,
    "empty, the length of vectors such as 60, or height, width and channels of images "
    "such as 32x32x3",
)
"""The rule of a shape that is written as a text."""


def info_of(name: str, classes: Sequence[str] = (), shape: str = "") -> DatasetInfo:
    """Gives what is known of a data set, also of the user's own.

    Args:
      name: a key of `DATASETS`.
      classes: names of the classes of the user's own; () if they are not known yet.
      shape: of the user's own examples, as SHAPE says; empty if it is not known yet.

    Returns:
      The facts; no classes and sides of 0 where they are not known.

    Examples:
      >>> info = info_of("arrays", ["cat", "dog"], "32x48x3")
      >>> info.num_classes, info.image_shape, info_of("arrays", shape="60").kind
      (2, (32, 48, 3), 'vector')
    """
    info = DATASETS[name]
    if not info.own:
        return info
    info = info._replace(num_classes=len(classes))
    match [int(number) for number in shape.split("x") if number]:
        case [length]:
            return info._replace(image_shape=(length, 1, 1), kind="vector")
        case [height, width, channels]:
            return info._replace(image_shape=(height, width, channels))
    return info


def data_folder(path: str | Path) -> Path:
    """Gives the path of a folder, in which `~` may stand for a home directory.

    Raises:
      DataError: if there is no such home directory.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"{path} cannot be found: there is no such home directory. Name the folder "
            "of the data by data.dir, or for TFDS by TFDS_DATA_DIR."
        ) from error


def resolve_count(name: str, split: str, count: int, available: int) -> int:
    """Gives the number of examples of a split that are read.

    Args:
      name: name of the data set, for the message.
      split: `train` or `test`.
      count: the number asked for, in [0, available]; 0 = all.
      available: the number of examples that the split has.

    Raises:
      DataError: if the count is not a whole number or out of range.
    """
    if not TYPES[int].holds(count) or not 0 <= count <= available:
        field = {
            "train": "num_train (of a run: data.num_train)",
            "test": "num_test (of a run: eval.num_examples)",
        }[split]
        raise DataError(
            f"{field} must be in [0, {available}], the {split} examples of {name}, "
            f"got {count!r}."
        )
    return count or available
