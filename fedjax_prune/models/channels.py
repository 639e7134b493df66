"""Functions that find the entries of each channel in a model's arrays.

A model describes its channels once, in `channel_groups`. Masking channels, removing
them physically and counting what that saves read only this description.

A slot names an array by its path in the model's tree. In other trees that contain one
like it, such as momenta, control variates and the rows of all clients, which have a
leading axis, that is the end of the array's path. Of several slots whose paths the path
of an array ends in, the longest name it.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.layers import ChannelGroup, Slot
from fedjax_prune.types import Tree

Path = tuple[str, ...]

ENTRIES: tuple[Path, ...] = (
    ("bias",),
    ("norm", "scale"),
    ("norm", "bias"),
    ("norm", "mean"),
    ("norm", "var"),
    ("gate", "kernel"),
    ("gate", "bias"),
    ("gate", "alive"),
)
"""Ends of the paths of what a layer has for each channel, beside its kernel."""


def written_by(layer: str, start: int = 0) -> tuple[Slot, tuple[Slot, ...]]:
    """Gives the slots of the channels that a GatedConv or a dense layer writes.

    Args:
      layer: path of its parameters, joined by "/".
      start: place of the group's first channel among those of the layer.

    Returns:
      The producer and the entries.
    """
    path = tuple(layer.split("/"))
    return (
        Slot((*path, "kernel"), -1, start),
        tuple(Slot((*path, *entry), -1, start) for entry in ENTRIES),
    )


def read_by(layer: str, start: int = 0, repeats: int = 1) -> tuple[Slot, ...]:
    """Gives the slots of the channels that a GatedConv or a dense layer reads."""
    path = tuple(layer.split("/"))
    return (
        Slot((*path, "kernel"), -2, start, repeats),
        Slot((*path, "gate", "kernel"), -2, start),
    )


def between(layer: str, size: int, reader: str, *, repeats: int = 1) -> ChannelGroup:
    """Describes the channels that one layer writes and one other reads."""
    producer, entries = written_by(layer)
    return ChannelGroup(
        layer, size, (producer,), entries, read_by(reader, repeats=repeats)
    )


def map_slots(
    tree: Tree,
    groups: Sequence[ChannelGroup],
    function: Callable[..., Any],
    *others: Tree,
) -> Tree:
    """Maps a function over all arrays, together with the channels that they hold.

    Args:
      tree: nested containers of arrays, whose paths end in those of slots.
      groups: the channel groups of the model.
      function: (array, the groups and slots that name it, arrays of the others) ->
        array.
      others: trees of the same structure.

    Returns:
      The tree of the function's results.
    """
    slots: dict[Path, list[tuple[ChannelGroup, Slot]]] = {}
    for group in groups:
        for slot in group.slots:
            slots.setdefault(slot.path, []).append((group, slot))
    lengths = sorted({len(path) for path in slots}, reverse=True)

    def visit(path: tuple[Any, ...], leaf: Any, *rest: Any) -> Any:
        names = _names(path)
        ends = [names[-n:] for n in lengths]
        found = next((slots[end] for end in ends if end in slots), [])
        return function(leaf, found, *rest)

    return jax.tree_util.tree_map_with_path(visit, tree, *others)


def drop_channels(
    masks: Tree, groups: Sequence[ChannelGroup], alive: Mapping[str, jax.Array]
) -> Tree:
    """Sets masks to False in every slice of the channels that are not alive.

    Args:
      masks: bool, like the parameters.
      groups: the groups that lose channels.
      alive: name of each group -> [size] bool.

    Returns:
      The new masks.
    """

    def drop(mask: jax.Array, slots: list[tuple[ChannelGroup, Slot]]) -> jax.Array:
        for group, slot in slots:
            mask = mask & _spread(alive[group.name], slot, mask)
        return mask

    return map_slots(masks, groups, drop)


def find_leaf(tree: Tree, path: Path) -> Any | None:
    """Gives the array at a path of nested dictionaries, or None if there is none."""
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def array_name(path: tuple[Any, ...]) -> str:
    """The name of an array: the keys on the way to it, joined by "/".

    Args:
      path: from `jax.tree_util.tree_leaves_with_path`.
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def alive_channels(masks: Tree, group: ChannelGroup) -> Any:
    """Finds the channels of a group that masks leave alive, [size] bool.

    A channel is not alive if masks prune all that it is computed from: its slice of
    every producer, its bias and its norm. Then its value is 0.
    """
    return _any_kept(masks, group, (*group.producers, *group.entries))


def trained_channels(masks: Tree, group: ChannelGroup) -> Any:
    """Finds the channels of a group of which a round may move a parameter, [size] bool.

    These are the alive ones, and those that masks leave a reader: the server's momentum
    and the clients' weight decay move it also where its input is 0.
    """
    return _any_kept(masks, group, group.slots)


def _any_kept(masks: Tree, group: ChannelGroup, slots: Sequence[Slot]) -> Any:
    """Finds the channels of which masks keep an entry in any of the slots."""
    flags = []
    for slot in slots:
        mask = find_leaf(masks, slot.path)
        if mask is not None:
            axis = slot.axis + mask.ndim
            part = mask.any(tuple(i for i in range(mask.ndim) if i != axis))
            part = part.reshape(slot.repeats, -1).any(0)
            flags.append(part[slot.start : slot.start + group.size])
    return functools.reduce(operator.or_, flags)


def match_masks(
    function: Callable[..., Any], masks: Tree, tree: Tree, *others: Tree
) -> Tree:
    """Maps a function over the masked arrays, which the ends of their paths name.

    Args:
      function: (mask, array, arrays of the others) -> array.
      masks: nested dictionaries like the parameters.
      tree: nested containers of trees like the parameters, with leading axes or
        without.
      others: trees of the same structure.

    Returns:
      The tree, in which only masked arrays are changed.
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
    """Gives the keys of a tree's path; a field of a record is known by its name."""
    return tuple(
        str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", ""))))
        for entry in path
    )


def _spread(flags: jax.Array, slot: Slot, mask: jax.Array) -> jax.Array:
    """Shapes the flags of a group's channels to broadcast against a slot's array."""
    axis = slot.axis + mask.ndim
    period = jnp.ones(mask.shape[axis] // slot.repeats, bool)
    period = period.at[slot.start : slot.start + flags.shape[0]].set(flags)
    shape = [1] * mask.ndim
    shape[axis] = mask.shape[axis]
    return jnp.tile(period, slot.repeats).reshape(shape)
