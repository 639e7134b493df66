"""Enforcing masks: on parameters, local steps, channel statistics and gates."""

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_prune.engine.transforms import make_transformation
from fedjax_prune.models.channels import alive_channels, drop_channels, match_masks
from fedjax_prune.types import Task, Tree


def apply_masks(masks: Tree, params: Tree) -> Tree:
    """Sets the parameters to 0 where the masks prune.

    Args:
      masks: bool, of the shapes of `params`, False = pruned.
      params: arrays; their dtypes stay.

    Examples:
      >>> masks = {"w": jnp.array([True, False])}
      >>> apply_masks(masks, {"w": jnp.array([1.5, 2.5])})["w"].tolist()
      [1.5, 0.0]
    """
    chex.assert_trees_all_equal_shapes(masks, params)
    return jax.tree.map(lambda m, p: jnp.where(m, p, 0), masks, params)


def gate_flags(task: Task, masks: Tree) -> Tree:
    """Makes `Variables.alive`: for every gate, which channels the masks have left.

    Args:
      task: gated or not.
      masks: bool, like the parameters.

    Returns:
      bool, [channels] for each gate; `{}` if the model does not say what its channels
      are.
    """
    if not task.groups:
        return {}
    gates = jax.tree.map(
        lambda gate: {"alive": gate["bias"]} if isinstance(gate, dict) else {},
        task.shapes.personal,
        is_leaf=lambda tree: isinstance(tree, dict) and "bias" in tree,
    )
    return alive_entries(task, masks, gates)


def alive_entries(task: Task, masks: Tree, tree: Tree) -> Tree:
    """Says which entries belong to channels that the masks have left.

    Args:
      task: its groups say what belongs to a channel.
      masks: bool, like the parameters.
      tree: of any arrays of the model, such as batch statistics.

    Returns:
      bool, like `tree`, False in removed channels.
    """
    ones = optax.tree.ones_like(tree, bool)
    groups = task.groups or ()
    alive = {group.name: alive_channels(masks, group) for group in groups}
    return drop_channels(ones, groups, alive)


def keep_alive(task: Task, masks: Tree, new: Tree, old: Tree) -> Tree:
    """Takes the new tree in the channels that the masks have left, else the old one."""
    return jax.tree.map(jnp.where, alive_entries(task, masks, old), new, old)


def keep_where(masks: Tree, new: Tree, old: Tree) -> Tree:
    """Takes the new tree where the masks keep, the old one where they prune.

    Args:
      masks: bool, like the parameters.
      new: arrays, of which those with a parameter's path and shape are masked.
      old: like `new`.
    """
    return match_masks(lambda m, n, o: jnp.where(m, n, o), masks, new, old)


def freeze_pruned() -> optax.GradientTransformationExtraArgs:
    """Makes the steps of pruned parameters exactly 0.

    It is the last in its chain, so that no momentum, decay or correction moves pruned
    parameters. Those that start at 0 stay 0.

    Returns:
      A transformation without state. Its `update` needs the keyword `masks`, a bool
      tree like the updates, False = pruned.
    """

    def update(updates, state, params=None, *, masks, **extra_args):
        del params, extra_args
        return jax.tree.map(lambda m, u: jnp.where(m, u, 0), masks, updates), state

    return make_transformation(update)
