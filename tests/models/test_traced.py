"""Layers found in a program: counted by hand, and equal to those that models list."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_prune.models.task import make_task
from fedjax_prune.models.traced import traced_layers


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


def test_a_model_without_products_has_no_layers():
    class Scale(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x.reshape(x.shape[0], -1) * self.param(
                "s", nn.initializers.ones, (1, 4)
            )

    assert make_task(Scale(), (2, 2, 1)).layers == ()
