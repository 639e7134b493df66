"""The preparation of AutoFLIP: explorers train, then the first masks are made.

References:
  AutoFLIP, Internò et al., https://arxiv.org/abs/2405.10271. Clients explore once,
  before the first round [P].

Choices:
  Rounds begin at w^0, so that AutoFLIP starts where the methods do that it is compared
  with; the authors' code goes on from trained parameters. With `explored_mean` rounds
  begin at the mean of the explorers, batch statistics included, and each of them sends
  both beside its deviations. Only the masks are made here: the server's momentum and
  the count of rounds begin with the first round.
"""

import jax

from fedjax_prune.algorithms.autoflip.exploration import (
    Exploration,
    Explored,
    make_exploration,
)
from fedjax_prune.algorithms.autoflip.schedules import Schedule
from fedjax_prune.engine.aggregate import Gathered, receive
from fedjax_prune.engine.contract import MaskedRound, Preparation
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.solver import LocalSolver
from fedjax_prune.pruning.masked_round import with_masks
from fedjax_prune.types import ClientState, RoundInputs, ServerState, Sums, Task, Tree

START_FROM = ("init", "explored_mean")
"""The parameters with which rounds begin: w^0, or the mean of the explorers."""


def make_preparation(
    task: Task,
    solver: LocalSolver,
    exploration: Exploration,
    schedule: Schedule,
    rounds: MaskedRound,
    start_from: str,
) -> Preparation:
    """Makes AutoFLIP's preparation.

    Args:
      task: the model and its loss.
      solver: local training of the rounds.
      exploration: its settings.
      schedule: makes the first masks.
      rounds: the masked rounds that follow.
      start_from: one of START_FROM.
    """
    explorer, start, explore = make_exploration(
        task,
        solver,
        exploration,
        schedule.keep,
        schedule.pool,
        sends_model=start_from == "explored_mean",
    )

    def gather(
        gathered: Gathered, inputs: RoundInputs, placement: Placement
    ) -> tuple[Gathered, ClientState, Sums]:
        kept = inputs.rows.client
        own = inputs.rows._replace(client=kept.own)
        gathered, rows, sums = explore(gathered, inputs._replace(rows=own), placement)
        return gathered, rows._replace(client=kept._replace(own=rows.client)), sums

    def finish(
        state: ServerState, gathered: Gathered, key: jax.Array
    ) -> tuple[ServerState, Sums]:
        del key
        explored = Explored(**receive(gathered))
        if start_from == "explored_mean":
            params = jax.tree.map(lambda w, d: w - d, state.params, explored.delta)
            state = state._replace(params=params, model_state=explored.model_state)
        state = with_masks(state, *schedule.begin(explored))
        return state, rounds.facts(state)

    def explore_messages(state: ServerState) -> tuple[Tree, Tree]:
        sent = state.params
        if start_from == "explored_mean":
            sent = state.params, state.params, state.model_state
        return state.params, sent

    return Preparation(
        solver=explorer,
        num_clients=exploration.num_clients,
        start=start,
        gather=gather,
        finish=finish,
        messages=explore_messages,
    )
