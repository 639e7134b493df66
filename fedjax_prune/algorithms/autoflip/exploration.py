"""Federated loss exploration: how far each weight moves when clients train alone.

    delta_{i,j} = (w_{i,j}^exp - w^0_j)^2,     D_j = mean over explorers

Explorers are independent: each starts from w^0, and none sees another's parameters.
They run one after another in lanes, and in groups whose size depends on the lanes. So
memory grows with the number of lanes, not with that of explorers.

References:
  AutoFLIP, Internò et al., https://arxiv.org/abs/2405.10271. Exploration and squared
  deviations are from the paper [P]; all clients, 150 epochs at most, patience 40 and
  the last epoch's parameters are from the code [C].

Choices:
  Every explorer starts from its own copy of w^0; the authors' code hands one model from
  client to client, so that only the last one's deviations count. Deviations are
  measured from w^0; the code measures them from the explorer's parameters after one
  epoch (`warm`). Early stopping watches the mean loss of an epoch; the code watches
  that of its last batch. All step sizes are the first of a round, because a schedule
  would be made for the round's epochs. Explorers count the same, whatever the number of
  their examples.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_prune.engine.aggregate import Gathered, join, nothing, weigh
from fedjax_prune.engine.contract import ClientProgram
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.rounds import make_training
from fedjax_prune.engine.solver import LocalSolver
from fedjax_prune.engine.stopping import make_stopping
from fedjax_prune.engine.transforms import remember_first_epoch
from fedjax_prune.shares import nearest_in
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

EXPLORE_BASES = ("init", "warm")
WEIGHTINGS = ("uniform", "samples")


class Exploration(NamedTuple):
    """The settings of an exploration: fields of `autoflip`, and checked there.

    Their defaults are declared here, and `autoflip` reads them.

    Attributes:
      share: of the clients, how many explore.
      epochs: of an explorer, at most.
      patience: epochs without a lower loss before an explorer stops.
      monitor: the loss that is watched, of an `epoch` or of its `last_batch`.
      base: deviations are measured from w^0 with `init`; with `warm` from the
        explorer's parameters after one epoch, and it trains for one epoch more.
      weighting: explorers count the same with `uniform`, and by their examples with
        `samples`.
    """

    share: float = 1.0
    epochs: int = 150
    patience: int = 40
    monitor: str = "epoch"
    base: str = "init"
    weighting: str = "uniform"

    def num_clients(self, num_clients: int) -> int:
        """Says how many clients explore: the nearest integer, at least one."""
        return max(1, nearest_in(self.share, num_clients))


class Explored(NamedTuple):
    """The means over all explorers whose messages have arrived.

    Attributes:
      deviation: D, their weighted mean squared deviation.
      delta: w^0 minus the weighted mean of their parameters; {} if it is not sent.
      model_state: the weighted mean of their batch statistics, of integers the largest;
        {} if it is not sent.
      pooled: the mean, weighted by examples, of what their schedule pools.
    """

    deviation: Tree
    delta: Tree
    model_state: Tree
    pooled: Tree


def make_exploration(
    task: Task,
    solver: LocalSolver,
    settings: Exploration,
    keep: Callable[[Tree], Tree],
    pool: Callable[[Tree, Tree], Tree],
    *,
    sends_model: bool,
) -> tuple[LocalSolver, Callable[[ServerState], Gathered], Callable[..., tuple]]:
    """Makes an exploration.

    Args:
      task: the model and its loss.
      solver: local training as in a round, at its first step size; epochs and stopping
        are those of the settings.
      settings: in their ranges.
      keep: deviation of one explorer -> what its row keeps.
      pool: (what its row keeps, its deviation) -> floats, averaged over all explorers.
      sends_model: whether explorers also send what they have trained.

    Returns:
      `solver`, `start` and `gather` of a Preparation. `ClientState.client` of a row is
      what `keep` returns.
    """
    is_warm = settings.base == "warm"
    first_step_size = solver.step_size
    solver = solver._replace(
        # A schedule would be made for the round's epochs.
        step_size=lambda epoch, batch, batches: first_step_size(
            jnp.zeros_like(epoch), jnp.zeros_like(batch), batches
        ),
        epochs=settings.epochs + is_warm,
        # The epoch before the reference is not one of the exploration.
        stopping=make_stopping(settings.patience, settings.monitor)._replace(
            unwatched=int(is_warm)
        ),
    )
    if is_warm:
        solver = solver.before_descent(remember_first_epoch())

    def program(state: ServerState, cohort: Cohort) -> ClientProgram:
        del cohort

        def upload(
            result: LocalResult, row: ClientState
        ) -> tuple[Message, ClientState]:
            moved = result.delta
            if is_warm:
                first = optax.tree.get(result.solver_state, "first_epoch")
                moved = jax.tree.map(
                    lambda d, w, f: d - (w - f), result.delta, state.params, first
                )
            deviation = jax.tree.map(jnp.square, moved)
            own, size = keep(deviation), result.num_examples
            message = _message(
                deviation,
                result.delta if sends_model else {},
                result.model_state if sends_model else {},
                pool(own, deviation),
                weight=size if settings.weighting == "samples" else jnp.ones_like(size),
                size=size,
            )
            return message, row._replace(client=own)

        return ClientProgram(upload)

    train = make_training(task, solver, program)

    def start(state: ServerState) -> Gathered:
        left = (state.params, state.model_state) if sends_model else ({}, {})

        def message() -> Message:
            pooled, one = pool(keep(state.params), state.params), jnp.int32(1)
            return weigh(_message(state.params, *left, pooled, weight=one, size=one))

        return nothing(jax.eval_shape(message))

    def gather(
        gathered: Gathered, inputs: RoundInputs, placement: Placement
    ) -> tuple[Gathered, ClientState, Sums]:
        group, rows, sums = train(inputs, placement)
        return join(gathered, group), rows, sums

    return solver, start, gather


def _message(
    deviation: Tree,
    delta: Tree,
    model_state: Tree,
    pooled: Tree,
    *,
    weight: jax.Array,
    size: jax.Array,
) -> Message:
    """Makes a message; `weight` counts in the guidance, `size` in the pool."""
    return {
        "deviation": Mean(deviation, weight),
        "delta": Mean(delta, weight),
        "model_state": Mean(model_state, weight),
        "pooled": Mean(pooled, size),
    }
