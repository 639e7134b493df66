"""Which entries of a model's arrays belong to which channel.

A model says it once, in `channel_groups`; removing channels by masks, removing them
physically and counting what that saves read only this.

An array is named by the end of its path, so that whatever has the model's structure is
meant as well: momenta, control variates, rows of all clients with a leading axis.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.layers import ChannelGroup, Slot
from fedjax_prune.types import Tree

Path = tuple[str, ...]


def written_by(layer: str, start: int = 0) -> tuple[Slot, tuple[Slot, ...]]:
    """The slots of the channels that a GatedConv or a dense layer writes.

    Args:
      layer: path of its parameters, joined by "/".
      start: of the group's first channel in the layer.

    Returns:
      The producer and the entries.
    """
    path = tuple(layer.split("/"))
    entries = (
        *(("bias",), ("norm", "scale"), ("norm", "bias")),
        *(("norm", "mean"), ("norm", "var")),
        *(("gate", "kernel"), ("gate", "bias"), ("gate", "alive")),
    )
    return (
        Slot((*path, "kernel"), -1, start),
        tuple(Slot((*path, *entry), -1, start) for entry in entries),
    )


def read_by(layer: str, start: int = 0, repeats: int = 1) -> tuple[Slot, ...]:
    """The slots of the channels that a GatedConv or a dense layer reads."""
    path = tuple(layer.split("/"))
    return (
        Slot((*path, "kernel"), -2, start, repeats),
        Slot((*path, "gate", "kernel"), -2, start),
    )


def between(
    layer: str, size: int, reader: str, *, repeats: int = 1, name: str = ""
) -> ChannelGroup:
    """The channels that one layer writes and one other reads."""
    producer, entries = written_by(layer)
    return ChannelGroup(
        name or layer, size, (producer,), entries, read_by(reader, repeats=repeats)
    )


def map_slots(
    tree: Tree,
    groups: Sequence[ChannelGroup],
    function: Callable[..., Any],
    *others: Tree,
) -> Tree:
    """Maps a function over all arrays, with the channels that they hold.

    Args:
      tree: nested containers that end in the paths of slots.
      groups: of the model.
      function: (array, the groups and slots that name it, arrays of the others) ->
        array.
      others: trees of the same structure.
    """
    slots: dict[Path, list[tuple[ChannelGroup, Slot]]] = {}
    for group in groups:
        for slot in group.slots:
            slots.setdefault(slot.path, []).append((group, slot))
    lengths = {len(path) for path in slots}

    def visit(path: tuple[Any, ...], leaf: Any, *rest: Any) -> Any:
        names = _names(path)
        ends = {names[-n:] for n in lengths}
        found = [pair for end in ends for pair in slots.get(end, ())]
        return function(leaf, found, *rest)

    return jax.tree_util.tree_map_with_path(visit, tree, *others)


def drop_channels(
    masks: Tree, groups: Sequence[ChannelGroup], alive: Mapping[str, jax.Array]
) -> Tree:
    """Masks with every slice of the channels that are not alive False.

    Args:
      masks: bool, like the parameters.
      groups: those that lose channels.
      alive: [size] bool for the name of each group.
    """

    def drop(mask: jax.Array, slots: list[tuple[ChannelGroup, Slot]]) -> jax.Array:
        for group, slot in slots:
            mask = mask & _spread(alive[group.name], slot, mask)
        return mask

    return map_slots(masks, groups, drop)


def find_leaf(tree: Tree, path: Path) -> Any | None:
    """The array at a path of nested dictionaries, None if there is none."""
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def alive_channels(masks: Tree, group: ChannelGroup) -> Any:
    """Says which channels of a group masks have left: [size] bool.

    A channel is gone when all that it is computed from is pruned: its slice of every
    producer, its bias and its norm. Its value is then 0.
    """
    flags = []
    for slot in (*group.producers, *group.entries):
        mask = find_leaf(masks, slot.path)
        if mask is not None:
            axis = slot.axis + mask.ndim
            part = mask.any(tuple(i for i in range(mask.ndim) if i != axis))
            flags.append(part[slot.start : slot.start + group.size])
    alive = flags[0]
    for flag in flags[1:]:
        alive = alive | flag
    return alive


def match_masks(
    function: Callable[..., Any], masks: Tree, tree: Tree, *others: Tree
) -> Tree:
    """Maps a function over the arrays that are masked, by the ends of their paths.

    Args:
      function: (mask, array, arrays of the others) -> array.
      masks: nested dictionaries like the parameters.
      tree: containers of trees like the parameters, with leading axes or without;
        other arrays stay.
      others: trees of the same structure.
    """
    known = {
        _names(path): mask for path, mask in jax.tree_util.tree_leaves_with_path(masks)
    }
    lengths = sorted({len(path) for path in known}, reverse=True)

    def visit(path: tuple[Any, ...], leaf: Any, *rest: Any) -> Any:
        names = _names(path)
        for length in lengths:
            mask = known.get(names[-length:])
            if mask is not None and np.shape(leaf)[-mask.ndim :] == mask.shape:
                return function(mask, leaf, *rest)
        return leaf

    return jax.tree_util.tree_map_with_path(visit, tree, *others)


def _names(path: tuple[Any, ...]) -> Path:
    """The keys of a tree's path; fields of records count by name."""
    return tuple(
        str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", ""))))
        for entry in path
    )


def _spread(flags: jax.Array, slot: Slot, mask: jax.Array) -> jax.Array:
    """Flags of a group's channels, shaped to broadcast against a slot's array."""
    axis = slot.axis + mask.ndim
    period = jnp.ones(mask.shape[axis] // slot.repeats, bool)
    period = period.at[slot.start : slot.start + flags.shape[0]].set(flags)
    shape = [1] * mask.ndim
    shape[axis] = mask.shape[axis]
    return jnp.tile(period, slot.repeats).reshape(shape)
