"""Precision: what is rounded to fewer bits, and what is not."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.engine.store import create
from fedjax_prune.models import CNN
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.platforms import tracing_for
from fedjax_prune.models.pooling import max_pool
from fedjax_prune.models.precision import add, matmul, multiply, product_precision
from fedjax_prune.models.task import make_task
from fedjax_prune.types import Batch, RoundInputs
from tests import toys
from tests.small_models import SMALL, draw

COMPILED = {"cnn", "resnet32"}
"""Compiled for ten steps in each suite, one plain and one residual network."""


@pytest.mark.parametrize("num_rows", [0, 1, 32, 33, 100])
def test_gradient_of_a_kernel_is_not_rounded(num_rows):
    """bfloat16 has 8 bits: sums of many of its products need more than it holds."""
    x = draw((num_rows, 3)).astype(jnp.bfloat16)
    kernel = draw((3, 2))
    y, back = jax.vjp(matmul, x, kernel)
    cotangent = draw((num_rows, 2)).astype(jnp.bfloat16)
    x_bar, kernel_bar = back(cotangent)
    assert (y.dtype, x_bar.dtype) == (jnp.bfloat16, jnp.bfloat16)
    exact = np.asarray(x, np.float64).T @ np.asarray(cotangent, np.float64)
    assert kernel_bar.dtype == jnp.float32
    np.testing.assert_allclose(kernel_bar, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("change", "by_hand"), [(add, 1), (multiply, None)])
def test_gradients_of_biases_and_multipliers_are_not_rounded(change, by_hand):
    x = draw((100, 3)).astype(jnp.bfloat16)
    cotangent = x[::-1]
    y, back = jax.vjp(change, x, draw((1, 3)))
    found = back(cotangent)[1]
    exact = np.asarray(cotangent, np.float64) * (by_hand or np.asarray(x, np.float64))
    assert (y.dtype, found.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(found[0], exact.sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "num_rows", "products"),
    [("cpu", 32, 2), ("cpu", 33, 3), ("tpu", 32, 3), ("cuda", 32, 3)],
)
def test_gradient_of_few_rows_is_no_product_on_cpus(platform, num_rows, products):
    def gradients(x, kernel):
        return jax.vjp(matmul, x, kernel)[1](jnp.ones((num_rows, 2)))

    with tracing_for(platform):
        jaxpr = jax.make_jaxpr(gradients)(jnp.ones((num_rows, 3)), jnp.ones((3, 2)))
    # Two of them are the layer and the gradient of its input.
    assert str(jaxpr).count("dot_general") == products


@pytest.mark.parametrize(("name", "word"), [("float32", "HIGHEST"), ("tf32", "HIGH")])
def test_products_carry_their_precision(name, word):
    with product_precision(name):
        jaxpr = jax.make_jaxpr(matmul)(jnp.ones((2, 2)), jnp.ones((2, 2)))
    assert f"Precision.{word}" in str(jaxpr).replace("\n", " ").replace("'", "")


@jax.numpy_dtype_promotion("standard")  # Flax's norms widen bfloat16 silently
def test_a_bfloat16_round_keeps_float32_state_and_stays_near():
    gates = GateSettings(0.5)
    solver = make_solver(epochs=1, batch_size=8, lr=0.01)
    dataset = toys.image_dataset(24, (8, 8, 1), 3)
    cohort = toys.contiguous_cohort((8, 16), num_lanes=1)
    after = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        model = CNN(3, width=0.5, norm="bn", gates=gates, dtype=dtype)
        algorithm = ALGORITHMS["scaffold"](
            make_task(model, (8, 8, 1)), solver, make_server_tx()
        )
        key = jax.random.key(0)
        rows = create(algorithm.row(key), 2)
        state, rows, sums = jax.jit(algorithm.round)(
            RoundInputs(algorithm.init(key), rows, dataset, cohort, key)
        )
        assert {x.dtype for x in jax.tree.leaves((state.params, rows, sums))} <= {
            jnp.dtype("float32"),
            jnp.dtype("int32"),
        }
        after[dtype] = (state, sums)
    # bfloat16 has 8 bits in each of four layers, and steps are 0.01.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=0.01 * 2**-4),
        after[jnp.float32][0].params,
        after[jnp.bfloat16][0].params,
    )
    # Without a gradient an array would be 1 apart. Before batch norm biases have none.
    first = algorithm.init(jax.random.key(0)).params
    moved, rounded = (
        jax.tree.map(jnp.subtract, after[dtype][0].params, first)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    apart = jax.tree.map(
        lambda a, b: jnp.linalg.norm((a - b).ravel()) / jnp.linalg.norm(a.ravel()),
        moved,
        rounded,
    )
    for name in ("conv1", "conv2"):
        del apart[name]["bias"]
    assert max(jax.tree.leaves(apart)) < 0.25
    np.testing.assert_allclose(
        after[jnp.float32][1]["loss"], after[jnp.bfloat16][1]["loss"], rtol=2**-6
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in COMPILED else pytest.mark.long)
        for name in sorted(SMALL)
    ],
)
@jax.numpy_dtype_promotion("standard")  # Flax's norms start in float32
def test_lanes_agree_in_float64_after_ten_steps(name):
    """Every model gated, with batch norm and dropout, three unequal clients."""
    model, shape = SMALL[name]
    model = model.clone(gates=GateSettings(0.5), norm="bn", dropout=0.5)
    solver = make_solver(epochs=2, batch_size=2, lr=0.05, momentum=0.9)
    dataset = toys.image_dataset(17, shape, 4)
    key = jax.random.key(0)
    with jax.enable_x64(True):
        task = make_task(model, shape, lasso_weight=1e-3)
        algorithm = ALGORITHMS["fedavg"](task, solver, make_server_tx())
        state = jax.jit(algorithm.init)(key)
        rows = create(jax.jit(algorithm.row)(key), 3)
        assert {x.dtype for x in jax.tree.leaves(state.params)} == {
            jnp.dtype("float64")
        }
        run = jax.jit(algorithm.round)
        one, three = (
            run(
                RoundInputs(
                    state,
                    rows,
                    dataset,
                    toys.contiguous_cohort((10, 3, 4), num_lanes=lanes),
                    key,
                )
            )
            for lanes in (1, 3)
        )
        assert int(one[2]["steps"].max()) == 10
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
            one[:2],
            three[:2],
        )


def sums_in_bfloat16(function, *args):
    """How many sums that it traces to have a result in bfloat16."""
    traced = str(jax.make_jaxpr(function)(*args))
    return len(re.findall(r":bf16\[[^\]]*\] = (?:reduce_sum|cumsum)\[", traced))


@pytest.mark.parametrize("norm", ["bn", "gn", "none"])
@pytest.mark.parametrize("name", ["cnn", "resnet32", "two_cnn"])
@jax.numpy_dtype_promotion("standard")  # Flax's norms widen bfloat16 silently
def test_no_sum_of_a_bfloat16_network_is_rounded_as_it_grows(name, norm):
    """Also none of its gradient: sums over pixels, examples and channels."""
    model, shape = SMALL[name]
    model = model.clone(gates=GateSettings(0.5), norm=norm, dtype=jnp.bfloat16)
    task = make_task(model, shape, lasso_weight=1e-3)
    variables = jax.eval_shape(task.init, jax.random.key(0))
    batch = Batch(jnp.zeros((4, *shape)), jnp.zeros(4, int), jnp.ones(4, bool))

    def gradients(variables):
        def loss(params):
            return task.loss(variables._replace(params=params), batch, key)[0]

        return jax.grad(loss)(variables.params)

    key = jax.random.key(1)
    assert sums_in_bfloat16(gradients, variables) == 0
    assert sums_in_bfloat16(lax.cumsum, jnp.ones(3, jnp.bfloat16)) == 1
    assert sums_in_bfloat16(lambda x: lax.reduce_sum(x, [0]), jnp.bfloat16([1])) == 1


@pytest.fixture(params=["cpu", "tpu"])
def traced_for(request):
    """A platform whose form of the pool's gradient is traced; a CPU can run both."""
    with tracing_for(request.param):
        yield request.param


