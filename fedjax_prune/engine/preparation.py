"""Preparation: what clients do once, in groups, before the first round.

A device holds the rows of one group at a time, and the sums of all groups so far.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_prune.data.pairs import check_pairs
from fedjax_prune.data.population import check_clients
from fedjax_prune.engine.contract import FederatedAlgorithm, Preparation
from fedjax_prune.engine.dealing import draw_clients, make_groups
from fedjax_prune.engine.devices import ONE_DEVICE, Placement
from fedjax_prune.engine.keys import seed_key
from fedjax_prune.engine.outcome import (
    NOBODY,
    TrainingError,
    of_clients,
    require_finite,
)
from fedjax_prune.engine.placing import gather_whole, put_cohort, put_whole
from fedjax_prune.engine.solver import LocalSolver
from fedjax_prune.engine.store import Store
from fedjax_prune.fields import Count, Seed, checked
from fedjax_prune.types import (
    ClientState,
    Cohort,
    Dataset,
    Population,
    RoundInputs,
    ServerState,
    Sums,
    Tree,
)

PREPARATION = 2**32 - 2
"""The number of the preparation where keys and draws take a round."""


class Prepared(NamedTuple):
    """The result of a preparation, except for the rows of its clients.

    Attributes:
      state: before the first round.
      sums: [num_clients of the preparation] by ascending client id, and scalars; numpy.
      client_ids: of these clients, ascending.
      seconds: of the preparation, without compiling.
      compile_seconds: of compiling it.
    """

    state: ServerState
    sums: dict[str, np.ndarray]
    client_ids: np.ndarray
    seconds: float
    compile_seconds: float


class Gathering(NamedTuple):
    """What the groups that are done have gathered.

    Attributes:
      num_groups: how many groups are done.
      gathered: as in `Preparation.gather`; the next group takes its memory.
      of_groups: sums of groups that are done, numpy, each of one group or of several.
      seconds: that they have taken, without compiling.
    """

    num_groups: int
    gathered: Tree
    of_groups: tuple[dict[str, np.ndarray], ...]
    seconds: float


@checked
def prepare(
    algorithm: FederatedAlgorithm,
    state: ServerState,
    rows: Store,
    dataset: Dataset,
    population: Population,
    *,
    seed: Seed,
    num_lanes: Count = 1,
    placement: Placement = ONE_DEVICE,
    begin: Gathering | None = None,
    after_group: Callable[[Gathering], None] = lambda gathering: None,
) -> Prepared:
    """Runs an algorithm's preparation, such as AutoFLIP's exploration.

    Call it once before the rounds, whatever the algorithm: if the algorithm has no
    preparation, the state stays as it is.

    Args:
      algorithm: whose rounds follow.
      state: from `algorithm.init`.
      rows: of all clients; the rows of those that take part are replaced.
      dataset: training examples, [num_examples, ...].
      population: which client holds which of them.
      seed: of the run, in [0, 2^32).
      num_lanes: clients side by side on each device, at least 1.
      placement: of the rounds. If its policy is not to abort, clients that diverge are
        left out; the rest of a policy is for rounds.
      begin: what groups of an earlier call, whose rows are in `rows`, have gathered;
        None if this is the first call. The earlier call had as many clients in a group,
        `placement.group_size(num_lanes)`.
      after_group: is called after each group except for the last one, with what has
        been gathered. What it raises ends the call.

    Returns:
      The state before the first round, the clients' sums and the time taken.

    Raises:
      ValueError: if a client has an index that the dataset does not have, the rows are
        of another number of clients, a label is negative, a number is out of range, the
        rounds are private, or the state is prepared already.
      TrainingError: if a client diverges, see `outcome.diverged`, unless it is left
        out and others are not.

    References:
      Exploration: Internò et al., https://arxiv.org/abs/2405.10271. First stage of
      PruneFL: Jiang et al., https://arxiv.org/abs/1909.12326.

    Examples:
      >>> import fedjax_prune as fp
      >>> task = fp.make_task(fp.CNN(num_classes=3, width=0.1), (8, 8, 1))
      >>> algorithm = fp.fedavg(task, fp.make_solver(), fp.make_server_tx())
      >>> state = jax.eval_shape(algorithm.init, jax.random.key(0))
      >>> row = fp.ClientState({}, {})  # no gates and no control variates
      >>> rows = fp.make_store("host", row, num_clients=2)
      >>> dataset = fp.Dataset(np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, np.int32))
      >>> population = fp.to_population([[0], [1]], num_examples=2)
      >>> prepared = fp.prepare(algorithm, state, rows, dataset, population, seed=0)
      >>> prepared.state is state  # FedAvg has no preparation
      True
    """
    steps = algorithm.prepare
    if steps is not None:
        steps.require_public(placement)
    _check_parts(rows, dataset, population, placement)
    if steps is None:
        return Prepared(state, {}, np.zeros(0, np.int32), 0.0, 0.0)
    ids, groups = draw_groups(
        algorithm.rules.solver,
        steps,
        population,
        seed=seed,
        num_lanes=num_lanes,
        placement=placement,
    )
    key = jax.random.fold_in(seed_key(seed), PREPARATION)
    dataset, key = put_whole(placement, (dataset, key))

    def inputs_of(group: Cohort) -> tuple[ClientState, RoundInputs]:
        """Takes a group's rows, which are donated, and makes inputs without rows."""
        cohort = put_cohort(placement, group)
        inputs = RoundInputs(state, ClientState((), ()), dataset, cohort, key)
        return rows.take(group.client_ids), inputs

    began = time.monotonic()
    done = begin or Gathering(0, jax.jit(steps.start)(state), (), 0.0)
    gather = gather_program(steps, placement)
    run = gather.lower(done.gathered, *inputs_of(groups[0])).compile()
    compile_seconds = time.monotonic() - began
    # As if this start had trained the groups that are done.
    began -= done.seconds
    for number, group in enumerate(groups[done.num_groups :], done.num_groups + 1):
        gathered, taken, sums = run(done.gathered, *inputs_of(group))
        rows.put(group.client_ids, taken)
        own = of_clients(jax.device_get(gather_whole(placement, sums)), group)
        if placement.policy.on_bad_client == "abort":
            require_finite(own, 0, group)
        seconds = time.monotonic() - began - compile_seconds
        done = Gathering(number, gathered, (*done.of_groups, own), seconds)
        if number < len(groups):
            after_group(done)
    if not any(own["arrived"].any() for own in done.of_groups):
        raise TrainingError(NOBODY)
    gathering_ended = time.monotonic()
    finish = jax.jit(steps.finish).lower(state, done.gathered, key).compile()
    compile_seconds += time.monotonic() - gathering_ended
    after, facts = finish(state, done.gathered, key)
    sums = add_up(done.of_groups) | jax.device_get(gather_whole(placement, facts))
    seconds = time.monotonic() - began - compile_seconds
    return Prepared(after, sums, ids, seconds, compile_seconds)


