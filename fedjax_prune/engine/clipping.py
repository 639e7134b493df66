"""Scaling of what a client sends to a bound of its L2 norm.

What is measured and scaled is a change: batch statistics, the part `model_state`, are
values, so their difference from what the client has received is taken. Integers are
neither measured nor scaled. `clip_parts` leaves STEP_MASS and SIGNS alone, too. Attacks
and rounds with masks use the same names. An algorithm must use them for these parts
alone.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_prune.engine.floats import is_float
from fedjax_prune.types import Anchor, Message, Total, Tree

MODEL_STATE = "model_state"
"""The part of a message whose values are no changes."""
STEP_MASS = "step_mass"
"""The part that multiplies others at the server: FedNova's."""
SIGNS = "signs"
"""The part that has the signs of a client's update, of which no size matters."""
SQUARES = "squares"
"""The part that has squared gradients, PruneFL's: a large one makes no bad client."""


def clip_parts(
    message: Message, anchor: Anchor, bound: float, num_clients: jax.Array
) -> tuple[Message, jax.Array]:
    """Scales each part whose norm is above a bound, by itself, to the bound.

    A total is one client's share of what is added up over the population, as SCAFFOLD's
    changes of controls are divided by `num_clients`. Its bound is divided likewise, and
    so fits shares that are equal.

    Args:
      message: of one client, not weighted.
      anchor: what the client has received.
      bound: of the L2 norm of all floats of a part, above 0.
      num_clients: [] int32, clients in the population.

    Returns:
      The message, and whether a part other than SQUARES has been scaled, [] bool.
      Parts that are not finite stay as they are.

    References:
      Sun et al., Can You Really Backdoor Federated Learning?, section 4, norm
      thresholding, https://arxiv.org/abs/1911.07963.
    """
    clipped, scaled = {}, jnp.bool(False)
    for name, part in message.items():
        if name in (STEP_MASS, SIGNS):
            clipped[name] = part
            continue
        limit = jnp.asarray(bound, float)
        if isinstance(part, Total):
            limit = limit / num_clients.astype(limit.dtype)
        values, large = clip_change(part.values, origin_of(name, anchor), limit)
        clipped[name] = part._replace(values=values)
        if name != SQUARES:
            scaled |= large
    return clipped, scaled


def origin_of(name: str, anchor: Anchor) -> Tree:
    """Returns what the values of a part are measured from; () is zero."""
    return anchor.model_state if name == MODEL_STATE else ()


def clip_change(values: Tree, origin: Tree, bound: jax.Array) -> tuple[Tree, jax.Array]:
    """Scales values about an origin so that their norm is at most a bound.

    Args:
      values: of a client.
      origin: like the values; () is zero.
      bound: [] float, above 0.

    Returns:
      The values, as they were if their norm is within the bound or not finite, and
      whether they have been scaled, [] bool.

    Examples:
      The norm of (3, 4) is 5.

      >>> values, large = clip_change(jnp.array([3.0, 4.0]), (), jnp.float32(1))
      >>> (10 * values).round().tolist(), large.item()
      ([6.0, 8.0], True)
    """
    leaves, treedef = jax.tree.flatten(values)
    starts = jax.tree.leaves(origin) or [None] * len(leaves)
    changes = [
        x if start is None else x - start
        for x, start in zip(leaves, starts, strict=True)
        if is_float(x)
    ]
    if not changes:
        return values, jnp.bool(False)
    # Divided by the largest number, squares do not overflow.
    peaks = [jnp.abs(x).max(initial=0).astype(bound.dtype) for x in changes]
    most = jnp.stack(peaks).max()
    most = jnp.where(most > 0, most, 1)
    squares = [((x / most.astype(x.dtype)) ** 2).sum() for x in changes]
    relative = jnp.sqrt(sum(x.astype(bound.dtype) for x in squares))
    is_large = most * relative > bound

    def scale(x: Any, start: Any) -> Any:
        if not is_float(x):
            return x
        change = x if start is None else x - start
        change = change / most.astype(x.dtype) * (bound / relative).astype(x.dtype)
        return jnp.where(is_large, change if start is None else start + change, x)

    scaled = [scale(x, start) for x, start in zip(leaves, starts, strict=True)]
    return treedef.unflatten(scaled), is_large
