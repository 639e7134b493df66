"""Where a run begins: at its newest checkpoint or before the first round."""

from pathlib import Path

import jax
import numpy as np

from fedjax_prune.runs import checkpoint
from fedjax_prune.runs.experiment import Experiment, own_personal, start
from fedjax_prune.engine.devices import ONE_DEVICE, Placement, put_whole
from fedjax_prune.engine.store import Store, make_store
from fedjax_prune.types import ClientState, Config, ServerState


def restore_or_start(
    config: Config, experiment: Experiment, workdir: Path, placement: Placement
) -> tuple[ServerState, Store, int | None]:
    """The newest checkpoint and its round, or the first state and None.

    Raises:
      CheckpointError: if the checkpoint cannot be used.
    """
    finished = checkpoint.latest(workdir / "checkpoints")
    if finished is not None:
        kind = config.client_rows
        return *restore(config, experiment, workdir, placement, kind), finished
    state, row = jax.jit(lambda: start(config, experiment))()
    rows = make_store(
        config.client_rows,
        row,
        config.data.num_clients,
        placement,
        own_personal(config, experiment),
    )
    return put_whole(placement, state), rows, None


def restore(
    config: Config,
    experiment: Experiment,
    workdir: Path,
    placement: Placement = ONE_DEVICE,
    client_rows: str = "host",
) -> tuple[ServerState, Store]:
    """The newest checkpoint.

    Args:
      config: of the run.
      experiment: of the run.
      workdir: of the run.
      placement: where the state and the rows are wanted.
      client_rows: kind of store. Of rows on the host only those asked for are read,
        until some are replaced.

    Raises:
      CheckpointError: if there is none or it cannot be used.
    """
    state, row = _saved(config, experiment)
    row = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), row)
    rows = make_store(client_rows, row, config.data.num_clients, placement)
    state = checkpoint.restore(workdir / "checkpoints", state, rows)
    return put_whole(placement, state), rows


def restore_state(config: Config, experiment: Experiment, workdir: Path) -> ServerState:
    """The server's state of the newest checkpoint; rows of clients are not read.

    Raises:
      CheckpointError: if there is none or it cannot be used.
    """
    state, _ = _saved(config, experiment)
    return checkpoint.restore(workdir / "checkpoints", state)


def save(
    config: Config, workdir: Path, finished: int, state: ServerState, rows: Store
) -> None:
    """Reads the whole state from the devices and saves it as that of a round."""
    with jax.transfer_guard("allow"):
        checkpoint.save(
            workdir / "checkpoints", finished, state, rows=rows, keep=config.keep
        )


def _saved(config: Config, experiment: Experiment) -> tuple[ServerState, ClientState]:
    """Shapes of a state and a row, as they are saved."""
    state, row = jax.eval_shape(lambda: start(config, experiment))
    # A preparation comes before the first checkpoint.
    return state._replace(pending=()), row