@pytest.mark.usefixtures("traced_for")
def test_pooling_takes_the_maximum_and_shares_ties():
    x = draw((2, 5, 4, 3))
    cotangent = draw((2, 2, 2, 3))

    def by_reduction(x):
        return x[:, :4].reshape(2, 2, 2, 2, 2, 3).max((2, 4))

    for function in (max_pool, jax.vmap(lambda x: max_pool(x[None])[0])):
        value, back = jax.vjp(function, x)
        expected, back_expected = jax.vjp(by_reduction, x)
        np.testing.assert_array_equal(value, expected)
        np.testing.assert_array_equal(back(cotangent)[0], back_expected(cotangent)[0])
    ties = jnp.array([[1.0, 1.0], [0.0, 1.0]])[None, :, :, None]
    _, back = jax.vjp(max_pool, ties)
    np.testing.assert_allclose(
        back(jnp.ones((1, 1, 1, 1)))[0][0, :, :, 0], [[1 / 3, 1 / 3], [0, 1 / 3]]
    )


@pytest.mark.usefixtures("traced_for")
def test_gradient_of_a_pool_of_what_xla_computes_twice():
    """XLA may round what is pooled in two ways; no gradient becomes NaN or is lost."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 6, 6, 5)).astype(np.float32)
    # The last channel has windows of equal zeros alone.
    scale = np.append(rng.uniform(0.1, 3, 4), 0).astype(np.float32)
    bias = np.append(rng.normal(size=4), 0).astype(np.float32)
    cotangent = rng.normal(size=(8, 3, 3, 5)).astype(np.float32)

    def pooled(x, scale, bias, shift):
        features = x * scale[None, None, None] + bias[None, None, None]
        return max_pool(jnp.maximum(features, 0) + shift)

    @jax.jit
    def gradients(x, scale, bias, cotangent):
        _, back = jax.vjp(pooled, x, scale, bias, jnp.zeros_like(x))
        return back(cotangent)

    *found, of_features = gradients(x, scale, bias, cotangent)
    double = [array.astype(np.float64) for array in (x, scale, bias, cotangent)]
    *expected, of_pixels = numpy_gradients(*double)
    for a, b in zip([*found, of_features], [*expected, of_pixels], strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    windows = np.asarray(of_features, np.float64).reshape(8, 3, 2, 3, 2, 5)
    np.testing.assert_allclose(windows.sum((2, 4)), cotangent, rtol=1e-6, atol=1e-6)


def numpy_gradients(x, scale, bias, cotangent):
    """Of x, scale, bias and the rectified features; ties share, ReLU'(0) is 1/2."""
    features = x * scale + bias
    rectified = np.maximum(features, 0)
    windows = rectified.reshape(8, 3, 2, 3, 2, 5)
    largest = windows == windows.max((2, 4), keepdims=True)
    shares = largest / largest.sum((2, 4), keepdims=True)
    of_pixels = (shares * cotangent[:, :, None, :, None]).reshape(x.shape)
    slope = (features > 0) + 0.5 * (features == 0)
    of_sum = of_pixels * slope
    axes = (0, 1, 2)
    return of_sum * scale, (of_sum * x).sum(axes), of_sum.sum(axes), of_pixels
