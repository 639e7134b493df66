"""A round, out of what an algorithm's clients and its server do."""

from collections.abc import Callable

import jax

from fedjax_prune.client import ClientProgram, train_cohort
from fedjax_prune.solver import LocalSolver
from fedjax_prune.types import (
    ClientState,
    Cohort,
    Dataset,
    Probe,
    ServerState,
    Sums,
    Task,
    Tree,
)


def make_round(
    task: Task,
    solver: LocalSolver,
    program: Callable[[ServerState, Cohort], ClientProgram],
    update: Callable[[ServerState, Tree], ServerState],
) -> Callable[..., tuple[ServerState, ClientState, Sums]]:
    """Makes an algorithm's round out of what its clients and its server do.

    Args:
      task: the model and its loss.
      solver: local training.
      program: (state, cohort) -> the clients' part of this round.
      update: (state, sum of the messages) -> the state after the server's step; the
        round is counted here.

    Returns:
      `FederatedAlgorithm.round`.
    """

    def round(
        state: ServerState,
        rows: ClientState,
        dataset: Dataset,
        cohort: Cohort,
        key: jax.Array,
        probe: Probe | None = None,
    ) -> tuple[ServerState, ClientState, Sums]:
        total, rows, sums = train_cohort(
            task,
            solver,
            program(state, cohort),
            state,
            rows,
            dataset,
            cohort,
            key,
            probe,
        )
        return update(state, total)._replace(round=state.round + 1), rows, sums

    return round
