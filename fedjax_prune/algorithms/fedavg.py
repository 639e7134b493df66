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

from fedjax_prune.client import ClientProgram, LocalResult
from fedjax_prune.costs import tree_bytes
from fedjax_prune.rounds import make_round
from fedjax_prune.server import scale, server_step
from fedjax_prune.solver import LocalSolver
from fedjax_prune.types import (
    ClientState,
    Cohort,
    FederatedAlgorithm,
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
        params, _, model_state = task.init(key)
        return ServerState(jnp.int32(0), params, model_state, server_tx.init(params))

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

    def traffic(state: ServerState, cohort_size: int) -> tuple[int, int]:
        down = tree_bytes((state.params, state.model_state))
        up = tree_bytes(Message(delta=state.params, model_state=state.model_state))
        return cohort_size * down, cohort_size * up

    round = make_round(task, solver, program, update)
    return FederatedAlgorithm(init, row, round, traffic)
