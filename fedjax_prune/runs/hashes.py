"""A hash that shows whether two runs have the same state.

The state is hashed on the devices after a round: each 32-bit word is mixed with its
position, and the results are added up modulo 2^32. A sum of integers does not depend on
the order, so the same state has the same hash on any number of devices. A change of a
single word always changes it; other changes go unnoticed once in about 2^64 times. It
is no cryptographic hash: whoever wants to can make another state with the same one.

Rows of clients are not hashed: on a CPU that takes 2 to 3 ms for a million entries,
and a round of 50 clients may have 50 times the entries of the state.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.types import ServerState, Tree

_STEPS = (0x9E3779B1, 0x85EBCA77)
"""Odd numbers, one for each half of a hash; multiplied with them, positions differ."""


def state_hash(state: Tree) -> jax.Array:
    """The hash of all leaves of a tree; names, shapes and dtypes count as well.

    Args:
      state: leaves booleans, integers or floats.

    Returns:
      [2] uint32, the two halves of the hash.
    """
    halves = [jnp.uint32(0)] * len(_STEPS)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        words = _words(leaf)
        start = jnp.uint32(zlib.crc32(_name(path, leaf.dtype, leaf.shape).encode()))
        places = jax.lax.iota(jnp.uint32, words.size)
        for half, step in enumerate(_STEPS):
            mixed = _mix(words ^ (places * jnp.uint32(step) + start))
            halves[half] += mixed.sum(dtype=jnp.uint32)
    return jnp.stack(halves)


class RoundHashes:
    """The hash of the server's state after every n-th round."""

    def __init__(self, every: int):
        """Makes hashes of each round whose number `every` divides; 0 makes none."""
        self._every = every
        self._hash: Any = jax.jit(state_hash)

    def compile(self, state: ServerState) -> None:
        """Compiles the hash for states of these shapes."""
        if self._every:
            self._hash = self._hash.lower(state).compile()

    def __call__(self, number: int, state: ServerState) -> dict[str, jax.Array]:
        """Starts hashing the state after a round.

        Args:
          number: of the round; 0 is the preparation.
          state: after the round.

        Returns:
          `state`, [2] uint32; {} if the round is not hashed.
        """
        if not self._every or number % self._every:
            return {}
        return {"state": self._hash(state)}


def hash_row(hashes: dict[str, np.ndarray]) -> dict[str, str]:
    """Hashes on the host as fields of a metrics row, in 16 hexadecimal digits."""
    return {
        f"hash/{name}": "".join(f"{half:08x}" for half in halves.tolist())
        for name, halves in hashes.items()
    }


def _words(leaf: jax.Array) -> jax.Array:
    """The bits of an array as [num_words] uint32."""
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    width = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32).reshape(-1)


def _mix(words: jax.Array) -> jax.Array:
    """A permutation of the 32-bit words: the last step of MurmurHash3 by A. Appleby."""
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)


def _name(path: Any, dtype: Any, shape: tuple[int, ...]) -> str:
    return f"{jax.tree_util.keystr(path)} {np.dtype(dtype).name}{list(shape)}\n"
