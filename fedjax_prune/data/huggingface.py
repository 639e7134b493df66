"""Data sets of the library `datasets` of Hugging Face, which is not imported.

Only what such an object shows to everybody is used: `features`, the number of rows,
casts of a column and the rows themselves.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_prune.data import pixels
from fedjax_prune.data.datasets import DataError
from fedjax_prune.data.own import OwnData, from_arrays
from fedjax_prune.fields import checked


@checked
def from_huggingface(
    dataset: Any,
    *,
    image: str = "",
    label: str = "",
    clients: str = "",
    classes: Sequence[str] | None = None,
    size: pixels.Side = 0,
) -> OwnData:
    """Makes a data set of one of the library `datasets`.

    Args:
      dataset: a `datasets.Dataset`, one split, such as
        `datasets.load_dataset("ylecun/mnist", split="train")`.
      image: column of the images; empty takes the only column of the feature `Image`.
        Another column must hold integers in [0, 255], of one shape.
      label: column of the labels; empty takes the only column of `ClassLabel`, whose
        names become the classes. Another column holds integers or names.
      clients: column of who holds an example, integers or names; empty if nobody does.
      classes: names of the classes in their order; None takes those of `ClassLabel` or
        those that occur. A test set needs the names of the training set. Labels of
        `ClassLabel` are found among them by their names.
      size: as in `from_image_folder`.

    Returns:
      As `from_arrays`; images are decoded as by `from_image_folder`.

    Raises:
      DataError: naming the column and the row, if a column is missing or has wrong
        values, or the columns cannot be found, or if there is no row.
      ValueError: if `size` is no whole number or out of range.

    Examples:
      >>> import datasets  # doctest: +SKIP
      >>> train = datasets.load_dataset(
      ...     "flwrlabs/femnist", split="train"
      ... )  # doctest: +SKIP
      >>> dataset, population, classes, clients = from_huggingface(
      ...     train, label="character", clients="writer_id"
      ... )  # doctest: +SKIP
      >>> from_huggingface({"train": (), "test": ()})  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ...
      fedjax_prune.data.datasets.DataError: dataset must be one split, got train, ...
    """
    features = getattr(dataset, "features", None)
    if isinstance(dataset, Mapping):
        raise DataError(
            f"dataset must be one split, got {', '.join(map(str, dataset))}: take "
            "dataset[NAME]."
        )
    if not isinstance(features, Mapping) or not hasattr(dataset, "__len__"):
        raise DataError(
            "dataset must be a datasets.Dataset in memory or on disk, with features "
            f"and a length, got {type(dataset).__name__}."
        )
    if not len(dataset):
        raise DataError("dataset must have at least one row, got an empty split.")
    image = _column(features, "image", image, "Image")
    label = _column(features, "label", label, "ClassLabel")
    columns = [image, label]
    if clients:
        columns.append(_column(features, "clients", clients, ""))
    images, labels, holders = [], [], []
    names = getattr(features[label], "names", None)
    # In the format of PyTorch pictures have their channels first.
    plain = dataset.select_columns(columns).with_format(None)
    kind = features[image]
    if type(kind).__name__ == "Image":
        # The library would end at a damaged picture without its row, and cut 16 bits.
        plain = plain.cast_column(image, type(kind)(decode=False))
    mode = getattr(kind, "mode", None)
    # Row by row, because a whole column of pictures would be decoded twice in memory.
    for number, row in enumerate(plain):
        where = f"column {image}, row {number}"
        images.append(_image(row[image], where, size=size, mode=mode))
        labels.append(_label(row[label], f"column {label}, row {number}", names))
        if clients:
            holders.append(_name(row[clients], f"column {clients}, row {number}"))
    if classes is None:
        classes = names
    try:
        return from_arrays(
            _alike(images),
            labels,
            clients=holders if clients else None,
            classes=classes,
        )
    except DataError as error:
        shown = f"images are column {image}, labels column {label}"
        raise DataError(f"{shown}: {error}") from error


def _column(features: Mapping[str, Any], field: str, name: str, kind: str) -> str:
    """The name of a column: the one that is given, or the only one of a feature.

    Raises:
      DataError: if there is no such column, or not one alone.
    """
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    shown = ", ".join(f"{column} ({found})" for column, found in kinds.items())
    if name:
        if name not in features:
            raise DataError(
                f"{field} must be one of the columns {shown}, got {name!r}."
            )
        return name
    fitting = [column for column, found in kinds.items() if found == kind]
    if len(fitting) != 1:
        raise DataError(
            f"{field} must name one of the columns {shown}, because {len(fitting)} of "
            f"them are of the feature {kind}."
        )
    return fitting[0]


def _name(value: Any, where: str) -> Any:
    """Gives a label or a client as it is.

    Raises:
      DataError: if it is no integer and no name, such as None.
    """
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "iuU":
        raise DataError(f"{where} must be an integer or a name, got {value!r}.")
    return value


def _label(value: Any, where: str, names: Sequence[str] | None) -> Any:
    """Gives the name of a label where the column has names, else the label as it is.

    Raises:
      DataError: as `_name`, or if it is none of the names, such as -1 for unknown ones.
    """
    value = _name(value, where)
    if names is None or isinstance(value, str):
        return value
    if not 0 <= value < len(names):
        raise DataError(f"{where} must be in [0, {len(names)}), got {value}.")
    return names[value]


def _image(value: Any, where: str, *, size: int, mode: str | None) -> np.ndarray:
    """Makes an array of an image, [height, width, channels] uint8.

    Args:
      value: a picture as it is stored, its `bytes` or else its `path`, or numbers.
      where: column and row.
      size: as in `from_huggingface`.
      mode: of Pillow, to which the feature converts pictures; None keeps theirs.

    Raises:
      DataError: if it is no picture and no array of uint8 numbers.
    """
    try:
        if isinstance(value, Mapping):
            data, path = value["bytes"], value["path"]
            stored = Path(path) if data is None else BytesIO(data)
            with pixels.open_picture(stored) as picture:
                channels = pixels.channels_of(picture)
                if mode is not None:
                    picture = picture.convert(mode)
                    channels = pixels.channels_of(picture)
                return pixels.to_array(picture, channels, size)
        numbers = np.asarray(value)
    except Exception as error:
        raise DataError(f"{where} cannot be read as a picture: {error}.") from error
    numbers = numbers[..., None] if numbers.ndim == 2 else numbers
    whole = numbers.dtype.kind in "iu" and numbers.ndim == 3 and numbers.size
    if not whole or numbers.min() < 0 or numbers.max() > 255:
        raise DataError(
            f"{where} must be a picture or an array of whole numbers in [0, 255], "
            f"[height, width] or [height, width, channels], got {type(value).__name__} "
            f"of {numbers.dtype} {list(numbers.shape)}."
        )
    array = numbers.astype(np.uint8)
    if not size:
        return array
    if array.shape[-1] not in (1, 3):
        raise DataError(
            f"{where} must have 1 or 3 channels to be scaled, got {array.shape[-1]}."
        )
    return pixels.scaled(array, size)


def _alike(images: list[np.ndarray]) -> list[np.ndarray]:
    """Gives grey images three equal channels if others have colours."""
    channels = {image.shape[-1] for image in images}
    if channels != {1, 3}:
        return images
    return [x if x.shape[-1] == 3 else x.repeat(3, axis=-1) for x in images]
