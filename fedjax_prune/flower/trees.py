"""Trees of arrays as records of Flower, one array for each leaf."""

from typing import Any

import jax
import numpy as np
from flwr.app import Array, ArrayRecord

from fedjax_prune.types import Tree


def to_record(tree: Tree, chosen: Tree | None = None) -> ArrayRecord:
    """Makes a record of a tree; the names are the paths of the leaves.

    Args:
      tree: arrays.
      chosen: like `tree`, a bool for each array, whether it is in the record; None is
        all of them.

    Examples:
      >>> list(to_record({"a": np.zeros(2), "b": np.zeros(())}))
      ["['a']", "['b']"]
    """
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    flags = jax.tree.leaves(chosen) if chosen is not None else [True] * len(leaves)
    return ArrayRecord(
        {
            jax.tree_util.keystr(path): Array(np.asarray(leaf))
            for (path, leaf), flag in zip(leaves, flags, strict=True)
            if flag
        }
    )


def from_record(record: ArrayRecord, shapes: Tree, *, fill: bool = False) -> Tree:
    """Reads a tree from a record.

    Args:
      record: as `to_record` makes it.
      shapes: leaves with `shape` and `dtype`, of the tree that is expected.
      fill: whether arrays that the record lacks are 0.

    Returns:
      Arrays of numpy.

    Raises:
      ValueError: if an array is missing, not expected, or of another shape or dtype.

    Examples:
      >>> tree = {"a": np.ones(2, np.float32)}
      >>> from_record(to_record(tree), tree)
      {'a': array([1., 1.], dtype=float32)}
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(shapes)
    expected = {jax.tree_util.keystr(path): leaf for path, leaf in paths}
    if unknown := set(record) - set(expected):
        raise ValueError(
            f"the record has {min(unknown)}, which nobody expects: server and nodes "
            "must have the same configuration and version of the library."
        )

    def read(name: str, leaf: Any) -> np.ndarray:
        if name not in record and fill:
            return np.zeros(leaf.shape, leaf.dtype)
        if name not in record:
            raise ValueError(f"the record lacks {name}.")
        array = record[name].numpy()
        if (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"{name} must be {leaf.dtype}{list(leaf.shape)}, got "
                f"{array.dtype}{list(array.shape)}."
            )
        return array

    leaves = [read(name, leaf) for name, leaf in expected.items()]
    return jax.tree.unflatten(structure, leaves)
