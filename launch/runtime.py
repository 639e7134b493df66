"""Sets JAX up for a process, before it is first used."""

import os
from pathlib import Path

import jax


def prepare() -> None:
    """One CPU device for each core, and a cache of compiled programs.

    A CPU device of XLA uses several cores for large matrix products alone; lanes on
    devices of their own use all of them all the time. Settings of the user's own,
    `JAX_NUM_CPU_DEVICES`, `JAX_COMPILATION_CACHE_DIR` or `XLA_FLAGS`, come first.
    """
    if (
        "JAX_NUM_CPU_DEVICES" not in os.environ
        and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", "")
    ):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "fedjax_prune" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))
