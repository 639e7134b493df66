"""Functions that make a model's inputs of stored images, on the device.

An image is changed by the key and its place in the batch alone, so more padding after
it changes nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((), ()),
    # These are the mean and standard deviation of CIFAR-10's training pixels.
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
"""Name -> mean and standard deviation of each channel of images in [0, 1]."""

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "crop": {},
    "jitter": {"crop": False, "jitter": 0.5},
    "code": {"crop": False, "jitter": 0.5, "flip": True},
}
"""Name -> arguments of `make_augment`; without `flip`, the data set decides on flips.

FedDP uses `crop`. AutoFLIP's code uses `code`, also for letters and digits.
"""


def to_float(images: jax.Array) -> jax.Array:
    """Scales uint8 images to [0, 1]; float images keep their values.

    Args:
      images: any shape, uint8 or float.

    Returns:
      The same shape, float32.

    Raises:
      ValueError: for other integers: nobody knows how they would have to be scaled.
    """
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be uint8 or floats, got {images.dtype}: make pixels from 0 "
            "to 255 uint8, as with images.astype(np.uint8)."
        )
    return images.astype(jnp.float32)


def as_symbols(text: jax.Array) -> jax.Array:
    """Makes int32 symbols, which a model for text reads, of uint8 symbols."""
    return text.astype(jnp.int32)


TO_INPUT: dict[str, Callable[[jax.Array], jax.Array]] = {
    "image": to_float,
    "text": as_symbols,
    # Vectors are stored as floats, which keep their values.
    "vector": to_float,
}
"""Kind of a data set -> the function that makes a model's inputs of stored bytes."""


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """Pads images by reflection and crops each at a random place.

    Args:
      key: key of this batch.
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
        # Reflected indices need no padded copy, and one gather of whole pixels is the
        # fastest form on a CPU with and without vmap.
        rows = _reflect(jnp.arange(height) + offset[0], height)
        columns = _reflect(jnp.arange(width) + offset[1], width)
        pixels = rows[:, None] * width + columns[None, :]
        return image.reshape(height * width, channels)[pixels]

    return jax.vmap(crop)(images, offsets)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability one half.

    Args:
      key: key of this batch.
      images: [batch_size, height, width, channels].

    Returns:
      The same shape and dtype.
    """
    flips = jax.random.bernoulli(key, shape=images.shape[:1])
    return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)


def colour_jitter(key: jax.Array, images: jax.Array, strength: float) -> jax.Array:
    """Changes each image's brightness, contrast, saturation and hue, in this order.

    Three factors are drawn uniformly from [1 - s, 1 + s] with s = `strength`. The first
    multiplies the image, the second its distance from its mean grey, and the third each
    pixel's distance from its own grey. The hue turns by up to s of the circle. After
    each change the image is cut to [0, 1].

    Args:
      key: key of this batch.
      images: [batch_size, height, width, channels] float in [0, 1], with 1 or 3
        channels. Images of one channel have neither saturation nor hue.
      strength: in [0, 0.5].

    Returns:
      The same shape and dtype.

    Raises:
      ValueError: if the strength is out of range or there are not 1 or 3 channels.

    References:
      torchvision's ColorJitter, which makes these changes in random order.
    """
    _check_jitter("strength", strength)
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
      flip: whether to mirror images; a mirrored digit or letter is another one.
      crop: whether to crop.
      jitter: strength of `colour_jitter`, in [0, 0.5]; 0 leaves the colours.

    Returns:
      (key, images) -> images, [batch_size, height, width, channels] of the same dtype.

    Raises:
      ValueError: if images of this shape are too small to crop or have no colours to
        change, or if `jitter` is out of range.

    References:
      Li et al., Federated Learning on Non-IID Data Silos: An Experimental Study,
      ICDE 2022, https://arxiv.org/abs/2102.02079, published code.

    Examples:
      >>> augment = make_augment((8, 8, 1), flip=False)
      >>> augment(jax.random.key(0), jnp.ones((2, 8, 8, 1))).shape
      (2, 8, 8, 1)
    """
    side = min(image_shape[:2])
    padding = max(1, side // 8)
    if crop and padding >= side:
        raise ValueError(f"image_shape must be at least 2 by 2, got {image_shape}.")
    _check_jitter("jitter", jitter)
    if jitter and image_shape[-1] not in (1, 3):
        raise ValueError(
            f"image_shape must have 1 or 3 channels with jitter, got {image_shape}."
        )

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


def _check_jitter(name: str, strength: float) -> None:
    if not 0 <= strength <= 0.5:
        raise ValueError(f"{name} must be in [0, 0.5], got {strength}.")


def check_normalisation(name: str) -> None:
    """Refuses a name that is not in `NORMALISATIONS`.

    Raises:
      ValueError: if it is not.
    """
    if name not in NORMALISATIONS:
        known = ", ".join(NORMALISATIONS)
        raise ValueError(f"normalize must be one of {known}, got {name!r}.")


def normalise(images: jax.Array, name: str) -> jax.Array:
    """Subtracts the mean of each channel and divides by its standard deviation.

    Args:
      images: [..., channels] float in [0, 1].
      name: a key of `NORMALISATIONS`; `none` returns the images as they are.

    Returns:
      The same shape and dtype.

    Raises:
      ValueError: if the name is unknown or the number of channels does not fit.
    """
    check_normalisation(name)
    mean, std = NORMALISATIONS[name]
    if not mean:
        return images
    if images.shape[-1] != len(mean):
        raise ValueError(
            f"normalize {name!r} needs {len(mean)} channels, got {images.shape[-1]}."
        )
    shape = (1,) * (images.ndim - 1) + (len(mean),)
    centre, scale = (
        jnp.asarray(values, images.dtype).reshape(shape) for values in (mean, std)
    )
    return (images - centre) / scale


def _grey(images: jax.Array) -> jax.Array:
    """Gives the luma [..., 1] of [..., channels] images (ITU-R BT.601)."""
    if images.shape[-1] == 1:
        return images
    return images @ jnp.array([[0.299], [0.587], [0.114]], images.dtype)


def _turn_hue(images: jax.Array, turns: jax.Array) -> jax.Array:
    """Turns the hue of [..., 3] images; a pixel keeps its largest and least value."""
    high = images.max(axis=-1, keepdims=True)
    range_ = high - images.min(axis=-1, keepdims=True)
    red, green, blue = jnp.split(images, 3, axis=-1)
    # Not `high == red`: a compiler may round what it computes twice in two ways, and
    # where two colours are nearly equal, both of their branches have the same hue.
    red_leads, green_leads = (red >= green) & (red >= blue), green >= blue
    sixths = jnp.where(
        red_leads,
        green - blue,
        jnp.where(green_leads, blue - red, red - green),
    ) / jnp.where(range_ > 0, range_, 1)
    sixths += jnp.where(red_leads, 0, jnp.where(green_leads, 2, 4))
    sixths += 6 * turns
    # The distance of each colour's place on the circle from the hue, in sixths.
    places = [(sixths + start) % 6 for start in (5, 3, 1)]
    place = jnp.concatenate(places, axis=-1)
    return high - range_ * jnp.minimum(place, 4 - place).clip(0, 1)


def _reflect(index: jax.Array, size: int) -> jax.Array:
    """Mirrors indices at the edges, without repeating the edges."""
    index = jnp.abs(index)
    return jnp.where(index < size, index, 2 * (size - 1) - index)
