"""The processes that train together: found by JAX itself, or told by three flags.

JAX knows Cloud TPU pods, Slurm, Kubernetes (Job and JobSet) and Open MPI. Elsewhere
each process is started with `--coordinator_address`, `--num_processes` and
`--process_id`.
"""

import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import jax
from jax._src.clusters import ClusterEnv

from fedjax_prune.engine import processes
from fedjax_prune.runs import console
from fedjax_prune.runs.settings import SettingsError

from .errors import UnreachedError

PATIENCE = 300
"""Seconds that a process waits at its start for the others."""
SILENCE = 40
"""Seconds without a heartbeat after which a process counts as lost."""
_LEAVING = 10
"""Seconds that a process waits at its end for the others."""
_ADDRESS = re.compile(r".+:(\d+)")
_LAST_PORT = 65_535


class Seat(NamedTuple):
    """The place of this process among those that train together.

    Attributes:
      coordinator: HOST:PORT of the first process.
      num_processes: at least 2.
      number: of this process, in [0, num_processes).
      local_devices: numbers of the devices of this machine that it uses; None are those
        of `JAX_LOCAL_DEVICE_IDS`, or all.
    """

    coordinator: str
    num_processes: int
    number: int
    local_devices: Sequence[int] | None = None


def find_seat(
    coordinator: str | None, num_processes: int | None, number: int | None
) -> Seat | None:
    """Says which of several processes this is; it starts nothing.

    Args:
      coordinator: `--coordinator_address`; None asks JAX.
      num_processes: `--num_processes`; None asks JAX.
      number: `--process_id`; None asks JAX.

    Returns:
      The seat, or None if there is a single process.

    Raises:
      SettingsError: if some flags are missing or out of range.
      UnreachedError: if the cluster that JAX has found does not say enough.
    """
    flags = {
        "--coordinator_address": coordinator,
        "--num_processes": num_processes,
        "--process_id": number,
    }
    missing = [name for name, value in flags.items() if value is None]
    if len(missing) == len(flags):
        return _detect()
    if missing:
        given = ", ".join(flags)
        raise SettingsError([f"{given} go together: {missing[0]} is missing"])
    return _check(Seat(str(coordinator), int(num_processes or 0), int(number or 0)))


def _check(seat: Seat) -> Seat | None:
    found = []
    address = _ADDRESS.fullmatch(seat.coordinator)
    if not address or not 1 <= int(address[1]) <= _LAST_PORT:
        found.append(
            "--coordinator_address must be HOST:PORT with a port in "
            f"[1, {_LAST_PORT}], got {seat.coordinator!r}"
        )
    if seat.num_processes < 1:
        found.append(f"--num_processes must be at least 1, got {seat.num_processes}")
    elif not 0 <= seat.number < seat.num_processes:
        found.append(
            f"--process_id must be in [0, {seat.num_processes - 1}], got {seat.number}"
        )
    if found:
        raise SettingsError(found)
    return seat if seat.num_processes > 1 else None


def _detect() -> Seat | None:
    """Asks JAX as `jax.distributed.initialize` would, which is not called for one.

    JAX has no public name for this question.
    """
    try:
        address, count, number, local = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator_address=None,
            num_processes=None,
            process_id=None,
            local_device_ids=None,
            cluster_detection_method=None,
            initialization_timeout=PATIENCE,
        )
    except Exception as error:  # The packages of a cluster have their own errors.
        if _is_plain_pod():
            return None
        raise UnreachedError(
            f"the processes of this cluster cannot be found: {error}. "
            "--coordinator_address, --num_processes and --process_id name them"
        ) from error
    if address is None or number is None or count is None or count < 2:
        return None
    # JAX supposes a process for each device. One that is alone on its machine has all.
    if _is_alone_on_its_machine() or "JAX_LOCAL_DEVICE_IDS" in os.environ:
        local = None
    return Seat(address, count, number, local)


def _is_alone_on_its_machine() -> bool:
    """Whether Slurm or Open MPI has started one process on each machine."""
    if size := os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE"):
        return size == "1"
    return os.environ.get("SLURM_NTASKS") == os.environ.get("SLURM_STEP_NUM_NODES")


def _is_plain_pod() -> bool:
    """Whether Kubernetes runs this process outside of indexed Jobs and TPU slices."""
    names, of_several = os.environ.keys(), {"JOB_COMPLETION_INDEX", "TPU_WORKER_ID"}
    return "KUBERNETES_SERVICE_HOST" in names and not of_several & names


@contextmanager
def joined(seat: Seat) -> Iterator[None]:
    """Joins the other processes for the time of the block; the first one alone prints.

    A barrier of the coordination service and a tiny collective come first, before
    anything else is compiled: gloo waits 30 s for a device in its first collective.

    Args:
      seat: of this process.

    Raises:
      UnreachedError: if the others cannot be reached.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if seat.number == 0:
        print(
            f"waiting at {seat.coordinator} for {seat.num_processes} processes, for at "
            f"most {PATIENCE} s",
            flush=True,
        )
    try:
        jax.distributed.initialize(
            seat.coordinator,
            seat.num_processes,
            seat.number,
            seat.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=PATIENCE,
            heartbeat_timeout_seconds=SILENCE,
            shutdown_timeout_seconds=_LEAVING,
        )
    except RuntimeError as error:
        raise UnreachedError(
            f"process {seat.number} cannot join {seat.coordinator}: {error}"
        ) from error
    # Every process waits here for the devices of the others.
    jax.devices()
    with processes.without_output():
        processes.barrier()
    if not processes.is_first():
        console.discard(sys.stdout)
        warnings.simplefilter("ignore")
    yield
    processes.barrier()
    jax.distributed.shutdown()
