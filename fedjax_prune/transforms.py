"""Optax transformations that federated algorithms add to the client's chain.

What changes from round to round (the anchor, the control variates, the step
size) comes in as keyword arguments of `update`, so that a chain is built once,
compiled once and has no hidden state.
"""

import jax
import optax


def add_proximal(mu: float) -> optax.GradientTransformationExtraArgs:
    """Pulls every local step towards the parameters the round started from.

    Adds `mu * (params - anchor)` to the gradient: the gradient of the penalty
    `mu / 2 * ||params - anchor||^2`. With `mu == 0` the gradient is unchanged.

    Args:
      mu: penalty weight, at least 0.

    Returns:
      A transformation without state. Its `update` needs `params` and the keyword
      `anchor`, a tree like `params`.

    Raises:
      ValueError: if `mu` is negative, or if `update` is called without `params`.

    References:
      Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020,
      section 3.2, https://arxiv.org/abs/1812.06127.
    """
    if mu < 0:
        raise ValueError(f"mu must be at least 0, got {mu}.")

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
      a float32 scalar: it depends on the client's own number of batches, so no
      step counter could give it.
    """

    def update(updates, state, params=None, *, step_size, **extra_args):
        del params, extra_args
        return jax.tree.map(lambda g: -step_size * g, updates), state

    # Optax types `update` without the keywords that it passes on.
    return optax.GradientTransformationExtraArgs(
        optax.init_empty_state,
        update,  # pyright: ignore[reportArgumentType]
    )
