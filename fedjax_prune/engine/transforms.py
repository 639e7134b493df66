"""Optax transformations that federated algorithms add to the client's chain.

What changes from round to round (the anchor, the control variates, the step
size) comes in as keyword arguments of `update`, so that a chain is built once,
compiled once and has no hidden state.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_prune.fields import at_least, checked
from fedjax_prune.types import Tree

Mu = Annotated[float, at_least(0), "Weight of the proximal term; 0 is FedAvg."]


@checked
def add_proximal(mu: Mu) -> optax.GradientTransformationExtraArgs:
    """Pulls every local step towards the parameters the round started from.

    Adds `mu * (params - anchor)` to the gradient: the gradient of the penalty
    `mu / 2 * ||params - anchor||^2`. With `mu == 0` the gradient is unchanged.

    Returns:
      A transformation without state. Its `update` needs `params` and the keyword
      `anchor`, a tree like `params`.

    Raises:
      ValueError: if `mu` is out of its range, or if `update` is called without
        `params`.

    References:
      Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020,
      section 3.2, https://arxiv.org/abs/1812.06127.
    """

    def update(updates, state, params=None, *, anchor, **extra_args):
        del extra_args
        if params is None:
            raise ValueError("add_proximal needs params: call update(..., params).")
        if mu == 0:
            return updates, state
        pulled = jax.tree.map(lambda g, p, a: g + mu * (p - a), updates, params, anchor)
        return pulled, state

    # Optax types `update` without the keywords that it passes on.
    return optax.GradientTransformationExtraArgs(
        optax.init_empty_state,
        update,  # pyright: ignore[reportArgumentType]
    )


def add_control_variates() -> optax.GradientTransformationExtraArgs:
    """Corrects the client's drift: adds `server_control - client_control`.

    Placed before the momentum buffer, so the optimiser sees `g - c_k + c`.

    Returns:
      A transformation without state. Its `update` needs the keywords
      `server_control` and `client_control`, trees like the updates.

    References:
      Karimireddy et al., SCAFFOLD, ICML 2020, equation 3,
      https://arxiv.org/abs/1910.06378.
    """

    def update(
        updates, state, params=None, *, server_control, client_control, **extra_args
    ):
        del params, extra_args
        corrected = jax.tree.map(
            lambda g, c, c_k: g + (c - c_k), updates, server_control, client_control
        )
        return corrected, state

    # Optax types `update` without the keywords that it passes on.
    return optax.GradientTransformationExtraArgs(
        optax.init_empty_state,
        update,  # pyright: ignore[reportArgumentType]
    )


def descend() -> optax.GradientTransformationExtraArgs:
    """Turns gradients into updates: multiplies by `-step_size`.

    Returns:
      A transformation without state. Its `update` needs the keyword `step_size`,
      a float scalar: it depends on the client's own number of batches, so no step
      counter could give it. It is rounded to the dtype of each gradient.
    """

    def update(updates, state, params=None, *, step_size, **extra_args):
        del params, extra_args
        return jax.tree.map(lambda g: -step_size.astype(g.dtype) * g, updates), state

    # Optax types `update` without the keywords that it passes on.
    return optax.GradientTransformationExtraArgs(
        optax.init_empty_state,
        update,  # pyright: ignore[reportArgumentType]
    )


def freeze_pruned() -> optax.GradientTransformationExtraArgs:
    """Keeps pruned parameters where they are: their steps are exactly 0.

    Last in the chain, so that no momentum, decay or correction moves them. Parameters
    that start at 0 stay 0.

    Returns:
      A transformation without state. Its `update` needs the keyword `masks`, bool trees
      like the updates, False = pruned.
    """

    def update(updates, state, params=None, *, masks, **extra_args):
        del params, extra_args
        return jax.tree.map(lambda m, u: jnp.where(m, u, 0), masks, updates), state

    # Optax types `update` without the keywords that it passes on.
    return optax.GradientTransformationExtraArgs(
        optax.init_empty_state,
        update,  # pyright: ignore[reportArgumentType]
    )


class FirstEpoch(NamedTuple):
    """The parameters as they were after one epoch."""

    first_epoch: Tree


def remember_first_epoch() -> optax.GradientTransformationExtraArgs:
    """Keeps the parameters as they are after one epoch; gradients pass unchanged.

    Returns:
      A transformation whose state is a FirstEpoch. Its `update` needs `params` and the
      keywords `epoch` and `batch`, [] int32, of the step.
    """

    def update(updates, state, params=None, *, epoch, batch, **extra_args):
        del extra_args
        not_yet = (epoch == 0) | ((epoch == 1) & (batch == 0))
        kept = jax.tree.map(
            lambda p, s: jnp.where(not_yet, p, s), params, state.first_epoch
        )
        return updates, FirstEpoch(kept)

    # Optax types `update` without the keywords that it passes on.
    return optax.GradientTransformationExtraArgs(
        lambda params: FirstEpoch(params),
        update,  # pyright: ignore[reportArgumentType]
    )


class Accumulated(NamedTuple):
    """Sums of a function of the gradients over the steps of a round."""

    accumulated: Tree  # like the parameters
    num_accumulated: jax.Array  # [] steps, dtype of the parameters


def accumulate(
    function: Callable[[jax.Array], jax.Array],
) -> optax.GradientTransformationExtraArgs:
    """Adds up a function of the gradients; they pass unchanged.

    Args:
      function: of each array, such as its square.

    Returns:
      A transformation whose state is an Accumulated.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return Accumulated(zeros, jnp.zeros((), jax.tree.leaves(params)[0].dtype))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        total, count = state
        total = jax.tree.map(lambda t, g: t + function(g), total, updates)
        return updates, Accumulated(total, count + 1)

    return optax.GradientTransformationExtraArgs(
        init,
        update,  # pyright: ignore[reportArgumentType]
    )


def mean_accumulated(solver_state: Tree) -> Tree:
    """The mean over the steps of what `accumulate` has added up.

    Args:
      solver_state: of a chain with one `accumulate`, after at least one step.
    """
    total = optax.tree.get(solver_state, "accumulated")
    count = optax.tree.get(solver_state, "num_accumulated")
    return jax.tree.map(lambda x: x / count, total)


def zero_random(counts: Tree) -> optax.GradientTransformationExtraArgs:
    """Sets new random entries of the parameters to 0 after every step.

    Args:
      counts: for each array, how many of its entries.

    Returns:
      A transformation without state, last in its chain. Its `update` needs `params` and
      the keyword `key` of the step.
    """

    def update(updates, state, params=None, *, key, **extra_args):
        del extra_args
        leaves, treedef = jax.tree.flatten(updates)
        keys = treedef.unflatten(list(jax.random.split(key, len(leaves))))

        def zero(update, param, count, key):
            numbers = jax.random.bits(key, (update.size,), jnp.uint32)
            # Equal numbers are told apart by their place, so that exactly count go.
            place = jnp.argsort(numbers)[:count]
            gone = jnp.zeros(update.size, bool).at[place].set(True)
            return jnp.where(gone.reshape(update.shape), -param, update)

        return jax.tree.map(zero, updates, params, counts, keys), state

    return optax.GradientTransformationExtraArgs(
        optax.init_empty_state,
        update,  # pyright: ignore[reportArgumentType]
    )
