"""SCAFFOLD: control variates cancel the drift of the clients.

    local gradient:  g - c_k + c, on shared parameters only
    client control:  c_k+ = c_k - c + (w^t - w_k) / A_k            (option II)
    server control:  c+ = c + (1/N) sum_{S_t} (c_k+ - c_k)

On a gated task this is FedDP (algorithm 1): gates are personal parameters; the same
backward pass trains them, and they have no control variate.

References:
  Karimireddy et al., SCAFFOLD, ICML 2020, algorithm 1,
  https://arxiv.org/abs/1910.06378. FedDP: Yu et al., Heterogeneous Federated
  Learning using Dynamic Model Pruning and Adaptive Gradient, algorithm 1,
  https://arxiv.org/abs/2106.06921v2.

Choices:
  n is the total of the cohort's examples. Algorithm 1 prints
  w^{t+1} = w^t + sum (n_k/n) w_k; w_k is read as the change of client k. A_k is the
  step mass really taken, so that c_k+ is exactly the weighted mean of the gradients
  along the client's path; the printed 1/(E lr) of FedDP counts epochs and makes the
  controls too large by the number of batches. Controls start at zero and a client keeps
  its own between participations; with 1/N, c is then the mean of all c_k after every
  round. Where `clip_norm` scales messages, a client's control takes the change that
  has arrived, so that this still holds. Medians, trimmed means and clients that
  attack a plain mean break it. Deltas are weighted by size (FedDP), not uniformly
  (SCAFFOLD). `control_weights` says which objective is minimised: `uniform` the mean of
  the client losses, `size` that of FedAvg, weighted by examples. Batch statistics are
  averaged, never corrected. `control_init = random_legacy` and `control_divisor =
  m_legacy` are two faults of widely copied code: controls start as a random network,
  and changes of controls are divided by the cohort's size instead of the population's.
  With full participation these faults cannot be seen; without, training with both
  can diverge.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.engine.contract import (
    ClientProgram,
    FederatedAlgorithm,
    Received,
    Rules,
)
from fedjax_prune.engine.floats import float_dtype
from fedjax_prune.engine.rounds import make_algorithm
from fedjax_prune.engine.server import scale
from fedjax_prune.engine.solver import LocalSolver, require_step_mass
from fedjax_prune.engine.transforms import add_control_variates
from fedjax_prune.fields import Relation, checked, one_of, related
from fedjax_prune.types import (
    ClientState,
    Cohort,
    LocalResult,
    Mean,
    Message,
    ServerState,
    Task,
    Total,
    Tree,
)

CONTROL_WEIGHTS = ("uniform", "size")
CONTROL_INITS = ("zeros", "random_legacy")
CONTROL_DIVISORS = ("num_clients", "m_legacy")


class ScaffoldServer(NamedTuple):
    """The server's part of the state: that of its optimiser and the control c."""

    opt_state: Tree
    control: Tree


