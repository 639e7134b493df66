"""Which arrays are floats, and how wide those of a tree are."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_prune.types import Tree


def is_float(x: Any) -> bool:
    """Says whether an array, or its shape, has a floating dtype."""
    return jnp.issubdtype(x.dtype, jnp.floating)


def float_dtype(tree: Tree) -> jnp.dtype:
    """Returns the dtype of a tree's floating arrays; JAX's default if it has none."""
    floats = [x.dtype for x in jax.tree.leaves(tree) if is_float(x)]
    return jnp.result_type(*floats) if floats else jnp.zeros(()).dtype
