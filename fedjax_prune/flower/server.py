"""The ServerApp: waits for the nodes, runs the rounds and writes what comes of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Annotated, Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedjax_prune.fields import at_least, checked, fields_of
from fedjax_prune.flower.client import ReadConfig
from fedjax_prune.flower.examples import named_classes
from fedjax_prune.flower.nodes import Nodes
from fedjax_prune.flower.rounds import Rounds, Row
from fedjax_prune.models.precision import product_precision
from fedjax_prune.runs import checkpoint, environment
from fedjax_prune.runs.learning import Learning, make_learning
from fedjax_prune.runs.metrics_log import open_metrics
from fedjax_prune.runs.origin import origin_of
from fedjax_prune.runs.saving import CHECKPOINTS
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.workdir import (
    WorkdirError,
    has_config,
    open_workdir,
    write_config,
)
from fedjax_prune.types import ServerState

_LOG = getLogger("flwr")

Write = Callable[[int, ServerState, Row], None]
"""(number of a round, the state after it, its row of metrics)."""


def make_server_app(read_config: ReadConfig) -> ServerApp:
    """Makes the ServerApp.

    Args:
      read_config: reads the configuration of the run, as the ClientApp's.

    Returns:
      The app. It reads the fields of `serve` from the run's configuration, too.
    """
    app, options = ServerApp(), fields_of(serve)

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        given = context.run_config
        config = read_config(given)
        with product_precision(config.precision):
            learning = make_learning(config)
            fields: dict[str, Any] = {n: given[n] for n in options if n in given}
            serve(grid, learning, **fields)

    return app


@checked
def serve(
    grid: Grid,
    learning: Learning,
    *,
    workdir: Annotated[str, "Folder for the results; empty writes none."] = "",
    wait_seconds: Annotated[
        int, at_least(0), "How long the first round waits for a node of each client."
    ] = 600,
    round_seconds: Annotated[
        int,
        at_least(0),
        "How long a round, or the preparation, waits for a client; 0 is until it is "
        "lost.",
    ] = 0,
) -> ServerState:
    """Trains with the nodes of a grid.

    Args:
      grid: of the run.
      learning: of the run; the precision of its products is set.

    The other fields are described where they are declared, in the signature.

    Returns:
      The state after the last round.

    Raises:
      SettingsError: if the run is to be private, logged, hashed or compacted or has a
        `rows_dir`, or the workdir is relative.
      MissingNodesError: if a client has no node when the first round should begin.
      TrainingError: as a simulated run.
      WorkdirError, CheckpointError: if the workdir has a run or cannot be written.
    """
    config, found = learning.config, []
    if clip_norm := config.privacy.clip_norm:
        found.append(
            f"privacy.clip_norm must be 0 for a run on Flower, got {clip_norm}: the "
            "noise is drawn from the seed, which every node is told"
        )
    for name, unused in (
        ("logger", "none"),
        ("hash_every", 0),
        ("compact_training", False),
    ):
        if (value := config[name]) != unused:
            found.append(f"{name} must be {unused} for a run on Flower, got {value}")
    if config.rows_dir:
        found.append(
            f"rows_dir must be empty for a run on Flower, got {config.rows_dir}: the "
            "option rows-dir of a node names its folder"
        )
    if workdir and not Path(workdir).is_absolute():
        # Flower runs this in a folder of its own.
        found.append(f"workdir must be empty or an absolute path, got {workdir!r}")
    if found:
        raise SettingsError(found)
    classes = named_classes(config)
    nodes = Nodes(grid, config.data.num_clients, classes, round_seconds)
    with _results(workdir, learning, lambda: nodes.wait(wait_seconds)) as write:
        rounds = Rounds(nodes, learning)
        state = rounds.begin()
        if learning.algorithm.prepare is not None:
            state, row = rounds.prepare(state)
            write(0, state, row)
        for number in range(1, config.rounds + 1):
            state, row = rounds.run(state, number)
            write(number, state, row)
        place = f"the model is in {workdir}" if workdir else "no workdir, nothing saved"
        _LOG.info("Finished %d rounds; %s", config.rounds, place)
        return state


@contextmanager
def _results(
    workdir: str, learning: Learning, wait: Callable[[], None]
) -> Iterator[Write]:
    """Opens the workdir of a run, in which there is none yet.

    Args:
      workdir: see `serve`.
      learning: of the run.
      wait: returns when the run may begin. If it raises, no run has begun.

    Yields:
      What writes a round: its row, and a checkpoint without rows where one is due. With
      an empty workdir it only logs.
    """
    if not workdir:
        wait()
        yield lambda number, state, row: _log(row)
        return
    config = learning.config
    with open_workdir(workdir) as folder:
        if has_config(folder):
            raise WorkdirError(
                f"{folder} has a run already, and a run on Flower does not go on: name "
                "a new folder."
            )
        wait()
        write_config(folder, config)
        environment.record(folder, config, 0, {})
        with open_metrics(folder, -1) as log:

            def write(number: int, state: ServerState, row: Row) -> None:
                _log(row)
                log.write(row)
                if number % config.save_every == 0 or number == config.rounds:
                    checkpoint.save(
                        folder / CHECKPOINTS,
                        number,
                        state,
                        origin=origin_of(config),
                        keep=config.keep,
                        keep_every=config.keep_every,
                    )

            yield write


def _log(row: Row) -> None:
    words = (
        f"Round {row['round']}: {row['clients/arrived']} of {row['clients']} clients, "
        f"loss {row['train/loss']:.4f}"
    )
    if "eval/client_local/mean" in row:
        words += f", own validation {row['eval/client_local/mean']:.4f}"
    _LOG.info(words)
