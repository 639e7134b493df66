"""FedNova: deltas are divided by the step mass that produced them.

    w^{t+1} = server_step(w^t, (sum_k p_k A_k) * sum_k p_k (w^t - w_k) / A_k)

A_k is the sum of the step sizes client k really took, momentum included, so a
client with many batches no longer pulls harder than its weight.

References:
  Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous
  Federated Optimization, NeurIPS 2020, equation 6, https://arxiv.org/abs/2007.07481.
  With a_k the paper's normalisation vector, A_k = lr * ||a_k||_1.

Choices:
  No global momentum. Batch statistics are averaged with p_k, never normalised.
  Without momentum a client sends one scalar more than in FedAvg.
"""

from typing import NamedTuple

import jax
import numpy as np
import optax

from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.rounds import make_algorithm
from fedjax_prune.server import scale, server_step
from fedjax_prune.solver import LocalSolver, require_step_mass
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
    """What a client sends: normalised delta, step mass, batch statistics."""

    normalised_delta: Tree
    step_mass: jax.Array
    model_state: Tree


def fednova(
    task: Task, solver: LocalSolver, server_tx: optax.GradientTransformation
) -> FederatedAlgorithm:
    """Builds FedNova.

    Args:
      task: the model and its loss.
      solver: local training with an optimiser linear in the gradient.
      server_tx: applied to the rescaled mean of the normalised deltas.

    Returns:
      The algorithm. `ServerState.server` is the state of `server_tx`.

    Raises:
      ValueError: if the solver has no step mass.
    """
    require_step_mass(solver, "fednova")

    def program(state: ServerState, cohort: Cohort) -> ClientProgram:
        del state, cohort

        def upload(
            result: LocalResult, row: ClientState, weight: jax.Array
        ) -> tuple[Message, ClientState]:
            message = Message(
                scale(result.delta, 1 / result.step_mass),
                result.step_mass,
                result.model_state,
            )
            return scale(message, weight), row._replace(personal=result.personal)

        return ClientProgram(lambda row: {}, upload)

    def update(state: ServerState, mean: Message) -> ServerState:
        pseudo_gradient = scale(mean.normalised_delta, mean.step_mass)
        params, opt_state = server_step(
            server_tx, state.params, state.server, pseudo_gradient
        )
        return ServerState(state.round, params, mean.model_state, opt_state)

    def messages(state: ServerState) -> tuple[Tree, Tree]:
        down = (state.params, state.model_state)
        return down, (state.params, np.float32(0), state.model_state)

    rules = fedavg(task, solver, server_tx).rules
    return make_algorithm(
        task, rules._replace(program=program, update=update), messages
    )
