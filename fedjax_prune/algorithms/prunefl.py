"""PruneFL: weights are pruned, and regrown by their squared gradient per time.

  before     one client trains alone and the mask is adjusted repeatedly, until its size
             has changed by less than a tenth in five adjustments in a row
  during     every `adjust_every` rounds clients send squared gradients, also of pruned
             weights, and the server adjusts the mask, if any arrive

An adjustment drops the smallest share of each array's active weights and keeps the
others. Then it adds candidates (those just dropped and all inactive weights) in order
of g_j^2 / t_j, as long as that exceeds
Gamma = (sum of kept g^2) / (c + sum of kept t).

References:
  Jiang et al., Model Pruning Enables Efficient Federated Learning on Edge Devices, IEEE
  TNNLS 2022, https://arxiv.org/abs/1909.12326.

Choices:
  Times are relative, not measured: t_j of a weight is `byte_time` for each of its four
  bytes plus `mac_time` for each place where it is used; c is `constant_time`. A weight
  outside `Task.layers` counts as used at one place. Squared gradients are means over
  the local steps of a round, weighted by examples. In the first stage, which drops the
  whole share, the client trains for a round between adjustments and goes on from its
  own parameters, without the server's optimiser. What is dropped is rounded down to
  whole weights; biases and norms always stay. Regrown weights start at 0, and the mask
  is enforced after every local step. The rounds are those of FedAvg.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.engine.clipping import SQUARES
from fedjax_prune.engine.contract import FederatedAlgorithm, Preparation, Received
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.rounds import with_preparation
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import LocalSolver
from fedjax_prune.engine.transforms import accumulate, mean_accumulated
from fedjax_prune.fields import (
    ABOVE_ZERO,
    BELOW_ONE,
    Relation,
    above,
    at_least,
    checked,
    related,
)
from fedjax_prune.models.channels import array_name
from fedjax_prune.models.costs import layer_of, num_entries
from fedjax_prune.pruning.mask_rule import GuardedMasks
from fedjax_prune.pruning.masked_round import Masking, keep_masks, masked, with_masks
from fedjax_prune.pruning.masks import prunable
from fedjax_prune.pruning.wire import VALUE
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
    Tree,
)

SETTLED, CHANGE = 5, 0.1
"""The first stage ends after SETTLED adjustments in a row whose relative change of the
size is below CHANGE."""


@checked
@related(
    Relation(
        ("byte_time", "mac_time"),
        lambda byte_time, mac_time: byte_time + mac_time > 0,
        "{byte_time} must be above 0 if {mac_time} is 0, got {0}",
    )
)
def prunefl(
    task: Task,
    solver: LocalSolver,
    server_tx: optax.GradientTransformation,
    *,
    adjust_every: Annotated[int, at_least(1), "Rounds between adjustments."] = 50,
    prune_share: Annotated[
        float,
        BELOW_ONE,
        "Share of the active weights of each array that is dropped, by magnitude, "
        "before candidates are added.",
    ] = 0.3,
    share_decay: Annotated[
        float, ABOVE_ZERO, "Factor of that share from one due adjustment to the next."
    ] = 1.0,
    max_adjustments: Annotated[
        int, at_least(1), "Most trainings of the first stage, a mask after each."
    ] = 50,
    constant_time: Annotated[
        float, above(0), "Time of a round whatever its mask, c."
    ] = 1.0,
    byte_time: Annotated[float, at_least(0), "Time to send a byte."] = 1e-6,
    mac_time: Annotated[
        float, at_least(0), "Time of a multiply-accumulate of one image."
    ] = 1e-9,
) -> FederatedAlgorithm:
    """Builds PruneFL on FedAvg.

    Args:
      task: the model and its loss. Its `layers` say at how many positions an image
        uses a weight, by which `mac_time` is multiplied.
      solver: local training.
      server_tx: applied to the weighted mean of the deltas.

    Returns:
      The algorithm. Its first stage is `prepare`, with one client. `ServerState.server`
      is a MaskedServer.

    Raises:
      ValueError: if a number is out of range, both times of a weight are 0, or no array
        is a kernel or an embedding.

    References:
      Jiang et al., IEEE TNNLS 2022, https://arxiv.org/abs/1909.12326.

    Examples:
      >>> import fedjax_prune as fp
      >>> task = fp.make_task(fp.CNN(num_classes=3, width=0.1), (8, 8, 1))
      >>> algorithm = fp.prunefl(task, fp.make_solver(), fp.make_server_tx())
      >>> algorithm.prepare.num_clients(10)
      1
    """
    shapes = task.shapes.params
    flags, num_params = prunable(shapes), num_entries(shapes)
    times = _times(task, shapes, byte_time, mac_time)

    def renew(state: ServerState) -> tuple[GuardedMasks, Tree]:
        before = jnp.maximum(state.round // adjust_every - 1, 0)
        masks = adjust(
            masks=state.server.masks,
            params=state.params,
            squares=state.server.guide[SQUARES],
            times=times,
            prunable=flags,
            share=prune_share * share_decay ** before.astype(jnp.float32),
            constant=constant_time,
        )
        used = state.server.guide | {"round": jnp.int32(-1)}
        return GuardedMasks(masks, jnp.int32(0)), used

    def refresh(
        state: ServerState, rows: ClientState, cohort: Cohort
    ) -> tuple[GuardedMasks, Tree]:
        arrived = state.server.guide["round"] == state.round
        due = arrived & (state.round % adjust_every == 0)
        return jax.lax.cond(due, renew, lambda s: keep_masks(s, rows, cohort), state)

    def extra(state: ServerState) -> jax.Array:
        """Counts the squared gradients that are sent before a round that adjusts."""
        adjusts = (state.round + 1) % adjust_every == 0
        return jnp.where(adjusts, num_params, 0)

    masking = Masking(
        refresh, _first_guide, message=_squares, absorb=_absorb, extra=extra
    )
    measured = solver.before_descent(accumulate(jnp.square))

    def on_fedavg(tx: optax.GradientTransformation) -> FederatedAlgorithm:
        base = fedavg(task, measured, tx)
        return masked(task, base, masking, server_store="sparse")

    # Alone, a client goes on from its own parameters: plain averaging keeps them.
    algorithm, alone = on_fedavg(server_tx), on_fedavg(make_server_tx())
    pruned = algorithm.masked
    assert pruned is not None
    preparation = Preparation(
        solver=measured,
        num_clients=lambda num_clients: 1,
        start=lambda state: {},
        gather=_first_stage(alone, renew, max_adjustments),
        finish=lambda state, alone, key: (alone, pruned.facts(alone)),
        messages=lambda state: (state.params, state.params),
        most_trainings=max_adjustments,
    )
    return with_preparation(algorithm, preparation)


def _first_guide(params: Tree) -> Tree:
    # The round that the squares are of, counted from 1; -1 if there are none to use.
    return {SQUARES: optax.tree.zeros_like(params), "round": jnp.int32(-1)}


def _squares(result: LocalResult) -> Message:
    return {SQUARES: Mean(mean_accumulated(result.solver_state), result.num_examples)}


def _absorb(state: ServerState, received: Received) -> Tree:
    return {SQUARES: received[SQUARES], "round": state.round + 1}


def _times(task: Task, shapes: Tree, byte_time: float, mac_time: float) -> Tree:
    """Computes t_j of an entry of each array."""
    uses = {layer.name: layer.positions for layer in task.layers}

    def time_of(path: tuple, leaf: jax.ShapeDtypeStruct) -> float:
        del leaf
        count = uses.get(layer_of(array_name(path), uses), 1)
        return float(VALUE.itemsize * byte_time + mac_time * count)  # not int32

    return jax.tree_util.tree_map_with_path(time_of, shapes)


class _Carry(NamedTuple):
    """The loop of the first stage."""

    state: ServerState
    rows: ClientState
    sums: Sums
    settled: jax.Array  # [] int32, adjustments in a row that changed little
    number: jax.Array  # [] int32, trainings done


def _first_stage(
    alone: FederatedAlgorithm,
    renew: Callable[[ServerState], tuple[GuardedMasks, Tree]],
    max_adjustments: int,
) -> Callable[..., tuple[ServerState, ClientState, Sums]]:
    """Makes `Preparation.gather`, in which one client trains and adjusts its mask.

    Args:
      alone: the algorithm that trains it.
      renew: state -> the masks after an adjustment, and the guide.
      max_adjustments: the most adjustments.
    """

    def gather(
        nothing: Tree, inputs: RoundInputs, placement: Placement
    ) -> tuple[ServerState, ClientState, Sums]:
        del nothing  # the only client is the only group

        def again(state: ServerState) -> ServerState:
            return with_masks(state, *renew(state))

        def train(state: ServerState, rows: ClientState, number: jax.Array):
            key = jax.random.fold_in(inputs.key, number)
            alone_inputs = inputs._replace(state=state, rows=rows, key=key)
            state, rows, sums = alone.round(alone_inputs, placement)
            # These rounds are not counted: the schedule of the next stage begins at 0.
            state = state._replace(round=jnp.int32(0))
            # Of a dropped message there are no squares to adjust the mask by.
            new = jax.lax.cond(sums["arrived"].sum() > 0, again, lambda s: s, state)
            before, after = (_count(s.server.masks) for s in (state, new))
            return new, rows, sums, jnp.abs(after / before - 1) < CHANGE

        def step(carry: _Carry) -> _Carry:
            state, rows, now, is_small = train(carry.state, carry.rows, carry.number)
            last = {n: x for n, x in now.items() if n.startswith("mask/")}
            sums = jax.tree.map(jnp.add, carry.sums, now) | last
            one = now["arrived"].sum().astype(jnp.int32)  # or none, if it was dropped
            settled = jnp.where(is_small, carry.settled + one, 0)
            return _Carry(state, rows, sums, settled, carry.number + 1)

        state, base = inputs.state, inputs.state.server.base
        lone = state.server._replace(base=alone.init(inputs.key).server.base)
        state = state._replace(server=lone)
        zero = jnp.int32(0)
        shapes = jax.eval_shape(train, state, inputs.rows, zero)[2]
        sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        last = jax.lax.while_loop(
            lambda c: (c.settled < SETTLED) & (c.number < max_adjustments),
            step,
            _Carry(state, inputs.rows, sums, zero, zero),
        )
        server = last.state.server._replace(base=base)
        return last.state._replace(server=server), last.rows, last.sums

    return gather


def adjust(
    masks: Tree,
    params: Tree,
    squares: Tree,
    times: Tree,
    prunable: Tree,
    share: jax.Array,
    constant: float,
) -> Tree:
    """Adjusts masks once.

    Args:
      masks: bool, before.
      params: like `masks`; the active entries of smallest magnitude are dropped.
      squares: g^2, like `masks`, also where the masks prune.
      times: for each array, t of one of its entries, a number.
      prunable: a bool for each array, whether it may be pruned.
      share: [] float32, the share of each array's active entries that is dropped.
      constant: c.

    Returns:
      The masks after, bool.

    Examples:
      The smaller active entry is dropped. The pruned entry comes back, as 9 / 1 exceeds
      Gamma = 4 / (1 + 1); the dropped one does not, as 1 / 1 is below 13 / (1 + 2).

      >>> masks = {"kernel": jnp.array([True, True, False])}
      >>> params = {"kernel": jnp.array([3.0, 1.0, 0.0])}
      >>> squares, times = {"kernel": jnp.array([4.0, 1.0, 9.0])}, {"kernel": 1.0}
      >>> flags, half = {"kernel": True}, jnp.float32(0.5)
      >>> adjust(masks, params, squares, times, flags, half, 1.0)["kernel"].tolist()
      [True, False, True]
    """
    safe = jax.tree.map(
        lambda mask, param, flag: _largest_active(mask, param, share) if flag else mask,
        masks,
        params,
        prunable,
    )
    each = jax.tree.map(lambda t, m: jnp.full(m.shape, t), times, masks)
    time, square = (ravel_pytree(tree)[0] for tree in (each, squares))
    kept, unravel = ravel_pytree(safe)
    ratio = jnp.where(kept, -jnp.inf, square / time)
    order = jnp.argsort(ratio, descending=True, stable=True)
    gained = jnp.where(kept, square, 0).sum() + jnp.cumsum(square[order])
    spent = constant + jnp.where(kept, time, 0).sum() + jnp.cumsum(time[order])
    # This is Gamma before each candidate. It only rises with those that are added, so
    # that after the first candidate that fails no other is added.
    gamma = (gained - square[order]) / (spent - time[order])
    adds = jnp.cumprod((ratio[order] > gamma).astype(jnp.int32)).astype(bool)
    return unravel(kept.at[order].set(kept[order] | adds))


def _largest_active(mask: jax.Array, param: jax.Array, share: jax.Array) -> jax.Array:
    """Drops a share of the smallest active entries, rounded down: 0.52 * 475 is 247."""
    magnitude = jnp.where(mask, jnp.abs(param), jnp.inf).reshape(-1)
    order = jnp.argsort(magnitude, stable=True)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
    count = mask.sum(dtype=jnp.int32).astype(share.dtype)
    dropped = jnp.floor(share * count * (1 + 2**-22)).astype(jnp.int32)
    return mask & (place.reshape(mask.shape) >= dropped)


def _count(masks: Tree) -> jax.Array:
    return jnp.stack([m.sum(dtype=jnp.int32) for m in jax.tree.leaves(masks)]).sum()
