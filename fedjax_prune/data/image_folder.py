"""Folders of pictures: one for each class, or one for each client."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_prune.data import pixels
from fedjax_prune.data.datasets import DataError, data_folder
from fedjax_prune.data.own import OwnData, class_names, in_order
from fedjax_prune.data.population import from_sizes
from fedjax_prune.fields import checked
from fedjax_prune.types import Dataset

SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}
"""Folders of these names, in small or capital letters, are parts of a data set."""
HIDDEN = {"thumbs.db", "desktop.ini"}
"""Files that Windows hides in a folder of pictures."""


class Pictures(NamedTuple):
    """The pictures of a folder, none of them decoded.

    Attributes:
      files: the pictures, client by client and class by class.
      labels: [num_examples] int32.
      sizes: [num_clients] how many of them each client has; None without clients.
      classes: names.
      clients: names; () without clients.
      shape: (height, width, channels) of all pictures once they are decoded.
    """

    files: list[Path]
    labels: np.ndarray
    sizes: np.ndarray | None
    classes: tuple[str, ...]
    clients: tuple[str, ...]
    shape: tuple[int, int, int]


def from_image_folder(
    folder: str | Path, *, size: pixels.Side = 0, classes: Sequence[str] | None = None
) -> OwnData:
    """Reads a folder of pictures in any format that Pillow knows.

    Args:
      folder: has a folder of pictures for each class, `FOLDER/cat/1.png`, or a folder
        for each client with a folder for each of its classes, `FOLDER/ann/cat/1.png`.
        Classes and clients are sorted by name, or by value if all names are numbers.
        Hidden files are left out, also those of Windows.
      size: height and width in pixels that pictures are scaled to, with antialiasing,
        at least 0; 0 takes pictures that are all of one size as they are.
      classes: names of all classes in their order, of which this folder may lack some,
        as a test set may. None takes those that the folder has.

    Returns:
      The examples, uint8, with one channel if all pictures are grey and else with
      three, and the clients, if there are any.

    Raises:
      DataError: naming the folder or the file, if a folder is empty or unknown, folders
        are nested in another way, a picture cannot be read, has more than 8 bits a
        channel or, without `size`, is of another size than the first.
      ValueError: if `size` is no whole number or out of range.

    Examples:
      >>> import tempfile
      >>> from PIL import Image
      >>> folder = Path(tempfile.mkdtemp())
      >>> for place in ("ann/cat", "ann/dog", "ben/dog"):
      ...     (folder / place).mkdir(parents=True)
      ...     Image.new("L", (8, 8), 255).save(folder / place / "1.png")
      >>> dataset, population, classes, clients = from_image_folder(folder)
      >>> dataset.images.shape, dataset.labels, classes
      ((3, 8, 8, 1), array([0, 1, 1], dtype=int32), ('cat', 'dog'))
      >>> clients, population.sizes.tolist()
      (('ann', 'ben'), [2, 1])
    """
    return decode(scan(folder, size=size, classes=classes), size)


@checked
def scan(
    folder: str | Path,
    *,
    size: pixels.Side = 0,
    classes: Sequence[str] | None = None,
    shape: tuple[int, int, int] | None = None,
) -> Pictures:
    """Finds the pictures of a folder.

    Args:
      folder: as in `from_image_folder`.
      size: as in `from_image_folder`.
      classes: as in `from_image_folder`.
      shape: of all pictures once they are decoded; None reads their headers. If it is
        given, no picture is opened, and `decode` refuses those of other shapes.

    Raises:
      DataError, ValueError: as `from_image_folder`, except for what is not read.
    """
    path = data_folder(folder)
    holders = _clients(path)
    listed = [
        {name: _files(below) for name, below in _folders(holder).items()}
        for holder in (holders or {"": path}).values()
    ]
    names = _classes(path, listed, classes)
    labels = {name: label for label, name in enumerate(names)}
    files: list[Path] = []
    counts: list[tuple[int, int]] = []
    for own in listed:
        for name in sorted(own, key=labels.__getitem__):
            files += own[name]
            counts.append((labels[name], len(own[name])))
    if not files:
        raise DataError(f"{path} must have at least one picture.")
    sizes = [sum(map(len, own.values())) for own in listed]
    for client, number in zip(holders, sizes, strict=False):
        if number == 0:
            raise DataError(f"{path / client} must have at least one picture.")
    return Pictures(
        files,
        np.repeat(*np.array(counts, np.int32).T),
        np.array(sizes) if holders else None,
        classes=names,
        clients=tuple(holders),
        shape=_shape(files, size) if shape is None else shape,
    )


def decode(pictures: Pictures, size: int = 0) -> OwnData:
    """Decodes pictures on all cores.

    Args:
      pictures: as `scan` has found it.
      size: as in `from_image_folder`.

    Raises:
      DataError: if a picture cannot be decoded or is of another shape than the others.
    """
    files = pictures.files
    images = np.empty((len(files), *pictures.shape), np.uint8)

    def fill(place: int) -> None:
        picture = _open(files[place])
        with picture, _telling_of(files[place]):
            _require_shape(files[place], picture, pictures.shape, size)
            images[place] = pixels.to_array(picture, pictures.shape[-1], size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(fill, range(len(files))):
            pass
    population = None
    if pictures.sizes is not None:
        population = from_sizes(np.arange(len(files)), pictures.sizes)
    return OwnData(
        Dataset(images, pictures.labels), population, pictures.classes, pictures.clients
    )


def _clients(path: Path) -> dict[str, Path]:
    """The folders of the clients; {} if the folders are those of classes.

    Raises:
      DataError: if some folders have pictures and others have folders, or they are
        the parts of a data set.
    """
    below = _folders(path)
    nested = {name for name, each in below.items() if any(map(Path.is_dir, _in(each)))}
    if not nested:
        return {}
    if flat := sorted(below.keys() - nested):
        if not _in(below[flat[0]]):
            raise DataError(f"{below[flat[0]]} must have at least one picture.")
        raise DataError(
            f"{path} must have folders of classes or folders of clients, got pictures "
            f"in {flat[0]} and folders in {sorted(nested)[0]}."
        )
    parts = [name for name in below if name.lower() in SPLITS]
    if len(parts) > 1 or parts == list(below):
        raise DataError(
            f"{path} has the folders {' and '.join(parts)}: call them train and test, "
            "which is what a run reads, or read each of them alone and give the test "
            "set the classes of the training set."
        )
    return below


def _in(folder: Path) -> list[Path]:
    """What is in a folder and not hidden.

    Raises:
      DataError: if the folder cannot be read.
    """
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read as a folder: {error.strerror}."
        ) from error
    names = ((entry, entry.name.lower()) for entry in entries)
    return [
        entry
        for entry, name in names
        if not name.startswith(".") and name not in HIDDEN
    ]


def _folders(path: Path) -> dict[str, Path]:
    """The folders in a folder, in order; other files may lie beside them.

    Raises:
      DataError: if there is none, or a picture lies beside them.
    """
    entries = _in(path)
    below = {entry.name: entry for entry in entries if entry.is_dir()}
    known = pixels.suffixes()
    for entry in sorted(entries):
        if entry.name not in below and entry.suffix.lower() in known:
            raise DataError(f"{entry} must lie in the folder of its class.")
    if not below:
        raise DataError(
            f"{path} must have a folder of pictures for each class, or a folder for "
            "each client with a folder for each class, got no folder."
        )
    return {name: below[name] for name in in_order(list(below))}


def _files(folder: Path) -> list[Path]:
    """The files in the folder of a class, in order.

    Raises:
      DataError: if there are folders among them.
    """
    files = {entry.name: entry for entry in _in(folder)}
    for entry in sorted(files.values()):
        if entry.is_dir():
            raise DataError(f"{folder} must hold pictures of a class, got {entry}.")
    return [files[name] for name in in_order(list(files))]


def _classes(
    path: Path, listed: list[dict[str, list[Path]]], classes: Sequence[str] | None
) -> tuple[str, ...]:
    """The names of the classes in their order.

    Raises:
      DataError: if one is none of those that are given or, where none are, has no
        picture; or as `class_names`.
    """
    found = list(dict.fromkeys(name for own in listed for name in own))
    classes = None if classes is None else class_names(classes)
    for name in found:
        if classes is not None and name not in classes:
            raise DataError(
                f"{path} has the folder {name}, which is none of the classes "
                f"{', '.join(classes)}."
            )
        if classes is None and not any(own.get(name) for own in listed):
            raise DataError(
                f"{path} must have at least one picture of each class, got none of "
                f"{name}."
            )
    return tuple(in_order(found)) if classes is None else classes


def _shape(files: list[Path], size: int) -> tuple[int, int, int]:
    """The shape of the decoded pictures, of their headers.

    Raises:
      DataError: if a picture cannot be read, or is of another size than the first.
    """

    def header(file: Path) -> tuple[int, tuple[int, int]]:
        with _open(file) as picture, _telling_of(file):
            return pixels.channels_of(picture), pixels.size_of(picture)

    # Of some formats Pillow reads the whole file to know how a camera was held.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(header, files))
    channels, first = max(channels for channels, _ in found), found[0][1]
    for file, (_, own) in zip(files, found, strict=True):
        if not size and own != first:
            raise DataError(
                f"{file} must be {first[0]}x{first[1]} pixels as {files[0]}, got "
                f"{own[0]}x{own[1]}: take a size (of a run: data.size) that all are "
                "scaled to."
            )
    height, width = (size, size) if size else first
    return height, width, channels


def _require_shape(
    file: Path, picture: Any, shape: tuple[int, int, int], size: int
) -> None:
    """Refuses a picture that would be squeezed, or lose its colours.

    Raises:
      DataError: if its sides or its colours do not fit.
    """
    # Before Pillow has decoded it, as it does to find out how it is turned.
    channels = pixels.channels_of(picture)
    sides = (size, size) if size else pixels.size_of(picture)
    found = (*sides, channels)
    if found[:2] != shape[:2] or found[2] > shape[2]:
        wanted, got = ("x".join(map(str, each)) for each in (shape, found))
        raise DataError(
            f"{file} must have the shape {wanted} of the training examples, got {got}."
        )


def _open(file: Path) -> Any:
    """Opens a picture, of which only the header is read."""
    with _telling_of(file):
        return pixels.open_picture(file)


@contextmanager
def _telling_of(file: Path) -> Iterator[None]:
    """Turns errors of Pillow into one that names the picture.

    Raises:
      DataError: for any error; a damaged file raises those of its decoder.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{file} cannot be read as a picture: {error}. If it is none, remove it."
        ) from error
