"""Round 0 of a run: what its algorithm does before the first round."""

from pathlib import Path

import jax

from fedjax_prune.engine import preparation
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.store import Store
from fedjax_prune.runs import console, metrics
from fedjax_prune.runs.experiment import Experiment
from fedjax_prune.runs.start import save
from fedjax_prune.runs.workdir import open_metrics
from fedjax_prune.types import ServerState


def prepare(
    experiment: Experiment,
    folder: Path,
    placement: Placement,
    state: ServerState,
    rows: Store,
) -> ServerState:
    """Runs the algorithm's preparation, if it has one, and saves it as round 0.

    Args:
      experiment: of the run.
      folder: its workdir.
      placement: where it runs.
      state: the first one.
      rows: of all clients; those that take part are replaced.

    Returns:
      The state before the first round.

    Raises:
      TrainingError: if a client's loss or update becomes non-finite, or masks leave
        nothing of an array.
    """
    config, learning, data = experiment.config, experiment.learning, experiment.data
    steps = learning.algorithm.prepare
    if steps is None:
        return state
    num_clients = steps.num_clients(config.data.num_clients)
    with (
        # -1 removes the row that a killed run may have written already.
        open_metrics(folder, -1) as log,
        console.working(f"preparing with {num_clients} clients"),
    ):
        done = preparation.prepare(
            learning.algorithm,
            state,
            rows,
            data.train,
            data.population,
            seed=config.seed,
            num_lanes=config.lanes,
            placement=placement,
        )
        metrics.require_alive(config, done.sums)
        row = metrics.round_row(0, done.seconds, done.sums)
        messages = steps.messages(jax.eval_shape(lambda: state))
        row |= metrics.preparation_costs(learning, messages, done.sums)
        log.write(row | {"seconds/compile": done.compile_seconds})
    save(folder, 0, done.state, rows, keep=config.keep)
    return done.state
