"""Layers found in a program: counted by hand, and equal to those that models list."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import fedjax_prune as fp
from fedjax_prune.data.augment import TO_INPUT
from fedjax_prune.models.costs import macs, macs_of
from fedjax_prune.models.task import make_task
from fedjax_prune.models.traced import traced_layers
from tests.small_models import LSTM, SMALL


class Net(nn.Module):
    """Two convolutions, one of them depthwise, a dense layer and a bare matrix."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="wide")(x))
        x = nn.Conv(4, (3, 3), (2, 2), feature_group_count=4, name="deep")(x)
        x = nn.Dense(5, name="fc")(x.reshape(x.shape[0], -1))
        return x @ self.param("last", nn.initializers.ones, (5, 3))


def found(task):
    return {
        layer.name: (
            layer.in_channels * layer.out_channels * layer.taps,
            layer.positions,
        )
        for layer in task.layers
    }


def test_layers_have_their_weights_and_places():
    assert found(make_task(Net(), (8, 8, 2))) == {
        "wide": (3 * 3 * 2 * 4, 64),
        "deep": (3 * 3 * 4, 16),
        "fc": (4 * 4 * 4 * 5, 1),
        "last": (5 * 3, 1),
    }


class NNXNet(nnx.Module):
    def __init__(self, *, rngs):
        self.wide = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.fc = nnx.Linear(256, 3, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.wide(x).reshape(x.shape[0], -1))


def test_layers_of_an_nnx_module_are_found():
    assert found(make_task(NNXNet, (8, 8, 2))) == {"wide": (72, 64), "fc": (768, 1)}


def test_programs_inside_the_program_count_as_often_as_they_run():
    params = {"w": jnp.ones((4, 4)), "stack": jnp.ones((3, 4, 4)), "v": jnp.ones(4)}

    def function(params, x):
        def step(x, w):
            return jnp.tanh(x @ params["w"] @ w), None

        x, _ = jax.lax.scan(step, x, params["stack"])
        x = jax.checkpoint(lambda w, x: x @ w.T)(params["w"], x)
        x = jax.jit(lambda w, x: jax.nn.relu(x @ w))(params["w"], x)
        # A product of activations belongs to no layer.
        return x @ x.T + (x * params["v"][None]).sum()

    layers = traced_layers(function, params, jnp.ones((1, 4)))
    assert {layer.name: layer.positions for layer in layers} == {"w": 5, "stack": 1}


@pytest.mark.parametrize(("model", "shape"), [*SMALL.values(), LSTM])
def test_layers_are_those_that_networks_list(model, shape):
    """Their convolutions have other forms on CPUs, which multiply less often."""
    task = make_task(model, shape, to_input=TO_INPUT[model.needs().kind])
    variables = jax.eval_shape(task.init, jax.random.key(0))
    traced = traced_layers(
        lambda params, rest, x: task.predict(rest._replace(params=params), x),
        variables.params,
        variables._replace(params={}),
        jax.ShapeDtypeStruct((1, *shape), jnp.uint8),
    )
    listed = macs(model, shape)
    assert macs_of(traced).dense == listed.dense
    if model is not LSTM[0]:  # which lists the two kernels of a layer as one
        assert macs_of(traced).layers == listed.layers


class Reading(nn.Module):
    cell: nn.RNNCellBase

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="fc")(nn.RNN(self.cell)(x[..., 0])[:, -1])


def test_joined_kernels_of_a_cell_count_as_separate_ones():
    """Flax's optimised LSTM cell has the mathematics of its plain one."""
    plain = found(make_task(Reading(nn.LSTMCell(4, name="cell")), (5, 2, 1)))
    joined = found(make_task(Reading(nn.OptimizedLSTMCell(4, name="cell")), (5, 2, 1)))
    assert joined == plain
    # Four kernels for the two inputs and four for the hidden units, five times.
    each = {f"cell/i{gate}": (2 * 4, 5) for gate in "ifgo"}
    each |= {f"cell/h{gate}": (4 * 4, 5) for gate in "ifgo"}
    assert plain == each | {"fc": (4 * 3, 1)}


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.WeightNorm(nn.Conv(4, (3, 3), name="by_norm"))(x)
        x = nn.SpectralNorm(nn.Dense(3, name="by_value"))(x, update_stats=train)
        kernel = self.param("kernel", nn.initializers.normal(), (2, 3))
        # Weight standardisation.
        x = x[..., :2] @ ((kernel - kernel.mean(0, keepdims=True)) / kernel.std())
        return x.mean((1, 2))


