"""Data sets of the user's own: arrays in memory or in a file of NumPy."""

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_prune.data.datasets import DataError, data_folder
from fedjax_prune.data.load import as_dataset
from fedjax_prune.data.population import from_sizes
from fedjax_prune.types import Dataset, Population


class OwnData(NamedTuple):
    """A data set of the user's own.

    Attributes:
      dataset: the examples.
      population: who holds them; None if the source does not say.
      classes: names of the classes; the label of an example is a place among them.
      clients: names of the clients, in the order of the population; () without one.

    Examples:
      >>> data = fedjax_prune.from_arrays(
      ...     np.zeros((3, 8, 8), np.uint8), ["cat", "dog", "cat"], clients=[7, 5, 7]
      ... )
      >>> data.dataset.labels, data.classes, data.clients
      (array([0, 1, 0], dtype=int32), ('cat', 'dog'), ('5', '7'))
      >>> data.population.of(1)
      array([0, 2], dtype=int32)
    """

    dataset: Dataset
    population: Population | None
    classes: tuple[str, ...]
    clients: tuple[str, ...]


def from_arrays(
    images: Any,
    labels: Any,
    *,
    clients: Any = None,
    classes: Sequence[str] | None = None,
) -> OwnData:
    """Makes a data set of arrays.

    Args:
      images: [num_examples, height, width, channels], or [num_examples, height, width]
        with one channel, uint8 or floats in [0, 1]; or vectors [num_examples, length],
        any finite floats.
      labels: [num_examples] integers from 0 on, or names of classes.
      clients: [num_examples] integers or names of who holds each example; None if
        nobody holds them yet, so that `partition` can deal them.
      classes: names of all classes, of which these examples may lack some. None takes
        the names that occur, in order; integers must then be 0 to n - 1, each at least
        once.

    Returns:
      The examples, uint8 or float32, and the clients, in order. Vectors become
      [num_examples, length, 1, 1]. Classes and clients are sorted by name, or by value
      if all names are numbers.

    Raises:
      DataError: if a shape, dtype or value is wrong, or a class has no example; it
        names the argument and the first bad index.

    Examples:
      >>> rng = np.random.default_rng(0)
      >>> images = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
      >>> who = ["ann", "ann", "ben", "ben", "ann", "ann"]
      >>> dataset, population, *_ = from_arrays(images, [0, 1, 2, 0, 1, 2], clients=who)
      >>> dataset.images.shape, population.sizes.tolist()
      ((6, 8, 8, 3), [4, 2])
    """
    try:
        pixels = _as_images(images)
        names, places = _as_labels(_array("labels", labels), classes)
        dataset = _checked(pixels, places, len(names))
        if clients is None:
            return OwnData(dataset, None, names, ())
        holders = _array("clients", clients)
        if holders.shape != places.shape or holders.dtype.kind not in "iuU":
            raise ValueError(
                f"clients must be integers or names of shape {places.shape}, one for "
                f"each example, got {holders.dtype} of shape {holders.shape}."
            )
        population, holder_names = _population(holders)
        return OwnData(dataset, population, names, holder_names)
    except ValueError as error:
        raise DataError(str(error)) from error


def from_npz(file: str | Path, *, classes: Sequence[str] | None = None) -> OwnData:
    """Reads a file that `numpy.savez` has written.

    Nothing is unpickled.

    Args:
      file: holds `images` and `labels` and may hold `clients` and `classes`, as
        `from_arrays` takes them.
      classes: as in `from_arrays`; None takes those of the file, if it has any.

    Returns:
      As `from_arrays`.

    Raises:
      DataError: naming the file, if it cannot be read, an array is missing or unknown,
        or as `from_arrays`.

    Examples:
      >>> import tempfile
      >>> file = Path(tempfile.mkdtemp()) / "digits.npz"
      >>> np.savez(file, images=np.zeros((4, 8, 8), np.uint8), labels=[0, 1, 0, 1])
      >>> from_npz(file).dataset.images.shape
      (4, 8, 8, 1)
    """
    path, allowed = data_folder(file), ("images", "labels", "clients", "classes")
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise ValueError(
                "it holds one array, as numpy.save writes it: name the arrays, as in "
                "numpy.savez(FILE, images=..., labels=...)"
            )
        with stored:
            found = {name: stored[name] for name in stored.files}
    # A damaged zip raises errors of zipfile and zlib, which have no base of their own.
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as a file of numpy.savez: {error}"
        ) from error
    unknown = [name for name in found if name not in allowed]
    missing = [name for name in allowed[:2] if name not in found]
    if unknown or missing:
        raise DataError(
            f"{path} must hold images and labels, and may hold clients and classes, "
            f"got {', '.join(found) or 'nothing'}."
        )
    own = found.pop("classes", None)
    try:
        if own is not None:
            own = class_names(own.ravel())
            if classes is not None and class_names(classes) != own:
                raise DataError(
                    f"classes must be {', '.join(map(str, classes))}, got "
                    f"{', '.join(own)}."
                )
            classes = own
        return from_arrays(**found, classes=classes)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def class_names(classes: Any) -> tuple[str, ...]:
    """Reads the names of all classes in their order.

    Args:
      classes: names or integers, in a list or an array.

    Raises:
      DataError: if one is neither, or two are equal.

    Examples:
      >>> class_names([3, 5]), class_names(np.array(["cat", "dog"]))
      (('3', '5'), ('cat', 'dog'))
    """
    kinds = str | Integral
    if isinstance(classes, str | bytes) or not all(
        isinstance(name, kinds) and not isinstance(name, bool) for name in classes
    ):
        raise DataError(f"classes must be a list of names or integers, got {classes}.")
    names = tuple(map(str, classes))
    if len(set(names)) < len(names):
        raise DataError(f"classes must differ, got {', '.join(names)}.")
    return names


