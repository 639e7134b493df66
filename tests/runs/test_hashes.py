"""The hash of a state, against numpy; every bit counts."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.runs.hashes import (
    RoundHashes,
    hash_row,
    state_hash,
)
from fedjax_prune.types import ServerState


def changed(tree, path, value):
    """The tree with another leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda p, x: value(x) if jax.tree_util.keystr(p) == path else x, tree
    )


def make_state():
    rng = np.random.default_rng(1)
    server = {
        "masks": {"w": rng.integers(0, 2, (3, 2)).astype(bool)},
        "half": rng.normal(size=4).astype(jnp.bfloat16),
        "nothing": np.zeros((0, 2), np.float32),
        "count": np.int32(5),
        "bytes": rng.integers(0, 256, 5, np.uint8),
    }
    params = {"w": rng.normal(size=(3, 2)).astype(np.float32)}
    return ServerState(np.int32(2), params, model_state={}, server=server)


def mix(words):
    """MurmurHash3's last step, in 64 bits."""
    words = ((words ^ (words >> 16)) * 0x85EBCA6B) % 2**32
    words = ((words ^ (words >> 13)) * 0xC2B2AE35) % 2**32
    return words ^ (words >> 16)


STEPS = (0x9E3779B1, 0x85EBCA77)


def reference(tree):
    """The two halves, one word after the other."""
    halves = [0, 0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}\n"
        size = min(leaf.dtype.itemsize, 4)
        bits = np.asarray(leaf).reshape(-1).view(f"u{size}")
        for half, step in enumerate(STEPS):
            for place, word in enumerate(bits.tolist()):
                key = (place * step + zlib.crc32(name.encode())) % 2**32
                halves[half] = (halves[half] + mix(word ^ key)) % 2**32
    return halves


def test_the_hash_of_a_state_is_the_sum_of_its_mixed_words():
    state = make_state()
    assert jax.jit(state_hash)(state).tolist() == reference(state)


def test_float64_has_two_words_an_entry():
    with jax.enable_x64(True):
        state = {"w": np.array([1.5, -2.25]), "n": np.arange(3)}
        halves = jax.jit(state_hash)(state)
    assert halves.dtype == np.uint32 and halves.tolist() == reference(state)


def test_every_single_bit_of_a_state_counts():
    """Both halves change: a half of one word is a permutation of its values."""
    state = make_state()
    run = jax.jit(state_hash)
    before = np.asarray(run(state))
    leaves, tree = jax.tree.flatten(state)
    for number, leaf in enumerate(leaves):
        if leaf.dtype == bool:
            continue
        raw = np.frombuffer(leaf.tobytes(), np.uint8)
        for bit in range(8 * raw.size):
            flipped = raw.copy()
            flipped[bit // 8] ^= 1 << bit % 8
            other = flipped.view(leaf.dtype).reshape(leaf.shape)
            others = [*leaves[:number], other, *leaves[number + 1 :]]
            assert (run(jax.tree.unflatten(tree, others)) != before).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w[::-1],
        lambda w: -w,
        lambda w: np.where(w == w.max(), np.float32(np.nan), w),
        lambda w: w.reshape(2, 3),
        lambda w: w.view(np.int32),
        lambda w: np.where(np.arange(2)[None] == 0, w, -w),
    ],
    ids=["order", "all signs", "nan", "shape", "dtype", "some signs"],
)
def test_changes_of_many_bits_count(change):
    state = make_state()
    other = state._replace(params={"w": change(state.params["w"])})
    assert (state_hash(other) != state_hash(state)).all()


def test_a_mask_and_a_zero_of_another_sign_count():
    state = {"mask": np.array([True, False]), "zero": np.zeros(2, np.float32)}
    before = state_hash(state)
    for name, other in (
        ("mask", np.array([False, True])),
        ("zero", np.array([0.0, -0.0], np.float32)),
    ):
        assert (state_hash(state | {name: other}) != before).all()


def test_a_hash_is_the_same_on_any_number_of_devices():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("devices",))
    state = {"w": np.arange(24, dtype=np.float32).reshape(8, 3)}
    for axes in ((), ("devices",)):
        spec = jax.sharding.PartitionSpec(*axes)
        placed = jax.device_put(state, jax.sharding.NamedSharding(mesh, spec))
        assert jax.jit(state_hash)(placed).tolist() == reference(state)


def test_rounds_are_hashed_as_often_as_asked_for():
    state = make_state()
    for every, hashed in ((0, []), (1, [0, 1, 2, 3, 4]), (3, [0, 3])):
        hashes = RoundHashes(every)
        hashes.compile(state)
        found = [hashes(number, state) for number in range(5)]
        assert [n for n in range(5) if found[n]] == hashed
        for values in filter(None, found):
            assert {k: v.tolist() for k, v in values.items()} == {
                "state": reference(state)
            }


def test_a_hash_is_written_as_16_digits():
    assert hash_row({}) == {}
    halves = np.array([10, 2**32 - 1], np.uint32)
    assert hash_row({"state": halves}) == {"hash/state": "0000000affffffff"}
