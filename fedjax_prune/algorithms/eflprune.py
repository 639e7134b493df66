"""EFLPrune: each round the strongest channels of the current model, as a small network.

Before release the server ranks the channels of every layer by the L1 norm of their
kernel and sends the network of the best; what comes back is written into the full
model. Channels left out keep their values and can be chosen again.

References:
  The name is not expanded where AutoFLIP compares with it; most likely Wu, Song, Zeng,
  Complex & Intelligent Systems 9:6999, 2023. The L1 norm is a choice of ours.
"""

import jax
import jax.numpy as jnp
import optax

from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.algorithms.masked import Masking, masked
from fedjax_prune.contract import FederatedAlgorithm
from fedjax_prune.hybrid import Hybrid
from fedjax_prune.pruning import lowest_channels
from fedjax_prune.solver import LocalSolver
from fedjax_prune.types import (
    ClientState,
    Cohort,
    ServerState,
    Task,
    Tree,
)


def eflprune(
    task: Task,
    solver: LocalSolver,
    server_tx: optax.GradientTransformation,
    *,
    channel_share: float = 0.3,
    structured_residual: bool = False,
) -> FederatedAlgorithm:
    """Builds EFLPrune on FedAvg.

    Args:
      task: the model and its loss.
      solver: local training.
      server_tx: applied to the weighted mean of the deltas.
      channel_share: p, share of every layer's channels left out, in [0, 1).
      structured_residual: channels that are added may be left out, too.

    Returns:
      The algorithm.

    Raises:
      ValueError: if the share is out of range or the model does not say what its
        channels are.
    """
    if not 0 <= channel_share < 1:
        raise ValueError(f"channel_share must be in [0, 1), got {channel_share}.")
    if task.groups is None:
        raise ValueError("eflprune needs a model with channel_groups.")
    groups = task.groups

    def refresh(
        state: ServerState, rows: ClientState, cohort: Cohort
    ) -> tuple[Hybrid, Tree]:
        del rows, cohort
        masks = lowest_channels(
            jax.tree.map(lambda x: jnp.ones(x.shape, bool), state.params),
            jax.tree.map(jnp.abs, state.params),
            groups,
            share=channel_share,
            residual=structured_residual,
        )
        return Hybrid(masks, jnp.int32(0)), {}

    masking = Masking(lambda params: {}, lambda params: {}, refresh)
    return masked(task, fedavg(task, solver, server_tx), masking)