def test_normalised_kernels_count_as_kernels():
    variables = Normalised().init(jax.random.key(0), jnp.ones((1, 4, 4, 2)))
    layers = traced_layers(
        lambda params, rest, x: Normalised().apply({"params": params, **rest}, x),
        variables["params"],
        {"batch_stats": variables["batch_stats"]},
        jnp.ones((1, 4, 4, 2)),
    )
    assert {layer.name: layer.positions for layer in layers} == {
        "by_norm": 16,
        "by_value": 16,
        "kernel": 16,
    }


def test_products_of_weights_alone_are_not_made_for_each_image():
    """A power iteration in a loop of known length, before the kernel is applied."""

    def scaled(params, x):
        w = params["kernel"]
        v = jax.lax.fori_loop(0, 3, lambda _, v: w @ (w.T @ v), jnp.ones(4))
        return x @ (w / jnp.linalg.norm(v))

    (layer,) = traced_layers(scaled, {"kernel": jnp.ones((4, 4))}, jnp.ones((1, 4)))
    assert layer.positions == 1


def test_weights_added_to_an_activation_make_no_weights_of_it():
    """A scatter has a program that adds two numbers; it is not what the layer calls."""

    def scattered(params, x):
        x = (x @ params["first"]).at[:, 0].add(params["shift"])
        return x @ params["second"]

    params = {name: jnp.ones((4, 4)) for name in ("first", "second")}
    layers = traced_layers(scattered, params | {"shift": jnp.ones(1)}, jnp.ones((1, 4)))
    assert [layer.name for layer in layers] == ["first", "second"]


@pytest.mark.parametrize(
    ("used", "macs"),
    [
        (lambda params, x: x @ params["a"][:, :3], {"a": 12}),
        (lambda params, x: x @ (params["a"][:, :2] @ params["b"]), {"a": 14, "b": 6}),
    ],
)
def test_weights_that_are_read_in_part_count_as_what_is_read(used, macs):
    """By hand: 4 x 3 of 4 x 6 entries; 4 x 5 products, shared 24 to 10."""
    params = {"a": jnp.ones((4, 6)), "b": jnp.ones((2, 5))}
    found = macs_of(traced_layers(used, params, jnp.ones((1, 4))))
    assert {name: layer.dense for name, layer in found.layers.items()} == macs


def test_a_choice_that_the_image_makes_is_no_constant():
    def chosen(params, x):
        zeros = jnp.zeros((1, 4))
        return jax.lax.cond(x.sum() > 0, lambda: zeros, lambda: x) @ params["kernel"]

    (layer,) = traced_layers(chosen, {"kernel": jnp.ones((4, 3))}, jnp.ones((1, 4)))
    assert (layer.name, layer.positions) == ("kernel", 1)


def test_activations_are_no_weights_whatever_is_added_to_them():
    """Neither a learned position nor a learned first state of a loop is a kernel."""
    params = {
        "kernel": jnp.ones((4, 4)),
        "low": {"a": jnp.ones((4, 1)), "b": jnp.ones((1, 4))},
        "place": jnp.ones((4, 4)),
        "start": jnp.ones((4, 4)),
    }

    def function(params, x):
        x = x + params["place"]
        x = x @ x.T
        adapted = params["kernel"] + params["low"]["a"] @ params["low"]["b"]
        left, right = jnp.split(adapted, 2, axis=1)
        x = jnp.concatenate([x @ left, x @ right], 1)
        return jax.lax.scan(lambda h, r: (h @ h.T, r), params["start"], x)

    layers = traced_layers(function, params, jnp.ones((4, 4)))
    assert {layer.name: layer.positions for layer in layers} == {"kernel": 4}


class Growing(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.ConvTranspose(4, (3, 3), strides=(2, 2), name="up")(x)
        return nn.Dense(3, name="fc")(x.mean((1, 2)))


def test_a_transposed_convolution_counts_no_zeros_that_it_inserts():
    """Each of the 16 pixels that it reads meets each weight once."""
    assert found(make_task(Growing(), (4, 4, 2)))["up"] == (3 * 3 * 2 * 4, 16)


class Convolving(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(), (3, 3, 32, 4))
        return fp.convolve(x, kernel).mean((1, 2))


def test_the_librarys_convolution_counts_as_one_of_flax():
    """On CPUs it is Winograd's, which transforms the kernel."""
    assert found(make_task(Convolving(), (8, 8, 32))) == {"kernel": (9 * 32 * 4, 64)}


def test_a_model_without_products_has_no_layers():
    class Scale(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x.reshape(x.shape[0], -1) * self.param(
                "s", nn.initializers.ones, (1, 4)
            )

    assert make_task(Scale(), (2, 2, 1)).layers == ()
