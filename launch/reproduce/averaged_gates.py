"""Trains a run whose gates are averaged like the rest, in place of `train`.

python -m launch.reproduce.averaged_gates --config=CONFIG --workdir=DIR
    [--config.FIELD=VALUE ...]

FedDP's gates stay on their client. Here every client goes on with the mean of all gates
after each round; nothing else changes. All clients must report in every round, because
the mean would take old gates of one that did not. The workdir has the config of the run
with gates that stay, which `train` and `verify` would take.
"""

import jax
import jax.numpy as jnp
from absl import app, flags

from fedjax_prune.engine.contract import FederatedAlgorithm
from fedjax_prune.engine.devices import ONE_DEVICE, Placement
from fedjax_prune.models.precision import product_precision
from fedjax_prune.runs.completed import completed
from fedjax_prune.runs.interrupt import INTERRUPTED
from fedjax_prune.runs.learning import make_learning
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.train import train
from fedjax_prune.runs.workdir import local_folder, open_shared_workdir
from fedjax_prune.types import ClientState, Config, RoundInputs, ServerState, Sums, Tree

from .. import runtime
from ..errors import exit_code
from ..flags import load_config, parse

_CONFIG = flags.DEFINE_string("config", None, "file or bundled name, :STRING after it")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run, made if missing")


def averaging(algorithm: FederatedAlgorithm, personal: Tree) -> FederatedAlgorithm:
    """Makes an algorithm whose clients all go on with the mean of their gates.

    The mean is weighted by examples, as that of the shared parameters. Gates are
    trained as before, without control variates and proximal terms, and are sent both
    ways.

    Args:
      algorithm: all of its clients are in every cohort, and all messages arrive.
      personal: shapes of a client's gates.
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

        averaged: Tree = jax.tree.map(mean, rows.personal)
        return state, rows._replace(personal=averaged), sums

    def messages(state: ServerState) -> tuple[Tree, Tree]:
        down, up = algorithm.messages(state)
        return (down, personal), (up, personal)

    return algorithm._replace(round=round, messages=messages)


def _require_all_report(config: Config) -> None:
    """Refuses a run in which a client may be missing from a round.

    Raises:
      SettingsError: with every field that lets it.
    """
    num_clients = config.data.num_clients
    allowed = {
        "cohort_size": (num_clients, f"data.num_clients = {num_clients}"),
        "client_dropout": (0, "0"),
        "on_bad_client": ("abort", "abort"),
    }
    found = [
        f"{name} must be {words}, got {config[name]!r}"
        for name, (value, words) in allowed.items()
        if config[name] != value
    ]
    if found:
        raise SettingsError(found)


def main(argv: list[str]) -> int:
    """Returns the exit code, as `train` does."""

    def run() -> int:
        missing = [] if _WORKDIR.value else ["--workdir must name a folder, got ''"]
        config = load_config(_CONFIG.value, argv[1:], missing)
        _require_all_report(config)
        workdir = local_folder(_WORKDIR.value or "")
        runtime.configure()
        with (
            open_shared_workdir(workdir) as folder,
            product_precision(config.precision),
        ):
            learning = make_learning(completed(config))
            averaged = averaging(learning.algorithm, learning.task.shapes.personal)
            learning = learning._replace(algorithm=averaged)
            finished = train(learning, folder, config.rounds)
        return 0 if finished >= config.rounds else INTERRUPTED

    return exit_code(run)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
