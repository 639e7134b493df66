"""Sparse messages can be read, and their length is counted without writing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_prune.pruning.masks import prunable
from fedjax_prune.pruning.wire import mask_facts
from tests.sparse_messages import (
    BITS,
    RUNS,
    decode_masks,
    decode_values,
    encode_masks,
    encode_values,
)


def draw_masks(seed, density, run=1):
    """Masks of 3,900 entries, equal for `run` entries at a time."""
    flat = np.random.default_rng(seed).random(3900 // run) < density
    flat = np.repeat(flat, run)
    return {
        "one": {"kernel": flat[:900].reshape(30, 30), "bias": flat[900:930]},
        "two": {"kernel": flat[930:].reshape(10, 297)},
    }


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 9),
    st.sampled_from([0.0, 0.01, 0.3, 0.99, 1.0]),
    st.sampled_from([1, 30]),
)
def test_messages_come_back(seed, density, run):
    masks = draw_masks(seed, density, run)
    assert sum(m.size for m in jax.tree.leaves(masks)) == 3900
    rng = np.random.default_rng(seed)
    tree = jax.tree.map(
        lambda m: np.where(m, rng.normal(size=m.shape), 0).astype(np.float32), masks
    )
    message = encode_values(tree, masks)
    assert len(message) == 4 * sum(int(m.sum()) for m in jax.tree.leaves(masks))
    jax.tree.map(np.testing.assert_array_equal, decode_values(message, masks), tree)
    written = encode_masks(masks)
    assert len(written) <= 1 + -(-3900 // 8)
    jax.tree.map(np.testing.assert_array_equal, decode_masks(written, masks), masks)


@pytest.mark.parametrize("density", [0.0, 0.003, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("run", [1, 130])
def test_the_length_is_counted_without_writing(density, run):
    masks = draw_masks(3, density, run)
    may = prunable(masks)
    facts = jax.jit(lambda m: mask_facts(m, (), may))(masks)
    assert int(facts["mask/bytes"]) == len(encode_masks(masks))
    assert int(facts["mask/kept/one/kernel"]) == masks["one"]["kernel"].sum()
    assert int(facts["mask/prunable"]) == 3870
    kernels = sum(int(part["kernel"].sum()) for part in masks.values())
    assert int(facts["mask/prunable_kept"]) == kernels
    every = mask_facts(masks, (), prunable(masks, biases=True))
    assert int(every["mask/prunable"]) == sum(m.size for m in jax.tree.leaves(masks))


def test_run_lengths_by_hand():
    """Kept 0, then 200 pruned and 3700 kept: 0; 200 = 72 + 128; 3700 = 116 + 28 128."""
    masks = jax.tree.map(lambda m: np.ones(m.shape, bool), draw_masks(0, 1.0))
    masks["one"]["bias"][:] = False  # the first 30 entries
    masks["one"]["kernel"].reshape(-1)[:170] = False
    expected = bytes([0, 72 + 128, 1, 116 + 128, 28])
    assert encode_masks(masks) == RUNS + expected
    assert encode_masks(draw_masks(0, 0.5))[:1] == BITS


def test_run_lengths_around_powers_of_128():
    around = [127, 128, 129, 16383, 16384, 16385, 2**21 - 1, 2**21]
    lengths = np.random.default_rng(0).permutation([*around, *range(1, 300)])
    for first in (True, False):
        flat = np.repeat((np.arange(len(lengths)) % 2 == 0) == first, lengths)
        facts = mask_facts({"kernel": jnp.asarray(flat)}, (), {"kernel": True})
        assert int(facts["mask/bytes"]) == len(encode_masks({"kernel": flat}))
