"""What may be rounded to fewer bits, and what is at least float32.

A model's `dtype` is that of its activations. `float`, the default, is JAX's own:
float32, or float64 where `jax_enable_x64` is set. What is never reduced has this dtype,
too, but at least float32.

Reduced: the operands of convolutions and dense layers and, with bfloat16, the
activations between them. Never reduced: parameters, their gradients and optimiser
states, control variates, sums over clients, norm statistics, gate logits, the last
layer, the loss.
"""

from contextlib import AbstractContextManager
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class Precision(NamedTuple):
    """How a model computes.

    Attributes:
      dtype: of the activations.
      products: what `jax.default_matmul_precision` is set to while tracing.
    """

    dtype: jnp.dtype
    products: str


PRECISIONS = {
    # JAX's own default is TF32 on NVIDIA and passes of bfloat16 on TPU.
    "float32": Precision(jnp.dtype(jnp.float32), "highest"),
    "tf32": Precision(jnp.dtype(jnp.float32), "tensorfloat32"),
    "bfloat16": Precision(jnp.dtype(jnp.bfloat16), "highest"),
}
"""name -> Precision. TF32 differs from float32 on NVIDIA cards only."""


def product_precision(name: str) -> AbstractContextManager:
    """The context in which everything of a run is traced.

    Args:
      name: a key of PRECISIONS.
    """
    return jax.default_matmul_precision(PRECISIONS[name].products)


def at_least_float32(x: jax.Array) -> jax.Array:
    """Widens a reduced array; float32 and float64 pass."""
    return x.astype(wide(x.dtype))


def wide(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of what is never reduced in a model with activations of `dtype`."""
    exact = jax.dtypes.canonicalize_dtype(dtype) == jnp.float64
    return jnp.dtype(jnp.float64 if exact else jnp.float32)


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies by a weight matrix in the precision of `x`.

    Sums are float32 whatever the operands, and so is the gradient of the kernel:
    it is never rounded to the precision of the activations.

    Args:
      x: [..., in_features] float.
      kernel: [in_features, out_features] float32 (float64 with a float64 `x`).

    Returns:
      [..., out_features], dtype of x.
    """
    return _dot(x, kernel.astype(x.dtype)).astype(x.dtype)


def _forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return matmul(x, kernel), (x, kernel)


def _backward(
    residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    rows = x.reshape(-1, x.shape[-1])
    rows_bar = cotangent.reshape(-1, cotangent.shape[-1])
    x_bar = _dot(rows_bar, kernel.astype(x.dtype).T)
    kernel_bar = _dot(rows.T, rows_bar)
    return x_bar.astype(x.dtype).reshape(x.shape), kernel_bar.astype(kernel.dtype)


matmul.defvjp(_forward, _backward)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b, preferred_element_type=wide(a.dtype))
