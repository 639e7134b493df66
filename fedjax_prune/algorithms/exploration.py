"""Federated loss exploration: how far each weight moves when clients train alone.

    delta_{i,j} = (w_{i,j}^exp - w^0_j)^2,     D_j = mean over explorers

Explorers are independent: each starts from w^0, and none sees another's parameters.
They run one after another in lanes, and in groups of so many for each lane, so memory
grows with lanes, not with explorers.

References:
  AutoFLIP, Internò et al., https://arxiv.org/abs/2405.10271: exploration and squared
  deviations [P]; all clients, 150 epochs at most, patience 40, the last epoch's
  parameters [C].

Choices:
  Every explorer starts from its own copy of w^0; the authors' code hands one model from
  client to client, so that only the last one's deviations count. Deviations are
  measured from w^0, in the code from where the explorer is after one epoch (`warm`).
  Early stopping watches the mean loss of an epoch, in the code that of its last batch.
  Step sizes are the first of a round, for a schedule would be that of the round's
  epochs. Explorers count the same, whatever their examples.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_prune.rounds import make_round
from fedjax_prune.server import scale
from fedjax_prune.solver import LocalSolver
from fedjax_prune.stopping import make_stopping
from fedjax_prune.transforms import remember_first_epoch
from fedjax_prune.types import (
    ClientProgram,
    ClientState,
    Cohort,
    LocalResult,
    ServerState,
    Sums,
    Task,
    Tree,
)

BASES = ("init", "warm")
WEIGHTINGS = ("uniform", "samples")


class Exploration(NamedTuple):
    """Settings of an exploration, fields of `autoflip` and checked there.

    Attributes:
      share: of the clients that explore.
      epochs: at most so many.
      patience: epochs without a lower loss before an explorer stops.
      monitor: whose loss that is, of an `epoch` or its `last_batch`.
      base: deviations are measured from `init` (w^0) or, `warm`, from where the
        explorer is after one epoch more.
      weighting: explorers count the same, `uniform`, or by their `samples`.
    """

    share: float = 1.0
    epochs: int = 150
    patience: int = 40
    monitor: str = "epoch"
    base: str = "init"
    weighting: str = "uniform"

    def num_clients(self, num_clients: int) -> int:
        """How many of the clients explore: the nearest integer, at least one."""
        return max(1, int(self.share * num_clients + 0.5))


class Explored(NamedTuple):
    """What explorers leave behind.

    Attributes:
      deviation: D, their weighted mean squared deviation.
      delta: w^0 minus the weighted mean of their parameters.
      pooled: the mean, weighted by examples, of what their schedule pools.
    """

    deviation: Tree
    delta: Tree
    pooled: Tree


def make_exploration(
    task: Task,
    solver: LocalSolver,
    settings: Exploration,
    keep: Callable[[Tree], Tree],
    pool: Callable[[Tree], Tree],
) -> tuple[Callable[[ServerState], Explored], Callable[..., tuple]]:
    """Makes an exploration.

    Args:
      task: the model and its loss.
      solver: local training as in a round, at its first step size; epochs and stopping
        are those of settings.
      settings: in their ranges.
      keep: deviation of one explorer -> what is kept of it.
      pool: what is kept of one explorer -> float32, what is averaged over all.

    Returns:
      `Preparation.start` and `Preparation.gather`; a row's `client` is what is kept.
    """
    is_warm = settings.base == "warm"
    first_step_size = solver.step_size
    solver = solver._replace(
        # A schedule would be that of the round's epochs.
        step_size=lambda epoch, batch, batches: first_step_size(
            jnp.zeros_like(epoch), jnp.zeros_like(batch), batches
        ),
        epochs=settings.epochs + is_warm,
        stopping=make_stopping(settings.patience, settings.monitor),
    )
    if is_warm:
        solver = solver.before_descent(remember_first_epoch())

    def program(state: ServerState, cohort: Cohort) -> ClientProgram:
        def upload(
            result: LocalResult, row: ClientState, weight: jax.Array
        ) -> tuple[Explored, ClientState]:
            moved = result.delta
            if is_warm:
                first = result.solver_state[0]
                moved = jax.tree.map(
                    lambda d, w, f: d - (w - f), result.delta, state.params, first
                )
            deviation = jax.tree.map(jnp.square, moved)
            own = keep(deviation)
            pooled = scale(pool(own), weight)
            if settings.weighting == "uniform":
                weight = 1 / jnp.asarray(cohort.cohort_size, jnp.float32)
            deviation, delta = scale((deviation, result.delta), weight)
            return Explored(deviation, delta, pooled), row._replace(client=own)

        return ClientProgram(lambda row: {"anchor": state.params}, upload)

    def update(state: ServerState, total: Explored) -> ServerState:
        return state._replace(server=jax.tree.map(jnp.add, state.server, total))

    train = make_round(task, solver, program, update)

    def start(state: ServerState) -> Explored:
        pooled = jax.eval_shape(lambda: pool(keep(state.params)))
        return jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            Explored(state.params, state.params, pooled),
        )

    def gather(
        state: ServerState, explored: Explored, rows: ClientState, *rest: Any
    ) -> tuple[Explored, ClientState, Sums]:
        state = state._replace(server=explored)
        after, rows, sums = train(state, rows, *rest)
        return after.server, rows, sums

    return start, gather
