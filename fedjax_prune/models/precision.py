"""The precision of a model: what may be rounded to fewer bits, and what may not.

A model's `dtype` is the dtype of its activations. The default `float` is JAX's default:
float32, or float64 with `jax_enable_x64`.

The operands of convolutions and dense layers may be reduced to fewer bits and, with
bfloat16, also the activations between them. These have the dtype of the model but at
least float32: parameters, their gradients and optimiser states, control variates, sums
over clients, norm statistics, gate logits, the last layer, and the loss.
"""

import functools
from contextlib import AbstractContextManager
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fedjax_prune.models.platforms import traced_platform

_FEW_ROWS = 32
"""Most rows of which the gradient of a kernel is a sum of outer products on CPUs."""


class Precision(NamedTuple):
    """The precision in which a model computes.

    Attributes:
      dtype: dtype of the activations.
      products: value of `jax.default_matmul_precision` while the model is traced.
    """

    dtype: jnp.dtype
    products: str


PRECISIONS = {
    # JAX's default is TF32 on NVIDIA and one or several bfloat16 products on TPU.
    "float32": Precision(jnp.dtype(jnp.float32), "highest"),
    "tf32": Precision(jnp.dtype(jnp.float32), "tensorfloat32"),
    "bfloat16": Precision(jnp.dtype(jnp.bfloat16), "highest"),
}
"""Name -> Precision. TF32 differs from float32 on NVIDIA cards only."""


def product_precision(name: str) -> AbstractContextManager:
    """Makes the context in which all programs of a run are traced.

    Args:
      name: a key of PRECISIONS.
    """
    return jax.default_matmul_precision(PRECISIONS[name].products)


def at_least_float32(x: jax.Array) -> jax.Array:
    """Widens a reduced array; float32 and float64 arrays stay as they are."""
    return x.astype(wide(x.dtype))


def wide(dtype: DTypeLike) -> jnp.dtype:
    """Gives the dtype of what a model with activations of `dtype` never reduces."""
    exact = jax.dtypes.canonicalize_dtype(dtype) == jnp.float64
    return jnp.dtype(jnp.float64 if exact else jnp.float32)


def add(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds parameters to activations; their gradient is a sum in the wider dtype.

    Args:
      x: float.
      bias: of the rank of `x`, float32 (float64 with a float64 `x`).

    Returns:
      The sum, dtype of x.
    """
    return (at_least_float32(x) + bias).astype(x.dtype)


def multiply(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies activations as `add` adds to them."""
    return (at_least_float32(x) * factor).astype(x.dtype)


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies by a weight matrix in the precision of `x`.

    Sums and the gradient of the kernel are at least float32 for all operands. The
    gradient is never rounded to the precision of the activations.

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
    kernel_bar = _sum_of_products(rows, rows_bar)
    return x_bar.astype(x.dtype).reshape(x.shape), kernel_bar.astype(kernel.dtype)


matmul.defvjp(_forward, _backward)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b, preferred_element_type=wide(a.dtype))


def _sum_of_products(rows: jax.Array, rows_bar: jax.Array) -> jax.Array:
    """Computes `rows.T @ rows_bar`, the gradient of a kernel.

    Of few rows on a CPU it is written as a sum of outer products, which XLA computes
    where the gradient is used. So the step of a kernel is one pass over the weights,
    and the gradient is never in memory.
    """
    if not 0 < len(rows) <= _FEW_ROWS or traced_platform() != "cpu":
        return _dot(rows.T, rows_bar)
    pairs = zip(at_least_float32(rows), at_least_float32(rows_bar), strict=True)
    return functools.reduce(
        jnp.add, (row[:, None] * other[None] for row, other in pairs)
    )
