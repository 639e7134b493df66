"""The convolution against lax: values and both gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_prune.models import convolution
from fedjax_prune.models.convolution import by_patches, convolve, form_of
from fedjax_prune.models.platforms import ANY
from fedjax_prune.models.winograd import winograd
from tests.small_models import draw

CASES = [
    # size, kernel, channels in and out, strides, padding
    ((8, 6), (3, 3), (48, 5), 1, 1),
    ((8, 8), (3, 3), (49, 2), 1, "VALID"),
    ((2, 2), (3, 3), (64, 3), 1, "SAME"),
    ((7, 8), (3, 3), (48, 2), 1, 1),
    ((8, 6), (3, 3), (8, 5), 1, 1),
    ((9, 7), (5, 5), (9, 3), 1, "SAME"),
    ((9, 7), (5, 3), (8, 3), 1, "VALID"),
    ((5, 6), (4, 5), (8, 2), 1, "SAME"),
    ((8, 8), (3, 3), (3, 5), 1, 1),
    ((7, 9), (5, 5), (3, 6), 1, "VALID"),
    ((6, 8), (5, 5), (1, 5), 1, "SAME"),
    ((8, 8), (3, 3), (4, 2), 2, 1),
    ((8, 8), (3, 3), (4, 2), 2, "SAME"),
    ((7, 5), (3, 3), (2, 3), 2, 1),
    ((7, 6), (3, 2), (1, 1), 1, "VALID"),
    ((9, 8), (5, 5), (2, 2), 3, 2),
    ((6, 6), (2, 2), (3, 4), 2, "VALID"),
    ((1, 1), (3, 3), (6, 2), 1, 1),
]


def reference(x, kernel, strides, padding):
    if isinstance(padding, int):
        padding = ((padding, padding), (padding, padding))
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )


def value_and_gradients(function, x, kernel):
    """Returns the value and its products with a fixed cotangent."""

    @jax.jit
    def run(x, kernel):
        y, pullback = jax.vjp(function, x, kernel)
        cotangent = jnp.asarray(np.cos(np.arange(y.size)).astype(np.float32), y.dtype)
        return y, pullback(cotangent.reshape(y.shape))

    return run(x, kernel)


def exactly(function, x, kernel):
    """The same in float64, whose rounding is far below that of float32."""
    with jax.enable_x64(True):
        doubles = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
        return jax.device_get(value_and_gradients(function, *doubles))


def close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        found,
        expected,
    )


@pytest.mark.parametrize(("size", "window", "channels", "strides", "padding"), CASES)
def test_value_and_gradients_equal_lax(size, window, channels, strides, padding):
    x = draw((2, *size, channels[0]))
    kernel = draw((*window, *channels))
    found = value_and_gradients(
        lambda x, k: convolve(x, k, strides=strides, padding=padding), x, kernel
    )
    close(
        found,
        exactly(lambda x, k: reference(x, k, strides, padding), x, kernel),
    )


@pytest.mark.parametrize(
    ("strides", "padding", "channels"),
    [(1, "SAME", 2), (2, 1, 2), (1, 1, 8), (1, 1, 48)],
)
def test_mapped_over_kernels_equals_one_by_one(strides, padding, channels):
    x = draw((3, 2, 6, 6, channels))
    kernels = draw((3, 3, 3, channels, 4))
    found = value_and_gradients(
        jax.vmap(lambda x, k: convolve(x, k, strides=strides, padding=padding)),
        x,
        kernels,
    )

    def one_by_one(x, kernels):
        pairs = zip(x, kernels, strict=True)
        return jnp.stack([reference(a, b, strides, padding) for a, b in pairs])

    close(found, exactly(one_by_one, x, kernels))


@pytest.mark.parametrize("num_images", [10, 11])
@pytest.mark.parametrize("channels", [3, 9])
def test_images_in_groups_add_up(channels, num_images, monkeypatch):
    """The gradient of a kernel from groups of 4 and 6, and of 4, 4 and 3 images."""
    monkeypatch.setattr(convolution, "BLOCK", 1)
    x, kernel = draw((num_images, 7, 6, channels)), draw((5, 5, channels, 3))
    found = value_and_gradients(convolve, x, kernel)
    close(found, exactly(lambda x, k: reference(x, k, 1, 2), x, kernel))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels=st.tuples(st.sampled_from([1, 3, 8, 48]), st.integers(1, 3)),
    strides=st.integers(1, 2),
    padding=st.sampled_from(["SAME", "VALID", 0, 1, 2]),
)
def test_any_shape_equals_lax(size, window, channels, strides, padding):
    x, kernel = draw((1, *size, channels[0])), draw((*window, *channels))
    found = value_and_gradients(
        lambda x, k: convolve(x, k, strides=strides, padding=padding), x, kernel
    )
    close(
        found,
        value_and_gradients(lambda x, k: reference(x, k, strides, padding), x, kernel),
    )


def test_form_follows_the_table():
    def form(size=(8, 8), window=(3, 3), channels=32, strides=1, **changes):
        x = jnp.zeros((4, *size, channels), changes.get("dtype", jnp.float32))
        kernel = jnp.zeros((*window, channels, 4))
        pads = ((1, 1), (1, 1))
        return form_of(x, kernel, strides, pads, changes.get("platform", "cpu"))

    assert form() == form(channels=128) == "winograd"
    assert form(channels=31) == form(channels=8) == form(window=(5, 5)) == "direct"
    assert form(size=(7, 8)) == form(size=(8, 5)) == "direct"
    assert form(size=(4, 4), window=(5, 5)) == form(channels=7) == "patches"
    assert form(window=(5, 5), channels=1) == "direct"
    assert form(strides=2) == form(window=(1, 1)) == form(channels=129) == "patches"
    assert form(platform="gpu") == form(platform="tpu") == "patches"
    assert form(platform=ANY) == form(platform=ANY, strides=2) == "plain"
    assert form(dtype=jnp.bfloat16) == "patches"


def test_winograd_is_exact_in_float64():
    rng = np.random.default_rng(0)
    pads = ((2, 0), (1, 1))
    with jax.enable_x64(True):
        x, kernel = rng.normal(size=(2, 6, 4, 3)), rng.normal(size=(3, 3, 3, 2))
        found, back = jax.vjp(lambda x, k: winograd(x, k, pads), x, kernel)
        expected, by_autodiff = jax.vjp(
            lambda x, k: by_patches(x, k, 1, pads), x, kernel
        )
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
        cotangent = jnp.asarray(rng.normal(size=found.shape))
        for a, b in zip(back(cotangent), by_autodiff(cotangent), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def compiled_gradient(channels):
    """Lowers the program of three clients with kernels of their own."""
    x, kernels = jnp.ones((3, 4, 6, 6, channels)), jnp.ones((3, 3, 3, channels, 4))
    gradient = jax.grad(lambda x, k: convolve(x, k).sum(), argnums=(0, 1))
    return jax.jit(jax.vmap(gradient)).lower(x, kernels).compile().as_text()


@pytest.mark.parametrize("channels", [2, 48])
def test_mapped_convolution_compiles_to_matrix_products(channels):
    text = compiled_gradient(channels)
    assert " convolution(" not in text and "feature_group" not in text
    assert " dot(" in text


def test_direct_convolutions_take_turns_in_the_fast_layout():
    text = compiled_gradient(8)
    assert "feature_group" not in text and "batch_group" not in text
    labels = re.findall(r" convolution\(.*dim_labels=(\S+?),? ", text)
    assert labels and set(labels) == {"b01f_01io->b01f"}


def test_bad_arguments_are_refused():
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 1))
    with pytest.raises(ValueError, match="2 channels of x, got 3"):
        convolve(x, jnp.ones((3, 3, 3, 1)))
    with pytest.raises(ValueError, match="strides must be at least 1, got 0"):
        convolve(x, kernel, strides=0)
    with pytest.raises(ValueError, match="padding must be at least 0, got -1"):
        convolve(x, kernel, padding=-1)
    with pytest.raises(ValueError, match="padding must be 'SAME', 'VALID' or an int"):
        convolve(x, kernel, padding="FULL")
