"""The key that a run's random numbers come from."""

import jax


def seed_key(seed: int) -> jax.Array:
    """Makes the first key of a run, from which all others are folded.

    It is one of Threefry whatever `jax_default_prng_impl` says. What other generators
    draw depends on how many lanes draw side by side.

    Args:
      seed: of the run.

    Returns:
      key [], `threefry2x32`.

    Raises:
      ValueError: if JAX draws by the older rule, in which padding changes all numbers.

    Examples:
      >>> from fedjax_prune.engine.keys import seed_key
      >>> str(jax.random.key_impl(seed_key(0)))
      'threefry2x32'
    """
    rule = jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    if not rule:
        raise ValueError(
            "jax_threefry_partitionable (JAX_THREEFRY_PARTITIONABLE) must be True: "
            "with False, what is drawn depends on the padding of arrays"
        )
    return jax.random.key(seed, impl="threefry2x32")
