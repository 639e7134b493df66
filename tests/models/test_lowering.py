"""Programs lowered for platforms that this machine does not have."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.data.padded import Padded
from fedjax_prune.engine import store
from fedjax_prune.engine.devices import ONE_DEVICE, make_placement, share_work
from fedjax_prune.engine.evaluate import correct_by_client, holdout_accuracy
from fedjax_prune.models.convolution import convolve
from fedjax_prune.models.gates import top_k_mask
from fedjax_prune.models.platforms import (
    ANY,
    default_platform,
    traced_platform,
    tracing_for,
)
from fedjax_prune.types import RoundInputs
from tests.seven_clients import SERVER_TX, SOLVER, dataset, draw_cohort, gated_task

SHAPE = (8, 8, 1)
IDS = (0, 1, 3, 4, 6)
# The second convolution reads 8 channels times the width. On a CPU `lax` convolves 8 of
# them, and Winograd's algorithm 32.
WIDTHS = {"direct": 1.0, "winograd": 4.0}
CASES = [("direct", 1), ("direct", 2), ("winograd", 1)]


def lower(function, platform, *arguments):
    """Gives the StableHLO text of a jitted function for one platform."""
    exported = jax.export.export(function, platforms=[platform])(*arguments)
    text = re.sub(r"^#loc.*\n", "", exported.mlir_module(), flags=re.MULTILINE)
    return re.sub(r" loc\(#\w+\)", "", text)


def make_gated_task(form):
    return gated_task(SHAPE, width=WIDTHS[form])


def lower_round(task, platform, num_devices=1):
    """Makes a round of SCAFFOLD."""
    algorithm = ALGORITHMS["scaffold"](task, SOLVER, SERVER_TX)
    placement = make_placement(num_devices, platform=platform)
    cohort = draw_cohort(placement, IDS)

    def whole_round(key, data, cohort):
        state = algorithm.init(key)
        rows = store.create(algorithm.row(key), len(cohort.sizes))
        inputs = RoundInputs(state, rows, data, cohort, key)
        return algorithm.round(inputs, placement)

    data = dataset(SHAPE)
    return lower(jax.jit(whole_round), platform, jax.random.key(3), data, cohort)


def lower_preparation(task, platform, num_devices=1):
    """Makes FedSNIP's gradients before the first round."""
    algorithm = ALGORITHMS["fedsnip"](task, SOLVER, SERVER_TX, threshold=0.2)
    placement = make_placement(num_devices, platform=platform)
    cohort = draw_cohort(placement, IDS)

    def preparation(key, data, cohort):
        state = algorithm.init(key)
        rows = store.create(algorithm.row(key), len(cohort.sizes))
        inputs = RoundInputs(state, rows, data, cohort, key)
        return algorithm.prepare.run(inputs, placement)

    data = dataset(SHAPE)
    return lower(jax.jit(preparation), platform, jax.random.key(3), data, cohort)


def lower_evaluation(task, platform, num_devices=1):
    """Makes FedDP's evaluation, with each client's gates and held-out examples."""
    placement = make_placement(num_devices, platform=platform)
    data = dataset(SHAPE)
    held_out = Padded(np.arange(12, dtype=np.int32).reshape(3, 4), np.array([4] * 3))

    def evaluation(key, data, held_out):
        variables = task.init(key)
        personal = jax.tree.map(lambda x: jnp.stack([x] * 3), variables.personal)
        own = variables._replace(personal=personal)
        return (
            correct_by_client(task, own, data, placement),
            holdout_accuracy(task, own, data, held_out, placement),
        )

    return lower(jax.jit(evaluation), platform, jax.random.key(3), data, held_out)


def count(text, operation):
    return len(re.findall(rf"\b{re.escape(operation)}\b", text))


def assert_no_grouped_convolution(text):
    groups = re.findall(r"(?:feature|batch)_group_count = (\d+)", text)
    assert set(groups) <= {"1"}


def assert_forms(lower_program, form, products_of_winograd, dense=0, num_devices=1):
    """What the programs for a CPU and for accelerators hold.

    Args:
      lower_program: (task, platform, num_devices) -> StableHLO.
      form: of the second convolution on a CPU.
      products_of_winograd: matrix products of that convolution in Winograd's form; as
        patches it has one for 16 of them.
      dense: gradients of dense kernels, which are no products on a CPU.
    """
    texts = {
        platform: lower_program(make_gated_task(form), platform, num_devices)
        for platform in ("cpu", "cuda", "tpu")
    }
    products = {
        name: count(text, "stablehlo.dot_general") for name, text in texts.items()
    }
    for text in texts.values():
        assert_no_grouped_convolution(text)
    cpu = texts.pop("cpu")
    assert count(cpu, "chlo.top_k") == 0
    assert (count(cpu, "stablehlo.convolution") > 0) == (form == "direct")
    patches = products_of_winograd // 16
    more = {"direct": -patches, "winograd": products_of_winograd - patches}[form]
    for platform, text in texts.items():
        assert count(text, "chlo.top_k") > 0
        assert count(text, "stablehlo.convolution") == 0
        assert products["cpu"] == products[platform] + more - dense


