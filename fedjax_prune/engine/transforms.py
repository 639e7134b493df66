"""Optax transformations that federated algorithms add to the client's chain.

What changes from round to round or from step to step (the anchor, the control variates,
the step size) is a keyword argument of `update`. So a chain is built once and compiled
once, and it has no hidden state.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_prune.fields import at_least, checked
from fedjax_prune.models.selection import mark_largest
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

    Examples:
      >>> tx = add_proximal(0.5)
      >>> gradient, params, anchor = jnp.float32(1), jnp.float32(7), jnp.float32(3)
      >>> state = tx.init(params)
      >>> updates, _ = tx.update(gradient, state, params, anchor=anchor)
      >>> updates.item()  # 1 + 0.5 (7 - 3)
      3.0
    """

    def update(updates, state, params=None, *, anchor, **extra_args):
        del extra_args
        if params is None:
            raise ValueError("add_proximal needs params: call update(..., params).")
        if mu == 0:
            return updates, state
        pulled = jax.tree.map(lambda g, p, a: g + mu * (p - a), updates, params, anchor)
        return pulled, state

    return make_transformation(update)


def add_control_variates() -> optax.GradientTransformationExtraArgs:
    """Corrects the client's drift: adds `server_control - client_control`.

    It is placed before the momentum buffer, so that the optimiser sees `g - c_k + c`.

    Returns:
      A transformation without state. Its `update` needs the keywords
      `server_control` and `client_control`, trees like the updates.

    References:
      Karimireddy et al., SCAFFOLD, ICML 2020, equation 3,
      https://arxiv.org/abs/1910.06378.

    Examples:
      >>> tx = add_control_variates()
      >>> gradient, c, c_k = jnp.float32(1), jnp.float32(3), jnp.float32(2)
      >>> state = tx.init(gradient)
      >>> updates, _ = tx.update(gradient, state, server_control=c, client_control=c_k)
      >>> updates.item()  # 1 - 2 + 3
      2.0
    """

    def update(
        updates, state, params=None, *, server_control, client_control, **extra_args
    ):
        del params, extra_args
        corrected = jax.tree.map(
            lambda g, c, c_k: g + (c - c_k), updates, server_control, client_control
        )
        return corrected, state

    return make_transformation(update)


def descend() -> optax.GradientTransformationExtraArgs:
    """Turns gradients into updates: multiplies by `-step_size`.

    Returns:
      A transformation without state. Its `update` needs the keyword `step_size`,
      a float scalar, which is rounded to the dtype of each gradient. It depends on the
      client's own number of batches, so a counter of steps could not give it.
    """

    def update(updates, state, params=None, *, step_size, **extra_args):
        del params, extra_args
        return jax.tree.map(lambda g: -step_size.astype(g.dtype) * g, updates), state

    return make_transformation(update)


class FirstEpoch(NamedTuple):
    """The state of `remember_first_epoch`: the parameters after one epoch."""

    first_epoch: Tree


def remember_first_epoch() -> optax.GradientTransformationExtraArgs:
    """Keeps the parameters as they are after one epoch; gradients pass unchanged.

    Of a client that trains for one epoch alone it keeps those before the last step.

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

    return make_transformation(update, FirstEpoch)


class Accumulated(NamedTuple):
    """The state of `accumulate`: sums over the steps of a round."""

    accumulated: Tree  # like the parameters
    num_accumulated: jax.Array  # [] steps, dtype of the parameters


def accumulate(
    function: Callable[[jax.Array], jax.Array],
) -> optax.GradientTransformationExtraArgs:
    """Adds up a function of the gradients, which pass unchanged.

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

    return make_transformation(update, init)


def mean_accumulated(solver_state: Tree) -> Tree:
    """Computes the mean over the steps of what `accumulate` has added up.

    Args:
      solver_state: of a chain with one `accumulate`, after at least one step.
    """
    total = optax.tree.get(solver_state, "accumulated")
    count = optax.tree.get(solver_state, "num_accumulated")
    return jax.tree.map(lambda x: x / count, total)


def zero_random(counts: Tree) -> optax.GradientTransformationExtraArgs:
    """Sets new random entries of the parameters to 0 after every step.

    Args:
      counts: for each array, how many of its entries are set to 0.

    Returns:
      A transformation without state, to be the last in its chain. Its `update` needs
      `params` and the keyword `key` of the step.
    """

    def update(updates, state, params=None, *, key, **extra_args):
        del extra_args
        leaves, treedef = jax.tree.flatten(updates)
        keys = treedef.unflatten(list(jax.random.split(key, len(leaves))))

        def zero(update, param, count, key):
            if count == 0:
                return update
            numbers = jax.random.uniform(key, (update.size,), jnp.float32)
            gone = mark_largest(numbers, count)
            return jnp.where(gone.reshape(update.shape), -param, update)

        return jax.tree.map(zero, updates, params, counts, keys), state

    return make_transformation(update)


def make_transformation(
    update: Any, init: Any = optax.init_empty_state
) -> optax.GradientTransformationExtraArgs:
    """Makes a transformation whose `update` takes keywords.

    Args:
      update: (updates, state, params=None, *, named keywords, **extra_args) ->
        (updates, state). Its type is Any, because Optax types `update` without the
        keywords that it passes on.
      init: params -> state; without it there is none.
    """
    return optax.GradientTransformationExtraArgs(init, update)
