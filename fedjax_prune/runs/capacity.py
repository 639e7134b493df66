"""How much memory a run takes, and how many lanes fit."""

import bisect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.engine import processes
from fedjax_prune.engine.aggregate import weigh
from fedjax_prune.engine.contract import Preparation
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.evaluate import BATCH_SIZE
from fedjax_prune.engine.keys import seed_key
from fedjax_prune.engine.local import LocalTraining
from fedjax_prune.engine.row_index import ENTRY_BYTES
from fedjax_prune.models.costs import tree_bytes
from fedjax_prune.models.platforms import tracing_for
from fedjax_prune.runs.data_memory import machine_bytes
from fedjax_prune.runs.experiment import Experiment
from fedjax_prune.runs.learning import Learning, init_key, start_shapes
from fedjax_prune.runs.liveness import peak_bytes
from fedjax_prune.runs.policy import placement_of
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.types import (
    Anchor,
    Batch,
    Cohort,
    Dataset,
    ServerState,
    Variables,
)


def memory_estimate(experiment: Experiment) -> Callable[[int], int]:
    """Bytes that a round takes on each device, as a function of its lanes.

    A device holds the data, the parameters and, unless the host keeps them, its share
    of the rows of all clients. It holds the rows of its block of the cohort, or of a
    group of explorers if they are more, and the messages that it keeps. Each lane adds
    a half-trained client and its message. Beside them is the peak of a local step of
    all lanes or that of the evaluation of a batch, whichever is larger. When the lanes
    are done, an aggregator that sorts makes two copies of the messages of all devices,
    and the fixed order two of those of the cohort.

    Args:
      experiment: with `devices` as a number.
    """
    config, learning = experiment.config, experiment.learning
    state, row = start_shapes(learning)
    row_bytes = tree_bytes(row)
    placement = placement_of(config)
    share = resident_bytes(experiment, placement)
    explorers, prepare = 0, learning.algorithm.prepare
    client, message = _client_bytes(learning, state)
    if prepare is not None:
        explorers = prepare.num_clients(config.data.num_clients)
        client += _longer_chain(learning, prepare, state)
        message = max(message, tree_bytes(jax.eval_shape(prepare.start, state)))
    data = experiment.data
    examples = sum(x.nbytes for x in (*data.train, *data.test))
    with tracing_for(placement.platform):
        step, evaluation = _step_bytes(experiment), _evaluation_bytes(experiment)
    fixed = examples + tree_bytes(state) + share
    sorted_at_once = 0
    if placement.policy.keeps_messages:
        places = placement.num_blocks * placement.block_size(config.cohort_size)
        sorted_at_once = 2 * places * message

    def bytes_with(lanes: int) -> int:
        clients = max(config.cohort_size, min(explorers, placement.group_size(lanes)))
        block = placement.block_size(clients)
        in_order = config.reduction == "fixed_order"
        keeps = in_order or placement.policy.keeps_messages
        kept = (block if keeps else 1) * message
        added_up = max(sorted_at_once, 2 * block * message if in_order else 0)
        # Clients are evaluated one after another.
        work = max(lanes * step, evaluation)
        at_once = max(lanes * (client + message) + work, added_up)
        return fixed + block * row_bytes + kept + at_once

    return bytes_with


def _client_bytes(learning: Learning, state: ServerState) -> tuple[int, int]:
    """Bytes of a half-trained client and of its message.

    Both depend on the algorithm: PruneFL keeps and sends squared gradients in addition
    to what FedAvg keeps and sends.
    """
    rules, number = learning.algorithm.rules, jnp.int32(1)
    row = jax.eval_shape(lambda: rules.row(init_key(learning.config)))
    cohort = Cohort(*(number,) * len(Cohort._fields))

    def client(state: ServerState, row: Any) -> Any:
        anchor = Anchor(state.params, state.model_state, state.round)
        program = rules.program(state, cohort)
        nothing = Dataset((), ())
        training = LocalTraining(learning.task, rules.solver, program, anchor, nothing)
        indices = jnp.zeros(rules.solver.batch_size, jnp.int32)
        progress = training.begin(row, indices, number, seed_key(0), {})
        return progress, weigh(program.upload(training.result(progress), row)[0])

    progress, message = jax.eval_shape(client, state, row)
    return tree_bytes(progress), tree_bytes(message)


def _longer_chain(learning: Learning, prepare: Preparation, state: ServerState) -> int:
    """Extra bytes of an optimiser state in the preparation, compared with rounds."""
    chains = (prepare.solver, learning.algorithm.rules.solver)
    in_preparation, in_rounds = (
        tree_bytes(jax.eval_shape(solver.shared_tx.init, state.params))
        for solver in chains
    )
    return max(0, in_preparation - in_rounds)


