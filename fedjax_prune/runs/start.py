"""Where a run begins: at its newest checkpoint or before the first round."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from fedjax_prune.engine import processes, row_log
from fedjax_prune.engine.devices import ONE_DEVICE, Placement
from fedjax_prune.engine.placing import put_whole
from fedjax_prune.engine.row_errors import RowsError
from fedjax_prune.engine.store import Store, make_store
from fedjax_prune.models.costs import tree_bytes
from fedjax_prune.runs import checkpoint
from fedjax_prune.runs.experiment import Experiment
from fedjax_prune.runs.learning import Learning, own_personal, start, start_shapes
from fedjax_prune.runs.origin import Origin, origin_of
from fedjax_prune.runs.row_place import require_usable, rows_folder
from fedjax_prune.runs.saving import CHECKPOINTS
from fedjax_prune.types import ClientState, Config, ServerState

Result = TypeVar("Result")

_TRIES = 5
"""How often the newest checkpoint is read at most while a run replaces it."""


def restore_or_start(
    experiment: Experiment, workdir: Path, placement: Placement
) -> tuple[ServerState, Store, int | None]:
    """The newest usable checkpoint and its round, or the first state and None.

    Raises:
      CheckpointError: if there are checkpoints and none can be used, the newest is of
        another configuration or of other data, or the disk has no room for the next.
      RowsError: if `rows_dir` cannot be used, or rows that are saved cannot be read.
    """
    learning, config = experiment.learning, experiment.config
    newest = processes.on_first(lambda: checkpoint.latest(workdir / CHECKPOINTS))
    origin, finished = origin_of(config, experiment.data.hashes), None
    if newest is not None and newest >= config.rounds:
        # It is only reported, so no rows are written.
        state, rows = restore(learning, workdir, placement, origin=origin)
        finished = int(state.round)
        # Otherwise what is after the last round is damaged.
        if finished >= config.rounds:
            return state, rows, finished
    if config.rows_dir:
        require_usable(config.rows_dir)
    if newest is not None:
        state, rows = restore(learning, workdir, placement, config.client_rows, origin)
        finished = restored = int(state.round)
        processes.on_first(
            lambda: checkpoint.put_aside(workdir / CHECKPOINTS, restored)
        )
    else:
        state, row = jax.jit(lambda: start(learning))()
        folder = rows_folder(config, workdir)
        rows = _make_store(
            learning, row, workdir, placement, kind=config.client_rows, folder=folder
        )
        state = put_whole(placement, state)
    written = _bytes_of_round(rows, config)
    processes.on_first(
        lambda: checkpoint.require_room(
            workdir / CHECKPOINTS, state, rows, written=written
        )
    )
    return state, rows, finished


def of_newest(workdir: Path, read: Callable[[], Result]) -> Result:
    """Calls what reads the newest checkpoint, once more if a run has replaced it.

    A run that goes on beside this process removes old checkpoints, and the rows on disk
    that only they name.

    Args:
      workdir: of the run.
      read: restores the newest checkpoint and reads what is wanted of it.

    Raises:
      CheckpointError: if the run was faster each time.
      RowsError, Exception: what `read` raises, if there is no newer checkpoint by then.
    """
    for _ in range(_TRIES):
        newest = checkpoint.latest(workdir / CHECKPOINTS)
        try:
            return read()
        except (checkpoint.CheckpointError, RowsError, OSError, ValueError):
            if checkpoint.latest(workdir / CHECKPOINTS) == newest:
                raise
    raise checkpoint.CheckpointError(
        f"The run in {workdir} goes on and replaces its checkpoints faster than they "
        "are read: try again."
    )


def restore(
    learning: Learning,
    workdir: Path,
    placement: Placement = ONE_DEVICE,
    client_rows: str | None = None,
    origin: Origin | None = None,
) -> tuple[ServerState, Store]:
    """The newest checkpoint.

    Args:
      learning: of the run.
      workdir: of the run.
      placement: where the state and the rows are wanted.
      client_rows: kind of store; None is one that reads only the rows asked for, until
        the first are replaced.
      origin: of the run; None compares nothing.

    Raises:
      CheckpointError: if there is none, it cannot be used or is of another origin.
      RowsError: if object storage with its rows does not answer, or rows cannot be
        written where they are wanted.
    """
    state, row = _saved(learning)
    if client_rows is None:
        kind, folder = processes.on_first(lambda: _readable(workdir))
    else:
        kind, folder = client_rows, rows_folder(learning.config, workdir)
    if kind == "disk":
        # Rows of another kind of store are written unless they are equal to it.
        row = jax.jit(lambda: start(learning)[1])()
    else:
        row = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), row)
    rows = _make_store(learning, row, workdir, placement, kind=kind, folder=folder)
    state = checkpoint.restore(workdir / CHECKPOINTS, state, rows, origin)
    return put_whole(placement, state), rows


def _make_store(
    learning: Learning,
    row: ClientState,
    workdir: Path,
    placement: Placement,
    *,
    kind: str,
    folder: str,
) -> Store:
    """A store of the run in which every client has its first row."""
    return make_store(
        kind,
        row,
        learning.config.data.num_clients,
        placement,
        own_personal=own_personal(learning),
        folder=folder,
        moves_with=workdir,
    )


def _readable(workdir: Path) -> tuple[str, str]:
    """The kind and the folder of a store that reads the rows of the newest checkpoint.

    It copies none, even if the next start of the run will have its rows elsewhere.
    """
    for round in reversed(checkpoint.rounds(workdir / CHECKPOINTS)):
        snapshot = workdir / CHECKPOINTS / str(round) / "rows"
        if not row_log.is_log(snapshot):
            break
        # A damaged one is passed over when the checkpoints are read.
        with suppress(OSError, ValueError):
            return "disk", str(row_log.load(snapshot).folder)
    return "host", ""


def restore_state(learning: Learning, workdir: Path) -> ServerState:
    """The server's state of the newest checkpoint; rows of clients are not read.

    Raises:
      CheckpointError: if there is none, it cannot be used or is of another
        configuration.
    """
    state, _ = _saved(learning)
    origin = origin_of(learning.config)
    return of_newest(
        workdir, lambda: checkpoint.restore(workdir / CHECKPOINTS, state, origin=origin)
    )


def _bytes_of_round(rows: Store, config: Config) -> int:
    """What a round writes before the first checkpoint."""
    if config.client_rows != "disk" or config.rows_dir:
        return 0
    return config.cohort_size * tree_bytes(rows.shapes) // config.data.num_clients


def _saved(learning: Learning) -> tuple[ServerState, ClientState]:
    """Shapes of a state and a row, as they are saved."""
    state, row = start_shapes(learning)
    # A preparation comes before the first checkpoint.
    return state._replace(pending=()), row
