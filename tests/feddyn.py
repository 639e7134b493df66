"""FedDyn: each client's loss gets a linear term that makes all optima agree.

    local gradient:  g - h_k + alpha (w - w^t)
    client state:    h_k+ = h_k - alpha (w_k - w^t)
    server:          h+ = h - alpha / N sum_{S_t} (w_k - w^t)
                     w^{t+1} = mean_{S_t} w_k - h+ / alpha

References:
  Acar et al., Federated Learning Based on Dynamic Regularization, ICLR 2021,
  algorithm 1, https://arxiv.org/abs/2111.04263.
"""

import jax
import jax.numpy as jnp

import fedjax_prune as fp


def feddyn(task, solver, server_tx, *, alpha: float = 0.1) -> fp.FederatedAlgorithm:
    """Builds FedDyn; its server step has no optimiser, so `server_tx` is unused."""
    base = fp.fedavg(task, solver, server_tx)
    solver = solver.before_descent(fp.add_proximal(alpha))
    solver = solver.before_descent(fp.add_control_variates())

    def zeros(tree):
        return jax.tree.map(jnp.zeros_like, tree)

    def init(key):
        state = base.init(key)
        return state._replace(server=zeros(state.params))

    def row(key):
        return base.row(key)._replace(client=zeros(base.init(key).params))

    def program(state, cohort):
        def extra_args(row):
            h, none = row.client, zeros(row.client)
            anchor = {"anchor": state.params}
            return anchor | {"client_control": h, "server_control": none}

        def upload(result, row):
            h = jax.tree.map(lambda h, d: h + alpha * d, row.client, result.delta)
            num_clients = cohort.num_clients.astype(result.step_mass.dtype)
            share = jax.tree.map(lambda d: d / num_clients, result.delta)
            message = {
                "delta": fp.Mean(result.delta, 1),
                "share": fp.Total(share),
                "model_state": fp.Mean(result.model_state, 1),
            }
            return message, fp.ClientState(result.personal, h)

        return fp.ClientProgram(extra_args, upload)

    def update(state, received):
        h = jax.tree.map(lambda h, d: h + alpha * d, state.server, received["share"])
        params = jax.tree.map(
            lambda w, d, h: w - d - h / alpha, state.params, received["delta"], h
        )
        model_state = received["model_state"]
        return state._replace(params=params, model_state=model_state, server=h)

    def messages(state):
        return (state.params, state.model_state), (state.params, state.model_state)

    return fp.make_algorithm(
        task, fp.Rules(solver, init, row, program, update), messages
    )
