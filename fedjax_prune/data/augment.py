"""Turns stored images into what a model sees, on the device.

What happens to an image depends on the key and its place in the batch alone, so
more padding after it changes nothing.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((), ()),
    # Mean and standard deviation of CIFAR-10's training pixels.
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}


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


def make_augment(
    image_shape: tuple[int, int, int], *, flip: bool, crop: bool = True
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Composes the training augmentation: crop, then flip.

    Args:
      image_shape: (height, width, channels). Crops move by up to an eighth of the
        smaller side, at least 1 pixel: 4 for CIFAR-10.
      flip: whether to mirror; not for digits and letters.
      crop: whether to crop.

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
        crop_key, flip_key = jax.random.split(key)
        if crop:
            images = random_crop(crop_key, images, padding)
        if flip:
            images = random_flip(flip_key, images)
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


def _reflect(index: jax.Array, size: int) -> jax.Array:
    """Mirrors indices at the edges, which are not repeated."""
    index = jnp.abs(index)
    return jnp.where(index < size, index, 2 * (size - 1) - index)
