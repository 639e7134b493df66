"""Central differential privacy: bounded messages, and noise on their sum.

    received = (sum_k clip(m_k, C) + N(0, (z C)^2 I)) / cohort_size

m_k is the whole message of client k, all its parts together as one vector; C is
`clip_norm` and z `noise_multiplier`. What is protected is everything that one client
holds, in the models that the server makes. The server is trusted: it sees messages and
loses nothing by the metrics of a run, which are not protected.

References:
  McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018,
  algorithm 1 with flat clipping and the estimator f_f,
  https://arxiv.org/abs/1710.06963.

Choices:
  All clients have the weight 1. The divisor is the size of the cohort as it was drawn,
  so that it tells nothing of who has arrived, and a round in which nothing arrives is
  noise. A message that is not finite counts as zeros. A total gets the same noise and
  is not divided. Batch statistics are measured from what the client has received; as
  noise can make a variance negative, runs refuse them.
  Integers are refused, and FedNova's step mass, which noise can make negative. So are
  clients that keep anything between rounds, because the accounting of drawn cohorts is
  for messages that depend on a client's data and the server's state alone. What a
  preparation has learned from clients, such as masks, is protected by nothing: runs
  refuse it, and rounds after it, called one by one, are not private. Who knows the
  seed knows the noise: keep it secret where the model is given away. The last bits of
  noise in floats are not Gaussian (Mironov, CCS 2012), which is not accounted for.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_prune.engine.clipping import STEP_MASS, clip_change, origin_of
from fedjax_prune.engine.floats import is_float
from fedjax_prune.fields import Relation, Rule, at_least, checked, related
from fedjax_prune.types import Anchor, Mean, Message, Total, Tree

NOISE = 2**32 - 1
"""Folded into the key of a round. Client ids are below 2^31."""


class Privacy(NamedTuple):
    """Bounds and noise that make rounds differentially private.

    Attributes:
      clip_norm: most that the L2 norm of a client's whole message may be, above 0.
      noise_multiplier: standard deviation of the noise on the sum, in clip norms.
      delta: of (epsilon, delta)-privacy, in (0, 1). Rounds do not depend on it.
    """

    clip_norm: float
    noise_multiplier: float
    delta: float

    def bound(self, message: Message, anchor: Anchor) -> Message:
        """Scales the changes of a client's whole message to the bound.

        Args:
          message: of one client, not weighted.
          anchor: what the client has received.

        Returns:
          The changes, with the weight 1.

        Raises:
          ValueError: if the message has integers, which no noise can hide, or a step
            mass.
        """
        _refuse_integers(message)
        if STEP_MASS in message:
            raise ValueError(
                "a private message must not have a step mass, as FedNova's has: noise "
                "can make it negative, and the server multiplies by it."
            )
        changes = {
            name: _since(part.values, origin_of(name, anchor))
            for name, part in message.items()
        }
        changes, _ = clip_change(changes, (), jnp.asarray(self.clip_norm, float))
        return {
            name: Total(changes[name])
            if isinstance(part, Total)
            else Mean(changes[name], jnp.ones_like(part.weight))
            for name, part in message.items()
        }

    def receive(
        self, sums: Message, cohort_size: jax.Array, key: jax.Array, anchor: Anchor
    ) -> dict[str, Tree]:
        """Adds the noise and divides by the size of the cohort.

        Args:
          sums: of the bounded messages that have arrived.
          cohort_size: [] int32, clients that were drawn.
          key: of the round.
          anchor: what the clients have received.

        Returns:
          What the server receives in place of each part.
        """
        deviation = self.noise_multiplier * self.clip_norm
        values = {name: part.values for name, part in sums.items()}
        leaves, treedef = jax.tree.flatten(values)
        keys = jax.random.split(jax.random.fold_in(key, NOISE), max(1, len(leaves)))
        noisy = [
            x + deviation * jax.random.normal(k, x.shape, x.dtype)
            for x, k in zip(leaves, keys, strict=bool(leaves))
        ]
        received = {}
        for name, values in treedef.unflatten(noisy).items():
            if isinstance(sums[name], Mean):
                values = jax.tree.map(lambda x: x / cohort_size.astype(x.dtype), values)
            start = origin_of(name, anchor)
            received[name] = jax.tree.map(jnp.add, start, values) if start else values
        return received


@checked
@related(
    Relation(
        ("clip_norm", "noise_multiplier"),
        lambda clip_norm, noise: (clip_norm > 0) == (noise > 0),
        "{clip_norm} and {noise_multiplier} must both be 0 or both above 0, got {0} "
        "and {1}",
    )
)
def make_privacy(
    *,
    clip_norm: Annotated[
        float,
        at_least(0),
        "L2 norm to which the whole message of each client is scaled; 0 is no privacy.",
    ] = 0.0,
    noise_multiplier: Annotated[
        float,
        at_least(0),
        "Standard deviation of the noise on the sum of messages, in clip norms.",
    ] = 0.0,
    delta: Annotated[
        float,
        Rule(lambda v: 0 < v < 1, "in (0, 1)"),
        "Delta for which epsilon is computed; well below 1 / data.num_clients.",
    ] = 1e-5,
) -> Privacy | None:
    """Makes the privacy of rounds; None if the clip norm is 0.

    Raises:
      ValueError: if a value is out of its range, or there is noise without a bound or
        a bound without noise.

    Examples:
      >>> make_privacy(clip_norm=1.0, noise_multiplier=0.5).noise_multiplier
      0.5
    """
    return Privacy(clip_norm, noise_multiplier, delta) if clip_norm else None


def _since(values: Tree, origin: Tree) -> Tree:
    return jax.tree.map(jnp.subtract, values, origin) if origin else values


def _refuse_integers(message: Message) -> None:
    for name, part in message.items():
        for x in jax.tree.leaves(part.values):
            if not is_float(x):
                raise ValueError(
                    f"a private round must send floats only, got {x.dtype} in the part "
                    f"{name} of a message."
                )
