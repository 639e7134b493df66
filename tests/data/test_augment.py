"""Augmentation against numpy, and its independence of padding and mapping."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.data.augment import (
    AUGMENTATIONS,
    colour_jitter,
    make_augment,
    normalise,
    random_crop,
    random_flip,
    to_float,
)

crop = jax.jit(random_crop, static_argnums=2)
flip = jax.jit(random_flip)
augment = jax.jit(make_augment((12, 10, 3), flip=True))
IMAGES = jnp.asarray(np.random.default_rng(0).random((16, 12, 10, 3), np.float32))


def test_to_float_scales_bytes_only():
    pixels = jnp.arange(256, dtype=jnp.uint8)
    scaled = to_float(pixels)
    assert scaled.dtype == jnp.float32
    np.testing.assert_allclose(scaled, np.arange(256) / 255, rtol=1e-6)
    np.testing.assert_array_equal(to_float(IMAGES), IMAGES)
    for dtype in (np.int16, np.int32, np.int64, np.uint16, bool):
        with pytest.raises(ValueError, match=f"uint8 or floats, got {np.dtype(dtype)}"):
            to_float(np.zeros((1, 4, 4, 1), dtype))


def test_crops_are_windows_of_the_reflected_image():
    found = set()
    for seed in range(20):
        cropped = np.asarray(crop(jax.random.key(seed), IMAGES, 2))
        padded = np.pad(
            np.asarray(IMAGES), ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect"
        )
        for image, source in zip(cropped, padded, strict=True):
            places = [
                (top, left)
                for top in range(5)
                for left in range(5)
                if (source[top : top + 12, left : left + 10] == image).all()
            ]
            assert len(places) == 1
            found.update(places)
    assert len(found) == 25


def test_flip_mirrors_about_half():
    mirrored = 0
    for seed in range(20):
        flipped = np.asarray(flip(jax.random.key(seed), IMAGES))
        for image, source in zip(flipped, np.asarray(IMAGES), strict=True):
            is_mirrored = (image == source[:, ::-1]).all()
            assert is_mirrored or (image == source).all()
            mirrored += is_mirrored
    # Binomial(320, 1/2): standard deviation 9.
    assert abs(mirrored - 160) < 4 * 9


def jittered(image, brightness, contrast, saturation, hue):
    """Changes one image in float64 by numpy, and its hue by the standard library."""
    grey = np.array([0.299, 0.587, 0.114])
    image = ((1 + brightness) * image).clip(0, 1)
    mean = (image @ grey).mean()
    image = (mean + (1 + contrast) * (image - mean)).clip(0, 1)
    pixel_grey = (image @ grey)[..., None]
    image = (pixel_grey + (1 + saturation) * (image - pixel_grey)).clip(0, 1)
    pixels = []
    for pixel in image.reshape(-1, 3):
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        pixels.append(colorsys.hsv_to_rgb((h + hue) % 1, s, v))
    return np.reshape(pixels, image.shape)


def test_colours_are_jittered_by_the_formula():
    key = jax.random.key(5)
    draws = np.asarray(
        jax.random.uniform(key, (16, 4), jnp.float32, -0.5, 0.5), np.float64
    )
    # Grey pixels have no hue, and the branches of the formula meet at pure colours.
    images = IMAGES.at[0, 0, :4].set(jnp.eye(4, 3)).at[0, 1, 0].set(0.5)
    found = jax.jit(colour_jitter, static_argnums=2)(key, images, 0.5)
    wanted = [
        jittered(np.asarray(image, np.float64), *draw)
        for image, draw in zip(images, draws, strict=True)
    ]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_grey_images_have_no_colours_to_jitter():
    found = colour_jitter(jax.random.key(0), IMAGES[..., :1], 0.5)
    repeated = jnp.repeat(IMAGES[..., :1], 3, axis=-1)
    in_colour = colour_jitter(jax.random.key(0), repeated, 0.5)
    np.testing.assert_allclose(jnp.repeat(found, 3, axis=-1), in_colour, atol=1e-6)
    assert found.min() >= 0 and found.max() <= 1
    assert np.abs(found - IMAGES[..., :1]).max() > 0.1


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_depends_on_place_alone(name):
    augment = make_augment((12, 10, 3), **{"flip": False} | AUGMENTATIONS[name])
    key = jax.random.key(1)
    np.testing.assert_allclose(augment(key, IMAGES[:5]), augment(key, IMAGES)[:5])


def test_an_image_depends_on_the_key_and_its_place_only():
    key = jax.random.key(1)
    whole = augment(key, IMAGES)
    np.testing.assert_array_equal(augment(key, IMAGES[:5]), whole[:5])
    others = IMAGES.at[8:].set(0)
    np.testing.assert_array_equal(augment(key, others)[:8], whole[:8])
    assert (augment(jax.random.key(2), IMAGES) != whole).any()


def test_mapping_over_clients_changes_nothing():
    keys = jax.random.split(jax.random.key(0), 2)
    clients = jnp.stack([IMAGES, IMAGES[::-1]])
    mapped = jax.jit(jax.vmap(augment))(keys, clients)
    for client in range(2):
        alone = augment(keys[client], clients[client])
        np.testing.assert_array_equal(alone, mapped[client])


def test_the_options_of_make_augment():
    key = jax.random.key(3)
    nothing = make_augment((12, 10, 3), flip=False, crop=False)
    np.testing.assert_array_equal(nothing(key, IMAGES), IMAGES)
    crop_key, flip_key, _ = jax.random.split(key, 3)
    flipped = jax.jit(make_augment((12, 10, 3), flip=True, crop=False))(key, IMAGES)
    np.testing.assert_array_equal(flipped, flip(flip_key, IMAGES))
    # An eighth of the smaller side, 10, is 1 pixel; of CIFAR-10's 32 it is 4.
    cropped = jax.jit(make_augment((12, 10, 3), flip=False))(key, IMAGES)
    np.testing.assert_array_equal(cropped, crop(crop_key, IMAGES, 1))
    large = jnp.asarray(np.random.default_rng(1).random((4, 32, 32, 3), np.float32))
    cropped = jax.jit(make_augment((32, 32, 3), flip=False))(key, large)
    np.testing.assert_array_equal(cropped, crop(crop_key, large, 4))


def test_normalise():
    mean = np.array([0.4914, 0.4822, 0.4465])
    std = np.array([0.2470, 0.2435, 0.2616])
    normal = normalise(IMAGES, "cifar10")
    np.testing.assert_allclose(
        normal, (np.asarray(IMAGES) - mean) / std, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_array_equal(normalise(IMAGES, "none"), IMAGES)
    with jax.enable_x64(True):
        wide = normalise(IMAGES, "cifar10")
    assert wide.dtype == jnp.float32
    np.testing.assert_array_equal(wide, normal)


def test_gradients_pass_through():
    # A crop and a flip only move pixels: each output has gradient 1.
    grad = jax.jit(jax.grad(lambda x: augment(jax.random.key(0), x).sum()))(IMAGES)
    np.testing.assert_allclose(grad.sum(), IMAGES.size, rtol=1e-6)


def test_limits():
    with pytest.raises(ValueError, match=r"padding must be in \[0, 9\], got 10"):
        random_crop(jax.random.key(0), IMAGES, 10)
    with pytest.raises(ValueError, match=r"at least 2 by 2, got \(1, 4, 3\)"):
        make_augment((1, 4, 3), flip=True)
    with pytest.raises(ValueError, match=r"jitter must be in \[0, 0.5\], got 0.6"):
        make_augment((4, 4, 3), flip=True, jitter=0.6)
    with pytest.raises(ValueError, match=r"1 or 3 channels with jitter, got \(4, 4, 2"):
        make_augment((4, 4, 2), flip=True, jitter=0.5)
    with pytest.raises(ValueError, match=r"strength must be in \[0, 0.5\], got 0.6"):
        colour_jitter(jax.random.key(0), IMAGES, 0.6)
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        colour_jitter(jax.random.key(0), IMAGES[..., :2], 0.5)
    with pytest.raises(ValueError, match="one of none, cifar10, got 'mnist'"):
        normalise(IMAGES, "mnist")
    with pytest.raises(ValueError, match="needs 3 channels, got 1"):
        normalise(IMAGES[..., :1], "cifar10")
