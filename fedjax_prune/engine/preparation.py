"""What is done once before the first round, by groups of clients.

A device holds what one group keeps; what all of them add up to is gathered from group
to group.
"""

import time
from typing import NamedTuple

import jax
import numpy as np

from fedjax_prune.engine.contract import FederatedAlgorithm
from fedjax_prune.engine.dealing import draw_clients, make_groups
from fedjax_prune.engine.devices import ONE_DEVICE, Placement, put_cohort, put_whole
from fedjax_prune.engine.outcome import of_clients, require_finite
from fedjax_prune.engine.store import Store
from fedjax_prune.types import Dataset, Population, RoundInputs, ServerState

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
    algorithm: FederatedAlgorithm,
    state: ServerState,
    rows: Store,
    dataset: Dataset,
    population: Population,
    *,
    seed: int,
    num_lanes: int = 1,
    placement: Placement = ONE_DEVICE,
) -> Prepared:
    """Does what an algorithm does before its first round, as AutoFLIP explores.

    Call it once before the rounds, whatever the algorithm: without a preparation the
    state stays as it is.

    Args:
      algorithm: whose rounds follow.
      state: the first one.
      rows: of all clients; those that take part are replaced.
      dataset: training examples.
      population: who holds which of them.
      seed: of the run, at least 0.
      num_lanes: clients side by side on each device, at least 1.
      placement: where it runs.

    Raises:
      TrainingError: if a client's loss becomes non-finite.
    """
    steps, solver = algorithm.prepare, algorithm.rules.solver
    if steps is None:
        return Prepared(state, {}, 0.0, 0.0)
    num_clients = steps.num_clients(len(population.sizes))
    groups = make_groups(
        population,
        draw_clients(population, num_clients, seed=seed, round=PREPARATION),
        placement.group_size(num_lanes),
        num_lanes,
        epochs=solver.epochs,
        batch_size=solver.batch_size,
        placement=placement,
    )
    key = jax.random.fold_in(jax.random.key(seed), PREPARATION)
    dataset, key = put_whole(placement, (dataset, key))

    def inputs_of(group) -> RoundInputs:
        taken, cohort = rows.take(group.client_ids), put_cohort(placement, group)
        return RoundInputs(state, taken, dataset, cohort, key)

    @jax.jit(donate_argnums=(0, 1))
    def gather(gathered, taken, inputs):
        return steps.gather(gathered, inputs._replace(rows=taken), placement)

    def split(inputs: RoundInputs):
        return inputs.rows, inputs._replace(rows=())

    began = time.monotonic()
    gathered = jax.jit(steps.start)(state)
    run = gather.lower(gathered, *split(inputs_of(groups[0]))).compile()
    started = time.monotonic()
    of_groups = []
    for group in groups:
        gathered, taken, sums = run(gathered, *split(inputs_of(group)))
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
