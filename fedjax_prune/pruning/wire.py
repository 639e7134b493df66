"""Sparse messages: the bytes that are sent under a mask, and their number.

A message is the values that the mask keeps, float32, array after array in the order of
the tree. The server knows the masks, so a client sends nothing else. The server also
sends the masks if the client's are of another version: one byte that names the form,
then all entries of the masks as bits or as run lengths, whichever is shorter.

Lengths depend on the mask alone and are counted on the device, so that metrics state
the length that messages of this format have without making any.
"""

import reprlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.layers import ChannelGroup
from fedjax_prune.models.channels import alive_channels
from fedjax_prune.types import Sums, Tree

BITS, RUNS = b"\x00", b"\x01"
"""The first byte of encoded masks."""

VALUE = np.dtype("<f4")
"""What a value is written as, whatever the dtype of the parameters."""


def encode_values(tree: Tree, masks: Tree) -> bytes:
    """Writes the values that masks keep.

    Args:
      tree: float arrays.
      masks: bool, the same structure and shapes.

    Returns:
      VALUE, four bytes, for each entry that is kept.

    Examples:
      >>> masks = {"w": np.array([True, False, True])}
      >>> message = encode_values({"w": np.array([1.0, 2.0, 3.0])}, masks)
      >>> len(message), decode_values(message, masks)["w"].tolist()
      (8, [1.0, 0.0, 3.0])
    """
    leaves, kept = jax.tree.leaves(tree), jax.tree.leaves(masks)
    return b"".join(
        np.asarray(leaf, VALUE)[np.asarray(mask)].tobytes()
        for leaf, mask in zip(leaves, kept, strict=True)
    )


def decode_values(message: bytes, masks: Tree) -> Tree:
    """Reads what `encode_values` has written; pruned entries are 0.

    Args:
      message: from `encode_values`.
      masks: bool, those with which it was written.

    Returns:
      float32 numpy arrays, like `masks`.

    Raises:
      ValueError: if the message has another length.
    """
    leaves, treedef = jax.tree.flatten(masks)
    num_kept = sum(int(np.sum(mask)) for mask in leaves)
    length = VALUE.itemsize * num_kept
    if len(message) != length:
        raise ValueError(
            f"message must have {length} bytes for these masks, got {len(message)}."
        )
    values, decoded, start = np.frombuffer(message, VALUE), [], 0
    for mask in leaves:
        leaf = np.zeros(np.shape(mask), np.float32)
        stop = start + int(np.sum(mask))
        leaf[np.asarray(mask)] = values[start:stop]
        decoded.append(leaf)
        start = stop
    return treedef.unflatten(decoded)


def encode_masks(masks: Tree) -> bytes:
    r"""Writes masks in the shorter of two forms.

    One form is bits, eight in a byte. The other is the lengths of runs of equal
    entries; the first run is of entries that are kept, possibly 0. A length is written
    in base 128, the lowest digit first, with 128 added to all digits except for the
    last (LEB128).

    Args:
      masks: bool arrays.

    Returns:
      BITS or RUNS and the entries of all arrays.

    Examples:
      >>> encode_masks({"w": np.array([True] * 200 + [False])})  # 200 = 72 + 1 * 128
      b'\x01\xc8\x01\x01'
    """
    flat = _flat(masks)
    runs = _leb128(_run_lengths(flat))
    bits = np.packbits(flat).tobytes()
    return BITS + bits if len(bits) <= len(runs) else RUNS + runs


def decode_masks(message: bytes, like: Tree) -> Tree:
    """Reads what `encode_masks` has written.

    Args:
      message: from `encode_masks`.
      like: a tree with the shapes of the masks.

    Returns:
      bool arrays.

    Raises:
      ValueError: if the message does not fit the shapes.
    """
    leaves, treedef = jax.tree.flatten(like)
    size = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    body = np.frombuffer(message, np.uint8, offset=1)
    if message[:1] == BITS:
        if len(body) != -(-size // 8):
            raise ValueError(f"message must hold {size} bits, got {8 * len(body)}.")
        flat = np.unpackbits(body)[:size].astype(bool)
    elif message[:1] != RUNS or not len(body) or body[-1] >= 128:
        raise ValueError(
            f"message must begin with {BITS!r} and bits or with {RUNS!r} and run "
            "lengths, the last byte of which is below 128, got "
            f"{reprlib.repr(message)}."
        )
    else:
        lengths = _from_leb128(body)
        flat = np.repeat(np.arange(len(lengths)) % 2 == 0, lengths)
    if flat.size != size:
        raise ValueError(f"message must hold {size} entries, got {flat.size}.")
    ends = np.cumsum([np.prod(leaf.shape, dtype=int) for leaf in leaves])[:-1]
    parts = np.split(flat, ends)
    return treedef.unflatten(
        [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    )


def mask_facts(masks: Tree, groups: Sequence[ChannelGroup], may: Tree) -> Sums:
    """Counts the entries and channels that messages and costs depend on.

    It can be traced.

    Args:
      masks: bool, like the parameters.
      groups: of the model.
      may: a bool for each array, whether it may be pruned.

    Returns:
      int32 scalars: `mask/kept/PATH`, entries kept of each array; `mask/channels/NAME`,
      channels left of each group; `mask/bytes`, the length of `encode_masks(masks)`;
      `mask/prunable`, entries of arrays that may be pruned; `mask/prunable_kept`, how
      many of them are kept.
    """
    arrays = zip(jax.tree.leaves(masks), jax.tree.leaves(may), strict=True)
    prunable = [mask for mask, flag in arrays if flag]
    kept = sum((_count(mask) for mask in prunable), jnp.int32(0))
    facts = {
        "mask/prunable": jnp.int32(sum(mask.size for mask in prunable)),
        "mask/prunable_kept": kept,
    }
    for path, mask in jax.tree_util.tree_leaves_with_path(masks):
        name = "/".join(str(entry.key) for entry in path)
        facts[f"mask/kept/{name}"] = _count(mask)
    for group in groups:
        alive = alive_channels(masks, group)
        facts[f"mask/channels/{group.name}"] = alive.sum(dtype=jnp.int32)
    flat = jnp.concatenate([mask.reshape(-1) for mask in jax.tree.leaves(masks)])
    facts["mask/bytes"] = 1 + _body_length(flat)
    return facts


def _flat(masks: Tree) -> np.ndarray:
    return np.concatenate([np.asarray(m).reshape(-1) for m in jax.tree.leaves(masks)])


def _run_lengths(flat: np.ndarray) -> np.ndarray:
    """Computes lengths of runs of equal entries; the first run is of True entries."""
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], edges, [flat.size]]))
    return lengths if flat[0] else np.concatenate([[0], lengths])


def _leb128(numbers: np.ndarray) -> bytes:
    digits = np.stack([(numbers >> (7 * i)) & 127 for i in range(5)], axis=1)
    later = np.stack([numbers >> (7 * (i + 1)) for i in range(5)], axis=1) > 0
    used = np.concatenate([np.ones((len(numbers), 1), bool), later[:, :-1]], axis=1)
    return (digits + 128 * later)[used].astype(np.uint8).tobytes()


def _from_leb128(body: np.ndarray) -> np.ndarray:
    last = body < 128
    number = np.concatenate([[0], np.cumsum(last)[:-1]])
    start = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    place = np.arange(len(body)) - start[number]
    numbers = np.zeros(int(last.sum()), np.int64)
    np.add.at(numbers, number, (body & 127).astype(np.int64) << (7 * place))
    return numbers


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
