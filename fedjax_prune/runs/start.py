"""Where a run begins: at its newest checkpoint or before the first round."""

import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from fedjax_prune.engine import processes, row_log
from fedjax_prune.engine.devices import ONE_DEVICE, Placement
from fedjax_prune.engine.placing import put_whole
from fedjax_prune.engine.row_folder import open_folder, require_usable
from fedjax_prune.engine.rows_on_disk import RowsError
from fedjax_prune.engine.store import Store, make_store
from fedjax_prune.models.costs import tree_bytes
from fedjax_prune.runs import checkpoint
from fedjax_prune.runs.experiment import Experiment
from fedjax_prune.runs.files import replace
from fedjax_prune.runs.learning import Learning, own_personal, start
from fedjax_prune.runs.origin import Origin, origin_of
from fedjax_prune.runs.saving import FOLDER
from fedjax_prune.types import ClientState, Config, ServerState

Result = TypeVar("Result")

_TRIES = 5
"""How often the newest checkpoint is read at most while a run replaces it."""
ROWS = "rows"
"""Folder of the rows of clients in a workdir, if they are on disk."""
ROWS_NAME = "rows_name"
"""File in a workdir: the name of the run's folder in `rows_dir`."""


def restore_or_start(
    experiment: Experiment, workdir: Path, placement: Placement
) -> tuple[ServerState, Store, int | None]:
    """The newest usable checkpoint and its round, or the first state and None.

    Raises:
      CheckpointError: if there are checkpoints and none can be used, the newest is of
        another configuration or of other data, or the disk has no room for the next.
      RowsError: if `rows_dir` cannot be written.
    """
    learning, config = experiment.learning, experiment.config
    if config.rows_dir:
        processes.together(lambda: _require_usable(config.rows_dir))
    folder, finished = rows_folder(config, workdir), None
    if processes.on_first(lambda: checkpoint.rounds(workdir / FOLDER)):
        origin = origin_of(config, experiment.data.hashes)
        state, rows = restore(learning, workdir, placement, config.client_rows, origin)
        finished = int(state.round)
    else:
        state, row = jax.jit(lambda: start(learning))()
        rows = make_store(
            config.client_rows,
            row,
            config.data.num_clients,
            placement,
            own_personal=own_personal(learning),
            folder=folder,
        )
        state = put_whole(placement, state)
    if finished is None or finished < config.rounds:
        written = _bytes_of_round(rows, config)
        processes.on_first(
            lambda: checkpoint.require_room(
                workdir / FOLDER, state, rows, written=written
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
      Exception: what `read` raises, if there is no newer checkpoint by then.
    """
    for _ in range(_TRIES):
        newest = checkpoint.latest(workdir / FOLDER)
        try:
            return read()
        except (checkpoint.CheckpointError, RowsError, OSError, ValueError):
            if checkpoint.latest(workdir / FOLDER) == newest:
                raise
    raise checkpoint.CheckpointError(
        f"The run in {workdir} goes on and replaces its checkpoints faster than they "
        "are read: try again."
    )


def rows_folder(config: Config, workdir: Path) -> str:
    """Where the rows of a run are, if they are on disk.

    A run has a folder of its own in `rows_dir`, which other runs may use, too. It does
    not depend on the path of the workdir, which may change.

    Raises:
      WorkdirError: if the name of that folder cannot be written into the workdir.
    """
    if not config.rows_dir:
        return str(workdir / ROWS)

    def name() -> str:
        file = workdir / ROWS_NAME
        if not file.exists():
            readable = re.sub(r"[^\w.-]", "_", workdir.name)
            replace(file, f"{readable}-{uuid.uuid4().hex[:12]}".encode())
        return file.read_text().strip()

    return f"{config.rows_dir.rstrip('/')}/{processes.on_first(name)}"


def _require_usable(rows_dir: str) -> None:
    """Refuses a place of rows that this process cannot write and read."""
    try:
        require_usable(open_folder(rows_dir))
    except OSError as error:
        reason = error.strerror or str(error)
        raise RowsError(f"Rows cannot be kept in {rows_dir}: {reason}.") from error


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
    """
    state, row = _saved(learning)
    if client_rows is None:
        client_rows, folder = _readable(learning.config, workdir)
    else:
        folder = rows_folder(learning.config, workdir)
    if client_rows == "disk":
        # Rows of another kind of store are written unless they are equal to it.
        row = jax.jit(lambda: start(learning)[1])()
    else:
        row = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), row)
    own = own_personal(learning)
    num_clients = learning.config.data.num_clients
    rows = make_store(
        client_rows,
        row,
        num_clients,
        placement,
        own_personal=own,
        folder=folder,
    )
    state = checkpoint.restore(workdir / FOLDER, state, rows, origin)
    return put_whole(placement, state), rows


def _readable(config: Config, workdir: Path) -> tuple[str, str]:
    """The kind and the folder of a store that reads the rows of the newest checkpoint.

    It copies none, even if the next start of the run will have its rows elsewhere.
    """
    snapshot = workdir / FOLDER / str(checkpoint.latest(workdir / FOLDER)) / "rows"
    if not row_log.is_log(snapshot):
        return "host", ""
    try:
        return "disk", str(row_log.load(snapshot).folder)
    except (OSError, ValueError):
        # It is damaged, and the one before will be read.
        return "disk", rows_folder(config, workdir)


def restore_state(learning: Learning, workdir: Path) -> ServerState:
    """The server's state of the newest checkpoint; rows of clients are not read.

    Raises:
      CheckpointError: if there is none, it cannot be used or is of another
        configuration.
    """
    state, _ = _saved(learning)
    origin = origin_of(learning.config)
    return of_newest(
        workdir, lambda: checkpoint.restore(workdir / FOLDER, state, origin=origin)
    )


def _bytes_of_round(rows: Store, config: Config) -> int:
    """What a round writes before the first checkpoint."""
    if config.client_rows != "disk" or config.rows_dir:
        return 0
    return config.cohort_size * tree_bytes(rows.shapes) // config.data.num_clients


def _saved(learning: Learning) -> tuple[ServerState, ClientState]:
    """Shapes of a state and a row, as they are saved."""
    state, row = jax.eval_shape(lambda: start(learning))
    # A preparation comes before the first checkpoint.
    return state._replace(pending=()), row
