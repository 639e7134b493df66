"""Turns stored images into what a model sees, on the device.

What happens to an image depends on the key and its place in the batch alone, so
more padding after it changes nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((), ()),
    # Mean and standard deviation of CIFAR-10's training pixels.
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "crop": {},
    "jitter": {"crop": False, "jitter": 0.5},
    "code": {"crop": False, "jitter": 0.5, "flip": True},
}
"""name -> arguments of `make_augment`; unless said, flips are as the labels allow.

`crop` is FedDP's, `code` what AutoFLIP's authors do to letters and digits, too.
"""


def to_float(images: jax.Array) -> jax.Array:
    """Scales uint8 images to [0, 1]; float images pass.

    Args:
      images: any shape, uint8 or floating.

    Returns:
      The same shape, float32.
    """
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    return images.astype(jnp.float32)


def as_symbols(text: jax.Array) -> jax.Array:
    """Text as a model reads it: uint8 symbols as int32."""
    return text.astype(jnp.int32)


TO_INPUT: dict[str, Callable[[jax.Array], jax.Array]] = {
    "image": to_float,
    "text": as_symbols,
}
"""kind of a data set -> its stored bytes as a model reads them."""


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """Pads images by reflection and crops each at a place of its own.

    Args:
      key: of this batch.
      images: [batch_size, height, width, channels].
      padding: pixels on each side, in [0, min(height, width) - 1].

    Returns:
      The same shape and dtype.

    Raises:
      ValueError: if `padding` is out of range.
    """
    batch_size, height, width, channels = images.shape
    if not 0 <= padding < min(height, width):
        raise ValueError(
            f"padding must be in [0, {min(height, width) - 1}], got {padding}."
        )
    offsets = jax.random.randint(key, (batch_size, 2), -padding, padding + 1)

    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        # Reading through reflected indices needs no padded copy, and one gather of
        # whole pixels is the fastest form on a CPU with and without vmap.
        rows = _reflect(jnp.arange(height) + offset[0], height)
        columns = _reflect(jnp.arange(width) + offset[1], width)
        pixels = rows[:, None] * width + columns[None, :]
        return image.reshape(height * width, channels)[pixels]

    return jax.vmap(crop)(images, offsets)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability one half.

    Args:
      key: of this batch.
      images: [batch_size, height, width, channels].

    Returns:
      The same shape and dtype.
    """
    flips = jax.random.bernoulli(key, shape=images.shape[:1])
    return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)


def colour_jitter(key: jax.Array, images: jax.Array, strength: float) -> jax.Array:
    """Changes each image's brightness, contrast, saturation and hue, in this order.

    With s = `strength`, and factors drawn uniformly from [1 - s, 1 + s], an image is
    multiplied by the first, moved away from its mean grey by the second and from each
    pixel's grey by the third; its hue turns by up to s of the circle. After each change
    it is cut to [0, 1].

    Args:
      key: of this batch.
      images: [batch_size, height, width, channels] in [0, 1]; 1 or 3 channels. Grey
        images have neither saturation nor hue.
      strength: in [0, 0.5].

    Returns:
      The same shape and dtype.

    Raises:
      ValueError: if the strength is out of range or the channels are neither.

    References:
      torchvision's ColorJitter, whose order is random.
    """
    if not 0 <= strength <= 0.5:
        raise ValueError(f"strength must be in [0, 0.5], got {strength}.")
    batch_size, _, _, channels = images.shape
    if channels not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {channels}.")
    brightness, contrast, saturation, hue = jax.random.uniform(
        key, (batch_size, 4), images.dtype, -strength, strength
    ).T[..., None, None, None]

    def away_from(centre: jax.Array, by: jax.Array, images: jax.Array) -> jax.Array:
        return (centre + (1 + by) * (images - centre)).clip(0, 1)

    images = away_from(jnp.zeros_like(images), brightness, images)
    means = _grey(images).mean(axis=(1, 2, 3), keepdims=True)
    images = away_from(means, contrast, images)
    if channels == 1:
        return images
    images = away_from(_grey(images), saturation, images)
    return _turn_hue(images, hue)


