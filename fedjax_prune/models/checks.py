"""Checks of the Flax modules that a task is made of, and of what they return."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_prune.layers import ChannelGroup, Layer, Slot
from fedjax_prune.models.channels import array_name, map_slots
from fedjax_prune.models.costs import layer_entries, num_weights
from fedjax_prune.types import Tree, Variables

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
                    f"{array_name(path)}: keep integers in the collection batch_stats."
                )
    for collection, tree in collections.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4:
                raise ValueError(
                    f"{collection} of {name} must be float32 or wider, in which they "
                    f"are added up over clients, got {leaf.dtype} at "
                    f"{array_name(path)}: give dtype to activations alone, and not to "
                    "param_dtype."
                )


def check_state(model: nn.Module, before: Tree, after: Tree) -> None:
    """Refuses a step that changes the shapes or dtypes of the model state.

    Raises:
      ValueError: if an array changes; it names the model and the array's path.
    """
    old, new = (
        {
            array_name(path): leaf
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


def check_layers(
    model: nn.Module, layers: Sequence[Layer], variables: Variables
) -> None:
    """Refuses layers that are not those of the arrays, or are listed twice.

    Args:
      model: a linen module.
      layers: as it lists them.
      variables: its arrays, or their shapes.

    Raises:
      ValueError: naming the model and the layer.
    """
    shared, personal = (
        {
            array_name(path): math.prod(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (variables.params, variables.personal)
    )
    names = [layer.name for layer in layers]
    for layer in layers:
        where = f"layers of {name_of(model)}: {layer.name}"
        if names.count(layer.name) > 1:
            raise ValueError(
                f"{where} must be listed once, with the positions of all its uses, got "
                f"it {names.count(layer.name)} times."
            )
        # They are not added up: a gate lies in the module of its layer.
        entries = layer_entries(layer, names, shared)
        entries = entries or layer_entries(layer, names, personal) or 0
        if entries != num_weights(layer):
            raise ValueError(
                f"{where} must have in_channels * out_channels * taps weights, "
                f"{num_weights(layer)}, got {entries} in the kernels of that name; the "
                f"arrays are {', '.join(shared | personal)}."
            )


def check_groups(
    model: nn.Module, groups: Sequence[ChannelGroup], variables: Variables
) -> None:
    """Refuses channels that cannot be removed, and slots that do not fit the arrays.

    Args:
      model: a linen module.
      groups: of the model.
      variables: its arrays, or their shapes.

    Raises:
      ValueError: if the model has no method `layers` or no attribute `left`, if a
        producer is no parameter, no consumer is an array, a slot names several arrays
        or one by less than its whole path, or an axis has not the channels of its
        group; it names the model and the group.
    """
    name = name_of(model)
    attributes = {field.name for field in dataclasses.fields(model)}
    if "left" not in attributes or not callable(getattr(model, "layers", None)):
        raise ValueError(
            f"{name} has channel_groups, so it must have the method layers and the "
            "attribute left, which says how many channels of each group were not "
            "removed."
        )
    named = _named(groups, variables)
    leaves = jax.tree_util.tree_leaves_with_path(variables.params)
    paths = [array_name(path) for path, _ in leaves]
    known = ", ".join(paths)
    for group in groups:
        where = f"channel_groups of {name}: {group.name}"
        for slot in group.slots:
            found = named.get((group.name, slot), {})
            _check_slot(where, group, slot, found)
            end = "/".join(slot.path)
            ended = [path.partition("/")[2] for path in found]
            ended += [path for path in paths if f"/{path}".endswith(f"/{end}")]
            # Slots are looked up from the root, and of two ends the longer one counts.
            if ended and end not in ended:
                raise ValueError(
                    f"{where} must name {ended[0]} by its whole path, got {end}."
                )
        for slot in group.producers:
            path = "/".join(slot.path)
            if f"params/{path}" not in named.get((group.name, slot), {}):
                raise ValueError(
                    f"{where} must be written by one of {known}, got {path}."
                )
        readers = ["/".join(slot.path) for slot in group.consumers]
        if readers and not any((group.name, slot) in named for slot in group.consumers):
            raise ValueError(
                f"{where} must be read by one of {known}, got {', '.join(readers)}."
            )


def check_smaller(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    variables: Variables,
    shapes_of: Callable[[nn.Module], Variables],
) -> None:
    """Refuses groups that leave out an array, or pixels of it, that loses channels.

    Args:
      model: a linen module.
      groups: of the model, checked by `check_groups`.
      variables: its arrays, or their shapes.
      shapes_of: a model of the same class -> its arrays' shapes.

    Raises:
      ValueError: if an array of the model with one channel less of each group that has
        several has not the shape that the groups say; it names the model and the array.
    """
    left = {group.name: group.size - (group.size > 1) for group in groups}
    try:
        smaller = shapes_of(model.clone(left=left))
    except Exception:
        # Some numbers of channels may not be, as a group norm divides them by its own.
        return

    def without_one(leaf: Any, slots: list[tuple[ChannelGroup, Slot]]) -> list[int]:
        shape = list(leaf.shape)
        for group, slot in slots:
            shape[slot.axis] -= slot.repeats * (group.size > 1)
        return shape

    expected, got = (
        {
            array_name(path): shape
            for path, shape in jax.tree_util.tree_leaves_with_path(
                map_slots(tree, named, without_one),
                is_leaf=lambda x: isinstance(x, list),
            )
        }
        for tree, named in ((variables, groups), (smaller, ()))
    )
    for path in expected | got:
        if expected.get(path) != got.get(path):
            raise ValueError(
                f"channel_groups of {name_of(model)} must name all that a channel has: "
                f"with one channel less of each group {path} has the shape "
                f"{got.get(path)}, but the groups say {expected.get(path)}."
            )


def _check_slot(
    where: str, group: ChannelGroup, slot: Slot, found: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuses a slot that names several arrays, or one with another axis.

    Args:
      where: model and group, for the messages.
      group: of the slot.
      slot: of the group.
      found: path -> shape of the arrays that it names.

    Raises:
      ValueError: if it does.
    """
    if len(found) > 1:
        raise ValueError(
            f"{where} must name one array by {'/'.join(slot.path)}, got "
            f"{' and '.join(found)}: give one of the modules another name."
        )
    for path, shape in found.items():
        fits = -len(shape) <= slot.axis < 0 and shape[slot.axis] % slot.repeats == 0
        stop = slot.start + group.size
        if not fits or stop > shape[slot.axis] // slot.repeats:
            raise ValueError(
                f"{where} must have its {group.size} channels on an axis of {path} "
                f"{list(shape)}, got axis {slot.axis}, start {slot.start} and repeats "
                f"{slot.repeats}."
            )


def _named(
    groups: Sequence[ChannelGroup], variables: Variables
) -> dict[tuple[str, Slot], dict[str, tuple[int, ...]]]:
    """Name of a group and one of its slots -> path and shape of what the slot names."""
    arrays = {
        "params": variables.params,
        "gates": variables.personal,
        "batch_stats": variables.model_state,
    }
    paths = jax.tree_util.tree_map_with_path(lambda path, _: array_name(path), arrays)
    named: dict[tuple[str, Slot], dict[str, tuple[int, ...]]] = {}

    def note(leaf: Any, slots: list[tuple[ChannelGroup, Slot]], path: str) -> Any:
        for group, slot in slots:
            named.setdefault((group.name, slot), {})[path] = leaf.shape
        return leaf

    map_slots(arrays, groups, note, paths)
    return named
