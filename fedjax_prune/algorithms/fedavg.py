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

import jax
import jax.numpy as jnp
import optax

from fedjax_prune.engine.contract import (
    ClientProgram,
    FederatedAlgorithm,
    Received,
    Rules,
)
from fedjax_prune.engine.rounds import make_algorithm
from fedjax_prune.engine.server import server_step
from fedjax_prune.engine.solver import LocalSolver
from fedjax_prune.types import (
    ClientState,
    Cohort,
    LocalResult,
    Mean,
    Message,
    ServerState,
    Task,
    Tree,
)


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
            result: LocalResult, row: ClientState
        ) -> tuple[Message, ClientState]:
            message: Message = {
                "delta": Mean(result.delta, result.num_examples),
                "model_state": Mean(result.model_state, result.num_examples),
            }
            return message, row._replace(personal=result.personal)

        return ClientProgram(extra_args, upload)

    def update(state: ServerState, received: Received) -> ServerState:
        params, opt_state = server_step(
            server_tx, state.params, state.server, received["delta"]
        )
        return state._replace(
            params=params, model_state=received["model_state"], server=opt_state
        )

    def messages(state: ServerState) -> tuple[Tree, Tree]:
        return (state.params, state.model_state), (state.params, state.model_state)

    return make_algorithm(task, Rules(solver, init, row, program, update), messages)
