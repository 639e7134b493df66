"""EFLPrune: each round the strongest channels of the current model, as a small network.

Before release the server ranks the channels of every layer by the L1 norm of their
kernel and sends the network of the best; what comes back is written into the full
model. Channels left out keep their values and can be chosen again.

References:
  The name is not expanded where AutoFLIP compares with it; most likely Wu, Song, Zeng,
  Complex & Intelligent Systems 9:6999, 2023.

Choices:
  A channel's score is the mean magnitude of the weights that it is computed from: its
  L1 norm divided by a number that is the same for all channels of a layer. The same
  share goes in every layer, and at least a twentieth of its channels, and one, stays.
  Channels that residual additions join stay, unless `structured_residual` is set. What
  is trained under the masks is FedAvg, and channels left out keep their optimiser's
  state.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.engine.contract import FederatedAlgorithm
from fedjax_prune.engine.solver import LocalSolver
from fedjax_prune.fields import DECAY, checked
from fedjax_prune.pruning.mask_rule import GuardedMasks, StructuredResidual
from fedjax_prune.pruning.masked_round import Masking, masked
from fedjax_prune.pruning.masks import lowest_channels
from fedjax_prune.types import (
    ClientState,
    Cohort,
    ServerState,
    Task,
    Tree,
)


@checked
def eflprune(
    task: Task,
    solver: LocalSolver,
    server_tx: optax.GradientTransformation,
    *,
    channel_share: Annotated[
        float, DECAY, "Share of every layer's channels that is left out, p."
    ] = 0.3,
    structured_residual: StructuredResidual = False,
) -> FederatedAlgorithm:
    """Builds EFLPrune on FedAvg.

    Args:
      task: the model and its loss.
      solver: local training.
      server_tx: applied to the weighted mean of the deltas.

    Returns:
      The algorithm.

    Raises:
      ValueError: if the share is out of range or the model does not say what its
        channels are.
    """
    if task.groups is None:
        raise ValueError("eflprune needs a model with channel_groups.")
    groups = task.groups

    def refresh(
        state: ServerState, rows: ClientState, cohort: Cohort
    ) -> tuple[GuardedMasks, Tree]:
        del rows, cohort
        masks = lowest_channels(
            jax.tree.map(lambda x: jnp.ones(x.shape, bool), state.params),
            jax.tree.map(jnp.abs, state.params),
            groups,
            share=channel_share,
            residual=structured_residual,
        )
        return GuardedMasks(masks, jnp.int32(0)), {}

    masking = Masking(lambda params: {}, lambda params: {}, refresh)
    return masked(task, fedavg(task, solver, server_tx), masking)
