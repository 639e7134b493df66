"""The devices and lanes that a run takes of its machine: what is fastest, and fits."""

import copy
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.engine import processes
from fedjax_prune.engine.devices import make_placement
from fedjax_prune.engine.keys import seed_key
from fedjax_prune.engine.lanes import over_lanes
from fedjax_prune.models.platforms import tracing_for
from fedjax_prune.runs.capacity import (
    available_bytes,
    fitting_lanes,
    host_bytes,
    memory_estimate,
    require_host_memory,
)
from fedjax_prune.runs.experiment import Experiment
from fedjax_prune.runs.sections import SECTIONS
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.workdir import WorkdirError, has_config, read_config
from fedjax_prune.types import Batch, Config, Dataset, Variables

MOST_LANES = 64
LEAST_GAIN = 1.05
"""Lanes are doubled only if the images a second grow by at least this factor."""


class Chosen(NamedTuple):
    """The devices and lanes that a run uses.

    Attributes:
      experiment: with `devices` and `lanes` as numbers.
      words: what was chosen, and why.
      images_per_second: of one device with these lanes; 0 if it was not timed.
      memory: estimated bytes that a round takes on each device.
    """

    experiment: Experiment
    words: str
    images_per_second: float
    memory: int


def choose(experiment: Experiment, folder: Path) -> Chosen:
    """Replaces `devices` and `lanes` by numbers.

    A resumed run keeps those that it had, unless others are asked for or this machine
    has fewer devices.

    Args:
      experiment: `devices` 0 takes all, at most one for each client of the cohort;
        `lanes` "auto" takes the fastest number that fits. No device has more lanes than
        clients of the cohort.
      folder: the workdir.

    Raises:
      SettingsError: if there are fewer devices than asked for, they cannot be shared
        out over the processes, or not even one lane fits the memory.
      WorkdirError: if the folder's `config.json` is damaged.
    """
    config = copy.deepcopy(experiment.config)
    before = processes.on_first(lambda: _chosen_before(folder))
    config.devices = _number_of_devices(config, before.get("devices", 0))
    experiment = experiment.with_config(config)
    asked = before.get("lanes", "auto") if config.lanes == "auto" else config.lanes
    clients = -(-config.cohort_size // config.devices)
    most = min(MOST_LANES if asked == "auto" else asked, clients)
    processes.together(lambda: require_host_memory(experiment))
    need = memory_estimate(experiment)
    available = min(processes.gather(available_bytes(host_bytes(experiment))))
    fitting = fitting_lanes(need, most, available)
    rate = 0.0
    if asked == "auto":
        config.lanes, rates = processes.on_first(
            lambda: fastest_lanes(experiment, fitting)
        )
        rate = dict(rates)[config.lanes]
        tried = ", ".join(f"{lanes}: {rate:,.0f}" for lanes, rate in rates)
        words = f"{config.lanes}, chosen by images a second ({tried})"
    else:
        config.lanes = fitting
        words = f"{config.lanes}"
        if fitting < most:
            words += f" in place of {asked}, which do not fit the memory"
        elif most < asked:
            words += (
                f" in place of {asked}, as a device has {clients} of a round's clients"
            )
    words += f", on each of {_devices(config.devices)}"
    if any(config[name] != value for name, value in before.items()):
        words += ", where before there were " + " and ".join(
            f"{value} {name}" for name, value in before.items()
        )
    memory = need(config.lanes)
    return Chosen(experiment.with_config(config), words, rate, memory)


def require_shared_out(config: Config, num_processes: int) -> None:
    """Refuses devices of which some processes would have more than others.

    Raises:
      SettingsError: if `devices` is not a multiple of the number of processes.
    """
    if config.devices % num_processes:
        raise SettingsError(
            [
                f"devices must be a multiple of the {num_processes} processes, got "
                f"{config.devices}"
            ]
        )


def _number_of_devices(config: Config, before: int) -> int:
    """The devices asked for, those that the run had before, or all that are of use."""
    available, together = jax.device_count(), processes.count()
    where = "on this machine" if together == 1 else f"of {together} processes"
    if config.devices > available:
        raise SettingsError(
            [f"devices must be in [0, {available}] {where}, got {config.devices}"]
        )
    require_shared_out(config, together)
    if config.devices or (0 < before <= available and before % together == 0):
        return config.devices or before
    each = max(1, min(available, config.cohort_size) // together)
    return each * together


def _chosen_before(folder: Path) -> dict[str, Any]:
    """The devices and lanes of the run in a workdir; nothing if there is no run."""
    before = read_config(folder) if has_config(folder) else {}
    chosen = {name: before[name] for name in ("devices", "lanes") if name in before}
    for name, value in chosen.items():
        if unmet := SECTIONS[""][name].unmet(value):
            raise WorkdirError(
                f"{folder / 'config.json'} is damaged: {name} must be {unmet}, "
                f"got {value!r}."
            )
    return chosen


def fastest_lanes(
    experiment: Experiment, most: int
) -> tuple[int, list[tuple[int, float]]]:
    """Doubles the lanes as long as that trains more images a second, and fits.

    The estimate of the memory may be too small.

    Args:
      experiment: with `devices` as a number.
      most: largest number to try, at least 1.

    Returns:
      The best number, and each number that was tried with its images a second.
    """
    best, rates = 1, [(1, images_per_second(experiment, 1))]
    while 2 * best <= most:
        try:
            rates.append((2 * best, images_per_second(experiment, 2 * best)))
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("RESOURCE_EXHAUSTED"):
                raise
            break
        if rates[-1][1] < LEAST_GAIN * rates[-2][1]:
            break
        best *= 2
    return best, rates


def images_per_second(experiment: Experiment, lanes: int) -> float:
    """Times the gradient steps of some lanes side by side on one device."""
    config, task = experiment.config, experiment.learning.task
    batch = first_batch(experiment.data.train, config.client.batch_size)

    def step(lane: tuple[Variables, jax.Array]) -> tuple[Variables, jax.Array]:
        variables, key = lane

        def loss(params: Any) -> jax.Array:
            return task.loss(variables._replace(params=params), batch, key)[0]

        gradient = jax.grad(loss)(variables.params)
        params = jax.tree.map(lambda p, g: p - 1e-6 * g, variables.params, gradient)
        return variables._replace(params=params), key

    @jax.jit
    def start_lanes() -> tuple[Variables, jax.Array]:
        keys = jax.random.split(seed_key(0), lanes)
        variables = task.init(seed_key(0))
        return jax.tree.map(lambda x: jnp.stack([x] * lanes), variables), keys

    run = jax.jit(lambda lanes: over_lanes(step, lanes), donate_argnums=0)
    placement = make_placement(config.devices, config.reduction)
    with tracing_for(placement.platform):
        state = jax.block_until_ready(run(start_lanes()))
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        state = jax.block_until_ready(run(state))
        seconds.append(time.monotonic() - began)
    return lanes * config.client.batch_size / float(np.median(seconds))


def first_batch(dataset: Dataset, batch_size: int) -> Batch:
    """A full batch of the first examples, repeated if too few."""
    chosen = np.arange(batch_size) % len(dataset.labels)
    return Batch(
        jnp.asarray(dataset.images[chosen]),
        jnp.asarray(dataset.labels[chosen]),
        jnp.ones(batch_size, bool),
    )


def _devices(count: int) -> str:
    name = jax.local_devices()[0].device_kind
    words = f"{count} {name} device{'s' * (count > 1)}"
    together = processes.count()
    return words if together == 1 else f"{words} of {together} processes"
