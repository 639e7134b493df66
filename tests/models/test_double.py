"""With `jax_enable_x64` everything follows the dtype of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.algorithms.autoflip.agreement import ramped, ranks
from fedjax_prune.data.augment import as_symbols
from fedjax_prune.engine.server import scale
from fedjax_prune.engine.solver import SCHEDULES, make_solver, per_step_mass
from fedjax_prune.engine.stopping import make_stopping
from fedjax_prune.engine.transforms import accumulate, descend, zero_random
from fedjax_prune.models.channels import ChannelGroup, Slot
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.task import make_task
from fedjax_prune.pruning.guidance import NORMALIZATIONS
from fedjax_prune.pruning.masks import channel_means
from fedjax_prune.types import Batch, Variables
from tests.small_models import LSTM, SMALL

MODELS = SMALL | {"next_char_lstm": LSTM}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def dtypes_of(*trees) -> list[str]:
    return [leaf.dtype.name for leaf in jax.tree.leaves(trees)]


@pytest.mark.parametrize(
    ("name", "dtype", "found"),
    [(name, float, "float64") for name in MODELS]
    + [("cnn", jnp.float32, "float32"), ("next_char_lstm", jnp.float32, "float32")],
)
@jax.numpy_dtype_promotion("standard")  # Flax's norms start in float32
def test_all_of_a_model_has_its_dtype(name, dtype, found):
    model, shape = MODELS[name]
    if name == "next_char_lstm":
        task = make_task(model.clone(dtype=dtype), shape, to_input=as_symbols)
    else:
        gates = GateSettings(0.5)
        model = model.clone(norm="bn", gates=gates, dropout=0.5, dtype=dtype)
        task = make_task(model, shape, lasso_weight=1e-3)
    key = jax.random.key(0)

    def step(variables: Variables, batch: Batch):
        def loss(params, personal):
            changed = variables._replace(params=params, personal=personal)
            return task.loss(changed, batch, key)

        trained = variables.params, variables.personal
        return jax.value_and_grad(loss, (0, 1), has_aux=True)(*trained)

    variables = jax.eval_shape(task.init, key)
    batch = Batch(
        jax.ShapeDtypeStruct((4, *shape), jnp.uint8),
        jax.ShapeDtypeStruct((4,), jnp.int32),
        jax.ShapeDtypeStruct((4,), bool),
    )
    trained = jax.eval_shape(step, variables, batch)
    logits = jax.eval_shape(task.predict, variables, batch.images)
    assert set(dtypes_of(variables, trained, logits)) == {found}


@jax.numpy_dtype_promotion("standard")  # Flax's norms start in float32
def test_gathered_channels_equal_masked_ones_in_float64():
    model, shape = SMALL["cnn"]
    model = model.clone(norm="bn", gates=GateSettings(0.5))
    task = make_task(model, shape)
    variables = task.init(jax.random.key(0))
    image = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    found = jax.jit(
        lambda v, x: model.apply(
            {"params": v.params, "gates": v.personal, "batch_stats": v.model_state},
            x,
            method="gathered",
        )
    )(variables, image)
    expected = jax.jit(task.predict)(variables, image[None])[0]
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_step_sizes_are_exact_to_float64(name):
    solver = make_solver(epochs=3, batch_size=1, lr=0.1, lr_min=0.01, lr_schedule=name)
    found = solver.step_size(jnp.int32(2), jnp.int32(1), jnp.int32(4))
    progress = {"constant": 0, "cosine_epoch": 2 / 3, "cosine_step": 2.25 / 3}[name]
    expected = 0.01 + 0.09 * (1 + np.cos(np.pi * progress)) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-15)
    for dtype in (jnp.float32, jnp.float64):
        update, _ = descend().update(jnp.ones(2, dtype), (), step_size=found)
        assert update.dtype == dtype
        np.testing.assert_array_equal(update, -found.astype(dtype))
    mass, _ = solver.mass_tx.update(
        jnp.ones((), float), solver.mass_tx.init(jnp.zeros((), float)), step_size=found
    )
    np.testing.assert_array_equal(mass, -found)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_parts_of_sums_keep_their_dtype(dtype):
    tree, third = {"w": jnp.ones(2, dtype)}, jnp.asarray(1 / 3)
    for found in (scale(tree, third), per_step_mass(tree, 1 / third)):
        assert found["w"].dtype == dtype
        np.testing.assert_array_equal(found["w"], np.full(2, 1 / 3, dtype))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("monitor", ["epoch", "last_batch"])
def test_early_stopping_takes_the_loss_as_it_is(dtype, monitor):
    """The second epoch is better by less than float32 can tell, the third is not."""
    stopping = make_stopping(1, monitor)
    watch, stops = stopping.start(), []
    for loss in (3.0, 3.0 - 1e-9, 3.0):
        sums = {"loss": jnp.asarray(loss, dtype), "count": jnp.asarray(2, dtype)}
        after, stop = stopping.after_step(watch, sums, jnp.asarray(True))
        assert dtypes_of(after) == dtypes_of(watch)
        watch = after
        stops.append(bool(stop))
    assert stops == [False, dtype == jnp.float32, True]


def test_draws_of_the_zeroed_entries_do_not_depend_on_the_setting():
    params = {"w": jnp.arange(1, 9, dtype=jnp.float32)}
    tx = zero_random({"w": 3})
    update = lambda: tx.update(  # noqa: E731
        jax.tree.map(jnp.zeros_like, params), (), params, key=jax.random.key(4)
    )[0]["w"]
    wide = update()
    with jax.enable_x64(False):
        np.testing.assert_array_equal(wide, update())
    assert int((wide != 0).sum()) == 3


def test_accumulated_steps_keep_one_dtype():
    tx = accumulate(jnp.square)
    first = tx.init(jnp.ones(2))
    _, second = tx.update(jnp.ones(2), first)
    assert dtypes_of(second) == dtypes_of(first)


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_guidance_keeps_the_dtype_of_the_deviations(name):
    for dtype in (jnp.float32, jnp.float64):
        assert NORMALIZATIONS[name](jnp.arange(6, dtype=dtype)).dtype == dtype


def test_scores_of_masks_are_exact_to_float64():
    guidance = {"w": jnp.asarray([[0.25, 0.5, 1.0], [0.0, 2.0, 3.0]])}
    found = ranks(guidance, {"w": True})["w"]
    np.testing.assert_allclose(found, np.array([[1, 2, 3], [0, 4, 5]]) / 5, rtol=1e-15)
    np.testing.assert_allclose(
        ramped(0.3, 0.0, 7, jnp.int32(2)), 0.3 - 0.3 * (5 / 7) ** 3, rtol=1e-14
    )
    group = ChannelGroup(
        "w", 3, producers=(Slot(("w",), -1),), entries=(), consumers=()
    )
    np.testing.assert_array_equal(
        channel_means(guidance, group), np.asarray(guidance["w"]).mean(0)[None]
    )