def _check_parts(
    rows: Store, dataset: Dataset, population: Population, placement: Placement
) -> None:
    """Refuses rows, examples and clients that do not belong together."""
    check_pairs(dataset)
    num_clients = len(population.offsets) - 1
    labels = jax.device_get(gather_whole(placement, dataset.labels))
    check_clients(population, np.arange(num_clients), len(labels))
    for leaf in jax.tree.leaves(rows.shapes):
        if leaf.shape[0] != num_clients:
            raise ValueError(
                f"rows must be those of the population's {num_clients} clients, got "
                f"{leaf.shape[0]}: give make_store this num_clients."
            )
    if labels.min() < 0:
        place = labels.argmin()
        raise ValueError(
            f"labels must be in [0, num_classes), got {labels[place]} at {place}."
        )


def draw_groups(
    solver: LocalSolver,
    steps: Preparation,
    population: Population,
    *,
    seed: int,
    num_lanes: int,
    placement: Placement,
) -> tuple[np.ndarray, list[Cohort]]:
    """Draws the clients of a preparation and deals them to groups.

    Args:
      solver: of the rounds.
      steps: of the algorithm.
      population: all clients.
      seed: of the run, in [0, 2^32).
      num_lanes: clients side by side on each device, at least 1.
      placement: of the rounds.

    Returns:
      Their ids, and cohorts of the same shapes.
    """
    everyone = len(population.offsets) - 1
    num_clients = steps.num_clients(everyone)
    ids = draw_clients(everyone, num_clients, seed=seed, round=PREPARATION)
    groups = make_groups(
        population,
        ids,
        placement.group_size(num_lanes),
        num_lanes,
        epochs=solver.epochs,
        batch_size=solver.batch_size,
        placement=placement,
    )
    return ids, groups


def gather_program(steps: Preparation, placement: Placement) -> Any:
    """Makes the jitted function that runs one group.

    Returns:
      (gathered, rows, inputs without rows) -> (gathered, rows, sums). What has been
      gathered and the rows are donated.
    """

    @jax.jit(donate_argnums=(0, 1))
    def gather(
        gathered: Tree, taken: ClientState, inputs: RoundInputs
    ) -> tuple[Tree, ClientState, Sums]:
        inputs = inputs._replace(rows=taken)
        return steps.gather(gathered, inputs, placement.plain)

    return gather


def add_up(of_groups: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Joins what groups have for each client, and adds up their scalars.

    Args:
      of_groups: sums of groups, at least one.
    """
    names = of_groups[0]
    columns = {name: [sums[name] for sums in of_groups] for name in names}
    return {
        name: np.concatenate(column) if np.ndim(column[0]) else np.sum(column, axis=0)
        for name, column in columns.items()
    }
