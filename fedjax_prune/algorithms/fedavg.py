"""FedAvg: the mean of the clients' changes, weighted by their examples.

    w^{t+1} = server_step(w^t, sum_k p_k (w^t - w_k)),  p_k = n_k / sum_{S_t} n

n is the total of the cohort's examples, over the clients that arrive. On a gated task
this is FedAvg with dynamic pruning: the gates are personal parameters and stay on their
client.

References:
  McMahan et al., Communication-Efficient Learning of Deep Networks from
  Decentralized Data, AISTATS 2017, algorithm 1, https://arxiv.org/abs/1602.05629.

Choices:
  Batch statistics are averaged with the same weights; the server optimiser does not
  apply to them.
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
      solver: local training.
      server_tx: applied to the weighted mean of the deltas.

    Returns:
      The algorithm. `ServerState.server` is the state of `server_tx`.

    References:
      McMahan et al., AISTATS 2017, algorithm 1, https://arxiv.org/abs/1602.05629.

    Examples:
      >>> import fedjax_prune as fp
      >>> task, tx = fp.Task(init=None, loss=None, predict=None), fp.make_server_tx()
      >>> rules = fp.fedavg(task, fp.make_solver(), tx).rules
      >>> params = {"w": jnp.float32(3)}
      >>> state = fp.ServerState(jnp.int32(0), params, {}, tx.init(params))
      >>> received = {"delta": {"w": jnp.float32(1)}, "model_state": {}}
      >>> rules.update(state, received).params["w"].item()  # 3 - 1
      2.0
    """

    def init(key: jax.Array) -> ServerState:
        first = task.init(key)
        opt_state = server_tx.init(first.params)
        return ServerState(jnp.int32(0), first.params, first.model_state, opt_state)

    def row(key: jax.Array) -> ClientState:
        return ClientState(personal=task.init(key).personal, client={})

    def program(state: ServerState, cohort: Cohort) -> ClientProgram:
        del state, cohort

        def upload(
            result: LocalResult, row: ClientState
        ) -> tuple[Message, ClientState]:
            message: Message = {
                "delta": Mean(result.delta, result.num_examples),
                "model_state": Mean(result.model_state, result.num_examples),
            }
            return message, row._replace(personal=result.personal)

        return ClientProgram(upload)

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
