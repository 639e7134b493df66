"""Sparse messages: how many bytes are sent under a mask. None is made here.

A message is the values that the mask keeps, float32, array after array in the order of
the tree. The server knows the masks, so a client sends nothing else. The server also
sends the masks if the client's are of another version. One byte names the form; then
come all entries of the masks, in the shorter of two forms. One is bits, eight in a
byte. The other is the lengths of runs of equal entries; the first run is of entries
that are kept, possibly 0. A length is written in base 128, the lowest digit first, with
128 added to all digits except for the last (LEB128).

Lengths depend on the masks alone and are counted on the device.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.layers import ChannelGroup
from fedjax_prune.models.channels import alive_channels, array_name
from fedjax_prune.types import Sums, Tree

VALUE = np.dtype("<f4")
"""What a value is written as, whatever the dtype of the parameters."""


def mask_facts(masks: Tree, groups: Sequence[ChannelGroup], prunable: Tree) -> Sums:
    """Counts the entries and channels that messages and costs depend on.

    It can be traced.

    Args:
      masks: bool, like the parameters.
      groups: of the model.
      prunable: a bool for each array, whether it may be pruned.

    Returns:
      int32 scalars: `mask/kept/PATH`, entries kept of each array; `mask/channels/NAME`,
      channels left of each group; `mask/bytes`, the length of the masks in a message;
      `mask/prunable`, entries of arrays that may be pruned; `mask/prunable_kept`, how
      many of them are kept.
    """
    arrays = zip(jax.tree.leaves(masks), jax.tree.leaves(prunable), strict=True)
    chosen = [mask for mask, flag in arrays if flag]
    kept = sum((_count(mask) for mask in chosen), jnp.int32(0))
    facts = {
        "mask/prunable": jnp.int32(sum(mask.size for mask in chosen)),
        "mask/prunable_kept": kept,
    }
    for path, mask in jax.tree_util.tree_leaves_with_path(masks):
        facts[f"mask/kept/{array_name(path)}"] = _count(mask)
    for group in groups:
        alive = alive_channels(masks, group)
        facts[f"mask/channels/{group.name}"] = alive.sum(dtype=jnp.int32)
    flat = jnp.concatenate([mask.reshape(-1) for mask in jax.tree.leaves(masks)])
    facts["mask/bytes"] = 1 + _body_length(flat)
    return facts


def _body_length(flat: jax.Array) -> jax.Array:
    """Counts the bytes of the shorter form of `flat`, [size] bool, without making it.

    A run that is shorter than a block takes one byte. Any other run is the first to end
    in its block, so only the first and the last end of each block are looked at.
    """
    block = 128
    # The last run ends where the filling of the last block begins.
    rest = jnp.broadcast_to(~flat[-1], (block + -flat.size % block,))
    words = _words(jnp.concatenate([flat, rest]))
    following = jnp.concatenate([words[1:], words[-1:]])
    ends = (words ^ (words >> 8 | following << 24)) & jnp.uint32(0x01010101)
    place = 4 * jnp.arange(words.size, dtype=jnp.int32)
    first = jnp.where(ends > 0, place + _highest_byte(ends & -ends), 4 * words.size)
    after = jnp.where(ends > 0, place + _highest_byte(ends) + 1, 0)
    first = first.reshape(-1, block // 4).min(1)
    after = after.reshape(-1, block // 4).max(1)
    begin = jnp.concatenate([jnp.zeros(1, jnp.int32), jax.lax.cummax(after)[:-1]])
    length = first + 1 - begin
    later_bytes = sum((length >= 2 ** (7 * i)).astype(jnp.int32) for i in range(1, 5))
    runs = jax.lax.population_count(ends).sum(dtype=jnp.int32)
    runs += (~flat[0]).astype(jnp.int32)
    runs += jnp.where(after > 0, later_bytes, 0).sum(dtype=jnp.int32)
    return jnp.minimum(jnp.int32(-(-flat.size // 8)), runs)


def _count(mask: jax.Array) -> jax.Array:
    """Counts the entries that are True, [] int32."""
    words = _words(mask.reshape(-1))
    return jax.lax.population_count(words).sum(dtype=jnp.int32)


def _words(flat: jax.Array) -> jax.Array:
    """Packs flags into the bytes of uint32, the first into the lowest, padded by False.

    On CPUs XLA works through flags one by one and through words many at a time.
    """
    entries = jnp.pad(flat, (0, -flat.size % 4)).astype(jnp.uint8)
    return jax.lax.bitcast_convert_type(entries.reshape(-1, 4), jnp.uint32)


def _highest_byte(words: jax.Array) -> jax.Array:
    """Says which byte, [size] int32, holds the highest 1; words are not 0."""
    return (31 - jax.lax.clz(words).astype(jnp.int32)) // 8