def _step_bytes(experiment: Experiment) -> int:
    """What one local step holds at once, gradients included."""
    learning = experiment.learning

    def gradient(variables: Variables, batch: Batch, key: jax.Array) -> Any:
        def loss(params: Any, personal: Any) -> jax.Array:
            full = variables._replace(params=params, personal=personal)
            return learning.task.loss(full, batch, key)[0]

        return jax.grad(loss, (0, 1))(variables.params, variables.personal)

    batch_size = experiment.config.client.batch_size
    batch = _batch_like(experiment.data.train, batch_size)
    key = seed_key(0)
    return peak_bytes(gradient, learning.task.shapes, batch, key)


def _evaluation_bytes(experiment: Experiment) -> int:
    """Peak bytes of the evaluation of one batch.

    This is a quarter more than `peak_bytes` gives. XLA's plans for a CPU took 0.8 to
    1.6 times `peak_bytes` for six models, and 2.8 times for ResNet-32.
    """
    task, test = experiment.learning.task, experiment.data.test
    batch_size = min(BATCH_SIZE, len(test.labels))
    images = _batch_like(test, batch_size).images
    return 5 * peak_bytes(task.predict, task.shapes, images) // 4


def resident_bytes(experiment: Experiment, placement: Placement) -> int:
    """Bytes of all clients' rows on each device, if they stay there between rounds."""
    config = experiment.config
    if config.client_rows != "device":
        return 0
    _, row = start_shapes(experiment.learning)
    return -(-config.data.num_clients // placement.num_blocks) * tree_bytes(row)


def host_bytes(experiment: Experiment) -> int:
    """Bytes that the rows of clients and the tables of a cohort take on the host.

    Of rows on disk, it holds those of the cohort before and of the next one, and an
    entry of the index for each client who was ever trained.
    """
    config = experiment.config
    row_bytes = tree_bytes(start_shapes(experiment.learning)[1])
    num_clients, cohort_size = config.data.num_clients, config.cohort_size
    rows = {
        "device": 0,
        "host": -(-num_clients // processes.count()) * row_bytes,
        "disk": 3 * -(-cohort_size // processes.count()) * row_bytes
        + ENTRY_BYTES * min(num_clients, config.rounds * cohort_size),
    }[config.client_rows]
    width = experiment.data.population.max_size
    return rows + cohort_size * width * np.dtype(np.int32).itemsize


def require_host_memory(experiment: Experiment) -> None:
    """Refuses rows and tables that the host cannot hold, before they are made.

    Raises:
      SettingsError: if they do not fit.
    """
    config, available = experiment.config, machine_bytes()
    less = "client_rows = disk, or " if config.client_rows == "host" else ""
    if (needed := host_bytes(experiment)) > available:
        raise SettingsError(
            [
                f"client_rows = {config.client_rows} with {config.data.num_clients:,} "
                f"clients, {config.cohort_size:,} a round, takes {needed / 1e9:,.3g} "
                f"GB of this machine's memory, which has {available / 1e9:,.3g} GB: "
                f"take {less}a smaller cohort_size or model.width"
            ]
        )


def available_bytes(on_host: int = 0) -> int:
    """Memory of one device; a CPU device has an equal share of the machine's.

    Args:
      on_host: bytes that the host itself takes.
    """
    device = jax.local_devices()[0]
    statistics = device.memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    return (machine_bytes() - on_host) // jax.local_device_count()


def fitting_lanes(need: Callable[[int], int], most: int, available: int) -> int:
    """The largest number of lanes that fits the memory of a device.

    Args:
      need: lanes -> bytes, as `memory_estimate` gives it.
      most: the number of lanes asked for, at least 1.
      available: bytes on each device.

    Returns:
      A number in [1, most].

    Raises:
      SettingsError: if not even one lane fits.
    """
    fitting = bisect.bisect_right(range(1, most + 1), available, key=need)
    if not fitting:
        raise SettingsError(
            [
                f"a round with one lane needs {need(1) / 1e9:.3g} GB on each device, "
                f"which has {available / 1e9:.3g} GB: take a smaller "
                "client.batch_size, model.width, data.size or cohort_size"
            ]
        )
    return fitting


def _batch_like(dataset: Dataset, batch_size: int) -> Batch:
    """The shapes of a batch. No image is copied, because a batch may not fit."""
    images, labels = dataset
    return jax.eval_shape(
        lambda: Batch(
            jnp.zeros((batch_size, *images.shape[1:]), images.dtype),
            jnp.zeros(batch_size, labels.dtype),
            jnp.ones(batch_size, bool),
        )
    )
