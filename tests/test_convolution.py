"""The convolution against lax: values and both gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.convolution import convolve
from tests.small_models import draw, fast_jit

CASES = [
    # size, kernel, channels in and out, strides, padding
    ((8, 8), (3, 3), (3, 5), 1, 1),
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

    @fast_jit
    def run(x, kernel):
        y, pullback = jax.vjp(function, x, kernel)
        cotangent = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return y, pullback(cotangent)

    return run(x, kernel)


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
        value_and_gradients(lambda x, k: reference(x, k, strides, padding), x, kernel),
    )


@pytest.mark.parametrize(("strides", "padding"), [(1, "SAME"), (2, 1)])
def test_mapped_over_kernels_equals_one_by_one(strides, padding):
    x = draw((3, 2, 6, 6, 2))
    kernels = draw((3, 3, 3, 2, 4))
    found = value_and_gradients(
        jax.vmap(lambda x, k: convolve(x, k, strides=strides, padding=padding)),
        x,
        kernels,
    )

    def one_by_one(x, kernels):
        pairs = zip(x, kernels, strict=True)
        return jnp.stack([reference(a, b, strides, padding) for a, b in pairs])

    close(found, value_and_gradients(one_by_one, x, kernels))


def test_mapped_convolution_is_a_matrix_product():
    x, kernels = jnp.ones((3, 2, 6, 6, 2)), jnp.ones((3, 3, 3, 2, 4))
    gradient = jax.grad(lambda x, k: convolve(x, k).sum(), argnums=(0, 1))
    text = str(jax.make_jaxpr(jax.vmap(gradient))(x, kernels))
    assert "conv_general_dilated" not in text
    assert "dot_general" in text


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
