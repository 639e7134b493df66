"""What gates that stay on their client are worth beside gates that are averaged."""

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import jax
import jax.numpy as jnp

from fedjax_prune.engine.contract import FederatedAlgorithm
from fedjax_prune.engine.devices import ONE_DEVICE, Placement
from fedjax_prune.models.precision import product_precision
from fedjax_prune.runs.estimates import rounds_done
from fedjax_prune.runs.learning import make_learning
from fedjax_prune.runs.tables import comparison
from fedjax_prune.runs.train import train
from fedjax_prune.runs.workdir import open_shared_workdir, read_usable_config
from fedjax_prune.types import ClientState, Config, RoundInputs, ServerState, Sums, Tree

FOLDER = "averaged_gates"
"""In the workdir of a run with gates; has the same run with averaged gates."""


def with_averaged_gates(runs: Mapping[str, Sequence[Path]]) -> str:
    """Compares runs with gates and the same runs with averaged gates, in Markdown.

    The latter are trained here, or go on, from the configurations of the former. They
    have the same first weights, cohorts and batches.

    Args:
      runs: name -> workdirs of its seeds, all clients in every round.

    Returns:
      As `comparison`.

    Raises:
      KeyboardInterrupt: after a signal; what was trained is saved.
    """
    averaged = {
        f"{name}, gates averaged": [_trained(workdir) for workdir in workdirs]
        for name, workdirs in runs.items()
        if read_usable_config(workdirs[0]).model.gated
    }
    return comparison({**runs, **averaged})


def averaging(algorithm: FederatedAlgorithm) -> FederatedAlgorithm:
    """Makes an algorithm whose clients all go on with the mean of their gates.

    The mean is weighted by examples, as that of the shared parameters. Nothing else
    changes: gates are trained without control variates and proximal terms.

    Args:
      algorithm: all of its clients are in every cohort.
    """

    def round(
        inputs: RoundInputs, placement: Placement = ONE_DEVICE
    ) -> tuple[ServerState, ClientState, Sums]:
        state, rows, sums = algorithm.round(inputs, placement)
        weights = jnp.asarray(inputs.cohort.sizes, jnp.float32)
        weights /= weights.sum()

        def mean(gates: jax.Array) -> jax.Array:
            return jnp.broadcast_to(
                jnp.tensordot(weights, gates, 1, precision="highest"), gates.shape
            )

        personal: Tree = jax.tree.map(mean, rows.personal)
        return state, rows._replace(personal=personal), sums

    return algorithm._replace(round=round)


def _trained(workdir: Path) -> Path:
    """Trains a run with averaged gates, unless it is finished; returns its folder."""
    config = read_usable_config(workdir)
    folder = workdir / FOLDER
    if rounds_done(folder) < config.rounds:
        _train(config, folder)
    return folder


def _train(config: Config, folder: Path) -> None:
    with open_shared_workdir(folder), product_precision(config.precision):
        learning = make_learning(config)
        learning = learning._replace(algorithm=averaging(learning.algorithm))
        print(f"{folder}: {config.rounds} rounds", flush=True)
        with (folder / "train.log").open("a") as log, redirect_stdout(log):
            finished = train(learning, folder, config.rounds)
    if finished < config.rounds:
        raise KeyboardInterrupt(f"{folder}: stopped after round {finished}")
