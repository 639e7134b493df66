"""Strict and quick settings for the whole suite."""

import os
import tempfile

# Compiling is what the suite spends its time on, so XLA is told to optimise little.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=1"]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

# Rounds on several devices are tested on virtual ones.
jax.config.update("jax_num_cpu_devices", 8)

# Many tests compile the same program; each is compiled once a session.
_CACHE = tempfile.TemporaryDirectory()
jax.config.update("jax_compilation_cache_dir", _CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# Silent broadcasting and silent widening are how a client axis gets lost.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
