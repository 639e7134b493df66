"""Magnitude pruning, a control: the smallest weights are pruned once, for all rounds.

The mask is made from |w| before the first round, or after a few rounds without pruning.

References:
  Han et al., Learning both Weights and Connections for Efficient Neural Networks,
  NeurIPS 2015, section 3, https://arxiv.org/abs/1506.02626.

Choices:
  The paper prunes a trained network, in turn with more training. Here the mask is made
  once: from |w^0|, or after `warmup_rounds` rounds without pruning. Only kernels and
  embeddings are pruned; they are ranked in the whole network or array by array
  (`threshold_scope`). Channels of which the mask leaves almost nothing can be removed
  by AutoFLIP's rule `keep_ratio`; its other rule is not offered. The rounds are those
  of FedAvg.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.engine.contract import FederatedAlgorithm
from fedjax_prune.engine.solver import LocalSolver
from fedjax_prune.fields import at_least, checked, one_of
from fedjax_prune.pruning.mask_rule import (
    DEFAULT_RULE,
    GuardedMasks,
    MinKeep,
    StructuredDensity,
    Threshold,
    ThresholdScope,
    make_rule,
)
from fedjax_prune.pruning.masked_round import Masking, masked
from fedjax_prune.types import (
    ClientState,
    Cohort,
    ServerState,
    Task,
    Tree,
)


@checked
def magnitude(
    task: Task,
    solver: LocalSolver,
    server_tx: optax.GradientTransformation,
    *,
    threshold: Threshold = DEFAULT_RULE.threshold,
    threshold_scope: ThresholdScope = DEFAULT_RULE.scope,
    min_keep: MinKeep = DEFAULT_RULE.min_keep,
    structured_rule: Annotated[
        str, one_of(("off", "keep_ratio")), "Which channels are removed, too."
    ] = "off",
    structured_density: StructuredDensity = DEFAULT_RULE.density,
    warmup_rounds: Annotated[
        int, at_least(0), "Rounds without pruning before the mask is made."
    ] = 0,
) -> FederatedAlgorithm:
    """Builds magnitude pruning on FedAvg.

    Args:
      task: the model and its loss.
      solver: local training.
      server_tx: applied to the weighted mean of the deltas.

    Returns:
      The algorithm. `ServerState.server` is a MaskedServer.

    Raises:
      ValueError: if a number is out of range, a name unknown, no array is a kernel or
        an embedding, or channels are to be removed and the model does not say what they
        are.

    References:
      Han et al., NeurIPS 2015, section 3, https://arxiv.org/abs/1506.02626.

    Examples:
      >>> import fedjax_prune as fp
      >>> first = fp.Variables({"kernel": jnp.array([1.0, -4.0, 3.0, 2.0])}, {}, {})
      >>> task = fp.Task(lambda key: first, loss=None, predict=None, groups=())
      >>> tx = fp.make_server_tx()
      >>> algorithm = fp.magnitude(task, fp.make_solver(), tx, threshold=0.5)
      >>> state = algorithm.init(jax.random.key(0))
      >>> state = algorithm.masked.remask(state, rows=(), cohort=())
      >>> state.server.masks["kernel"].tolist()
      [False, True, True, False]
    """
    rule = make_rule(
        task,
        normalization="none",
        threshold=threshold,
        scope=threshold_scope,
        min_keep=min_keep,
        structured=structured_rule,
        density=structured_density,
    )

    def refresh(
        state: ServerState, rows: ClientState, cohort: Cohort
    ) -> tuple[GuardedMasks, Tree]:
        del rows, cohort
        server = state.server
        made = jax.lax.cond(
            state.round == warmup_rounds,
            lambda: rule.masks(jax.tree.map(jnp.abs, state.params)),
            lambda: server.current,
        )
        return made, {}

    return masked(task, fedavg(task, solver, server_tx), Masking(refresh))
