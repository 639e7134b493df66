"""How many devices and lanes a run takes: what fits, and what is fastest."""

import bisect
import copy
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.models import costs
from fedjax_prune.engine.evaluate import BATCH_SIZE
from fedjax_prune.runs.experiment import Experiment, start
from fedjax_prune.engine.lanes import over_lanes
from fedjax_prune.runs.liveness import peak_bytes
from fedjax_prune.engine.devices import make_placement
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.types import Batch, Config, Dataset, Variables
from fedjax_prune.runs.workdir import has_config, read_config

MOST_LANES = 64
LEAST_GAIN = 1.05
"""Twice as many lanes are taken only for this many times the images a second."""


def settle(
    config: Config, experiment: Experiment, folder: Path
) -> tuple[Config, dict[str, str]]:
    """Replaces `devices` and `lanes` by numbers, those of the first start on resume.

    Args:
      config: `devices` 0 stands for all, but no more than clients in the cohort;
        `lanes` "auto" for what is fastest among what fits.
      experiment: of the run.
      folder: the workdir.

    Returns:
      The configuration to run, and what was chosen in words.

    Raises:
      SettingsError: if there are fewer devices than asked for, or not even one lane
        fits the memory.
    """
    config = copy.deepcopy(config)
    before = read_config(folder) if has_config(folder) else {}
    available = jax.local_device_count()
    wanted = config.devices or before.get("devices")
    config.devices = wanted or min(available, config.cohort_size)
    if config.devices > available:
        raise SettingsError(
            [f"devices must be in [0, {available}] on this machine, got {wanted}"]
        )
    asked = before.get("lanes", "auto") if config.lanes == "auto" else config.lanes
    most = -(-config.cohort_size // config.devices)
    fitting = fitting_lanes(
        config,
        experiment,
        MOST_LANES if asked == "auto" else asked,
        available_bytes(),
    )
    if asked == "auto":
        config.lanes, words = _fastest(config, experiment, min(fitting, most))
    else:
        config.lanes = min(fitting, asked)
        words = f"{config.lanes}"
        if config.lanes < asked:
            words += f" in place of {asked}, which do not fit the memory"
    return config, {"lanes": f"{words}, on each of {_devices(config.devices)}"}


def memory_estimate(config: Config, experiment: Experiment, lanes: int) -> int:
    """Bytes that a round takes on each device.

    The data, the parameters and the device's share of the rows of all clients, unless
    the host has them; the rows of its block of the cohort, or of a group of explorers
    if those are more; what its clients have sent; and for each lane its own parameters,
    row, optimiser state and messages, and the larger of what a local step and what the
    evaluation of a batch hold at once.

    Args:
      config: with `devices` as a number.
      experiment: of the run.
      lanes: on each device.
    """
    return _estimate(config, experiment)(lanes)


def _estimate(config: Config, experiment: Experiment) -> Callable[[int], int]:
    """`memory_estimate` by lanes; what does not depend on them is traced once."""
    state, row = jax.eval_shape(lambda: start(config, experiment))
    row = costs.tree_bytes(row)
    placement = make_placement(config.devices, config.reduction)
    share = -(-config.data.num_clients // placement.num_blocks) * row
    if config.client_rows == "host":
        share = 0
    explorers, prepare = 0, experiment.algorithm.prepare
    message = costs.tree_bytes(experiment.algorithm.messages(state)[1])
    if prepare is not None:
        explorers = prepare.num_clients(config.data.num_clients)
        gathered = jax.eval_shape(prepare.start, state)
        message = max(message, costs.tree_bytes(gathered))
    data = sum(x.nbytes for x in (*experiment.train, *experiment.test))
    optimiser = jax.eval_shape(experiment.solver.shared_tx.init, state.params)
    lane = costs.tree_bytes((state.params, optimiser)) + row + message
    lane += max(_step_bytes(config, experiment), _evaluation_bytes(experiment))
    fixed = data + costs.tree_bytes(state) + share

    def bytes_with(lanes: int) -> int:
        at_once = max(config.cohort_size, min(explorers, placement.group_size(lanes)))
        block = placement.block_size(at_once)
        kept = block if config.reduction == "fixed_order" else 1
        return fixed + block * row + kept * message + lanes * lane

    return bytes_with


def _step_bytes(config: Config, experiment: Experiment) -> int:
    """What one local step holds at once, gradients included."""

    def gradient(variables: Variables, batch: Batch, key: jax.Array) -> Any:
        def loss(params: Any, personal: Any) -> jax.Array:
            full = variables._replace(params=params, personal=personal)
            return experiment.task.loss(full, batch, key)[0]

        return jax.grad(loss, (0, 1))(variables.params, variables.personal)

    batch = jax.eval_shape(lambda: _batch(experiment.train, config.client.batch_size))
    key = jax.random.key(0)
    variables = jax.eval_shape(experiment.task.init, key)
    return peak_bytes(gradient, variables, batch, key)


def _evaluation_bytes(experiment: Experiment) -> int:
    """What the evaluation of one batch holds at once.

    A quarter more than by the walk: of six models XLA's plans for a CPU took 0.8 to
    1.6 times that, of ResNet-32 2.8 times.
    """
    batch_size = min(BATCH_SIZE, len(experiment.test.labels))
    images = jax.eval_shape(lambda: _batch(experiment.test, batch_size).images)
    variables = jax.eval_shape(lambda: experiment.task.init(jax.random.key(0)))
    return 5 * peak_bytes(experiment.task.predict, variables, images) // 4


def available_bytes() -> int:
    """Memory of one device; of a CPU device its share of the machine's."""
    device = jax.local_devices()[0]
    statistics = device.memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine // jax.local_device_count()


def fitting_lanes(
    config: Config, experiment: Experiment, most: int, available: int
) -> int:
    """The largest number of lanes that fits the memory of a device.

    Args:
      config: with `devices` as a number.
      experiment: of the run.
      most: the number of lanes asked for, at least 1.
      available: bytes on each device.

    Returns:
      A number in [1, most].

    Raises:
      SettingsError: if not even one lane fits.
    """
    need = _estimate(config, experiment)
    fitting = bisect.bisect_right(range(1, most + 1), available, key=need)
    if not fitting:
        raise SettingsError(
            [
                f"a round with one lane needs {need(1) / 1e9:.3g} GB on each device, "
                f"which has {available / 1e9:.3g} GB: take a smaller "
                "client.batch_size, model.width or cohort_size"
            ]
        )
    return fitting


def _fastest(config: Config, experiment: Experiment, most: int) -> tuple[int, str]:
    """Doubles the lanes as long as that trains more images a second."""
    best, rates = 1, {1: _images_per_second(config, experiment, 1)}
    while 2 * best <= min(most, MOST_LANES):
        rates[2 * best] = _images_per_second(config, experiment, 2 * best)
        if rates[2 * best] < LEAST_GAIN * rates[best]:
            break
        best *= 2
    tried = ", ".join(f"{lanes}: {rate:,.0f}" for lanes, rate in rates.items())
    return best, f"{best}, chosen by images a second ({tried})"


def _images_per_second(config: Config, experiment: Experiment, lanes: int) -> float:
    """Times the gradient steps of some lanes side by side on one device."""
    batch = _batch(experiment.train, config.client.batch_size)

    def step(lane: tuple[Variables, jax.Array]) -> tuple[Variables, jax.Array]:
        variables, key = lane

        def loss(params: Any) -> jax.Array:
            return experiment.task.loss(variables._replace(params=params), batch, key)[
                0
            ]

        gradient = jax.grad(loss)(variables.params)
        params = jax.tree.map(lambda p, g: p - 1e-6 * g, variables.params, gradient)
        return variables._replace(params=params), key

    @jax.jit
    def start_lanes() -> tuple[Variables, jax.Array]:
        keys = jax.random.split(jax.random.key(0), lanes)
        variables = experiment.task.init(jax.random.key(0))
        return jax.tree.map(lambda x: jnp.stack([x] * lanes), variables), keys

    run = jax.jit(lambda lanes: over_lanes(step, lanes), donate_argnums=0)
    state = jax.block_until_ready(run(start_lanes()))
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        state = jax.block_until_ready(run(state))
        seconds.append(time.monotonic() - began)
    return lanes * config.client.batch_size / float(np.median(seconds))


def _batch(dataset: Dataset, batch_size: int) -> Batch:
    """The first examples again and again, as a full batch."""
    chosen = np.arange(batch_size) % len(dataset.labels)
    return Batch(
        jnp.asarray(dataset.images[chosen]),
        jnp.asarray(dataset.labels[chosen]),
        jnp.ones(batch_size, bool),
    )


def _devices(count: int) -> str:
    name = jax.local_devices()[0].device_kind
    return f"{count} {name} device{'s' * (count > 1)}"
