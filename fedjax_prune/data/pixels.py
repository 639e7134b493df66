"""Functions that make arrays of pictures that Pillow has opened."""

from typing import Any

import numpy as np
from PIL import Image, ImageOps

GREY = ("1", "L")
"""Pillow's modes of pictures with one channel."""
DEEP = ("I", "F")
"""What the names of its modes begin with that have more than 8 bits a channel."""


def channels_of(picture: Image.Image) -> int:
    """Gives 1 for a grey picture and 3 for any other one.

    Raises:
      ValueError: if it has more than 8 bits a channel.
    """
    if picture.mode.startswith(DEEP):
        raise ValueError(
            f"must have 8 bits a channel, got Pillow's mode {picture.mode}: convert it"
        )
    return 1 if picture.mode in GREY else 3


def size_of(picture: Image.Image) -> tuple[int, int]:
    """Gives height and width as it is seen: a camera may have stored it on its side."""
    width, height = picture.size
    turned = picture.getexif().get(0x0112, 1) >= 5  # the orientation
    return (width, height) if turned else (height, width)


def to_array(picture: Image.Image, channels: int, size: int = 0) -> np.ndarray:
    """Decodes a picture.

    Args:
      picture: opened by Pillow; transparency is left out.
      channels: 1 or 3.
      size: height and width that it is scaled to, with antialiasing; 0 keeps them.

    Returns:
      [height, width, channels] uint8, upright.

    Raises:
      OSError, SyntaxError, ValueError: of Pillow, if it is damaged.
    """
    upright: Any = ImageOps.exif_transpose(picture)
    upright = upright.convert("L" if channels == 1 else "RGB")
    if size and upright.size != (size, size):
        upright = upright.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(upright)
    return pixels.reshape(*pixels.shape[:2], channels)
