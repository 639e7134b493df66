"""What is done once before the first round, by groups of clients.

A device holds what one group keeps; what all of them add up to is gathered from group
to group.
"""

import time
from typing import NamedTuple

import jax
import numpy as np

from fedjax_prune.data.cohort import draw_clients, make_groups
from fedjax_prune.experiment import Experiment
from fedjax_prune.outcome import of_clients, require_finite
from fedjax_prune.placement import Placement, put_cohort, put_whole
from fedjax_prune.store import Store
from fedjax_prune.types import Config, ServerState

PREPARATION = 2**32 - 2
"""Stands for a round in the keys and draws of what comes before the first."""


class Prepared(NamedTuple):
    """What a preparation leaves behind, beside the rows of its clients.

    Attributes:
      state: before the first round.
      sums: of its clients, by ascending client id, and scalars; numpy.
      seconds: that it took.
      compile_seconds: spent compiling before and after it.
    """

    state: ServerState
    sums: dict[str, np.ndarray]
    seconds: float
    compile_seconds: float


def prepare(
    config: Config,
    experiment: Experiment,
    placement: Placement,
    state: ServerState,
    rows: Store,
) -> Prepared:
    """Runs the preparation of an algorithm that has one.

    Args:
      config: `lanes` is a number.
      experiment: of the run.
      placement: where it runs.
      state: the first one.
      rows: of all clients; those that take part are replaced.

    Raises:
      TrainingError: if a client's loss becomes non-finite.
    """
    steps = experiment.algorithm.prepare
    assert steps is not None
    num_clients = steps.num_clients(config.data.num_clients)
    groups = make_groups(
        experiment.population,
        draw_clients(
            experiment.population, num_clients, seed=config.seed, round=PREPARATION
        ),
        placement.group_size(config.lanes),
        config.lanes,
        epochs=config.client.epochs,
        batch_size=config.client.batch_size,
        placement=placement,
    )
    key = jax.random.fold_in(jax.random.key(config.seed), PREPARATION)
    train, key = put_whole(placement, (experiment.train, key))
    began = time.monotonic()
    gathered = jax.jit(steps.start)(state)
    gather = (
        jax.jit(
            lambda *arguments: steps.gather(*arguments, None, placement),
            donate_argnums=(1, 2),
        )
        .lower(
            *(state, gathered, rows.take(groups[0].client_ids)),
            *(train, put_cohort(placement, groups[0]), key),
        )
        .compile()
    )
    started = time.monotonic()
    of_groups = []
    for group in groups:
        taken = rows.take(group.client_ids)
        cohort = put_cohort(placement, group)
        gathered, taken, sums = gather(state, gathered, taken, train, cohort, key)
        rows.put(group.client_ids, taken)
        of_groups.append(of_clients(jax.device_get(sums), group))
        require_finite(of_groups[-1], 0, group)
    gathering = time.monotonic()
    finish = jax.jit(steps.finish).lower(state, gathered, key).compile()
    compiled = time.monotonic()
    state, facts = finish(state, gathered, key)
    facts = jax.device_get(facts)
    return Prepared(
        state,
        _add_up(of_groups) | facts,
        time.monotonic() - compiled + gathering - started,
        started - began + compiled - gathering,
    )


def _add_up(of_groups: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """One client after another; scalars are added."""
    names = of_groups[0]
    columns = {name: [sums[name] for sums in of_groups] for name in names}
    return {
        name: np.concatenate(column) if np.ndim(column[0]) else np.sum(column, axis=0)
        for name, column in columns.items()
    }
