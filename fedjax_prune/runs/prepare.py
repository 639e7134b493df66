"""Round 0 of a run: what its algorithm does before the first round.

If a signal asks to stop, the preparation ends after the group of clients that is
running. The groups that are done are kept in the workdir, and the next start of the run
goes on after them.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_prune.engine import preparation, processes
from fedjax_prune.engine.contract import Preparation
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.placing import gather_whole, put_whole
from fedjax_prune.engine.preparation import Gathering
from fedjax_prune.engine.row_errors import RowsError, StorageError
from fedjax_prune.engine.store import Store
from fedjax_prune.runs import checkpoint, console, metrics
from fedjax_prune.runs.experiment import Experiment
from fedjax_prune.runs.files import WorkdirError, read_arrays, replace_arrays
from fedjax_prune.runs.hashes import RoundHashes, hash_row
from fedjax_prune.runs.interrupt import Stop
from fedjax_prune.runs.metrics_log import open_metrics
from fedjax_prune.runs.origin import Origin, origin_of
from fedjax_prune.runs.saving import CHECKPOINTS, save
from fedjax_prune.types import ServerState

_FOLDER = "preparation"
"""Folder of the groups that are done, in a workdir, while others are left."""

_SECONDS = "seconds"
"""Beside the sums of clients: what the groups have taken."""

_STOPPING = (
    "stopping after this group of clients; a second Ctrl-C loses the groups of this "
    "start"
)

# What one of them raises in the first process, the others hear of as a ProcessError.
_UNUSABLE = (checkpoint.CheckpointError, RowsError, processes.ProcessError)


class _Stopped(Exception):
    """The preparation was asked to stop, and what is done is saved."""


def prepare(
    experiment: Experiment,
    folder: Path,
    placement: Placement,
    state: ServerState,
    rows: Store,
    *,
    stop: Stop,
) -> ServerState | None:
    """Runs the algorithm's preparation, if it has one, and saves it as round 0.

    Args:
      experiment: of the run.
      folder: its workdir.
      placement: where it runs.
      state: the first one.
      rows: of all clients; those that take part are replaced.
      stop: once it is set, no further group of clients is begun.

    Returns:
      The state before the first round, or None if groups are left.

    Raises:
      TrainingError: if a client diverges, or masks leave nothing of an array.
      CheckpointError: if the rows of the groups that are done cannot be read.
    """
    config, learning, data = experiment.config, experiment.learning, experiment.data
    steps = learning.algorithm.prepare
    if steps is None:
        return state
    num_clients = steps.num_clients(config.data.num_clients)
    origin = origin_of(config, data.hashes)
    kept = _Kept(folder / _FOLDER, placement.group_size(config.lanes), origin)

    def after_group(done: Gathering) -> None:
        if stop.is_set():
            kept.save(done, rows)
            raise _Stopped

    with (
        # A killed run may have written events of this row already: -1 hides them.
        open_metrics(folder, -1) as log,
        console.working(f"preparing with {num_clients} clients"),
        console.telling(stop.known, _STOPPING),
    ):
        try:
            done = preparation.prepare(
                learning.algorithm,
                state,
                rows,
                data.train,
                data.population,
                seed=config.seed,
                num_lanes=config.lanes,
                placement=placement,
                begin=kept.restore(steps, state, rows, placement),
                after_group=after_group,
            )
        except _Stopped:
            return None
        metrics.require_alive(config, done.sums)
        row = metrics.round_row(0, done.seconds, done.sums)
        row |= metrics.named_clients(done.sums, done.client_ids)
        messages = steps.messages(jax.eval_shape(lambda: state))
        row |= metrics.preparation_costs(learning, messages, done.sums)
        hashes = RoundHashes(config.hash_every)(0, done.state)
        row |= hash_row(jax.device_get(gather_whole(placement, hashes)))
        row["seconds/compile"] = done.compile_seconds

        def write() -> None:
            log.write(row)
            log.sync()

        processes.on_first(write)
    save(experiment, folder, 0, done.state, rows)
    if processes.is_first():
        forget(folder)
    return done.state


def has_prepared(folder: Path) -> bool:
    """Whether a preparation, or a part of one, is saved in a workdir."""
    saved = checkpoint.latest(folder / CHECKPOINTS) is not None
    return saved or (folder / _FOLDER).exists()


def forget(folder: Path) -> None:
    """Removes the groups that were kept: the whole preparation is saved."""
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)


class _Kept:
    """The groups that are done, in a folder: a checkpoint, and the sums of clients."""

    def __init__(self, folder: Path, group_size: int, origin: Origin):
        self._folder, self._group_size, self._origin = folder, group_size, origin

    def save(self, done: Gathering, rows: Store) -> None:
        sums: dict[str, Any] = {**preparation.add_up(done.of_groups)}
        sums[_SECONDS] = done.seconds

        def write() -> None:
            self._folder.mkdir(exist_ok=True)
            replace_arrays(self._sums(done.num_groups), sums)

        processes.on_first(write)
        size, number = np.int32(self._group_size), np.int32(done.num_groups)
        checkpoint.save(
            self._folder,
            done.num_groups,
            (size, number, done.gathered),
            rows=rows,
            origin=self._origin,
            keep=1,
        )

    def restore(
        self, steps: Preparation, state: ServerState, rows: Store, placement: Placement
    ) -> Gathering | None:
        """Replaces the rows of the groups that are done; None if there are none."""
        newest = processes.on_first(lambda: checkpoint.latest(self._folder))
        if newest is None:
            return None
        shapes = np.int32(0), np.int32(0), jax.eval_shape(steps.start, state)
        try:
            processes.on_first(self._put_damaged_aside)
            # The rows only if they are of use.
            size, number, gathered = checkpoint.restore(
                self._folder, shapes, origin=self._origin
            )
            if size != self._group_size:
                raise checkpoint.CheckpointError(
                    f"{self._folder} has groups of {size} clients, and this machine "
                    f"makes groups of {self._group_size}."
                )
            number = int(number)
            sums, seconds = processes.together(lambda: self._read_sums(number))
        except (*_UNUSABLE, WorkdirError, OSError) as error:
            self._remove(error)
            warnings.warn(f"{error} The preparation begins anew.", stacklevel=2)
            return None
        try:
            checkpoint.restore(self._folder, shapes, rows)
        except (*_UNUSABLE, OSError) as error:
            # Some rows may be replaced, so this process cannot begin anew.
            self._remove(error)
            raise checkpoint.CheckpointError(
                f"{error} The same command begins the preparation anew."
            ) from error
        return Gathering(number, put_whole(placement, gathered), (sums,), seconds)

    def _put_damaged_aside(self) -> None:
        number, _ = checkpoint.newest_intact(self._folder, ("state", "rows"))
        checkpoint.put_aside(self._folder, number)

    def _remove(self, error: Exception) -> None:
        """Removes the groups, or raises an error that says nothing of them."""
        if any(processes.gather(isinstance(error, StorageError))):
            # The same command may go on with them later.
            raise error
        if processes.is_first():
            # Or the first new group would be taken for saved already.
            shutil.rmtree(self._folder, ignore_errors=True)

    def _read_sums(self, num_groups: int) -> tuple[dict[str, np.ndarray], float]:
        found = read_arrays(self._sums(num_groups))
        return found, float(found.pop(_SECONDS))

    def _sums(self, num_groups: int) -> Path:
        return self._folder / f"sums-of-{num_groups}-groups.npz"
