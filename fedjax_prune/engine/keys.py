"""The key that a run's random numbers come from."""

import jax
import jax.numpy as jnp

_GENERATOR = "threefry2x32"


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
    return reproducible(jax.random.key(seed, impl=_GENERATOR))


def reproducible(key: jax.Array) -> jax.Array:
    """Returns a key unless what is drawn from it depends on lanes or padding.

    Args:
      key: typed, or raw bits of the default generator; it may be traced.

    Raises:
      ValueError: if it is not one of Threefry, or as `seed_key`.
    """
    rule = jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    if not rule:
        raise ValueError(
            "jax_threefry_partitionable (JAX_THREEFRY_PARTITIONABLE) must be True: "
            "with False, what is drawn depends on the padding of arrays"
        )
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    default = jax.config.jax_default_prng_impl  # pyright: ignore[reportAttributeAccessIssue]
    generator = str(jax.random.key_impl(key)) if is_typed else default
    if generator != _GENERATOR:
        raise ValueError(
            f"key must be one of {_GENERATOR}, got one of {generator}, whose draws "
            f"depend on the number of lanes: jax.random.key(seed, impl={_GENERATOR!r})"
        )
    return key
