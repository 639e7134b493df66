"""FedDyn: a linear term in each client's loss makes the optima of all clients agree.

    local gradient:  g - h_k + alpha (w - w^t)
    client state:    h_k+ = h_k - alpha (w_k - w^t)
    server:          h+ = h - alpha / N sum_{S_t} (w_k - w^t)
                     w^{t+1} = mean_{S_t} w_k - h+ / alpha

References:
  Acar et al., ICLR 2021, algorithm 1, https://arxiv.org/abs/2111.04263.

Choices:
  Clients count alike also in the mean of their batch statistics. Where messages are
  scaled to `clip_norm`, h_k takes the scaled delta, as h does. With medians and trimmed
  means h is not the mean of the h_k, so w does not end at the optimum.
"""

from typing import Annotated

import jax.numpy as jnp
from optax import tree

from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.engine.contract import ClientProgram, FederatedAlgorithm, Rules
from fedjax_prune.engine.rounds import make_algorithm
from fedjax_prune.engine.transforms import add_control_variates, add_proximal
from fedjax_prune.fields import above, checked
from fedjax_prune.types import ClientState, Mean, Total

Alpha = Annotated[float, above(0), "Weight of the pull to the received parameters."]


@checked
def feddyn(task, solver, server_tx, *, alpha: Alpha = 0.1) -> FederatedAlgorithm:
    """Builds FedDyn, in which clients count alike; `server_tx` is unused."""
    avg = fedavg(task, solver, server_tx)
    pull, correct = add_proximal(alpha), add_control_variates()
    solver = solver.before_descent(pull).before_descent(correct)

    def init(key):
        state = avg.init(key)
        return state._replace(server=tree.zeros_like(state.params))

    def row(key):
        return avg.row(key)._replace(client=init(key).server)

    def program(state, cohort):
        def extra_args(row):
            zeros = tree.zeros_like(row.client)
            return {"client_control": row.client, "server_control": zeros}

        def upload(result, row):
            h = tree.add_scale(row.client, alpha, result.delta)
            one = jnp.ones_like(result.step_mass)
            share = one / cohort.num_clients.astype(one.dtype)
            message = {
                "delta": Mean(result.delta, one),
                "share": Total(tree.scale(share, result.delta)),
                "model_state": Mean(result.model_state, one),
            }
            return message, ClientState(result.personal, h)

        def settle(before, row, message):
            h = tree.add_scale(before.client, alpha, message["delta"].values)
            return row._replace(client=h)

        return ClientProgram(upload, extra_args, settle=settle)

    def update(state, received):
        h = tree.add_scale(state.server, alpha, received["share"])
        w = tree.add_scale(tree.sub(state.params, received["delta"]), -1 / alpha, h)
        return state._replace(params=w, model_state=received["model_state"], server=h)

    # The server can compute `share` of the deltas, so it adds no bytes.
    return make_algorithm(task, Rules(solver, init, row, program, update), avg.messages)
