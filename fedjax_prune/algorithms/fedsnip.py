"""FedSNIP: connections that matter least to the loss are pruned before the first round.

    s_j = |g_j w_j|,   g the mean over clients of the gradient at w^0

References:
  Lee, Ajanthan, Torr, SNIP: Single-shot Network Pruning based on Connection
  Sensitivity, ICLR 2019, equation 4, https://arxiv.org/abs/1810.02340.

Choices:
  The paper takes the gradient of one batch. Here all clients send the mean of their
  gradients over the batches of one epoch at w^0. The server averages these means,
  weighted by examples, before it takes |g w|. Only kernels and embeddings are pruned;
  they are ranked in the whole network as in the paper, or array by array
  (`threshold_scope`). A hundredth of each array always stays (`min_keep`), so that no
  layer is emptied. The rounds are those of FedAvg.
"""

import jax
import jax.numpy as jnp
import optax

from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.engine.aggregate import Gathered, join, nothing, receive, weigh
from fedjax_prune.engine.contract import ClientProgram, FederatedAlgorithm, Preparation
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.rounds import make_training, with_preparation
from fedjax_prune.engine.solver import LocalSolver
from fedjax_prune.engine.transforms import accumulate, mean_accumulated
from fedjax_prune.fields import checked
from fedjax_prune.pruning.mask_rule import (
    DEFAULT_RULE,
    MinKeep,
    Threshold,
    ThresholdScope,
    make_rule,
)
from fedjax_prune.pruning.masked_round import (
    Masking,
    keep_masks,
    masked,
    with_masks,
)
from fedjax_prune.types import (
    ClientState,
    Cohort,
    LocalResult,
    Mean,
    Message,
    RoundInputs,
    ServerState,
    Sums,
    Task,
)


@checked
def fedsnip(
    task: Task,
    solver: LocalSolver,
    server_tx: optax.GradientTransformation,
    *,
    threshold: Threshold = DEFAULT_RULE.threshold,
    threshold_scope: ThresholdScope = DEFAULT_RULE.scope,
    min_keep: MinKeep = DEFAULT_RULE.min_keep,
) -> FederatedAlgorithm:
    """Builds FedSNIP on FedAvg.

    Args:
      task: the model and its loss.
      solver: local training; the gradient is taken on its batches.
      server_tx: applied to the weighted mean of the deltas.

    Returns:
      The algorithm. It takes the gradients of all clients in `prepare`.
      `ServerState.server` is a MaskedServer.

    Raises:
      ValueError: if a number is out of range, a name unknown, or no array is a kernel
        or an embedding.

    References:
      Lee et al., SNIP, ICLR 2019, equation 4, https://arxiv.org/abs/1810.02340.

    Examples:
      >>> import fedjax_prune as fp
      >>> task = fp.make_task(fp.CNN(num_classes=3, width=0.1), (8, 8, 1))
      >>> algorithm = fp.fedsnip(task, fp.make_solver(), fp.make_server_tx())
      >>> algorithm.prepare.num_clients(10), algorithm.prepare.solver.epochs
      (10, 1)
    """
    rule = make_rule(
        task,
        normalization="none",
        threshold=threshold,
        scope=threshold_scope,
        min_keep=min_keep,
        structured="off",
    )
    algorithm = masked(task, fedavg(task, solver, server_tx), Masking(keep_masks))
    pruned = algorithm.masked
    assert pruned is not None
    still = solver._replace(epochs=1).before_descent(accumulate(lambda g: g))
    # Gates stay, too: every gradient is taken at w^0 and at the gates of the row.
    nowhere = optax.with_extra_args_support(optax.set_to_zero())
    still = still.after_descent(nowhere)._replace(personal_tx=nowhere)

    def program(state: ServerState, cohort: Cohort) -> ClientProgram:
        del state, cohort

        def upload(
            result: LocalResult, row: ClientState
        ) -> tuple[Message, ClientState]:
            gradient = mean_accumulated(result.solver_state)
            return {"gradient": Mean(gradient, result.num_examples)}, row

        return ClientProgram(upload)

    measure = make_training(task, still, program)

    def start(state: ServerState) -> Gathered:
        message = {"gradient": Mean(state.params, jnp.int32(0))}
        return nothing(jax.eval_shape(weigh, message))

    def gather(
        gathered: Gathered, inputs: RoundInputs, placement: Placement
    ) -> tuple[Gathered, ClientState, Sums]:
        group, rows, sums = measure(inputs, placement)
        return join(gathered, group), rows, sums

    def finish(
        state: ServerState, gathered: Gathered, key: jax.Array
    ) -> tuple[ServerState, Sums]:
        del key
        gradient = receive(gathered)["gradient"]
        sensitivity = jax.tree.map(lambda g, w: jnp.abs(g * w), gradient, state.params)
        state = with_masks(state, rule.masks(sensitivity), {})
        return state, pruned.facts(state)

    preparation = Preparation(
        solver=still,
        num_clients=lambda num_clients: num_clients,
        start=start,
        gather=gather,
        finish=finish,
        messages=lambda state: (state.params, state.params),
    )
    return with_preparation(algorithm, preparation)
