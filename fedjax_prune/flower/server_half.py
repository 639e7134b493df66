"""The server's half of a round: masks, the sum of the messages, the algorithm's step.

These are the functions that a simulated round is made of.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.engine.aggregate import Gathered
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.robust import reduction_for
from fedjax_prune.engine.server import conclude_round
from fedjax_prune.flower.node_half import as_lane
from fedjax_prune.runs.learning import Learning, init_key
from fedjax_prune.types import Cohort, Message, ServerState, Sums, Tree


class ServerHalf:
    """The server's half of the rounds, compiled."""

    def __init__(self, learning: Learning, placement: Placement):
        """Compiles nothing yet.

        Args:
          learning: of the run.
          placement: says the order of sums and the policy; the server has one device.
        """
        algorithm = learning.algorithm
        masked, policy = algorithm.masked, placement.policy
        reduction = reduction_for(placement)

        def remask(
            state: ServerState, own: Tree, cohort: Cohort
        ) -> tuple[ServerState, Sums]:
            """Makes the masks of a round, of `own` [cohort_size, ...]."""
            if masked is None:
                return state, {}
            row = algorithm.row(init_key(learning.config))
            count = len(cohort.client_ids)
            rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), row)
            rows = rows._replace(client=rows.client._replace(own=own))
            state = masked.remask(state, rows, cohort)
            return state, masked.facts(state)

        def add(kept: Tree, message: Message, place: jax.Array) -> Tree:
            weighted = as_lane(reduction.weigh(message))
            return reduction.add(kept, weighted, jnp.ones(1, bool), place[None])

        def conclude(
            state: ServerState, kept: Tree, cohort: Cohort, key: jax.Array
        ) -> tuple[ServerState, Sums]:
            gathered: Gathered = reduction.total(kept, cohort, False)
            sent = state if masked is None else masked.sent(state)
            after, sums = conclude_round(
                algorithm.rules.update,
                sent,
                gathered,
                cohort_size=jnp.asarray(cohort.cohort_size),
                key=key,
                policy=policy,
            )
            if masked is not None:
                after = masked.restored(state, after)
            return after, sums

        self._reduction = reduction
        self.remask = jax.jit(remask)
        self.sent = jax.jit(
            lambda state: state if masked is None else masked.sent(state)
        )
        self._add = jax.jit(add, donate_argnums=0)
        self._conclude = jax.jit(conclude)

    def conclude(
        self,
        state: ServerState,
        messages: dict[int, Message],
        shapes: Message,
        cohort: Cohort,
        key: jax.Array,
    ) -> tuple[ServerState, Sums]:
        """Takes the server's step.

        Args:
          state: with the masks of the round.
          messages: place of a client in the cohort -> what it has sent; those that are
            missing have been dropped.
          shapes: of a message.
          cohort: of the round.
          key: of the round.
        """
        weighted = jax.eval_shape(self._reduction.weigh, shapes)
        kept = self._reduction.empty(weighted, len(cohort.client_ids))
        for place in sorted(messages):
            kept = self._add(kept, messages[place], np.int32(place))
        return self._conclude(state, kept, cohort, key)
