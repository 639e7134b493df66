"""Sets a process up before JAX is first used."""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax

PATIENCE = 7 * 24 * 3600
"""Seconds that a device waits for the others."""
_WAITS = (
    "cpu_collective_call_terminate_timeout",
    "cpu_collective_call_warn_stuck_timeout",
    "gpu_first_collective_call_terminate_timeout",
)


def configure() -> None:
    """Makes each core a CPU device, lets devices wait, and keeps compiled programs.

    A CPU device of XLA uses several cores only for large matrix products; one device
    per core keeps all cores busy. If clients are few and unequal, a device may wait
    long for another, and XLA would end the process after a minute. GPUs would wait 40
    seconds in the first collective of a program. The user's own
    `JAX_NUM_CPU_DEVICES`, `JAX_COMPILATION_CACHE_DIR`, `JAX_LOGGING_LEVEL`,
    `TF_CPP_MIN_LOG_LEVEL` and `XLA_FLAGS` take precedence.
    """
    flags = [f"--xla_{wait}_seconds={PATIENCE}" for wait in _WAITS]
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


def platform_of_children() -> tuple[str, str]:
    """The platform that JAX takes in a child process.

    Returns:
      The platform, empty if JAX fails, and the last line of stderr.
    """
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    *_, said = ["", *done.stderr.strip().splitlines()]
    return done.stdout.strip(), said


def configure_compiler() -> None:
    """Lets JAX compile for a TPU that is not there, and use nothing but the CPU itself.

    libtpu locks the TPU of this machine, even if it has none, asks the cloud about it,
    which takes minutes where there is no cloud, and logs what it has not found. The
    variables prevent this. Times of compiling are printed, so compiled programs are
    neither kept nor looked up.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")


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
        # The setting has given both a handler, and Abseil has one for all.
        logging.getLogger(name).propagate = False
