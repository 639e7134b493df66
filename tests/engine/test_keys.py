"""The generator of random numbers is not a matter of JAX's settings."""

import jax
import jax.numpy as jnp
import pytest

from fedjax_prune.engine.keys import seed_key
from fedjax_prune.engine.lanes import over_lanes


def test_lanes_draw_what_one_draws_alone_whatever_the_default():
    with jax.default_prng_impl("rbg"):
        key = seed_key(3)
        lanes = jax.vmap(lambda lane: jax.random.fold_in(key, lane))(jnp.arange(4))
        together = over_lanes(lambda lane: jax.random.uniform(lane, (5,)), lanes)
        alone = jnp.stack([jax.random.uniform(lane, (5,)) for lane in lanes])
    assert (together == alone).all()
    assert (jax.random.key_data(key) == jax.random.key_data(jax.random.key(3))).all()


def test_numbers_that_depend_on_padding_are_refused():
    with (
        jax.threefry_partitionable(False),
        pytest.raises(ValueError, match=r"jax_threefry_partitionable .* must be True"),
    ):
        seed_key(0)
