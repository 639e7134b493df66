"""EFLPrune: each round trains the strongest channels of the current model.

Before each round the server ranks the channels of every layer by the L1 norm of their
kernel and sends the network of the best ones. It writes what comes back into the full
model. Channels that are left out keep their values and can be chosen again.

References:
  AutoFLIP compares with EFLPrune and does not expand the name; most likely it is Wu,
  Song, Zeng, Complex & Intelligent Systems 9:6999, 2023.

Choices:
  A channel's score is the mean magnitude of the weights that it is computed from: its
  L1 norm divided by a number that is the same for all channels of a layer. The same
  share is left out of every layer; at least a twentieth of its channels, and at least
  one, stays. Channels that residual additions join stay, unless `structured_residual`
  is set; then those go that all branches rank among their lowest. FedAvg trains under
  the masks, and channels that are left out keep the state of the server's optimiser.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.engine.contract import FederatedAlgorithm
from fedjax_prune.engine.solver import LocalSolver
from fedjax_prune.fields import BELOW_ONE, checked
from fedjax_prune.pruning.mask_rule import GuardedMasks, StructuredResidual
from fedjax_prune.pruning.masked_round import Masking, masked
from fedjax_prune.pruning.masks import lowest_channels, removable
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
        float, BELOW_ONE, "Share of every layer's channels that is left out, p."
    ] = 0.3,
    structured_residual: StructuredResidual = False,
) -> FederatedAlgorithm:
    """Builds EFLPrune on FedAvg.

    Args:
      task: the model and its loss.
      solver: local training.
      server_tx: applied to the weighted mean of the deltas.

    Returns:
      The algorithm. `ServerState.server` is a MaskedServer; the masks, bool like the
      parameters, are made anew before each round.

    Raises:
      ValueError: if the share is out of range, the model does not say what its channels
        are, none of them can be removed, or no array is a kernel or an embedding.

    References:
      AutoFLIP's comparison, Internò et al., https://arxiv.org/abs/2405.10271.

    Examples:
      >>> import fedjax_prune as fp
      >>> task = fp.make_task(fp.CNN(num_classes=3, width=0.1), (8, 8, 1))
      >>> [(group.name, group.size) for group in task.groups]
      [('conv1', 2), ('conv2', 3), ('fc1', 6)]
      >>> tx = fp.make_server_tx()
      >>> half = fp.eflprune(task, fp.make_solver(), tx, channel_share=0.5)
      >>> def channels_left(key):
      ...     state = half.masked.remask(half.init(key), rows=(), cohort=())
      ...     return half.masked.facts(state)["mask/channels/fc1"]
      >>> int(jax.jit(channels_left)(jax.random.key(0)))
      3
    """
    if task.groups is None:
        raise ValueError(
            "task must have groups, of a model with the method channel_groups, got "
            f"groups = {task.groups!r}."
        )
    groups = task.groups
    if channel_share and not removable(groups, residual=structured_residual):
        raise ValueError(
            "channel_share must be 0 for a model without channels that can be removed, "
            f"got {channel_share}."
        )

    def refresh(
        state: ServerState, rows: ClientState, cohort: Cohort
    ) -> tuple[GuardedMasks, Tree]:
        del rows, cohort
        masks = lowest_channels(
            optax.tree.ones_like(state.params, bool),
            jax.tree.map(jnp.abs, state.params),
            groups,
            share=channel_share,
            residual=structured_residual,
        )
        return GuardedMasks(masks, jnp.int32(0)), {}

    return masked(task, fedavg(task, solver, server_tx), Masking(refresh))
