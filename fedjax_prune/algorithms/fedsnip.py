"""FedSNIP: connections to which the loss is least sensitive go, before the first round.

    s_j = |g_j w_j|,   g the mean over clients of the gradient at w^0

References:
  Lee, Ajanthan, Torr, SNIP: Single-shot Network Pruning based on Connection
  Sensitivity, ICLR 2019, equation 4, https://arxiv.org/abs/1810.02340.

Choices:
  The paper takes the gradient of one batch. Here all clients send the mean of their
  gradients over the batches of one epoch at w^0, weighted by their examples, and |g w|
  is taken of the mean of all. Only kernels and embeddings are pruned, ranked in the
  whole network as in the paper or array by array (`threshold_scope`). A hundredth of
  each array always stays (`min_keep`), so that no layer is emptied. Rounds are
  FedAvg's.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.algorithms.masked import (
    Masking,
    keep_masks,
    masked,
    with_masks,
)
from fedjax_prune.fields import checked
from fedjax_prune.hybrid import (
    MaskRule,
    MinKeep,
    Threshold,
    ThresholdScope,
    check_rule,
)
from fedjax_prune.pruning import prunable
from fedjax_prune.rounds import make_round
from fedjax_prune.server import scale
from fedjax_prune.solver import LocalSolver
from fedjax_prune.transforms import accumulate
from fedjax_prune.types import (
    ClientProgram,
    ClientState,
    Cohort,
    FederatedAlgorithm,
    LocalResult,
    Preparation,
    ServerState,
    Sums,
    Task,
    Tree,
)


@checked
def fedsnip(
    task: Task,
    solver: LocalSolver,
    server_tx: optax.GradientTransformation,
    *,
    threshold: Threshold = 0.3,
    threshold_scope: ThresholdScope = "global",
    min_keep: MinKeep = 0.01,
) -> FederatedAlgorithm:
    """Builds FedSNIP on FedAvg.

    Args:
      task: the model and its loss.
      solver: local training; the gradient is taken on its batches.
      server_tx: applied to the weighted mean of the deltas.

    Returns:
      The algorithm. It takes the gradients of all clients in `prepare`.

    Raises:
      ValueError: if a number is out of range or a name unknown.
    """
    rule = MaskRule(
        prunable(jax.eval_shape(lambda: task.init(jax.random.key(0))).params),
        task.groups,
        normalization="none",
        threshold=threshold,
        scope=threshold_scope,
        min_keep=min_keep,
        structured="off",
    )
    check_rule(rule)
    masking = Masking(lambda params: {}, lambda params: {}, keep_masks)
    algorithm = masked(task, fedavg(task, solver, server_tx), masking)
    pruned = algorithm.masked
    assert pruned is not None
    still = solver._replace(epochs=1).before_descent(accumulate(lambda g: g))
    still = still.after_descent(optax.set_to_zero())

    def program(state: ServerState, cohort: Cohort) -> ClientProgram:
        del state, cohort

        def upload(
            result: LocalResult, row: ClientState, weight: jax.Array
        ) -> tuple[Tree, ClientState]:
            total, count = result.solver_state[0][0]
            return scale(total, weight / count), row

        return ClientProgram(lambda row: {}, upload)

    def update(state: ServerState, gradient: Tree) -> ServerState:
        return state._replace(server=jax.tree.map(jnp.add, state.server, gradient))

    measure = make_round(task, still, program, update)

    def gather(
        state: ServerState, gradient: Tree, *rest: Any
    ) -> tuple[Tree, ClientState, Sums]:
        after, rows, sums = measure(state._replace(server=gradient), *rest)
        return after.server, rows, sums

    def finish(
        state: ServerState, gradient: Tree, key: jax.Array
    ) -> tuple[ServerState, Sums]:
        del key
        sensitivity = jax.tree.map(lambda g, w: jnp.abs(g * w), gradient, state.params)
        state = with_masks(state, rule.masks(sensitivity), {})
        return state, pruned.facts(state)

    return algorithm._replace(
        prepare=Preparation(
            lambda num_clients: num_clients,
            lambda state: jax.tree.map(jnp.zeros_like, state.params),
            gather,
            finish,
            lambda state: (state.params, state.params),
        )
    )
