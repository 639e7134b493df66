"""What becomes of a client's message, by the round's policy, before it is added up."""

import jax
import jax.numpy as jnp

from fedjax_prune.engine.clipping import clip_parts
from fedjax_prune.engine.policy import Policy
from fedjax_prune.types import Anchor, Message, Sums


def send(
    message: Message, policy: Policy, anchor: Anchor, num_clients: jax.Array
) -> tuple[Message, Sums]:
    """Applies a policy to the message of one client.

    Args:
      message: not weighted.
      policy: of the round.
      anchor: what the client has received.
      num_clients: [] int32, clients in the population.

    Returns:
      The message, and float32 flags for the sums of the round: `clipped`, if the policy
      bounds norms.
    """
    if not policy.bounds_parts:
        return message, {}
    message, clipped = clip_parts(message, anchor, policy.clip_norm, num_clients)
    return message, {"clipped": clipped.astype(jnp.float32)}
