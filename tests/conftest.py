"""Strict settings for the whole suite."""

import jax

# Silent broadcasting and silent widening are how a client axis gets lost.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
