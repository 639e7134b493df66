"""The loop of a run: rounds, evaluations, checkpoints and a row of metrics a round.

A round is dispatched before the numbers of the previous round are read, so the devices
do not wait for the host. Exceptions are checkpoints, whose state is copied, rows on the
host, and compacted rounds, which ask which channels are left.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fedjax_prune.engine import processes
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.keys import seed_key
from fedjax_prune.engine.outcome import (
    by_id,
    of_clients,
    require_finite,
    require_finite_server,
)
from fedjax_prune.engine.placing import put_whole
from fedjax_prune.engine.store import Store
from fedjax_prune.runs import console, metrics
from fedjax_prune.runs.accounting import privacy_row
from fedjax_prune.runs.compact_rounds import make_rounds
from fedjax_prune.runs.dispatch import Dispatched, Dispatcher
from fedjax_prune.runs.experiment import Experiment
from fedjax_prune.runs.hashes import RoundHashes, hash_row
from fedjax_prune.runs.interrupt import stop_requested
from fedjax_prune.runs.metrics_log import MetricsLog, NoLog, open_metrics
from fedjax_prune.runs.programs import Evaluation
from fedjax_prune.runs.recorder import Recorder
from fedjax_prune.runs.saving import Saver, background_saves
from fedjax_prune.runs.track import tracked
from fedjax_prune.types import ServerState, Tree

_STOPPING = (
    "stopping after this round; a second Ctrl-C loses all since the last checkpoint"
)


def read_devices(values: Any) -> Any:
    """The one place where a round's numbers come from the devices."""
    return jax.device_get(values)


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
        if done.num_measured or recorded:
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

    def sync(self) -> None:
        """Waits until the rows are on the disk; a checkpoint says that they are.

        Raises:
          WorkdirError: if a row could not be written.
          ProcessError: in the other processes.
        """
        self.aside.do(self.log.sync)
        self.aside.check()

    def _show(self, row: dict[str, Any], images_per_second: float) -> None:
        self.log.write(row)
        self.bar.advance(
            row["round"],
            row["train/loss"],
            row["train/accuracy"],
            images_per_second,
            test=row.get(metrics.HEADLINE),
        )


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
        key=put_whole(placement, seed_key(config.seed)),
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
        console.progress(last, finished) as bar,
        console.telling(stop.known, _STOPPING),
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
                journal.sync()
                saver.save(finished, state, rows)
        if running is not None:
            journal.write(running, began)
            journal.sync()
            saver.save(finished, state, rows)
    return finished