def make_augment(
    image_shape: tuple[int, int, int],
    *,
    flip: bool,
    crop: bool = True,
    jitter: float = 0.0,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Composes the training augmentation: crop, then flip, then colours.

    Args:
      image_shape: (height, width, channels). Crops move by up to an eighth of the
        smaller side, at least 1 pixel: 4 for CIFAR-10.
      flip: whether to mirror; not for digits and letters.
      crop: whether to crop.
      jitter: strength of `colour_jitter`, in [0, 0.5]; 0 leaves the colours.

    Returns:
      (key, images [batch_size, height, width, channels]) -> images.

    Raises:
      ValueError: if images of this shape are too small to crop.

    References:
      Li et al., Federated Learning on Non-IID Data Silos: An Experimental Study,
      ICDE 2022, https://arxiv.org/abs/2102.02079, published code.
    """
    side = min(image_shape[:2])
    padding = max(1, side // 8)
    if crop and padding >= side:
        raise ValueError(f"image_shape must be at least 2 by 2, got {image_shape}.")

    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        crop_key, flip_key, jitter_key = jax.random.split(key, 3)
        if crop:
            images = random_crop(crop_key, images, padding)
        if flip:
            images = random_flip(flip_key, images)
        if jitter:
            images = colour_jitter(jitter_key, images, jitter)
        return images

    return augment


def normalise(images: jax.Array, name: str) -> jax.Array:
    """Subtracts the mean of each channel and divides by its standard deviation.

    Args:
      images: [..., channels] float32 in [0, 1].
      name: a key of `NORMALISATIONS`; `none` returns the images as they are.

    Returns:
      The same shape, float32.

    Raises:
      ValueError: if the name is unknown or the number of channels does not fit.
    """
    if name not in NORMALISATIONS:
        known = ", ".join(NORMALISATIONS)
        raise ValueError(f"normalize must be one of {known}, got {name!r}.")
    mean, std = NORMALISATIONS[name]
    if not mean:
        return images
    if images.shape[-1] != len(mean):
        raise ValueError(
            f"normalize {name!r} needs {len(mean)} channels, got {images.shape[-1]}."
        )
    shape = (1,) * (images.ndim - 1) + (len(mean),)
    return (images - jnp.array(mean).reshape(shape)) / jnp.array(std).reshape(shape)


def _grey(images: jax.Array) -> jax.Array:
    """Luma of [..., channels] images, [..., 1]: ITU-R BT.601 for three channels."""
    if images.shape[-1] == 1:
        return images
    return images @ jnp.array([[0.299], [0.587], [0.114]], images.dtype)


def _turn_hue(images: jax.Array, turns: jax.Array) -> jax.Array:
    """Turns the hue of [..., 3] images; the largest and smallest colour stay."""
    high = images.max(axis=-1, keepdims=True)
    range_ = high - images.min(axis=-1, keepdims=True)
    red, green, blue = jnp.split(images, 3, axis=-1)
    sixths = jnp.where(
        high == red,
        green - blue,
        jnp.where(high == green, blue - red, red - green),
    ) / jnp.where(range_ > 0, range_, 1)
    sixths += jnp.where(high == red, 0, jnp.where(high == green, 2, 4))
    sixths += 6 * turns
    # How far each colour's place on the circle is from the hue, in sixths.
    places = [(sixths + start) % 6 for start in (5, 3, 1)]
    place = jnp.concatenate(places, axis=-1)
    return high - range_ * jnp.minimum(place, 4 - place).clip(0, 1)


def _reflect(index: jax.Array, size: int) -> jax.Array:
    """Mirrors indices at the edges, which are not repeated."""
    index = jnp.abs(index)
    return jnp.where(index < size, index, 2 * (size - 1) - index)
