"""Checks of the Flax modules that a task is made of, and of what they return."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_prune.types import Tree

COLLECTIONS = ("params", "gates", "batch_stats", "gate_sums", "alive")
"""The names that the collections of a model may have."""


def name_of(model: nn.Module) -> str:
    """The name of a model's class, of a wrapped NNX module its own."""
    made = getattr(model, "nnx_class", type(model))
    return getattr(getattr(made, "func", made), "__name__", "the model")


def check_logits(model: nn.Module, logits: Any, batch_size: int) -> None:
    """Refuses outputs that are not float logits [batch_size, num_classes].

    Raises:
      ValueError: if they are something else; it names the model and its outputs.
    """
    num_classes = getattr(model, "num_classes", None)
    expected = f"float logits [batch_size, {num_classes or 'num_classes'}]"
    if not isinstance(logits, jax.Array):
        got = f"a {type(logits).__name__}"
    elif (
        not jnp.issubdtype(logits.dtype, jnp.floating)
        or logits.ndim != 2
        or logits.shape != (batch_size, num_classes or logits.shape[1])
    ):
        got = f"{logits.dtype} {list(logits.shape)} for {batch_size} image(s)"
    else:
        return
    raise ValueError(f"{name_of(model)} must return {expected}, got {got}.")


def check_collections(model: nn.Module, collections: Any, takes_mask: bool) -> None:
    """Refuses a model without params, with integer weights or other collections.

    Args:
      model: a linen module.
      collections: as it is initialised.
      takes_mask: whether it is told which examples are real.

    Raises:
      ValueError: if a collection is wrong; it names the model and the collection.
    """
    name = name_of(model)
    for collection in collections:
        if collection not in COLLECTIONS:
            raise ValueError(
                f"The collections of {name} must be params (shared weights), gates "
                f"(personal weights) or batch_stats (other state), got {collection!r}: "
                "move what it holds to one of them."
            )
    if jax.tree.leaves(collections.get("batch_stats", {})) and not takes_mask:
        raise ValueError(
            f"{name} has the collection batch_stats, so it must take example_mask: a "
            "batch norm gets it as mask, because padding may not count."
        )
    if not jax.tree.leaves(collections.get("params", {})):
        raise ValueError(f"{name} must have weights in the collection params.")
    for collection in ("params", "gates"):
        leaves = jax.tree_util.tree_leaves_with_path(collections.get(collection, {}))
        for path, leaf in leaves:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise ValueError(
                    f"{collection} of {name} must be floats, got {leaf.dtype} at "
                    f"{_joined(path)}: keep integers in the collection batch_stats."
                )


def check_state(model: nn.Module, before: Tree, after: Tree) -> None:
    """Refuses a step that changes the shapes or dtypes of the model state.

    Raises:
      ValueError: if an array changes; it names the model and the array's path.
    """
    old, new = (
        {
            _joined(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (before, after)
    )
    for path in old | new:
        kinds = [
            f"{tree[path].dtype} {list(tree[path].shape)}"
            if path in tree
            else "nothing"
            for tree in (old, new)
        ]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"batch_stats of {name_of(model)} must keep their shapes and "
                f"dtypes in a step, got {kinds[1]} from {kinds[0]} at {path}."
            )


def _joined(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
