"""Magnitude pruning: the smallest weights go, once, for all rounds. A control.

The mask is made of |w| before the first round, or after a few unpruned ones.

References:
  Han et al., Learning both Weights and Connections for Efficient Neural Networks,
  NeurIPS 2015, section 3, https://arxiv.org/abs/1506.02626.
"""

import jax
import jax.numpy as jnp
import optax

from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.algorithms.masked import Masking, masked
from fedjax_prune.contract import FederatedAlgorithm
from fedjax_prune.hybrid import Hybrid, MaskRule, check_rule
from fedjax_prune.pruning import prunable
from fedjax_prune.solver import LocalSolver
from fedjax_prune.types import (
    ClientState,
    Cohort,
    ServerState,
    Task,
    Tree,
)


def magnitude(
    task: Task,
    solver: LocalSolver,
    server_tx: optax.GradientTransformation,
    *,
    threshold: float = 0.3,
    threshold_scope: str = "global",
    min_keep: float = 0.01,
    structured_rule: str = "off",
    structured_density: float = 0.1,
    warmup_rounds: int = 0,
) -> FederatedAlgorithm:
    """Builds magnitude pruning on FedAvg.

    Args:
      task: the model and its loss.
      solver: local training.
      server_tx: applied to the weighted mean of the deltas.
      threshold: share of the weights to prune, in [0, 1).
      threshold_scope: `global` or `per_tensor`.
      min_keep: share of each array that stays before channels are removed, in
        [0, 1].
      structured_rule: `off` or `keep_ratio`, as in AutoFLIP.
      structured_density: of keep_ratio.
      warmup_rounds: unpruned rounds before, at least 0.

    Returns:
      The algorithm.

    Raises:
      ValueError: if a number is out of range or a name unknown.
    """
    if warmup_rounds < 0:
        raise ValueError(f"warmup_rounds must be at least 0, got {warmup_rounds}.")
    if structured_rule not in ("off", "keep_ratio"):
        raise ValueError(
            f"structured_rule must be off or keep_ratio, got {structured_rule!r}."
        )
    rule = MaskRule(
        prunable(jax.eval_shape(lambda: task.init(jax.random.key(0))).params),
        task.groups,
        normalization="none",
        threshold=threshold,
        scope=threshold_scope,
        min_keep=min_keep,
        structured=structured_rule,
        density=structured_density,
    )
    check_rule(rule)

    def refresh(
        state: ServerState, rows: ClientState, cohort: Cohort
    ) -> tuple[Hybrid, Tree]:
        del rows, cohort
        server = state.server
        hybrid = jax.lax.cond(
            state.round == warmup_rounds,
            lambda: rule.masks(jax.tree.map(jnp.abs, state.params)),
            lambda: Hybrid(server.masks, server.guarded),
        )
        return hybrid, {}

    masking = Masking(lambda params: {}, lambda params: {}, refresh)
    return masked(task, fedavg(task, solver, server_tx), masking)
