"""What is known of the data sets before they are read."""

from typing import Literal, NamedTuple


class DataError(ValueError):
    """A data set is not there or cannot be read; the message says what to do."""


class DatasetInfo(NamedTuple):
    """What is known of a data set before it is read.

    Attributes:
      num_classes: labels are in [0, num_classes).
      image_shape: (height, width, channels); of a text (length, 1, 1).
      flip: whether a mirrored image still belongs to its class.
      tfds_name: its name in TFDS; empty for a set that TFDS does not have.
      transposed: whether TFDS stores height and width exchanged.
      by_client: whether its examples come with their clients, in a folder. Then the
        partitioner is by_client, and as there is no test set, validation is held out.
      kind: `image`: stored bytes are scaled to [0, 1]; `text`: they are symbols, which
        can be neither augmented, normalised nor resized.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    flip: bool
    tfds_name: str
    transposed: bool = False
    by_client: bool = False
    kind: Literal["image", "text"] = "image"


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


def resolve_count(name: str, split: str, count: int, available: int) -> int:
    """How many examples of a split are read.

    Args:
      name: of the data set.
      split: `train` or `test`.
      count: as asked for, in [0, available]; 0 = all.
      available: how many there are.

    Raises:
      DataError: if the count is out of range.
    """
    if not 0 <= count <= available:
        field = {
            "train": "num_train (of a run: data.num_train)",
            "test": "num_test (of a run: eval.num_examples)",
        }[split]
        raise DataError(
            f"{field} must be in [0, {available}], the {split} examples of {name}, "
            f"got {count}."
        )
    return count or available
