"""Random pruning, the control that a pruning method must beat.

`random_pruning` has one random mask for all rounds. It prunes as many entries of every
array as AutoFLIP's mask from the same exploration. `random_steps` does what the code of
AutoFLIP does: after every local step it sets a new random set of entries to 0, and
nothing stays pruned.

References:
  https://github.com/ChristianInterno/AutoFLIP.

Choices:
  `random_pruning` repeats the exploration of the AutoFLIP that it is compared with and
  shuffles the mask of every array, so that both prune as much of each; it removes whole
  channels only by chance. Its rounds begin with the parameters with which that AutoFLIP
  begins. `random_steps` keeps the code's budget, which shrinks from array to array, so
  that few entries of the last arrays are set to 0. Entries of biases and norms are set
  to 0, too, and the mean of the clients is not pruned.
"""

import math
from typing import Annotated, Any

import jax
import optax

from fedjax_prune.algorithms.autoflip.autoflip import autoflip
from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.engine.contract import FederatedAlgorithm
from fedjax_prune.engine.solver import LocalSolver
from fedjax_prune.engine.transforms import zero_random
from fedjax_prune.fields import BELOW_ONE, checked, fields_of, like, one_of
from fedjax_prune.pruning.mask_rule import GuardedMasks
from fedjax_prune.pruning.masked_round import with_masks
from fedjax_prune.shares import num_in
from fedjax_prune.types import (
    ServerState,
    Sums,
    Task,
    Tree,
)

_FIXED = fields_of(autoflip)["mask_schedule"]._replace(
    rule=one_of(("fixed",)), default="fixed", words="When masks are made, once."
)


@checked
@like(autoflip, mask_schedule=_FIXED)
def random_pruning(
    task: Task,
    solver: LocalSolver,
    server_tx: optax.GradientTransformation,
    **fields: Any,
) -> FederatedAlgorithm:
    """Builds random pruning with the sparsities of an AutoFLIP mask.

    Args:
      task: the model and its loss.
      solver: local training.
      server_tx: applied to the weighted mean of the deltas.
      fields: of the AutoFLIP that it is compared with.

    Returns:
      The algorithm. Its exploration is AutoFLIP's, and its masks have the same number
      of entries in every array, but whole channels only by chance.

    Raises:
      ValueError: as `autoflip`.

    References:
      A control for AutoFLIP, Internò et al., https://arxiv.org/abs/2405.10271.

    Examples:
      >>> import fedjax_prune as fp
      >>> task = fp.make_task(fp.CNN(num_classes=3, width=0.1), (8, 8, 1))
      >>> solver, tx = fp.make_solver(), fp.make_server_tx()
      >>> control = fp.random_pruning(task, solver, tx, explorer_share=0.5)
      >>> control.prepare.num_clients(10)
      5
    """
    fields["mask_schedule"] = "fixed"
    explored = autoflip(task, solver, server_tx, **fields)
    assert explored.prepare is not None
    guided, pruned = explored.prepare.finish, explored.masked
    assert pruned is not None

    def finish(
        state: ServerState, gathered: Tree, key: jax.Array
    ) -> tuple[ServerState, Sums]:
        after, _ = guided(state, gathered, key)
        server = after.server
        # The masks of the exploration were never sent: these are the first version.
        unmasked = after._replace(server=state.server)
        shuffled = GuardedMasks(permute(server.masks, key), server.guarded)
        after = with_masks(unmasked, shuffled, server.guide)
        return after, pruned.facts(after)

    return explored._replace(prepare=explored.prepare._replace(finish=finish))


def permute(masks: Tree, key: jax.Array) -> Tree:
    """Shuffles the entries of every mask; the number of kept ones stays.

    Args:
      masks: bool.
      key: of the shuffle; each array gets a key of its own.
    """
    leaves, treedef = jax.tree.flatten(masks)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
        [
            jax.random.permutation(k, leaf.reshape(-1)).reshape(leaf.shape)
            for k, leaf in zip(keys, leaves, strict=True)
        ]
    )


@checked
def random_steps(
    task: Task,
    solver: LocalSolver,
    server_tx: optax.GradientTransformation,
    *,
    ratio: Annotated[
        float,
        BELOW_ONE,
        "Share of all entries set to 0 after a local step; see `shrinking_counts`.",
    ] = 0.45,
) -> FederatedAlgorithm:
    """Builds FedAvg with random zeros after every local step.

    Args:
      task: the model and its loss.
      solver: local training.
      server_tx: applied to the weighted mean of the deltas.

    Returns:
      The algorithm. `ServerState.server` is the state of `server_tx`.

    Raises:
      ValueError: if the ratio is out of range.

    References:
      https://github.com/ChristianInterno/AutoFLIP.

    Examples:
      >>> import fedjax_prune as fp
      >>> task, tx = fp.Task(init=None, loss=None, predict=None), fp.make_server_tx()
      >>> fp.random_steps(task, fp.make_solver(), tx, ratio=1.0)
      Traceback (most recent call last):
      ValueError: ratio must be in [0, 1), got 1.0.
    """
    shapes = task.shapes.params
    counts = shrinking_counts(shapes, ratio)
    return fedavg(task, solver.after_descent(zero_random(counts)), server_tx)


def shrinking_counts(params: Tree, ratio: float) -> Tree:
    """Computes how many entries of each array are set to 0.

    With N entries in all, the budget is B = floor(ratio N). For each array in turn, the
    count is c = floor(B size / N), and B shrinks by c. Arrays are in the order of their
    names [R]; in the authors' code they are in that of the network's layers.

    Args:
      params: arrays or their shapes.
      ratio: in [0, 1).

    Returns:
      A number for each array.

    Examples:
      >>> ten = jax.ShapeDtypeStruct((10,), float)
      >>> shrinking_counts({"a": ten, "b": ten}, 0.5)  # 10 * 10 / 20, 5 * 10 / 20
      {'a': 5, 'b': 2}
    """
    leaves, treedef = jax.tree.flatten(params)
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    budget, counts = num_in(ratio, sum(sizes)), []
    for size in sizes:
        counts.append(budget * size // sum(sizes))
        budget -= counts[-1]
    return treedef.unflatten(counts)
