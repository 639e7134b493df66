"""The checkpoints of a run, written while the next rounds go on."""

import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import jax

from fedjax_prune.engine import processes
from fedjax_prune.engine.store import Store
from fedjax_prune.runs import checkpoint
from fedjax_prune.runs.experiment import Experiment
from fedjax_prune.runs.lock import require_held
from fedjax_prune.runs.origin import origin_of
from fedjax_prune.types import ServerState

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints in a workdir."""


class Saver:
    """Writes one checkpoint at a time in a thread of its own.

    Rows and a copy of the state are taken at once, so the loop may donate both.
    """

    def __init__(self, experiment: Experiment, workdir: Path, pool: ThreadPoolExecutor):
        """See `background_saves`, which makes it."""
        self._experiment, self._workdir, self._pool = experiment, workdir, pool
        self._writing: Future[None] | None = None
        self._waited = 0.0

    def save(self, finished: int, state: ServerState, rows: Store) -> None:
        """Begins the checkpoint of a round, after the one before has ended.

        Raises:
          CheckpointError: if this one or the one before cannot be written.
          WorkdirError: if this process does not hold the workdir any more.
        """
        began = time.monotonic()
        self.wait()
        finish = _begin(self._experiment, self._workdir, finished, state, rows)
        self._writing = self._pool.submit(finish)
        self._waited += time.monotonic() - began

    def waited(self) -> float:
        """Seconds that `save` has taken since this was asked the last time."""
        waited, self._waited = self._waited, 0.0
        return waited

    def check(self) -> None:
        """Tells the error of a checkpoint that has ended, and does not wait.

        Several processes do not agree on what has ended, so `wait` tells them.

        Raises:
          CheckpointError: if it could not be written.
        """
        is_done = self._writing is not None and self._writing.done()
        if is_done and processes.count() == 1:
            self.wait()

    def wait(self) -> None:
        """Waits for the checkpoint that is being written, in all processes.

        Raises:
          CheckpointError: if it cannot be written.
          ProcessError: if the first process cannot write it.
        """
        processes.together(self.wait_here)

    def wait_here(self) -> None:
        """Waits as `wait`, but not for other processes."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


@contextmanager
def background_saves(experiment: Experiment, workdir: Path) -> Iterator[Saver]:
    """Makes a saver, and waits for its last checkpoint at the end of the block.

    Args:
      experiment: of the run.
      workdir: that this process holds.

    Raises:
      CheckpointError: if the last checkpoint cannot be written. Where the block has
        ended with another error, this becomes a warning.
    """
    with ThreadPoolExecutor(1, "checkpoint") as pool:
        saver = Saver(experiment, workdir, pool)
        try:
            yield saver
        except BaseException:
            try:
                saver.wait_here()
            except Exception as error:
                # The error that has ended the block is the one to be told.
                warnings.warn(str(error), stacklevel=1)
            raise
        saver.wait()


def save(
    experiment: Experiment,
    workdir: Path,
    finished: int,
    state: ServerState,
    rows: Store,
) -> None:
    """Saves the checkpoint of a round and waits for it.

    Raises:
      CheckpointError: if it cannot be written.
      WorkdirError: if this process does not hold the workdir any more.
    """
    processes.together(_begin(experiment, workdir, finished, state, rows))


def _begin(
    experiment: Experiment,
    workdir: Path,
    finished: int,
    state: ServerState,
    rows: Store,
) -> Callable[[], None]:
    processes.on_first(lambda: require_held(workdir))
    with jax.transfer_guard("allow"):
        return checkpoint.begin_save(
            workdir / CHECKPOINTS,
            finished,
            state,
            rows=rows,
            origin=origin_of(experiment.config, experiment.data.hashes),
            keep=experiment.config.keep,
            keep_every=experiment.config.keep_every,
        )
