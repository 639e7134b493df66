"""A writer and a reader of sparse messages, as `pruning.wire` describes them."""

import jax
import numpy as np

BITS, RUNS = b"\x00", b"\x01"
"""The first byte of masks."""


def encode_values(tree, masks):
    """The values that masks keep, four bytes each."""
    leaves, kept = jax.tree.leaves(tree), jax.tree.leaves(masks)
    return b"".join(
        np.asarray(leaf, "<f4")[np.asarray(mask)].tobytes()
        for leaf, mask in zip(leaves, kept, strict=True)
    )


def decode_values(message, masks):
    """Arrays like the masks; pruned entries are 0."""
    leaves, treedef = jax.tree.flatten(masks)
    ends = np.cumsum([np.sum(mask) for mask in leaves])
    values = np.split(np.frombuffer(message, "<f4"), ends)
    assert values[-1].size == 0
    decoded = [np.zeros(np.shape(mask), np.float32) for mask in leaves]
    for leaf, mask, kept in zip(decoded, leaves, values, strict=False):
        leaf[np.asarray(mask)] = kept
    return treedef.unflatten(decoded)


def encode_masks(masks):
    """The masks in the shorter of the two forms, after the byte that names it."""
    leaves = jax.tree.leaves(masks)
    flat = np.concatenate([np.asarray(mask).reshape(-1) for mask in leaves])
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff([0, *edges, flat.size])
    if not flat[0]:
        lengths = [0, *lengths]
    runs = b"".join(map(_leb128, lengths))
    bits = np.packbits(flat).tobytes()
    return BITS + bits if len(bits) <= len(runs) else RUNS + runs


def decode_masks(message, like):
    """Bool arrays of the shapes of a tree."""
    leaves, treedef = jax.tree.flatten(like)
    sizes = [int(np.prod(leaf.shape)) for leaf in leaves]
    if message[:1] == BITS:
        flat = np.unpackbits(np.frombuffer(message, np.uint8, offset=1))
        flat = flat[: sum(sizes)].astype(bool)
    else:
        assert message[:1] == RUNS
        lengths = _from_leb128(message[1:])
        flat = np.repeat(np.arange(len(lengths)) % 2 == 0, lengths)
    *parts, rest = np.split(flat, np.cumsum(sizes))
    assert rest.size == 0
    pairs = zip(parts, leaves, strict=True)
    return treedef.unflatten([part.reshape(leaf.shape) for part, leaf in pairs])


def _leb128(number):
    digits = [int(number) & 127]
    while number := int(number) >> 7:
        digits = [*digits[:-1], digits[-1] + 128, number & 127]
    return bytes(digits)


def _from_leb128(body):
    numbers, number, place = [], 0, 0
    for digit in body:
        number += (digit & 127) << (7 * place)
        place += 1
        if digit < 128:
            numbers.append(number)
            number = place = 0
    return numbers