@pytest.mark.parametrize(
    ("form", "num_devices"),
    # Both forms and both numbers of devices, each once.
    [
        pytest.param(*case, marks=pytest.mark.long if case == ("direct", 1) else ())
        for case in CASES
    ],
)
def test_a_gated_round_has_the_forms_of_its_platform(form, num_devices):
    """A step convolves three times: the features and both gradients."""
    assert_forms(lower_round, form, 3 * 16, dense=1, num_devices=num_devices)


def test_a_preparation_has_the_forms_of_its_platform():
    assert_forms(lower_preparation, "direct", 3 * 16, dense=1)


@pytest.mark.parametrize(("form", "num_devices"), CASES)
def test_a_gated_evaluation_has_the_forms_of_its_platform(form, num_devices):
    assert_forms(lower_evaluation, form, 2 * 16, num_devices=num_devices)


def test_what_was_traced_for_one_platform_is_not_taken_for_another():
    """JAX keeps traces of the functions that are jitted inside of a program."""

    def lower_in_order(platforms):
        task = make_gated_task("direct")
        task = task._replace(loss=jax.jit(task.loss), predict=jax.jit(task.predict))
        return {
            name: (lower_round(task, name), lower_evaluation(task, name))
            for name in platforms
        }

    forward, backward = lower_in_order(("cpu", "tpu")), lower_in_order(("tpu", "cpu"))
    assert forward == backward
    for on_cpu, on_tpu in zip(forward["cpu"], forward["tpu"], strict=True):
        assert "stablehlo.convolution" in on_cpu and "chlo.top_k" not in on_cpu
        assert "stablehlo.convolution" not in on_tpu and "chlo.top_k" in on_tpu


def test_outside_of_a_placement_the_default_device_decides():
    layer = jax.jit(lambda x, kernel: top_k_mask(convolve(x, kernel), 2))
    arguments = jnp.ones((1, 8, 8, 8)), jnp.ones((3, 3, 8, 4))
    assert traced_platform() == default_platform() == "cpu"
    with jax.default_device(jax.devices("cpu")[1]):
        assert traced_platform() == "cpu"
    for platform, form in (("tpu", False), ("cpu", True)):
        with tracing_for(platform):
            text = layer.lower(*arguments).as_text()
            assert ("stablehlo.convolution" in text) == form
            assert ("chlo.top_k" in text) != form
        assert "stablehlo.convolution" in layer.lower(*arguments).as_text()


@pytest.mark.parametrize(
    ("strides", "padding", "channels", "dtype"),
    [(1, "SAME", 8, "float32"), (2, 1, 48, "float32"), (1, 1, 3, "bfloat16")],
)
def test_a_program_for_any_platform_has_a_free_batch(strides, padding, channels, dtype):
    """It has one convolution for each of its three platforms."""

    def layer(x, kernel):
        y = convolve(x, kernel, strides=strides, padding=padding)
        return y, top_k_mask(y.astype(jnp.float32).mean((1, 2)), 2)

    def for_any(x, kernel):
        with tracing_for(ANY):
            return layer(x, kernel)

    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 8, 6, channels)), dtype)
    kernel = jnp.asarray(rng.normal(size=(3, 3, channels, 4)), jnp.float32)
    shapes = (
        jax.ShapeDtypeStruct(
            (*jax.export.symbolic_shape("batch"), *x.shape[1:]), dtype
        ),
        jax.ShapeDtypeStruct(kernel.shape, kernel.dtype),
    )
    platforms = ["cpu", "cuda", "tpu"]
    program = jax.export.export(jax.jit(for_any), platforms=platforms)(*shapes)
    assert program.mlir_module().count("= stablehlo.convolution(") == len(platforms)
    for found, wanted in zip(program.call(x, kernel), layer(x, kernel), strict=True):
        assert found.dtype == wanted.dtype
        found, wanted = (np.asarray(y, np.float32) for y in (found, wanted))
        tolerance = 1e-5 if dtype == "float32" else 2**-5
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=tolerance)


def test_a_placement_decides_whatever_is_around_it():
    seen = []

    def function(whole, parts):
        seen.append(traced_platform())
        return whole + parts

    with tracing_for("cuda"):
        for placement in (
            ONE_DEVICE,
            make_placement(2),
            make_placement(platform="tpu"),
        ):
            share_work(placement, function, jnp.zeros(1), jnp.ones(2))
        assert traced_platform() == "cuda"
    assert seen == ["cpu", "cpu", "tpu"]


def test_a_placement_knows_its_platform():
    assert ONE_DEVICE.platform == make_placement(2).platform == "cpu"
    assert make_placement(platform="cuda").platform == "cuda"
    assert make_placement(2, "fixed_order", platform="tpu").platform == "tpu"
    with pytest.raises(ValueError, match="cpu, gpu, cuda, rocm, tpu, got 'gpus'"):
        make_placement(platform="gpus")
