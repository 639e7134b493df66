"""What becomes of a client's message, by the round's policy, before it is added up."""

import jax
import jax.numpy as jnp

from fedjax_prune.engine.clipping import clip_parts
from fedjax_prune.engine.policy import Policy
from fedjax_prune.types import Anchor, Cohort, Message, Sums


def send(
    message: Message,
    policy: Policy,
    anchor: Anchor,
    cohort: Cohort,
    place: jax.Array,
) -> tuple[Message, Sums]:
    """Applies a policy to the message of one client.

    Args:
      message: not weighted.
      policy: of the round.
      anchor: what the client has received.
      cohort: of the client.
      place: [] int32, the client's place in the cohort.

    Returns:
      The message, and float32 flags for the sums of the round: `hostile`, if the policy
      has hostile clients, and `clipped`, if it bounds norms of parts.

    Raises:
      ValueError: as `Privacy.bound`, if the policy is private.
    """
    facts: Sums = {}
    if policy.hostile is not None:
        client_id = cohort.client_ids[place]
        message = policy.hostile.attack(message, client_id)
        facts["hostile"] = policy.hostile.includes(client_id).astype(jnp.float32)
    if policy.privacy is not None:
        return policy.privacy.bound(message, anchor), facts
    if policy.bounds_parts:
        bound, num_clients = policy.clip_norm, jnp.asarray(cohort.num_clients)
        message, clipped = clip_parts(message, anchor, bound, num_clients)
        facts["clipped"] = clipped.astype(jnp.float32)
    return message, facts
