"""Sets JAX up for a process, before it is first used."""

import os
from pathlib import Path

import jax

PATIENCE = 7 * 24 * 3600
"""Seconds that a CPU device waits for the others."""


def prepare() -> None:
    """One CPU device for each core that waits for the others; compiled programs kept.

    A CPU device of XLA uses several cores for large matrix products alone; lanes on
    devices of their own use all of them all the time. Where clients are few and
    unequal, one device waits long for another; XLA would end the process after a
    minute. Settings of the user's own, `JAX_NUM_CPU_DEVICES`,
    `JAX_COMPILATION_CACHE_DIR` or `XLA_FLAGS`, come first.
    """
    waits = ("terminate_timeout", "warn_stuck_timeout")
    flags = [f"--xla_cpu_collective_call_{wait}_seconds={PATIENCE}" for wait in waits]
    # Of a flag that is given twice the last counts.
    os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])
    if (
        "JAX_NUM_CPU_DEVICES" not in os.environ
        and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", "")
    ):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "fedjax_prune" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))
