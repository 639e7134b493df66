"""The loop of a run: rounds, evaluations, checkpoints and a row of metrics a round.

A round is dispatched before the numbers of the previous round are read, so the devices
do not wait for the host. Exceptions are checkpoints, whose state is copied, rows on the
host, and compacted rounds, which ask which channels are left.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_prune.engine import processes
from fedjax_prune.engine.dealing import sample_cohort
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.outcome import (
    by_id,
    first_by_id,
    of_clients,
    require_finite,
    require_finite_server,
)
from fedjax_prune.engine.placing import gather_whole, put_cohort, put_split, put_whole
from fedjax_prune.engine.store import Store
from fedjax_prune.runs import console, metrics
from fedjax_prune.runs.accounting import privacy_row
from fedjax_prune.runs.compact_rounds import make_rounds
from fedjax_prune.runs.evaluated import (
    evaluated_clients,
    num_measured,
    numbers_evaluated,
)
from fedjax_prune.runs.experiment import Experiment
from fedjax_prune.runs.hashes import RoundHashes, hash_row
from fedjax_prune.runs.interrupt import stop_requested
from fedjax_prune.runs.metrics_log import MetricsLog, NoLog, open_metrics
from fedjax_prune.runs.programs import Evaluation, Rounds
from fedjax_prune.runs.recorder import Recorder
from fedjax_prune.runs.saving import Saver, background_saves
from fedjax_prune.runs.track import tracked
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


def read_devices(values: Any) -> Any:
    """The one place where a round's numbers come from the devices."""
    return jax.device_get(values)


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


class Journal(NamedTuple):
    """Where the numbers of finished rounds go.

    Attributes:
      experiment: of the run.
      recorder: for the page.
      saver: says how long the loop has waited for it.
      messages: what a client receives and sends, as shapes.
      log: metrics.jsonl and event files.
      bar: the progress that the user sees.
      aside: writes both; what fails is told before the next checkpoint.
    """

    experiment: Experiment
    recorder: Recorder
    saver: Saver
    messages: tuple[Tree, Tree]
    log: MetricsLog | NoLog
    bar: console.RoundProgress
    aside: processes.Aside

    def write(self, done: Dispatched, began: float) -> float:
        """Reads a round's numbers, once it is finished, and writes its row.

        Args:
          done: the round.
          began: when the round could start, in seconds of the monotonic clock.

        Returns:
          When it was finished, on the same clock.

        Raises:
          TrainingError: if a client has diverged and is not dropped, if the server's
            step has, or if masks leave nothing of an array.
        """
        sums, accuracies, hashes, recorded = read_devices(
            (done.sums, done.accuracies, done.hashes, done.recorded)
        )
        trained, finished = done.trained.result(), done.measured.result()
        sums = of_clients(sums, done.cohort)
        if self.experiment.config.on_bad_client == "abort":
            require_finite(sums, done.number, done.cohort)
        require_finite_server(sums, done.number)
        metrics.require_alive(self.experiment.config, sums)
        row = metrics.round_row(done.number, finished - began, sums)
        ids = done.cohort.client_ids[by_id(done.cohort)]
        row |= metrics.named_clients(sums, ids)
        row |= metrics.cost_row(self.experiment.learning, self.messages, sums)
        row |= privacy_row(self.experiment.config, done.number) | hash_row(hashes)
        if done.num_measured:
            row |= metrics.accuracy_row(self.experiment, accuracies)
            row |= metrics.after_local_row(self.experiment, sums, done.num_measured)
            row["seconds/evaluate"] = finished - trained
        if waited := self.saver.waited():
            row["seconds/save"] = waited
        measured = sums, recorded, accuracies
        self.aside.do(lambda: self.recorder.write(done.number, done.cohort, *measured))
        if done.compile_seconds:
            row["seconds/compile"] = done.compile_seconds
        images_per_second = float(sums["count"].sum()) / (finished - began)
        self.aside.do(lambda: self._show(row, images_per_second))
        return finished

    def _show(self, row: dict[str, Any], images_per_second: float) -> None:
        facts = row["train/loss"], row["train/accuracy"], images_per_second
        self.log.write(row)
        self.bar.advance(row["round"], *facts)


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


def run_rounds(
    experiment: Experiment,
    folder: Path,
    placement: Placement,
    state: ServerState,
    rows: Store,
    finished: int,
    last: int,
) -> int:
    """Runs the rounds that are left.

    Args:
      experiment: of the run.
      folder: its workdir.
      placement: where it runs.
      state: after `finished` rounds; it is donated.
      rows: of all clients; replaced round by round.
      finished: rounds done before.
      last: the round after which it ends, at most `config.rounds`.

    Returns:
      How many rounds are done: `last`, or fewer if a signal has asked to stop.

    Raises:
      TrainingError: as `Journal.write`. The last checkpoint and the rows of the rounds
        before stay.
      CheckpointError: if one cannot be written; it is told at the next round.
      WorkdirError: if a row cannot be written.
      ProcessError: if another process has raised one of these.
    """
    config, algorithm = experiment.config, experiment.learning.algorithm
    messages = algorithm.messages(jax.eval_shape(lambda: state))
    recorder = Recorder(experiment, placement, folder, finished)
    clock = ThreadPoolExecutor(1, "clock")
    dispatcher = Dispatcher(
        experiment=experiment,
        placement=placement,
        rounds=make_rounds(experiment, placement),
        evaluation=Evaluation(experiment, placement),
        hashes=RoundHashes(config.hash_every),
        recorder=recorder,
        key=put_whole(placement, jax.random.key(config.seed)),
        rows=rows,
        clock=clock,
    )
    compiling = dispatcher.compile(state)
    with (
        clock,
        open_metrics(folder, finished) as own_log,
        tracked(own_log, config, folder, finished) as log,
        # Outside of the progress, whose last output may find that nobody reads it.
        stop_requested() as stop,
        console.progress(config.rounds, finished) as bar,
        background_saves(experiment, folder) as saver,
        jax.transfer_guard("disallow"),
    ):
        aside = processes.Aside(stop.set)
        journal = Journal(
            experiment, recorder, saver, messages, log=log, bar=bar, aside=aside
        )
        began = time.monotonic()
        running: Dispatched | None = None
        while finished < last and not stop.is_set():
            saver.check()
            finished += 1
            state, dispatched = dispatcher.dispatch(state, finished)
            if running is not None:
                began = journal.write(running, began)
            # While it is compiled the devices may still run the round before.
            began += dispatched.compiled_after(began)
            # Not earlier: with rows on the host this waits for the round.
            running = dispatcher.evaluate(state, dispatched)
            compiling += running.compile_seconds
            running, compiling = running._replace(compile_seconds=compiling), 0.0
            if finished % config.save_every == 0:
                began, running = journal.write(running, began), None
                aside.check()
                saver.save(finished, state, rows)
        if running is not None:
            journal.write(running, began)
            aside.check()
            saver.save(finished, state, rows)
    return finished
