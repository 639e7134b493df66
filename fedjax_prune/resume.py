"""Where a run begins: at its newest checkpoint or before the first round."""

from pathlib import Path

import jax
import numpy as np

from fedjax_prune import checkpoint
from fedjax_prune.experiment import Experiment, start, start_on_host
from fedjax_prune.placement import Placement, put_whole
from fedjax_prune.store import STORES, Store
from fedjax_prune.types import Config, ServerState


def restore_or_start(
    config: Config, experiment: Experiment, workdir: Path, placement: Placement
) -> tuple[ServerState, Store, int | None]:
    """The newest checkpoint and its round, or the first state and None.

    Raises:
      CheckpointError: if the checkpoint cannot be used.
    """
    finished = checkpoint.latest(workdir / "checkpoints")
    if finished is not None:
        return *restore(config, experiment, workdir, placement), finished
    if config.client_rows == "host":
        state, rows = start_on_host(config, experiment)
    else:
        state, rows = jax.jit(lambda: start(config, experiment))()
    rows = STORES[config.client_rows](rows, placement)
    return put_whole(placement, state), rows, None


def restore(
    config: Config, experiment: Experiment, workdir: Path, placement: Placement
) -> tuple[ServerState, Store]:
    """The newest checkpoint.

    Raises:
      CheckpointError: if there is none or it cannot be used.
    """
    state, rows = jax.eval_shape(lambda: start(config, experiment))
    # What is saved has its preparation behind it.
    state = state._replace(pending=())
    if config.client_rows == "host":
        rows = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), rows)
    state, rows = checkpoint.restore(workdir / "checkpoints", (state, rows))
    return put_whole(placement, state), STORES[config.client_rows](rows, placement)


def save(
    config: Config, workdir: Path, finished: int, state: ServerState, rows: Store
) -> None:
    """Reads the whole state from the devices and saves it as that of a round."""
    with jax.transfer_guard("allow"):
        checkpoint.save(
            workdir / "checkpoints", finished, (state, rows.whole()), keep=config.keep
        )
