"""Clients that do not report, and clients that make only some of their local steps.

Who drops out and who is slow depends on the key of the client and the round alone, so
it is the same whatever the lanes, the devices and the order of the cohort, and the same
when a run is replayed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_STRAGGLER, _SHARE, _DROPOUT = 3, 4, 5
"""Folded into a client's key. Local training uses 0 to 2."""


class Participation(NamedTuple):
    """How many of their local steps clients make.

    Attributes:
      client_dropout: probability that a client does not report, in [0, 1). It makes no
        step, its message does not arrive, and its row stays.
      stragglers: probability that a client which reports is slow, in [0, 1].
      straggler_steps: least share of its local steps that a slow client makes, in
        [0, 1]. Its share is drawn uniformly between this and 1.

    References:
      Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, section
      5.2, https://arxiv.org/abs/1812.06127: stragglers make a number of epochs drawn
      uniformly from 1 to E. Here they are local steps.
    """

    client_dropout: float
    stragglers: float
    straggler_steps: float

    def num_steps(self, key: jax.Array, planned: jax.Array) -> jax.Array:
        """Draws how many local steps a client makes in a round.

        Args:
          key: of the client and the round.
          planned: [] int32, all its steps of a round, at least 1.

        Returns:
          [] int32: 0 if it does not report, else at least 1.
        """

        def draw(number: int) -> jax.Array:
            return jax.random.uniform(jax.random.fold_in(key, number), (), jnp.float32)

        least = jnp.float32(self.straggler_steps)
        share = least + (1 - least) * draw(_SHARE)
        few = jnp.ceil(share * planned.astype(jnp.float32)).astype(jnp.int32)
        few = jnp.clip(few, 1, planned)
        steps = jnp.where(draw(_STRAGGLER) < self.stragglers, few, planned)
        return jnp.where(draw(_DROPOUT) < self.client_dropout, 0, steps)
