"""Gates: counts, masks, gradients and what they sow."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.fields import fields_of
from fedjax_prune.models.costs import macs
from fedjax_prune.models.gates import (
    MODES,
    RESNET_GATINGS,
    Gate,
    GateSettings,
    active_gates,
    check_gate_settings,
    gate_logits,
    num_kept,
    rescaling,
    select,
    straight_through,
    top_k_mask,
)
from fedjax_prune.models.platforms import tracing_for
from fedjax_prune.models.selection import FEW_COMPARISONS, mark_largest
from tests.small_models import SMALL, draw

LOGITS = (2.0, 1.0, 0.0, -1.0)


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, np.float64)))


@pytest.mark.parametrize("name", SMALL)
def test_which_convolutions_of_a_block_are_gated_is_a_choice_of_resnet32(name):
    """The description of the field says so."""
    model, shape = SMALL[name]
    kept = {
        macs(model.clone(gates=GateSettings(0.5, resnet=each)), shape).kept
        for each in RESNET_GATINGS
    }
    words = re.findall(r"\w+", fields_of(GateSettings)["resnet"].words)
    assert (len(kept) > 1) == (name in words)


def test_num_kept_rounds_to_nearest_and_keeps_one():
    widths = (64, 128, 256, 256, 512)
    assert [num_kept(0.705, c) for c in widths] == [45, 90, 180, 180, 361]
    assert [num_kept(0.61, c) for c in (16, 32, 64)] == [10, 20, 39]
    assert num_kept(0.01, 16) == 1
    assert num_kept(0.5, 5) == 3
    assert (num_kept(0.29, 50), num_kept(0.575, 100)) == (15, 58)
    assert num_kept(1.0, 7) == 7


def test_top_k_mask_keeps_exactly_k_and_the_lower_index_of_a_tie():
    logits = jnp.array([[1.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    masks = jax.jit(lambda z: top_k_mask(z, 2))(logits)
    np.testing.assert_array_equal(masks, [[0, 1, 1, 0], [1, 1, 0, 0]])
    assert masks.dtype == jnp.float32
    # Both sigmoids are 1 in float32, but the logits still differ.
    np.testing.assert_array_equal(top_k_mask(jnp.array([20.0, 30.0]), 1), [0, 1])
    random = draw((3, 5, 12))
    batched = jax.vmap(lambda z: top_k_mask(z, 7))(random)
    np.testing.assert_array_equal(batched, top_k_mask(random, 7))
    np.testing.assert_array_equal(batched.sum(-1), np.full((3, 5), 7))


def test_largest_entries_are_marked_as_a_stable_sort_ranks_them():
    rng = np.random.default_rng(0)
    special = np.array([np.inf, -np.inf, 0.0, -0.0, 1e-37, -3e38])
    values = rng.normal(size=(40, 12)).round(1)
    values[:, 2:8] = rng.permuted(np.tile(special, (40, 1)), axis=1)
    for dtype in (np.float16, np.float32):
        with np.errstate(over="ignore"):
            drawn = values.astype(dtype)
        ranks = np.argsort(np.argsort(-drawn, axis=-1, kind="stable"), axis=-1)
        for k in (1, 5, 12):
            marked = jax.jit(mark_largest, static_argnums=1)(drawn, k)
            np.testing.assert_array_equal(marked, ranks < k)


@pytest.mark.parametrize("k", [1, 57, 200])
def test_many_entries_are_marked_as_a_stable_sort_ranks_them(k):
    """So many are not compared in pairs."""
    values = np.random.default_rng(0).normal(size=(10, 200)).round(1)
    values = values.astype(np.float32)
    assert values.size * 200 > FEW_COMPARISONS
    values[0], values[1, 50:] = 0, -np.inf
    ranks = np.argsort(np.argsort(-values, axis=-1, kind="stable"), axis=-1)
    marked = jax.jit(mark_largest, static_argnums=1)(values, k)
    np.testing.assert_array_equal(marked, ranks < k)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu", "any"])
def test_the_mask_marks_what_a_stable_sort_ranks_first(platform):
    """A CPU can run the forms for other platforms, too."""
    logits = np.random.default_rng(0).normal(size=(3, 20, 12)).round(1)
    logits = logits.astype(np.float32)
    logits[:, ::3, :7] = -np.inf
    logits[:, 1::3, ::2], logits[:, 1::3, 1::2] = -0.0, 0.0
    ranks = np.argsort(np.argsort(-logits, axis=-1, kind="stable"), axis=-1)
    with tracing_for(platform):
        for k in (1, 5, 12):
            masks = jax.jit(jax.vmap(lambda z, k=k: top_k_mask(z, k)))(logits)
            np.testing.assert_array_equal(masks, (ranks < k).astype(np.float32))


@pytest.mark.parametrize("channels", [8, 32])
def test_exactly_k_are_kept_of_logits_that_are_computed_twice(channels):
    """XLA may multiply and add with one rounding here and with two there."""
    rng = np.random.default_rng(0)
    pooled = rng.random((1000, 1), np.float32)
    kernel = rng.normal(size=(1, channels)).astype(np.float32)
    count = jax.jit(
        lambda s, w, b: top_k_mask(gate_logits(w, b, s), 4).sum(-1, dtype=jnp.int32)
    )
    found = count(pooled, kernel, np.ones(channels, np.float32))
    np.testing.assert_array_equal(found, np.full(1000, 4))


def slope(z):
    return sigmoid(z) * (1 - sigmoid(z))


@pytest.mark.parametrize(
    ("mode", "gradient"),
    [
        ("hard_ste", [slope(2), slope(1), 0, 0]),
        ("scale", [slope(2), slope(1), 0, 0]),
        ("hard_dense_ste", slope(LOGITS)),
        ("hard_nograd", [0, 0, 0, 0]),
    ],
)
def test_gradient_reaches_the_logits_as_the_mode_says(mode, gradient):
    def total(z):
        return straight_through(top_k_mask(z, 2), jax.nn.sigmoid(z), mode).sum()

    logits = jnp.array(LOGITS)
    found = jax.jit(jax.grad(total))(logits)
    np.testing.assert_allclose(found, gradient, atol=1e-6)
    multiplier = straight_through(top_k_mask(logits, 2), jax.nn.sigmoid(logits), mode)
    kept = sigmoid(LOGITS) if mode == "scale" else np.ones(4)
    np.testing.assert_allclose(multiplier, kept * [1, 1, 0, 0], rtol=1e-6)


def test_gradient_has_the_published_digits():
    """q (1 - q) at 2, 1 and 0."""

    def total(z):
        mask = top_k_mask(z, 3)
        return straight_through(mask, jax.nn.sigmoid(z), "hard_ste").sum()

    found = jax.jit(jax.grad(total))(jnp.array([2.0, 1.0, 0.0]))
    np.testing.assert_allclose(found, [0.10499, 0.19661, 0.25], atol=5e-6)


def test_hard_masks_are_exact():
    scores = jax.random.uniform(jax.random.key(1), (1000,))
    mask = top_k_mask(scores, 500)
    for mode in ("hard_ste", "hard_dense_ste", "hard_nograd"):
        values = jax.jit(lambda m, q, mode=mode: straight_through(m, q, mode))
        np.testing.assert_array_equal(values(mask, scores), mask)


def test_rescaling_uses_the_exact_share():
    assert rescaling("none", 361, 512) == 1
    assert rescaling("sqrt", 361, 512) == pytest.approx((512 / 361) ** 0.5)
    assert rescaling("inverse", 361, 512) == pytest.approx(512 / 361)


def gate_and_variables(settings, channels=6):
    gate = Gate(channels, settings, channels)
    x = draw((4, 3, 3, 5))
    key = jax.random.key(3)
    variables = jax.jit(lambda: gate.init({"gates": key}, x, jnp.ones(4, bool)))()
    return gate, {"gates": variables["gates"]}, x


def test_gate_pools_projects_and_counts_real_samples_only():
    settings = GateSettings(0.5, rescale="inverse", bias=1.0)
    gate, variables, x = gate_and_variables(settings)
    real = np.array([True, False, True, True])
    # A padded sample may have any values.
    x = x.at[1].set(jnp.nan)
    (multiplier, mask), sown = jax.jit(
        lambda v, x: gate.apply(v, x, jnp.asarray(real), mutable=["gate_sums"])
    )(variables, x)
    weights = jax.tree.map(np.asarray, variables["gates"])
    logits = np.asarray(x).mean((1, 2)) @ weights["kernel"] + weights["bias"]
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :3]
    expected = np.zeros((4, 6))
    np.put_along_axis(expected, order, 1, axis=-1)
    np.testing.assert_array_equal(mask[real], expected[real])
    np.testing.assert_allclose(multiplier[real], 2 * expected[real], rtol=1e-6)
    sums = sown["gate_sums"]
    np.testing.assert_allclose(sums["lasso"], np.abs(logits[real]).sum(), rtol=1e-5)
    np.testing.assert_array_equal(sums["selected"], expected[real].sum(0))
    assert sums["lasso"].shape == () and sums["selected"].dtype == jnp.float32


def test_the_lasso_leaves_out_the_logits_of_pruned_channels():
    gate, variables, x = gate_and_variables(GateSettings(0.5))
    alive = np.array([True, False, True, True, False, True])
    weights = jax.tree.map(np.asarray, variables["gates"])
    _, sown = gate.apply(
        variables | {"alive": {"alive": jnp.asarray(alive)}},
        x,
        jnp.ones(4, bool),
        mutable=["gate_sums"],
    )
    logits = np.asarray(x).mean((1, 2)) @ weights["kernel"] + weights["bias"]
    expected = np.abs(logits[:, alive]).sum()
    np.testing.assert_allclose(sown["gate_sums"]["lasso"], expected, rtol=1e-5)


@pytest.mark.parametrize("input_grad", [True, False])
def test_the_gates_gradient_reaches_its_input_if_asked(input_grad):
    """d lasso / d x = sum over channels of sign(z) W / pixels; weights get theirs."""
    gate, variables, x = gate_and_variables(GateSettings(0.5, input_grad=input_grad))

    def lasso(variables, x):
        _, sown = gate.apply(variables, x, jnp.ones(4, bool), mutable=["gate_sums"])
        return sown["gate_sums"]["lasso"]

    by_weights, by_x = jax.jit(jax.grad(lasso, (0, 1)))(variables, x)
    weights = jax.tree.map(np.asarray, variables["gates"])
    pooled = np.asarray(x).mean((1, 2))
    signs = np.sign(pooled @ weights["kernel"] + weights["bias"])
    np.testing.assert_allclose(
        by_weights["gates"]["kernel"], pooled.T @ signs, rtol=1e-4, atol=1e-6
    )
    expected = (signs @ weights["kernel"].T / 9)[:, None, None] * np.ones(x.shape)
    np.testing.assert_allclose(by_x, expected * input_grad, rtol=1e-4, atol=1e-6)


def test_gate_starts_he_normal_with_its_bias_and_without_params():
    gate = Gate(512, GateSettings(0.5, bias=0.25), 512)
    x = jnp.ones((1, 2, 2, 256))
    variables = gate.init({"gates": jax.random.key(0)}, x, jnp.ones(1, bool))
    assert set(variables) == {"gates", "gate_sums"}
    kernel = np.asarray(variables["gates"]["kernel"])
    assert kernel.shape == (256, 512)
    # The deviation of 131,072 draws has a standard error of 0.2 %.
    assert kernel.std() == pytest.approx((2 / 256) ** 0.5, rel=0.01)
    np.testing.assert_array_equal(variables["gates"]["bias"], np.full(512, 0.25))


@pytest.mark.parametrize("mode", MODES)
def test_selected_indices_and_multipliers_equal_the_mask(mode):
    settings = GateSettings(0.5, mode=mode, rescale="sqrt")
    gate, variables, x = gate_and_variables(settings)

    @jax.jit
    def run(x):
        pick = jax.vmap(lambda s: select(variables["gates"], s, settings, 6))
        return gate.apply(variables, x, jnp.ones(4, bool)), pick(x.mean((1, 2)))

    (multiplier, mask), (indices, values) = run(x)
    found = np.zeros((4, 6))
    np.put_along_axis(found, np.asarray(indices), np.asarray(values), axis=-1)
    np.testing.assert_allclose(found, np.where(mask == 1, multiplier, 0), rtol=1e-6)
    assert (np.count_nonzero(found, axis=-1) == 3).all()


def test_unknown_names_are_answered_by_the_known_ones():
    one = jnp.ones(2)
    with pytest.raises(ValueError) as caught:
        straight_through(one, one, "soft")
    assert str(caught.value) == (
        "mode must be one of hard_ste, scale, hard_dense_ste, hard_nograd, got 'soft'."
    )
    with pytest.raises(ValueError) as caught:
        rescaling("square", 1, 2)
    assert str(caught.value) == (
        "rescale must be one of none, sqrt, inverse, got 'square'."
    )


def test_gate_that_keeps_all_is_left_out():
    assert active_gates(None, 8) is None
    assert active_gates(GateSettings(1.0), 8) is None
    assert active_gates(GateSettings(0.95), 8) is None
    settings = GateSettings(0.9)
    assert active_gates(settings, 8) is settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (GateSettings(0.0), r"keep_ratio must be in \(0, 1\], got 0.0"),
        (GateSettings(1.5), r"keep_ratio must be in \(0, 1\], got 1.5"),
        (GateSettings(float("nan")), "keep_ratio"),
        (GateSettings(0.5, mode="soft"), "mode must be one of .*hard_ste.*'soft'"),
        (GateSettings(0.5, rescale="half"), "rescale must be one of .*inverse.*"),
        (GateSettings(0.5, resnet="outer"), "resnet must be one of .*literal.*"),
        (GateSettings(0.5, bias=float("inf")), "bias must be finite, got inf"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        check_gate_settings(settings)


def test_more_channels_than_there_are_cannot_be_kept():
    with pytest.raises(ValueError, match=r"k must be in \[1, 3\], got 4"):
        top_k_mask(jnp.ones(3), 4)


def test_maps_in_bfloat16_are_pooled_in_float32():
    """Their mean, 1 + 2^-9, would be rounded to 1, below the second logit."""
    gate = Gate(2, GateSettings(0.5), 2)
    maps = jnp.ones((1, 4, 4, 1), jnp.bfloat16).at[0, 0, 0, 0].set(1 + 2.0**-5)
    kernel, bias = jnp.array([[1.0, 0.0]]), jnp.array([0.0, 1 + 2.0**-10])
    weights = {"gates": {"kernel": kernel, "bias": bias}}
    with jax.numpy_dtype_promotion("standard"):
        _, mask = gate.apply(weights, maps, jnp.ones(1, bool))
    np.testing.assert_array_equal(mask, [[1, 0]])
