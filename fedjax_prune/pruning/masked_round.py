"""Rounds of any algorithm under a mask.

Pruned parameters are 0 in messages and on clients:

    clients start from    w^{t-1} * M^t, and no local step moves what M^t prunes
    the server steps      where M^t keeps; elsewhere its values stay

A pruning method says when and how masks are made; the algorithm below it (FedAvg,
FedProx, SCAFFOLD) trains. Momenta and control variates, too, change only where the mask
keeps.

References:
  AutoFLIP, Internò et al., https://arxiv.org/abs/2405.10271. As in its authors' code,
  masks are enforced after every local step and in the aggregation.

Choices:
  The server's values stay where a mask prunes (`server_store`), so that a weight that
  comes back goes on from its last value. A removed channel keeps the batch statistics
  and the gates of the last round in which it was alive; they come back with it. The
  code of AutoFLIP does not aggregate batch statistics. A client is sent a mask only if
  it holds one of another version; one that comes back after another is new. Masks are
  made before the clients train and do not depend on what arrives: if nothing arrives,
  the masks and the guide of the round stay, and nothing else has changed except for the
  count of rounds. A sparse server has also set to 0 what these masks prune.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_prune.engine.clipping import MODEL_STATE
from fedjax_prune.engine.contract import (
    ClientProgram,
    FederatedAlgorithm,
    MaskedRound,
    Received,
    Round,
    Rules,
)
from fedjax_prune.engine.devices import ONE_DEVICE, Placement
from fedjax_prune.engine.rounds import make_round, require_nothing_kept
from fedjax_prune.fields import checked, one_of
from fedjax_prune.pruning.enforce import (
    apply_masks,
    freeze_pruned,
    gate_flags,
    keep_alive,
    keep_where,
)
from fedjax_prune.pruning.mask_rule import GuardedMasks
from fedjax_prune.pruning.masks import prunable
from fedjax_prune.pruning.wire import mask_facts
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
    Total,
    Tree,
    Variables,
)

SERVER_STORES = ("dense", "sparse")

ServerStore = Annotated[
    str,
    one_of(SERVER_STORES),
    "What the server keeps where the mask prunes, the value that it had or 0.",
]


class MaskedServer(NamedTuple):
    """The server's part of the state.

    Attributes:
      base: of the algorithm below.
      masks: bool, like the parameters, False = pruned (M^t).
      version: [] int32, how often the masks have changed.
      guarded: [] int32, entries that only the guard has kept.
      guide: what the method makes its masks from.
    """

    base: Tree
    masks: Tree
    version: jax.Array
    guarded: jax.Array
    guide: Tree

    @property
    def current(self) -> GuardedMasks:
        """The masks of the last round."""
        return GuardedMasks(self.masks, self.guarded)


class MaskedRow(NamedTuple):
    """The client's part of the state.

    Attributes:
      base: of the algorithm below.
      version: [] int32, of the masks that it was last sent; those of version 0 prune
        nothing.
      own: what the method keeps for this client.
    """

    base: Tree
    version: jax.Array
    own: Tree


class Masking(NamedTuple):
    """A pruning method.

    Attributes:
      refresh: (state, rows, cohort) -> (GuardedMasks, guide) of this round, before it
        is trained. `state.server` is a MaskedServer.
      start: parameters -> guide.
      own: parameters -> the first `MaskedRow.own`.
      message: result -> parts that a client sends beside those of the base.
      absorb: (state, received) -> guide after the round.
      delivered: MaskedServer -> masks of the delivered model.
      prunable: parameters -> a bool for each array, whether it may be pruned.
      extra: state -> [] int32, how many numbers each client of the round sends beside
        those that the mask keeps.
    """

    refresh: Callable[[ServerState, ClientState, Cohort], tuple[GuardedMasks, Tree]]
    start: Callable[[Tree], Tree] = lambda params: {}
    own: Callable[[Tree], Tree] = lambda params: {}
    message: Callable[[LocalResult], Message] = lambda result: {}
    absorb: Callable[[ServerState, Received], Tree] = lambda state, received: (
        state.server.guide
    )
    delivered: Callable[[MaskedServer], Tree] = lambda server: server.masks
    prunable: Callable[[Tree], Tree] = prunable
    extra: Callable[[ServerState], jax.Array] = lambda state: jnp.int32(0)


def keep_masks(
    state: ServerState, rows: ClientState, cohort: Cohort
) -> tuple[GuardedMasks, Tree]:
    """Keeps the masks as they are: a `Masking.refresh`."""
    del rows, cohort
    return state.server.current, state.server.guide


@checked
def masked(
    task: Task,
    base: FederatedAlgorithm,
    masking: Masking,
    *,
    server_store: ServerStore = "dense",
) -> FederatedAlgorithm:
    """Puts an algorithm under masks.

    Args:
      task: the model and its loss.
      base: the algorithm below.
      masking: makes the masks.
      server_store: `dense`, so that a weight that comes back goes on from its last
        value, or `sparse`, so that it starts at 0.

    Returns:
      The algorithm. `ServerState.server` is a MaskedServer, `ClientState.client` a
      MaskedRow. Its sums have the scalars of `wire.mask_facts`, `mask/guarded`,
      `mask/extra` and `mask/sent`, the number of clients that are sent the masks.

    Raises:
      ValueError: if `server_store` is unknown, or `masking.prunable` refuses the model.
    """
    flags = masking.prunable(task.shapes.params)
    rules = _rules(task, base.rules, masking)
    train = _training(task, rules)

    def row(key: jax.Array) -> ClientState:
        first = base.rules.row(key)
        own = masking.own(base.rules.init(key).params)
        return first._replace(client=MaskedRow(first.client, jnp.int32(0), own))

    def remask(state: ServerState, rows: ClientState, cohort: Cohort) -> ServerState:
        state = with_masks(state, *masking.refresh(state, rows, cohort))
        if server_store == "dense":
            return state
        kept = state.params, state.server.base
        zeros = jax.tree.map(jnp.zeros_like, kept)
        params, base_state = keep_where(state.server.masks, kept, zeros)
        server = state.server._replace(base=base_state)
        return state._replace(params=params, server=server)

    def facts(state: ServerState) -> Sums:
        masks = state.server.masks
        counted = mask_facts(masks, task.groups or (), flags)
        return counted | {
            "mask/guarded": state.server.guarded,
            "mask/extra": masking.extra(state),
        }

    def round(
        inputs: RoundInputs, placement: Placement = ONE_DEVICE
    ) -> tuple[ServerState, ClientState, Sums]:
        state = remask(inputs.state, inputs.rows, inputs.cohort)
        after, rows, sums = train(inputs._replace(state=state), placement)
        return after, rows, sums | facts(state)

    def delivered(state: ServerState) -> Tree:
        return masking.delivered(state.server)

    def deliver(state: ServerState) -> Variables:
        shared, masks = base.deliver(state), delivered(state)
        return shared._replace(
            params=apply_masks(masks, state.params), alive=gate_flags(task, masks)
        )

    def messages(state: ServerState) -> tuple[Tree, Tree]:
        return base.messages(state._replace(server=state.server.base))

    return base._replace(
        init=rules.init,
        row=row,
        round=round,
        deliver=deliver,
        messages=messages,
        rules=rules,
        masked=MaskedRound(
            remask, train, facts, delivered, sent, restored=partial(restored, task)
        ),
    )


def _rules(task: Task, below: Rules, masking: Masking) -> Rules:
    """Makes the rules of training under the masks that the state has.

    Their rows are those of the rules below: the rest of a MaskedRow is not trained.
    """

    def init(key: jax.Array) -> ServerState:
        state = below.init(key)
        masks = optax.tree.ones_like(state.params, bool)
        guide = masking.start(state.params)
        server = MaskedServer(state.server, masks, jnp.int32(0), jnp.int32(0), guide)
        return state._replace(server=server)

    def program(state: ServerState, cohort: Cohort) -> ClientProgram:
        masks = state.server.masks
        inner = below.program(state._replace(server=state.server.base), cohort)

        def extra_args(row: ClientState) -> dict[str, Tree]:
            return inner.extra_args(row) | {"masks": masks}

        def upload(
            result: LocalResult, row: ClientState
        ) -> tuple[Message, ClientState]:
            message, after = inner.upload(result, row)
            # What is pruned does not count in the norm of what is sent.
            message = {name: kept_of(name, part) for name, part in message.items()}
            client = keep_where(masks, after.client, row.client)
            # Weight decay has moved the gates of removed channels.
            personal = keep_alive(task, masks, after.personal, row.personal)
            return message | masking.message(result), ClientState(personal, client)

        def kept_of(name: str, part: Mean | Total) -> Mean | Total:
            if name == MODEL_STATE:
                values = keep_alive(task, masks, part.values, state.model_state)
            else:
                zeros = jax.tree.map(jnp.zeros_like, part.values)
                values = keep_where(masks, part.values, zeros)
            return part._replace(values=values)

        return ClientProgram(upload, extra_args, gate_flags(task, masks), inner.settle)

    def update(state: ServerState, received: Received) -> ServerState:
        after = below.update(state._replace(server=state.server.base), received)
        server = state.server._replace(
            base=after.server, guide=masking.absorb(state, received)
        )
        return after._replace(server=server)

    # What is not pruned moves as before.
    solver = below.solver.after_descent(freeze_pruned(), keeps_mass=True)
    return Rules(solver, init, below.row, program, update)


def _training(task: Task, rules: Rules) -> Round:
    """Makes `MaskedRound.train`."""
    train = make_round(task, rules.solver, rules.program, rules.update)

    def train_masked(
        inputs: RoundInputs, placement: Placement = ONE_DEVICE
    ) -> tuple[ServerState, ClientState, Sums]:
        state, kept = inputs.state, inputs.rows.client
        if placement.policy.privacy is not None:
            require_nothing_kept(kept.own)
        inner_rows = inputs.rows._replace(client=kept.base)
        after, inner_rows, sums = train(
            inputs._replace(state=sent(state), rows=inner_rows), placement
        )
        after, version = restored(task, state, after), state.server.version
        outdated = (jnp.asarray(inputs.cohort.sizes) > 0) & (kept.version != version)
        # The server does not know which masks a dropped client has.
        known = jnp.where(sums["arrived"] > 0, version, kept.version)
        client = MaskedRow(inner_rows.client, known, kept.own)
        sums |= {"mask/sent": outdated.sum(dtype=jnp.int32)}
        return after, inner_rows._replace(client=client), sums

    return train_masked


def sent(state: ServerState) -> ServerState:
    """Sets what the masks prune to 0 in the parameters: `MaskedRound.sent`."""
    return state._replace(params=apply_masks(state.server.masks, state.params))


def restored(task: Task, state: ServerState, after: ServerState) -> ServerState:
    """Keeps what the masks prune as it was: `MaskedRound.restored` of a task."""
    masks = state.server.masks
    old = state.params, state.server.base
    params, base = keep_where(masks, (after.params, after.server.base), old)
    # A removed channel keeps its statistics until it comes back.
    model_state = keep_alive(task, masks, after.model_state, state.model_state)
    server = after.server._replace(base=base)
    return after._replace(params=params, model_state=model_state, server=server)


def with_masks(state: ServerState, new: GuardedMasks, guide: Tree) -> ServerState:
    """Replaces the masks and the guide; the version grows if the masks differ.

    Args:
      state: of a masked algorithm.
      new: masks of the shapes that the state has.
      guide: what the method makes its next masks from.
    """
    server, (masks, guarded) = state.server, new
    chex.assert_trees_all_equal_shapes_and_dtypes(masks, server.masks)
    changed = jnp.stack(
        jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), masks, server.masks))
    ).any()
    version = server.version + changed.astype(jnp.int32)
    after = MaskedServer(server.base, masks, version, guarded, guide)
    return state._replace(server=after)
