"""How rounds and evaluations are sent to the devices, which are not waited for."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_prune.engine.dealing import sample_cohort
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.outcome import by_id, first_by_id
from fedjax_prune.engine.placing import gather_whole, put_cohort, put_split
from fedjax_prune.engine.store import Store
from fedjax_prune.runs import console
from fedjax_prune.runs.evaluated import (
    evaluated_clients,
    num_measured,
    numbers_evaluated,
)
from fedjax_prune.runs.experiment import Experiment
from fedjax_prune.runs.hashes import RoundHashes
from fedjax_prune.runs.programs import Evaluation, Rounds
from fedjax_prune.runs.recorder import Recorder
from fedjax_prune.types import Cohort, RoundInputs, ServerState, Sums, Tree


def draw_cohort(experiment: Experiment, placement: Placement, round: int) -> Cohort:
    """The clients of a round, as numpy arrays.

    Args:
      experiment: of the run.
      placement: where the round runs.
      round: finished rounds.
    """
    config = experiment.config
    return sample_cohort(
        experiment.data.population,
        config.cohort_size,
        config.lanes,
        seed=config.seed,
        round=round,
        epochs=config.client.epochs,
        batch_size=config.client.batch_size,
        placement=placement,
    )


class Dispatched(NamedTuple):
    """A round that the devices may still be running.

    Attributes:
      number: of the round, from 1.
      cohort: numpy.
      num_measured: clients measured before they are averaged; 0 without evaluation.
      sums: of the round, on the devices.
      accuracies: of the evaluation, on the devices; {} if there is none.
      hashes: of the state after it, on the devices; {} if it is not hashed.
      compile_seconds: spent compiling for it.
      compiled: when that ended, in seconds of the monotonic clock.
      recorded: what the recorder has measured, on the devices; {} if it is not due.
      trained: when its sums were there, on the same clock.
      measured: the same of the accuracies and of what is recorded.
    """

    number: int
    cohort: Cohort
    num_measured: int
    sums: Sums
    accuracies: dict[str, jax.Array]
    hashes: dict[str, jax.Array]
    compile_seconds: float
    compiled: float
    recorded: dict[str, Tree]
    trained: Future[float]
    measured: Future[float]

    def compiled_after(self, moment: float) -> float:
        """How many seconds of compiling were after a moment, on the same clock."""
        return max(0.0, min(self.compile_seconds, self.compiled - moment))


class Dispatcher(NamedTuple):
    """Sends rounds and evaluations to the devices without waiting for them.

    Attributes:
      experiment: of the run.
      placement: where it runs.
      rounds: compiled.
      evaluation: compiled by `compile`.
      hashes: of the state, compiled by `compile`.
      recorder: for the page.
      key: of the run, on the devices.
      rows: of all clients; replaced round by round.
      clock: its thread notes when numbers are there, also while this one is busy.
    """

    experiment: Experiment
    placement: Placement
    rounds: Rounds
    evaluation: Evaluation
    hashes: RoundHashes
    recorder: Recorder
    key: jax.Array
    rows: Store
    clock: ThreadPoolExecutor

    def compile(self, state: ServerState) -> float:
        """Compiles all programs except the rounds; returns the seconds."""
        config, began = self.experiment.config, time.monotonic()
        with console.working("compiling the evaluation"):
            cohort = draw_cohort(self.experiment, self.placement, 0)
            ids = cohort.client_ids
            # Nobody has these ids, so no row changes; taking and putting are compiled.
            nobody = np.full_like(ids, config.data.num_clients)
            self.rows.put(nobody, self.rows.take(ids))
            self.evaluation.compile(state, self.rows, numbers_evaluated(config))
            self.hashes.compile(state)
            self.recorder.begin(state, self.rows, ids[by_id(cohort)])
        return time.monotonic() - began

    def dispatch(
        self, state: ServerState, number: int
    ) -> tuple[ServerState, Dispatched]:
        """Starts a round; `state` is donated to it."""
        cohort = draw_cohort(self.experiment, self.placement, number - 1)
        measured = num_measured(self.experiment.config, number)
        inputs = RoundInputs(
            state=state,
            rows=self.rows.take(cohort.client_ids),
            dataset=self.evaluation.train,
            cohort=put_cohort(self.placement, cohort),
            key=self.key,
        )
        wanted = put_split(self.placement, first_by_id(cohort, measured))
        state, taken, sums = self.rounds(inputs, self.evaluation.test, wanted)
        self.rows.put(cohort.client_ids, taken)
        trained = self.clock.submit(_when_ready, sums)
        return state, Dispatched(
            number=number,
            cohort=cohort,
            num_measured=measured,
            sums=gather_whole(self.placement, sums),
            accuracies={},
            hashes=gather_whole(self.placement, self.hashes(number, state)),
            compile_seconds=self.rounds.seconds,
            compiled=self.rounds.compiled,
            recorded={},
            trained=trained,
            measured=trained,
        )

    def evaluate(self, state: ServerState, done: Dispatched) -> Dispatched:
        """Starts what is measured after a round: an evaluation, a record, if due."""
        ids = done.cohort.client_ids[by_id(done.cohort)]
        recorded, accuracies = self.recorder(done.number, state, self.rows, ids), {}
        if done.num_measured:
            ids = evaluated_clients(self.experiment.config, done.cohort, done.number)
            accuracies = self.evaluation(state, self.rows, ids)
            accuracies = gather_whole(self.placement, accuracies)
        more = {"recorded": recorded, "accuracies": accuracies}
        measured = self.clock.submit(_when_ready, (done.sums, more))
        return done._replace(**more, measured=measured)


def _when_ready(values: Any) -> float:
    """The time when the devices have computed values."""
    jax.block_until_ready(values)
    return time.monotonic()