def in_order(names: Sequence[str]) -> list[str]:
    """Sorts names; if all of them are numbers, by their value.

    Examples:
      >>> in_order(["10", "9"]), in_order(["b10", "b9"])
      (['9', '10'], ['b10', 'b9'])
    """
    numbers = all(name.isascii() and name.isdecimal() for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if numbers else None)


def _array(field: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{field} must be a full array: {error}") from error
    if array.dtype == object and all(isinstance(name, str) for name in array.flat):
        return array.astype(str)  # names from a column of pandas
    return array


def _as_images(images: Any) -> np.ndarray:
    """Gives images [num_examples, height, width, channels] of what the user has.

    Raises:
      ValueError: if images differ in their shapes, or the rows of an image differ in
        their lengths; it names the first image that does.
    """
    try:
        pixels = _array("images", images)
    except ValueError as error:
        shapes = [_array(f"images[{i}]", image).shape for i, image in enumerate(images)]
        for index, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise ValueError(
                    f"images must have one shape, got {shape} at index {index} and "
                    f"{shapes[0]} at index 0."
                ) from error
        raise
    return pixels[..., None] if pixels.ndim == 3 else pixels


def _as_labels(
    labels: np.ndarray, classes: Sequence[str] | None
) -> tuple[tuple[str, ...], np.ndarray]:
    """Names the classes, and gives each label's place among them.

    Raises:
      ValueError: if a label is no class, or a class that must occur does not.
    """
    if classes is not None:
        classes = class_names(classes)
    if labels.ndim != 1 or labels.dtype.kind not in "iuU" or not labels.size:
        raise ValueError(
            "labels must be integers or names of shape [num_examples], at least one, "
            f"got {labels.dtype} of shape {labels.shape}."
        )
    if labels.dtype.kind == "U":
        found, places = np.unique(labels, return_inverse=True)
        names = tuple(in_order(found.tolist()) if classes is None else classes)
        known = {name: place for place, name in enumerate(names)}
        for name in found.tolist():
            if name not in known:
                index = int(np.flatnonzero(labels == name)[0])
                raise ValueError(
                    f"labels must be one of the classes {', '.join(names)}, got "
                    f"{name!r} at index {index}."
                )
        return names, np.array([known[name] for name in found.tolist()])[places]
    if classes is not None:
        return tuple(classes), labels
    if (least := labels.min()) < 0:
        index = int(np.flatnonzero(labels < 0)[0])
        raise ValueError(
            f"labels must be 0 to n - 1 for n classes, got {least} at index {index}."
        )
    found = np.unique(labels)
    if found[-1] != len(found) - 1:
        absent = int(np.flatnonzero(found != np.arange(len(found)))[0])
        raise ValueError(
            f"labels must be 0 to n - 1 for n classes, each at least once, got "
            f"{found[-1]} and no {absent}: number them anew, or name all classes."
        )
    return tuple(map(str, found)), labels


def _checked(images: np.ndarray, labels: np.ndarray, num_classes: int) -> Dataset:
    """Checks images or vectors and makes a Dataset of them.

    Raises:
      ValueError: if an array has a wrong shape, dtype or value.
    """
    if images.ndim != 2:
        return as_dataset(images, labels, num_classes=num_classes)
    if images.dtype.kind != "f":
        raise ValueError(
            "images of shape [num_examples, length] are vectors, and vectors must be "
            f"floats, got {images.dtype}."
        )
    # A number beyond the range of float32 becomes infinite.
    with np.errstate(over="ignore"):
        vectors = images.astype(np.float32)
    bad = np.argwhere(~np.isfinite(vectors))
    if bad.size:
        index = tuple(map(int, bad[0]))
        raise ValueError(
            f"images must be finite in float32, got {images[index]} at index {index}."
        )
    # The labels and the shapes are checked as those of black images.
    black = np.zeros((*images.shape, 1, 1), np.uint8)
    dataset = as_dataset(black, labels, num_classes=num_classes)
    return dataset._replace(images=vectors[..., None, None])


def _population(holders: np.ndarray) -> tuple[Population, tuple[str, ...]]:
    """Joins the examples of each client, in their order."""
    found, places = np.unique(holders, return_inverse=True)
    held = found.tolist()
    ordered = in_order(held) if holders.dtype.kind == "U" else held
    client_ids = {name: client_id for client_id, name in enumerate(ordered)}
    owners = np.array([client_ids[name] for name in held])[places]
    order = np.argsort(owners, kind="stable")
    return from_sizes(order, np.bincount(owners)), tuple(map(str, ordered))
