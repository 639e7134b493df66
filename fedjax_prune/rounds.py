"""An algorithm, out of what its clients and its server do."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_prune.client import train_cohort
from fedjax_prune.placement import ONE_DEVICE, Placement, on_devices
from fedjax_prune.platforms import tracing_for
from fedjax_prune.solver import LocalSolver
from fedjax_prune.types import (
    ClientProgram,
    ClientState,
    Cohort,
    CohortResult,
    Collector,
    Dataset,
    FederatedAlgorithm,
    Probe,
    ServerState,
    Sums,
    Task,
    Tree,
    Variables,
)


class Rules(NamedTuple):
    """What an algorithm's clients and its server do.

    One algorithm can be made of another by replacing or wrapping some of its rules.

    Attributes:
      solver: local training.
      init: key -> ServerState.
      row: key -> ClientState of a client never seen.
      program: (state, cohort) -> the clients' part of this round; of the cohort it may
        read the numbers of clients and examples.
      update: (state, sum of the messages) -> the state after the server's step; the
        round is counted by `make_round`.
    """

    solver: LocalSolver
    init: Callable[[jax.Array], ServerState]
    row: Callable[[jax.Array], ClientState]
    program: Callable[[ServerState, Cohort], ClientProgram]
    update: Callable[[ServerState, Tree], ServerState]


def make_algorithm(
    task: Task, rules: Rules, messages: Callable[[ServerState], tuple[Tree, Tree]]
) -> FederatedAlgorithm:
    """Makes an algorithm out of its rules.

    Args:
      task: the model and its loss.
      rules: of clients and server.
      messages: as in FederatedAlgorithm.
    """
    return FederatedAlgorithm(
        init=rules.init,
        row=rules.row,
        round=make_round(task, rules.solver, rules.program, rules.update),
        messages=messages,
        deliver=lambda state: Variables(state.params, {}, state.model_state),
        rules=rules,
    )


def make_round(
    task: Task,
    solver: LocalSolver,
    program: Callable[[ServerState, Cohort], ClientProgram],
    update: Callable[[ServerState, Tree], ServerState],
) -> Callable[..., tuple[ServerState, ClientState, Sums]]:
    """Makes `FederatedAlgorithm.round`; the arguments are as in Rules."""

    def round(
        state: ServerState,
        rows: ClientState,
        dataset: Dataset,
        cohort: Cohort,
        key: jax.Array,
        probe: Probe | None = None,
        placement: Placement = ONE_DEVICE,
    ) -> tuple[ServerState, ClientState, Sums]:
        """Runs one round.

        Args:
          state: before the round.
          rows: [num_places, ...] of the cohort's clients.
          dataset: on every device.
          cohort: made for as many devices as `placement` has.
          key: of this round. A client's randomness depends on it and on its
            client_id only, never on its place, lane or device.
          probe: measures clients when they have finished.
          placement: where it runs; its platform chooses the forms of convolutions.

        Returns:
          The state and the rows after the round and the sums, [num_places, ...], with
          `steps`, `nonfinite` and the scalar `steps_executed`.
        """
        dataset, cohort = jax.tree.map(jnp.asarray, (dataset, cohort))
        measure, examples, wanted = probe or (None, {}, jnp.zeros(len(cohort.sizes)))

        def train(
            collector: Collector, state, rows, dataset, cohort, key, examples, wanted
        ) -> CohortResult:
            return train_cohort(
                task,
                solver,
                program(state, cohort),
                state,
                rows,
                dataset,
                cohort,
                key,
                None if measure is None else Probe(measure, examples, wanted),
                collector,
            )

        with tracing_for(placement.platform):
            run = on_devices(placement, train)
            total, rows, sums = run(state, rows, dataset, cohort, key, examples, wanted)
            state = update(state, total)._replace(round=state.round + 1)
        return state, rows, sums

    return round
