"""FedAvg: average what the clients learned, weighted by their examples.

    w^{t+1} = server_step(w^t, sum_k p_k (w^t - w_k)),  p_k = n_k / sum_{S_t} n

On a gated task this is FedAvg with dynamic pruning: the gates are personal
parameters and stay on their client.

References:
  McMahan et al., Communication-Efficient Learning of Deep Networks from
  Decentralized Data, AISTATS 2017, algorithm 1, https://arxiv.org/abs/1602.05629.

Choices:
  Batch statistics are averaged with the same weights and are not stepped on by
  the server optimiser.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_prune.rounds import Rules, make_algorithm
from fedjax_prune.server import scale, server_step
from fedjax_prune.solver import LocalSolver
from fedjax_prune.types import (
    ClientProgram,
    ClientState,
    Cohort,
    FederatedAlgorithm,
    LocalResult,
    ServerState,
    Task,
    Tree,
)


class Message(NamedTuple):
    """What a client sends: its delta and its batch statistics."""

    delta: Tree
    model_state: Tree


def fedavg(
    task: Task, solver: LocalSolver, server_tx: optax.GradientTransformation
) -> FederatedAlgorithm:
    """Builds FedAvg.

    Args:
      task: the model and its loss.
      solver: local training; its chain may use the keyword `anchor`.
      server_tx: applied to the weighted mean of the deltas.

    Returns:
      The algorithm. `ServerState.server` is the state of `server_tx`.
    """

    def init(key: jax.Array) -> ServerState:
        first = task.init(key)
        opt_state = server_tx.init(first.params)
        return ServerState(jnp.int32(0), first.params, first.model_state, opt_state)

    def row(key: jax.Array) -> ClientState:
        return ClientState(personal=task.init(key).personal, client={})

    def program(state: ServerState, cohort: Cohort) -> ClientProgram:
        del cohort

        def extra_args(row: ClientState) -> dict[str, Tree]:
            del row
            return {"anchor": state.params}

        def upload(
            result: LocalResult, row: ClientState, weight: jax.Array
        ) -> tuple[Message, ClientState]:
            message = Message(result.delta, result.model_state)
            return scale(message, weight), row._replace(personal=result.personal)

        return ClientProgram(extra_args, upload)

    def update(state: ServerState, mean: Message) -> ServerState:
        params, opt_state = server_step(
            server_tx, state.params, state.server, mean.delta
        )
        return ServerState(state.round, params, mean.model_state, opt_state)

    def messages(state: ServerState) -> tuple[Tree, Tree]:
        down = (state.params, state.model_state)
        return down, Message(delta=state.params, model_state=state.model_state)

    return make_algorithm(task, Rules(solver, init, row, program, update), messages)
