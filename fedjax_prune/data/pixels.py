"""Functions that make arrays of pictures, which Pillow opens.

Pillow is imported when the first picture is opened, because most runs have none.
"""

from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np

from fedjax_prune.fields import at_least

Side = Annotated[int, at_least(0), "Pixels a side of scaled pictures; 0 is as stored."]
GREY = ("1", "L", "LA", "La")
"""Pillow's modes of grey pictures, also those with transparency."""
DEEP = ("I", "F")
"""What the names of its modes begin with that have more than 8 bits a channel."""
_ORIENTATION = 0x0112
"""The tag by which a camera says how it was held; from 5 on, on its side."""


def open_picture(file: Path | BinaryIO) -> Any:
    """Opens a picture, of which only the header is read.

    Raises:
      OSError, ValueError: of Pillow, if it cannot be read.
    """
    from PIL import Image

    return Image.open(file)


def suffixes() -> set[str]:
    """The ends of the names of pictures, such as .png."""
    from PIL import Image, ImageFile

    def is_read(kind: str) -> bool:
        # Pillow only writes some formats, as PDF, and only recognises others, as HDF5.
        reader, _ = Image.OPEN.get(kind, (ImageFile.StubImageFile, None))
        stub = ImageFile.StubImageFile
        return not (isinstance(reader, type) and issubclass(reader, stub))

    known = Image.registered_extensions()
    return {end for end, kind in known.items() if is_read(kind)}


def channels_of(picture: Any) -> int:
    """Gives 1 for a grey picture and 3 for any other one.

    Raises:
      ValueError: if it has more than 8 bits a channel. Pillow reads colours of AVIF and
        JPEG 2000 as 8 bits and does not tell whether they had more.
    """
    # Of colours of 16 bits Pillow keeps 8. Only `tile` says so: by the name of a mode,
    # and of PPM by the largest value.
    tiles = getattr(picture, "tile", ())
    stored = [str(tile[-1]) for tile in tiles]
    is_deep = picture.mode.startswith(DEEP) or any(";16" in mode for mode in stored)
    if is_deep or any(map(_is_deep_ppm, tiles)):
        raise ValueError(
            f"must have 8 bits a channel, got Pillow's mode {picture.mode}"
            f"{', stored as ' + stored[0] if stored else ''}: convert it"
        )
    return 1 if picture.mode in GREY else 3


def _is_deep_ppm(tile: Any) -> bool:
    codec, *_, arguments = tile
    names_most = codec.startswith("ppm") and isinstance(arguments, tuple)
    return names_most and arguments[-1] > 255


def size_of(picture: Any) -> tuple[int, int]:
    """Gives height and width as it is seen: a camera may have stored it on its side."""
    width, height = picture.size
    turned = picture.getexif().get(_ORIENTATION, 1) >= 5
    return (width, height) if turned else (height, width)


def to_array(picture: Any, channels: int, size: int = 0) -> np.ndarray:
    """Decodes a picture.

    Args:
      picture: of Pillow; transparency is left out.
      channels: 1 or 3.
      size: height and width that it is scaled to, with antialiasing; 0 keeps them.

    Returns:
      [height, width, channels] uint8, upright.

    Raises:
      OSError, SyntaxError, ValueError: of Pillow, if it is damaged.
    """
    from PIL import Image, ImageOps

    upright: Any = ImageOps.exif_transpose(picture)
    upright = upright.convert("L" if channels == 1 else "RGB")
    if size and upright.size != (size, size):
        upright = upright.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(upright)
    return pixels.reshape(*pixels.shape[:2], channels)


def scaled(image: np.ndarray, size: int) -> np.ndarray:
    """Scales an image [height, width, 1 or 3] uint8 as `to_array` does."""
    from PIL import Image

    channels = image.shape[-1]
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    return to_array(picture, channels, size)
