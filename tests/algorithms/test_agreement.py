"""Agreement's scores and limited changes against numpy and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.algorithms.autoflip.agreement import (
    ramped,
    ranks,
    rescore,
    smooth,
    votes,
)

MAY = {"kernel": True, "bias": False}


def masks_of(kept):
    return {"kernel": jnp.asarray(kept, bool), "bias": jnp.ones(2, bool)}


def scores_of(scores):
    return {"kernel": jnp.asarray(scores, jnp.float32), "bias": jnp.zeros(2)}


def test_smoothing_by_hand():
    found = smooth({"a": jnp.array([1.0, 0.0])}, {"a": jnp.array([0.0, 0.5])}, 0.1)
    np.testing.assert_allclose(found["a"], [0.9, 0.05], rtol=1e-6)


def test_ramp_by_hand():
    """From 0.1 to 0.5 in four rounds: 0.5 - 0.4 (1 - t/4)^3."""
    found = [ramped(0.5, 0.1, 4, jnp.int32(t)) for t in (1, 2, 4, 9)]
    np.testing.assert_allclose(found, [0.33125, 0.45, 0.5, 0.5], rtol=1e-6)
    assert float(ramped(0.5, 0.1, 0, jnp.int32(1))) == 0.5


def test_ranks_are_of_prunable_entries_and_the_first_of_equals_is_higher():
    found = ranks(
        {"kernel": jnp.array([0.5, 0.1, 0.5, 0.9]), "bias": jnp.full(2, 9.0)}, MAY
    )
    np.testing.assert_allclose(found["kernel"], [2 / 3, 0, 1 / 3, 1])
    np.testing.assert_array_equal(found["bias"], [0, 0])


def test_ranks_of_more_entries_than_float16_counts_are_shares():
    """2^17 equal entries: the first has rank 1, the last 0."""
    guidance = {"kernel": jnp.ones(2**17, jnp.float16)}
    found = ranks(guidance, {"kernel": True})["kernel"]
    assert found.dtype == jnp.float16
    np.testing.assert_allclose(found, np.linspace(1, 0, 2**17), atol=1e-3)


def test_a_client_votes_for_what_is_above_its_own_quantile():
    """Deviations 0 to 4, T_p = 0.5: the median 2 is not above itself."""
    found = votes({"kernel": jnp.arange(5.0), "bias": jnp.zeros(2)}, MAY, 0.5, "minmax")
    np.testing.assert_array_equal(found["kernel"], [0, 0, 0, 1, 1])
    assert found["bias"].all()


def test_swaps_with_the_largest_gap_come_first():
    """9 8 7 6 5 are wanted; 5 and the lowest four are kept. One swap: 9 for 0."""
    scores = scores_of([9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    kept = masks_of([0, 0, 0, 0, 1, 0, 1, 1, 1, 1])
    few = rescore(kept, scores, MAY, jnp.float32(0.5), 0.2)
    np.testing.assert_array_equal(few["kernel"], [1, 0, 0, 0, 1, 0, 1, 1, 1, 0])
    all_of_them = rescore(kept, scores, MAY, jnp.float32(0.5), 1.0)
    np.testing.assert_array_equal(all_of_them["kernel"], [1] * 5 + [0] * 5)
    none = rescore(kept, scores, MAY, jnp.float32(0.5), 0.19)
    np.testing.assert_array_equal(none["kernel"], kept["kernel"])
    assert few["bias"].all()


def test_of_equal_entries_the_first_enter_and_the_last_leave():
    """Wanted are the two of score 1; one swap is allowed, of three that may leave."""
    scores = scores_of([0, 0, 0, 0, 1, 1])
    kept = masks_of([1, 1, 1, 0, 0, 0])
    found = rescore(kept, scores, MAY, 0.5, 0.34)
    np.testing.assert_array_equal(found["kernel"], [1, 1, 0, 0, 1, 0])
    fewer = rescore(masks_of([1] * 6), scores, MAY, 0.5, 0.34)
    np.testing.assert_array_equal(fewer["kernel"], [1, 1, 0, 0, 1, 1])


def test_a_higher_threshold_prunes_before_it_swaps():
    """Eight kept, five wanted: with a budget of three only the lowest three go."""
    scores = scores_of([9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    kept = masks_of([0, 1, 1, 1, 1, 1, 1, 1, 1, 0])
    found = rescore(kept, scores, MAY, jnp.float32(0.5), 0.3)
    np.testing.assert_array_equal(found["kernel"], [0, 1, 1, 1, 1, 1, 0, 0, 0, 0])


@pytest.mark.parametrize("seed", range(5))
def test_few_entries_change_and_their_number_is_right(seed):
    rng = np.random.default_rng(seed)
    scores = scores_of(rng.integers(0, 20, 200))
    kept = masks_of(rng.random(200) < 0.7)
    before = int(kept["kernel"].sum())
    found = rescore(kept, scores, MAY, jnp.float32(0.3), 0.05)
    changed = int((found["kernel"] != kept["kernel"]).sum())
    assert changed <= 10
    assert abs(int(found["kernel"].sum()) - 140) == max(0, abs(before - 140) - 10)
    exact = rescore(kept, scores, MAY, 0.301, 1.0)
    assert int(exact["kernel"].sum()) == 200 - 61
    far = jax.jit(lambda k: rescore(k, scores, MAY, jnp.float32(0.3), 1.0))(kept)
    order = np.argsort(-np.asarray(scores["kernel"]), kind="stable")[:140]
    np.testing.assert_array_equal(np.flatnonzero(far["kernel"]), np.sort(order))


def test_the_share_that_goes_is_a_decimal():
    """0.07 of 100 is 7, also where the product in binary is above it."""
    kept, scores = {"kernel": jnp.ones(100, bool)}, {"kernel": jnp.arange(100.0)}
    found = rescore(kept, scores, {"kernel": True}, 0.07, 1.0)
    assert int(found["kernel"].sum()) == 93
    # A ramp counts in float32, where 0.3 of 218,000 is 65,400.004.
    size = 218_000
    kept, scores = {"kernel": jnp.ones(size, bool)}, {"kernel": jnp.arange(1.0 * size)}
    found = rescore(kept, scores, {"kernel": True}, jnp.float32(0.3), 1.0)
    assert int(found["kernel"].sum()) == size - 65_400
