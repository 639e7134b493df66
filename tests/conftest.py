"""Strict and quick settings for the whole suite."""

import os
import tempfile

# Compiling takes most of the suite's time, so XLA does not optimise, does not use its
# slow fusion emitters (versions without them ignore the option) and does not split
# programs. `XLA_FLAGS= pytest ...` tests optimised programs.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

# Rounds on several devices are tested on virtual ones.
jax.config.update("jax_num_cpu_devices", 8)

# Many tests compile the same program. The first process compiles it, and all others
# read it from this folder, which the processes of pytest inherit.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)

# Silent broadcasting and silent widening are how a client axis gets lost.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="module", autouse=True)
def programs_are_dropped():
    """Frees what a file of tests has compiled.

    A small program takes some fourteen memory maps, and Linux gives a process 65,530.
    Without this, a process that ran half of the suite crashed in the compiler.
    """
    yield
    jax.clear_caches()
