"""Tiny instances of every model and cheap variables for them."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.models import (
    CNN,
    FEMNISTCNN,
    VGG11,
    DropoutCNN,
    NextCharLSTM,
    ResNet9,
    ResNet32,
    TwoCNN,
)
from fedjax_prune.models.costs import dense_layer

SMALL = {
    "cnn": (CNN(4, width=0.5), (8, 8, 1)),
    "dropout_cnn": (DropoutCNN(4, width=0.25), (8, 8, 1)),
    "vgg11": (VGG11(4, width=0.0625), (32, 32, 3)),
    "resnet32": (ResNet32(4, width=0.375, blocks_per_stage=1), (8, 8, 3)),
    "two_cnn": (TwoCNN(4, width=0.25), (9, 9, 1)),
    "femnist_cnn": (FEMNISTCNN(4, width=0.0625), (7, 7, 1)),
    "resnet9": (ResNet9(4, width=0.0625), (32, 32, 3)),
}
"""The models for images."""

LSTM = (NextCharLSTM(11, width=0.0625), (5, 1, 1))


def start(model, shape, seed=0) -> Any:
    """Initialises a model's collections, without what was sown."""
    params_key, gates_key = jax.random.split(jax.random.key(seed))
    variables = model.init(
        {"params": params_key, "gates": gates_key},
        jnp.zeros((1, *shape)),
        train=False,
        example_mask=jnp.ones(1, bool),
    )
    return {name: variables[name] for name in variables if name != "gate_sums"}


def draw_variables(model, shape, seed=0) -> Any:
    """Draws every variable with numpy, so that no bias or statistic is trivial."""
    rng = np.random.default_rng(seed)

    def draw_leaf(path, leaf):
        fan_in = max(1, math.prod(leaf.shape[:-1]))
        values = rng.normal(size=leaf.shape) * (2 / fan_in) ** 0.5
        if path[-1].key == "var":
            values = 0.5 + rng.uniform(size=leaf.shape)
        return jnp.asarray(values, jnp.float32)

    tree = jax.eval_shape(lambda: start(model, shape))
    return jax.tree_util.tree_map_with_path(draw_leaf, tree)


def draw(shape):
    """Draws a normal array with numpy, which has nothing to compile."""
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


class Headed(nn.Module):
    """A recurrent cell, with kernels in modules of its own, and a personal head."""

    @nn.compact
    def __call__(self, images):
        x = nn.RNN(nn.OptimizedLSTMCell(4, name="cell"))(images[..., 0])[:, -1]
        return x @ self.variable("gates", "head", jnp.ones, (4, 3)).value

    def layers(self, image_shape):
        return (
            dense_layer("cell", 2 + 4, 16, 2 + 4)._replace(positions=2),
            dense_layer("head", 4, 3, 4),
        )
