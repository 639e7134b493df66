"""Sets a process up before JAX is first used."""

import logging
import os
import warnings
from pathlib import Path

import jax

PATIENCE = 7 * 24 * 3600
"""Seconds that a CPU device waits for the others."""


def configure() -> None:
    """Makes each core a CPU device, lets devices wait, and keeps compiled programs.

    A CPU device of XLA uses several cores only for large matrix products; one device
    per core keeps all cores busy. If clients are few and unequal, a device may wait
    long for another, and XLA would end the process after a minute. The user's own
    `JAX_NUM_CPU_DEVICES`, `JAX_COMPILATION_CACHE_DIR`, `JAX_LOGGING_LEVEL`,
    `TF_CPP_MIN_LOG_LEVEL` and `XLA_FLAGS` take precedence.
    """
    waits = ("terminate_timeout", "warn_stuck_timeout")
    flags = [f"--xla_cpu_collective_call_{wait}_seconds={PATIENCE}" for wait in waits]
    # If a flag is given twice, the last value counts.
    os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])
    if (
        "JAX_NUM_CPU_DEVICES" not in os.environ
        and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", "")
    ):
        jax.config.update("jax_num_cpu_devices", len(cores()))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        _keep_compiled_programs()
    # JAX itself sets the second one to 1.
    if (
        "JAX_LOGGING_LEVEL" not in os.environ
        and os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1"
    ):
        _silence_alarms()


def hold_no_device() -> None:
    """Keeps this process on the CPU, so that its child processes have the devices."""
    jax.config.update("jax_platforms", "cpu")


def cores() -> list[int]:
    """The CPU cores that this process may use; all where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cache_folder() -> Path:
    """The library's folder in the user's cache.

    Raises:
      RuntimeError: if the user has no home directory.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "fedjax_prune"


def _keep_compiled_programs() -> None:
    try:
        folder = cache_folder() / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
        # JAX would warn of every single program that it cannot write.
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} cannot be written")
    except (OSError, RuntimeError) as error:
        warnings.warn(
            f"compiled programs are not kept for the next run: {error}. "
            "JAX_COMPILATION_CACHE_DIR names another folder.",
            stacklevel=2,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _silence_alarms() -> None:
    """Keeps XLA from logging an error ("Very slow compile?") after two minutes.

    XLA has no flag for this message. Its real errors reach Python as exceptions.
    """
    jax.config.update("jax_logging_level", "CRITICAL")
    # JAX's own warnings stay: it reports, for example, that a GPU is not used.
    for name in ("jax", "jaxlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
