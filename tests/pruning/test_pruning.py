"""Guidance, thresholds and removed channels against numpy and by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_prune.layers import ChannelGroup, Slot
from fedjax_prune.models.channels import between
from fedjax_prune.pruning import masks as masks_module
from fedjax_prune.pruning.guidance import NORMALIZATIONS, guidance_matrix, quantile
from fedjax_prune.pruning.mask_rule import MaskRule, make_rule
from fedjax_prune.pruning.masks import (
    guard,
    lowest_channels,
    prunable,
    structured_masks,
    unstructured_masks,
)
from fedjax_prune.types import Task, Variables

DEVIATIONS = {
    "conv": {"kernel": jnp.array([[4.0, 0.0], [1.0, 1.0]]), "bias": jnp.array([9.0])},
    "fc": {"kernel": jnp.array([[0.5, 0.25, 0.75]]), "bias": jnp.array([2.0, 2.0])},
}


def average_rank(values):
    """Mean of the places that equal values take in the sorted order."""
    flat = values.reshape(-1)
    ranks = [
        (np.flatnonzero(np.sort(flat) == v)[[0, -1]]).mean() / max(1, flat.size - 1)
        for v in flat
    ]
    return np.array(ranks).reshape(values.shape)


def expected_guidance(deviation, normalization):
    d = np.asarray(deviation, np.float64)
    minmax = np.zeros_like(d)
    if d.max() > d.min():
        minmax = (d - d.min()) / (d.max() - d.min())
    if normalization == "robust":
        width = np.quantile(d, 0.75) - np.quantile(d, 0.25)
        return (d - np.median(d)) / width if width else minmax
    return {"minmax": minmax, "rank": average_rank(d), "none": d}[normalization]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_guidance_equals_numpy(normalization):
    find = jax.jit(lambda d: guidance_matrix(d, normalization=normalization))
    found = find(DEVIATIONS)
    for layer, leaves in DEVIATIONS.items():
        for name, deviation in leaves.items():
            np.testing.assert_allclose(
                found[layer][name],
                expected_guidance(deviation, normalization),
                rtol=1e-6,
            )


def test_ranks_of_more_entries_than_float16_counts_prune_the_share():
    """2^16 entries whose last rank, 65535, is infinite in float16, of 1024 values."""
    values = jnp.arange(2**16, dtype=jnp.int32) // 64
    deviation = jax.lax.bitcast_convert_type(values.astype(jnp.int16), jnp.float16)
    guidance = guidance_matrix({"kernel": deviation}, normalization="rank")
    assert guidance["kernel"].dtype == jnp.float16
    masks = unstructured_masks(guidance, {"kernel": True}, 0.25)
    # A value of 64 entries goes or stays as one; float16 tells neighbours apart.
    assert abs(int(masks["kernel"].sum()) - 0.75 * 2**16) <= 64


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_an_array_that_moved_evenly_has_finite_guidance(normalization, value):
    found = guidance_matrix(jnp.full((3, 2), value), normalization=normalization)
    assert np.isfinite(found).all()
    assert len(np.unique(found)) == 1


def test_scaled_deviations_have_the_same_minmax_guidance():
    scaled = jax.tree.map(lambda x: 8 * x, DEVIATIONS)
    jax.tree.map(
        np.testing.assert_array_equal,
        guidance_matrix(DEVIATIONS),
        guidance_matrix(scaled),
    )


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 2, 3, 40]), st.floats(0, 1), st.integers(0, 3))
def test_quantile_equals_numpy(size, share, seed):
    values = np.random.default_rng(seed).integers(0, 9, size).astype(np.float32)
    np.testing.assert_allclose(
        quantile(jnp.asarray(values), share),
        np.quantile(values.astype(np.float64), share),
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_share_of_a_quantile_is_a_decimal():
    """In binary, 0.29 * 100 is below 29."""
    assert quantile(jnp.arange(101.0), 0.29).item() == 29


def test_an_entry_just_above_the_quantile_is_kept():
    """Interpolated between 1 and the next float, the quantile rounds to the latter."""
    values = jnp.array([1, 1 + 2.0**-23], jnp.float32)
    assert quantile(values, 0.6) == values[1]
    kept = unstructured_masks({"kernel": values}, {"kernel": True}, 0.6)
    assert kept["kernel"].tolist() == [False, True]


def test_quantile_counts_beyond_what_float32_can():
    """2^24 + 3 zeros, then ones: the first one is at place 2^24 + 3 of 2^24 + 5."""
    zeros = 2**24 + 3
    values = jnp.concatenate([jnp.zeros(zeros), jnp.ones(3)])
    last = values.size - 1
    halfway = quantile(values, (zeros - 0.5) / last)
    np.testing.assert_allclose(halfway, 0.5, atol=1e-6)


def test_kernels_are_prunable_and_biases_on_request():
    assert prunable(DEVIATIONS) == {
        "conv": {"kernel": True, "bias": False},
        "fc": {"kernel": True, "bias": False},
    }
    assert all(jax.tree.leaves(prunable(DEVIATIONS, biases=True)))


def test_global_threshold_by_hand():
    """Seven values 0 .25 .5 .75 1 1 4; the median 0.75 is pruned with what is below."""
    may = prunable(DEVIATIONS)
    masks = unstructured_masks(DEVIATIONS, may, 0.5)
    np.testing.assert_array_equal(masks["conv"]["kernel"], [[1, 0], [1, 1]])
    np.testing.assert_array_equal(masks["fc"]["kernel"], [[0, 0, 0]])
    assert masks["fc"]["bias"].all() and masks["conv"]["bias"].all()
    jax.tree.map(
        np.testing.assert_array_equal, masks, guard(masks, DEVIATIONS, may, 0.0)
    )
    kept = guard(masks, DEVIATIONS, may, 0.01)
    np.testing.assert_array_equal(kept["fc"]["kernel"], [[0, 0, 1]])
    np.testing.assert_array_equal(kept["conv"]["kernel"], masks["conv"]["kernel"])


def test_threshold_of_each_array_by_hand():
    masks = unstructured_masks(
        DEVIATIONS, prunable(DEVIATIONS), 0.5, scope="per_tensor"
    )
    np.testing.assert_array_equal(masks["conv"]["kernel"], [[1, 0], [0, 0]])
    np.testing.assert_array_equal(masks["fc"]["kernel"], [[0, 0, 1]])


def test_equal_guidance_is_pruned_except_for_the_guard():
    flat, may = {"kernel": jnp.zeros((10, 30))}, {"kernel": True}
    rule = MaskRule(may, (), normalization="none", threshold=0.3, min_keep=0.01)
    found = rule.masks(flat)
    expected = np.zeros(300, bool)
    expected[:3] = True
    np.testing.assert_array_equal(found.masks["kernel"].reshape(-1), expected)
    assert int(found.guarded) == 3


def test_threshold_zero_prunes_nothing():
    masks = unstructured_masks(DEVIATIONS, prunable(DEVIATIONS, biases=True), 0.0)
    assert all(bool(mask.all()) for mask in jax.tree.leaves(masks))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_higher_threshold_prunes_no_less(normalization):
    rng = np.random.default_rng(0)
    deviations = {
        "a": {"kernel": jnp.asarray(rng.exponential(size=(30, 20)), jnp.float32)},
        "b": {"kernel": jnp.asarray(rng.exponential(3, size=(20, 5)), jnp.float32)},
    }
    thresholds = (0.0, 0.1, 0.3, 0.5, 0.9)

    @jax.jit
    def all_masks(deviations):
        guidance = guidance_matrix(deviations, normalization=normalization)
        may = prunable(guidance)
        return [unstructured_masks(guidance, may, share) for share in thresholds]

    sparsities = []
    for threshold, masks in zip(thresholds, all_masks(deviations), strict=True):
        kept = sum(int(mask.sum()) for mask in jax.tree.leaves(masks))
        sparsities.append(1 - kept / 700)
        assert sparsities[-1] >= threshold - 1e-9
    assert sparsities == sorted(sparsities)


def test_lowest_channels_by_hand():
    """Mean magnitudes 2.5, 1, 3: of three channels the middle one goes."""
    masks = jax.tree.map(jnp.asarray, network_masks())
    scores = jax.tree.map(lambda m: m.astype(jnp.float32), masks)
    scores["one"]["kernel"] = jnp.array([[[[3.0, 1, 3]], [[2.0, 1, 3]]]])
    found = lowest_channels(masks, scores, GROUPS[:1], share=0.5)
    expected = network_masks()
    expected["one"]["kernel"][..., 1] = expected["one"]["bias"][1] = False
    expected["two"]["kernel"][:, :, 1] = False
    jax.tree.map(np.testing.assert_array_equal, found, expected)


# Two convolutions of 3 and 2 channels on one pixel, flattened maps of 2 pixels,
# classes.
GROUPS = (between("one", 3, "two"), between("two", 2, "fc", repeats=2))


def network_masks():
    return {
        "one": {"kernel": np.ones((1, 2, 1, 3), bool), "bias": np.ones(3, bool)},
        "two": {"kernel": np.ones((1, 1, 3, 2), bool), "bias": np.ones(2, bool)},
        "fc": {"kernel": np.ones((4, 2), bool), "bias": np.ones(2, bool)},
    }


def test_a_channel_goes_with_its_bias_and_with_what_reads_it():
    masks = network_masks()
    masks["one"]["kernel"][..., 1] = False
    found = structured_masks(jax.tree.map(jnp.asarray, masks), GROUPS, max_density=0)
    masks["one"]["bias"][1] = False
    masks["two"]["kernel"][:, :, 1] = False
    jax.tree.map(np.testing.assert_array_equal, found, masks)


def test_removal_reaches_the_layers_behind():
    """Channel 0 of `two` reads only channel 1 of `one`; a second pass removes it."""
    masks = network_masks()
    masks["one"]["kernel"][..., 1] = False
    masks["two"]["kernel"][0, 0, :, 0] = [False, True, False]
    found = structured_masks(jax.tree.map(jnp.asarray, masks), GROUPS, max_density=0)
    masks["one"]["bias"][1] = masks["two"]["bias"][0] = False
    masks["two"]["kernel"][:, :, 1] = masks["two"]["kernel"][..., 0] = False
    # Channel 0 of both pixels.
    masks["fc"]["kernel"][[0, 2]] = False
    jax.tree.map(np.testing.assert_array_equal, found, masks)


def test_the_densest_channels_stay_and_classes_always_do(monkeypatch):
    masks = network_masks()
    masks["one"]["kernel"][0, :, 0] = [
        [False, False, False],
        [False, True, False],
    ]
    masks["fc"]["kernel"][:] = False
    found = structured_masks(jax.tree.map(jnp.asarray, masks), GROUPS, max_density=0.5)
    np.testing.assert_array_equal(found["one"]["bias"], [False, True, False])
    # With one of three inputs left every channel of `two` is thin; the first stays.
    np.testing.assert_array_equal(found["two"]["bias"], [True, False])
    assert found["fc"]["bias"].all()
    monkeypatch.setattr(masks_module, "MIN_UNITS", 0.5)
    many = structured_masks(jax.tree.map(jnp.asarray, masks), GROUPS, max_density=0.5)
    assert int(many["one"]["bias"].sum()) == math.ceil(0.5 * 3)


def test_below_zero_nothing_is_removed():
    masks = jax.tree.map(jnp.asarray, network_masks())
    masks["one"]["kernel"] = jnp.zeros((1, 2, 1, 3), bool)
    found = structured_masks(masks, GROUPS, max_density=-1)
    jax.tree.map(np.testing.assert_array_equal, found, masks)


def test_branches_go_only_where_all_of_them_agree():
    group = ChannelGroup(
        "sum",
        2,
        producers=(
            Slot(("a", "kernel"), -1),
            Slot(("b", "kernel"), -1),
        ),
        entries=(),
        consumers=(Slot(("c", "kernel"), -2),),
    )
    masks = {
        "a": {"kernel": jnp.array([[False, False], [False, False]])},
        "b": {"kernel": jnp.array([[True, False], [True, False]])},
        "c": {"kernel": jnp.ones((2, 1), bool)},
    }
    same = structured_masks(masks, [group], max_density=0)
    jax.tree.map(np.testing.assert_array_equal, same, masks)
    found = structured_masks(masks, [group], max_density=0, residual=True)
    np.testing.assert_array_equal(found["c"]["kernel"], [[True], [False]])


def test_lowest_channels_of_branches_go_only_where_both_have_them():
    group = ChannelGroup(
        "sum",
        4,
        producers=(Slot(("a",), -1), Slot(("b",), -1)),
        entries=(),
        consumers=(Slot(("c",), -2),),
    )
    scores = {
        "a": jnp.array([[1.0, 2.0, 3.0, 4.0]]),
        "b": jnp.array([[9.0, 7.0, 6.0, 8.0]]),
        "c": jnp.ones((4, 1)),
    }
    masks = jax.tree.map(lambda x: jnp.ones(x.shape, bool), scores)
    found = lowest_channels(masks, scores, [group], share=0.5, residual=True)
    # Of a the first two are the lowest, of b the middle two.
    np.testing.assert_array_equal(found["c"][:, 0], [True, False, True, True])


def test_a_share_of_channels_is_a_decimal():
    """In binary, 0.29 * 100 is below 29."""
    scores = {"a": jnp.arange(100.0)[None], "c": jnp.ones((100, 1))}
    masks = jax.tree.map(lambda x: jnp.ones(x.shape, bool), scores)
    group = ChannelGroup("one", 100, (Slot(("a",), -1),), (), (Slot(("c",), -2),))
    found = lowest_channels(masks, scores, [group], share=0.29)
    assert int(found["a"].sum()) == 71


def test_some_channels_stay_whatever_the_share(monkeypatch):
    monkeypatch.setattr(masks_module, "MIN_UNITS", 0.25)
    scores = {"a": jnp.arange(10.0)[None], "c": jnp.ones((10, 1))}
    masks = jax.tree.map(lambda x: jnp.ones(x.shape, bool), scores)
    group = ChannelGroup("one", 10, (Slot(("a",), -1),), (), (Slot(("c",), -2),))
    found = lowest_channels(masks, scores, [group], share=0.9)
    np.testing.assert_array_equal(np.flatnonzero(found["a"][0]), [7, 8, 9])


def test_exempt_arrays_lose_no_channels():
    masks = network_masks()
    masks["one"]["kernel"][..., 1] = False
    masks = jax.tree.map(jnp.asarray, masks)
    may = jax.tree.map(lambda m: True, masks)
    may["one"]["kernel"] = False
    scores = jax.tree.map(lambda m: m.astype(jnp.float32), masks)
    found = MaskRule(may, GROUPS, min_keep=0.0).complete(masks, scores)
    jax.tree.map(np.testing.assert_array_equal, found.masks, masks)


def test_channels_are_not_removed_from_a_model_that_does_not_declare_them():
    first = Variables({"kernel": jnp.ones((2, 2))}, {}, {})
    task = Task(lambda key: first, loss=None, predict=None)
    with pytest.raises(ValueError, match="must be off for a model without"):
        make_rule(task)
    assert make_rule(task, structured="off").prunable == {"kernel": True}
    assert make_rule(task._replace(groups=())).structured == "keep_ratio"


def test_an_array_that_keeps_enough_is_left_alone():
    masks = {"k": jnp.array([True, True, False, False])}
    found = guard(masks, {"k": jnp.arange(4.0)}, {"k": True}, 0.5)
    np.testing.assert_array_equal(found["k"], masks["k"])