@checked
@related(
    Relation(
        ("control_divisor", "control_weights"),
        lambda divisor, weights: divisor == "num_clients" or weights == "uniform",
        "{control_divisor} must be num_clients with {control_weights} {1}, got {0!r}",
    )
)
def scaffold(
    task: Task,
    solver: LocalSolver,
    server_tx: optax.GradientTransformation,
    *,
    control_weights: Annotated[
        str,
        one_of(CONTROL_WEIGHTS),
        "Weight of a client's control in c, the same for all or by its examples.",
    ] = "uniform",
    control_init: Annotated[
        str,
        one_of(CONTROL_INITS),
        "First controls; random_legacy repeats a fault of older code.",
    ] = "zeros",
    control_divisor: Annotated[
        str,
        one_of(CONTROL_DIVISORS),
        "What the changes of controls are divided by; m_legacy, the cohort's size, "
        "repeats a fault of older code.",
    ] = "num_clients",
) -> FederatedAlgorithm:
    """Builds SCAFFOLD; on a gated task, FedDP.

    Args:
      task: the model and its loss.
      solver: local training with an optimiser linear in the gradient.
      server_tx: applied to the mean of the deltas, weighted by size.

    Returns:
      The algorithm. `ServerState.server` is a ScaffoldServer, `ClientState.client`
      the client's control c_k, both controls like the parameters.

    Raises:
      ValueError: if an option is unknown, the legacy divisor is asked for with
        weights by size, or the solver has no step mass.

    References:
      Karimireddy et al., ICML 2020, algorithm 1, https://arxiv.org/abs/1910.06378;
      FedDP, Yu et al., algorithm 1, https://arxiv.org/abs/2106.06921v2.

    Examples:
      >>> import fedjax_prune as fp
      >>> task, tx = fp.Task(init=None, loss=None, predict=None), fp.make_server_tx()
      >>> rules = fp.scaffold(task, fp.make_solver(), tx).rules
      >>> w, d, change = jnp.float32(3), jnp.float32(1), jnp.float32(0.5)
      >>> server = ScaffoldServer(tx.init(w), control=jnp.float32(2))
      >>> state = fp.ServerState(jnp.int32(0), w, {}, server)
      >>> received = {"delta": d, "control_change": change, "model_state": {}}
      >>> after = rules.update(state, received)
      >>> after.params.item(), after.server.control.item()  # 3 - 1, 2 + 0.5
      (2.0, 2.5)
    """
    require_step_mass(solver, "scaffold")
    base = fedavg(task, solver, server_tx)
    corrected = solver.before_descent(add_control_variates(), keeps_mass=True)

    def first_control(key: jax.Array) -> Tree:
        return _first_control(task, key, control_init)

    def init(key: jax.Array) -> ServerState:
        state = base.init(key)
        return state._replace(server=ScaffoldServer(state.server, first_control(key)))

    def row(key: jax.Array) -> ClientState:
        return base.row(key)._replace(client=first_control(key))

    def program(state: ServerState, cohort: Cohort) -> ClientProgram:
        control = state.server.control
        shared_by = control_weights if control_divisor == "num_clients" else "cohort"
        share_of = partial(_share, cohort, shared_by, float_dtype(control))

        def extra_args(row: ClientState) -> dict[str, Tree]:
            return {"server_control": control, "client_control": row.client}

        def upload(
            result: LocalResult, row: ClientState
        ) -> tuple[Message, ClientState]:
            num_examples = result.num_examples
            new_control = _new_control(row.client, control, result)
            change = jax.tree.map(jnp.subtract, new_control, row.client)
            message: Message = {
                "delta": Mean(result.delta, num_examples),
                "control_change": Total(scale(change, share_of(num_examples))),
                "model_state": Mean(result.model_state, num_examples),
            }
            return message, ClientState(result.personal, new_control)

        return ClientProgram(upload, extra_args, settle=partial(_settle, share_of))

    def update(state: ServerState, received: Received) -> ServerState:
        server = state.server
        after = base.rules.update(state._replace(server=server.opt_state), received)
        control = jax.tree.map(jnp.add, server.control, received["control_change"])
        return after._replace(server=ScaffoldServer(after.server, control))

    def messages(state: ServerState) -> tuple[Tree, Tree]:
        sent = (state.params, state.server.control, state.model_state)
        return sent, sent

    return make_algorithm(task, Rules(corrected, init, row, program, update), messages)


def _share(
    cohort: Cohort, shared_by: str, dtype: jnp.dtype, num_examples: jax.Array
) -> jax.Array:
    """Returns what a client's change of its control counts in that of the server."""
    mine, whole = jnp.ones_like(num_examples), cohort.num_clients
    if shared_by == "size":
        mine, whole = num_examples, cohort.num_examples
    elif shared_by == "cohort":
        whole = cohort.cohort_size
    return mine.astype(dtype) / jnp.asarray(whole).astype(dtype)


def _settle(
    share_of: Callable[[jax.Array], jax.Array],
    before: ClientState,
    row: ClientState,
    message: Message,
) -> ClientState:
    """Lets the client's control take the change that the server has received."""
    sent, delta = message["control_change"].values, message["delta"]
    assert isinstance(delta, Mean)
    change = scale(sent, 1 / share_of(delta.weight))
    return row._replace(client=jax.tree.map(jnp.add, before.client, change))


def _first_control(task: Task, key: jax.Array, how: str) -> Tree:
    params = task.init(key).params
    if how == "zeros":
        return jax.tree.map(jnp.zeros_like, params)
    return task.init(jax.random.fold_in(key, 1)).params


def _new_control(client: Tree, server: Tree, result: LocalResult) -> Tree:
    """Computes c_k - c + delta_k / A_k (option II), from c_k and c."""
    mass = result.step_mass
    # Step sizes that underflow to 0 give no information on the gradient.
    return jax.tree.map(
        lambda c_k, c, d: jnp.where(mass > 0, c_k - c + d / mass, c_k),
        client,
        server,
        result.delta,
    )
