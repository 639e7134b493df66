"""FedNova: clients divide their deltas by the step mass that produced them.

    w^{t+1} = server_step(w^t, (sum_k p_k A_k) * sum_k p_k (w^t - w_k) / A_k)

A_k is the sum of the step sizes that client k really took, momentum included. So a
client with many batches counts no more than its weight p_k.

References:
  Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous
  Federated Optimization, NeurIPS 2020, equation 6, https://arxiv.org/abs/2007.07481.
  With a_k the paper's normalisation vector, A_k = lr * ||a_k||_1.

Choices:
  There is no global momentum. Batch statistics are averaged with p_k, never
  normalised. A client sends one scalar more than in FedAvg, its step mass. What
  `clip_norm` bounds is the delta over A_k, so the server moves by at most the mean of
  the A_k times it.
"""

import numpy as np
import optax

from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.engine.clipping import STEP_MASS
from fedjax_prune.engine.contract import ClientProgram, FederatedAlgorithm, Received
from fedjax_prune.engine.rounds import make_algorithm
from fedjax_prune.engine.server import scale
from fedjax_prune.engine.solver import LocalSolver, per_step_mass, require_step_mass
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

    References:
      Wang et al., NeurIPS 2020, equation 6, https://arxiv.org/abs/2007.07481.

    Examples:
      >>> import fedjax_prune as fp
      >>> task, tx = fp.Task(init=None, loss=None, predict=None), fp.make_server_tx()
      >>> rules = fp.fednova(task, fp.make_solver(), tx).rules
      >>> w, d, mass = np.float32(3), np.float32(0.5), np.float32(2)
      >>> state = fp.ServerState(np.int32(0), w, {}, tx.init(w))
      >>> received = {"normalised_delta": d, "step_mass": mass, "model_state": {}}
      >>> rules.update(state, received).params.item()  # 3 - 2 * 0.5
      2.0
    """
    require_step_mass(solver, "fednova")
    rules = fedavg(task, solver, server_tx).rules

    def program(state: ServerState, cohort: Cohort) -> ClientProgram:
        del state, cohort

        def upload(
            result: LocalResult, row: ClientState
        ) -> tuple[Message, ClientState]:
            mass, weight = result.step_mass, result.num_examples
            normalised = per_step_mass(result.delta, mass)
            message: Message = {
                "normalised_delta": Mean(normalised, weight),
                STEP_MASS: Mean(mass, weight),
                "model_state": Mean(result.model_state, weight),
            }
            return message, row._replace(personal=result.personal)

        return ClientProgram(upload)

    def update(state: ServerState, received: Received) -> ServerState:
        delta = scale(received["normalised_delta"], received[STEP_MASS])
        return rules.update(
            state, {"delta": delta, "model_state": received["model_state"]}
        )

    def messages(state: ServerState) -> tuple[Tree, Tree]:
        down = (state.params, state.model_state)
        return down, (state.params, np.float32(0), state.model_state)

    return make_algorithm(
        task, rules._replace(program=program, update=update), messages
    )
