"""The user's own data as a run reads them: training examples, test examples, clients.

A folder of `arrays` has train.npz and may have test.npz, as `from_npz` reads them. A
folder of pictures has the folders train and test, or is what `from_image_folder` reads.
Without a test set, a fifth of each class is drawn for one, except from clients, whose
examples are held out by who reads them.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_prune.data import image_folder
from fedjax_prune.data.datasets import DataError, data_folder, resolve_count
from fedjax_prune.data.load import draw_fifths
from fedjax_prune.data.own import OwnData, from_npz
from fedjax_prune.types import Dataset, Population


class Facts(NamedTuple):
    """What a configuration must know of the user's data.

    Attributes:
      classes: names of the classes.
      shape: of an example, as `datasets.SHAPE` says.
    """

    classes: tuple[str, ...]
    shape: str


class OwnSplits(NamedTuple):
    """Training and test examples.

    Attributes:
      train: training examples.
      test: test examples; None where they are to be held out from clients.
      population: who holds the training examples; None if nobody does.
    """

    train: Dataset
    test: Dataset | None
    population: Population | None


def facts_of(name: str, folder: str, size: int) -> Facts:
    """Looks at the training examples of a folder.

    Args:
      name: `arrays` or `image_folder`.
      folder: of the data.
      size: as in `from_image_folder`; arrays stay as they are.

    Raises:
      DataError: as `from_npz` or `from_image_folder`.
    """
    path = data_folder(folder)
    if name == "arrays":
        data = from_npz(path / "train.npz")
        return Facts(data.classes, _written(data.dataset))
    tree = image_folder.scan(_parts(path)[0], size=size)
    return Facts(tree.classes, "x".join(map(str, tree.shape)))


def count_pictures(folder: str, facts: Facts) -> tuple[int, int]:
    """Counts training and test examples of `image_folder`; no picture is opened.

    Args:
      folder: of the data.
      facts: of it, as `facts_of` has found them.

    Returns:
      Their numbers if clients are ignored: without a folder of test examples they are
      held out from the others.

    Raises:
      DataError: as `facts_of`.
    """
    train, *test = _trees(data_folder(folder), facts)
    if test:
        return len(train.files), sum(len(tree.files) for tree in test)
    held = int((np.bincount(train.labels) // 5).sum())
    return len(train.files) - held, held


def load_own(
    name: str,
    folder: str,
    facts: Facts,
    *,
    by_client: bool,
    size: int = 0,
    num_train: int = 0,
    num_test: int = 0,
    seed: int,
) -> OwnSplits:
    """Reads the user's data.

    Args:
      name: `arrays` or `image_folder`.
      folder: of the data.
      facts: what they must be.
      by_client: whether the source's clients are wanted; otherwise they are ignored.
      size: as in `facts_of`.
      num_train: number of training examples, drawn by the seed; 0 = all. With clients
        it must be 0.
      num_test: number of test examples, drawn by the seed; 0 = all. Test examples that
        are held out from clients are not counted here.
      seed: of the draws, in [0, 2^32).

    Returns:
      The examples. Without clients they are in random order, because files lie class by
      class.

    Raises:
      DataError: as `facts_of`, if there are other classes or shapes than `facts` says,
        too few examples, or no clients where they are wanted.
    """
    path = data_folder(folder)
    read = _read_arrays if name == "arrays" else _read_pictures
    train, test = read(path, facts, size)
    if by_client:
        if train.population is None:
            raise DataError(
                f"{path} must say who holds which example for data.partitioner "
                "by_client: take another partitioner, or give arrays the array clients "
                "and pictures a folder for each client."
            )
        kept = test and _drawn(test.dataset, name, "test", num_test, seed)
        return OwnSplits(train.dataset, kept, train.population)
    whole = train.dataset
    if test is None:
        rng = np.random.default_rng((seed, len(whole.labels)))
        is_test = draw_fifths(whole.labels, rng)
        if not is_test.any():
            raise DataError(
                f"{path} must have a test set or 5 examples of a class, so that some "
                "can be held out for one."
            )
        whole, rest = whole.at(~is_test), whole.at(is_test)
    else:
        rest = test.dataset
    return OwnSplits(
        _drawn(whole, name, "train", num_train, seed),
        _drawn(rest, name, "test", num_test, seed),
        None,
    )


def _read_arrays(path: Path, facts: Facts, size: int) -> tuple[OwnData, OwnData | None]:
    """Reads train.npz and, if there is one, test.npz."""
    del size  # because arrays are scaled as those of other data sets
    files = [path / "train.npz", path / "test.npz"]
    read = [from_npz(file, classes=facts.classes) for file in files if file.exists()]
    if not files[0].exists():
        raise DataError(f"{path} must have the file train.npz.")
    for file, data in zip(files, read, strict=False):
        if (found := _written(data.dataset)) != facts.shape:
            raise DataError(
                f"{file} must have examples of the shape {facts.shape}, as the "
                f"training examples had at the start, got {found}."
            )
    return read[0], read[1] if len(read) > 1 else None


def _read_pictures(
    path: Path, facts: Facts, size: int
) -> tuple[OwnData, OwnData | None]:
    """Reads the folders train and test, or the folder itself."""
    trees = _trees(path, facts)
    read = [image_folder.decode(tree, size) for tree in trees]
    return read[0], read[1] if len(read) > 1 else None


def _trees(path: Path, facts: Facts) -> list[image_folder.Pictures]:
    """The pictures for training and, if they are apart, those for tests; none opened.

    Grey ones are read as coloured ones if those are the others.
    """
    height, width, channels = map(int, facts.shape.split("x"))
    known = {"classes": facts.classes, "shape": (height, width, channels)}
    return [image_folder.scan(part, **known) for part in _parts(path)]


def _parts(path: Path) -> list[Path]:
    parts = [path / "train", path / "test"]
    return parts if all(part.is_dir() for part in parts) else [path]


def _written(dataset: Dataset) -> str:
    """The shape of an example as a text; floats beyond images are vectors."""
    shape = dataset.images.shape[1:]
    is_vector = dataset.images.dtype == np.float32 and shape[1:] == (1, 1)
    return str(shape[0]) if is_vector else "x".join(map(str, shape))


def _drawn(dataset: Dataset, name: str, split: str, count: int, seed: int) -> Dataset:
    """Draws examples; 0 gives all of them in random order."""
    available = len(dataset.labels)
    kept = resolve_count(f"{name}, your own", split, count, available)
    order = np.random.default_rng((seed, available)).permutation(available)[:kept]
    return dataset.at(order)
