"""Gathered equals masked, and is as small as the MAC table says."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.models import CNN, VGG11, ResNet32, blocks, convolution
from fedjax_prune.models.costs import macs
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.pruning.smaller import gathered_predict
from tests.small_models import SMALL, draw, draw_variables, start


def masked(model, variables, images) -> Any:
    return model.apply(
        variables,
        images,
        train=False,
        example_mask=jnp.ones(images.shape[0], bool),
    )


CASES = [
    ("cnn", "none", {}),
    ("cnn", "bn", {"mode": "scale", "rescale": "sqrt"}),
    ("cnn", "gn", {"mode": "hard_dense_ste", "rescale": "inverse"}),
    ("cnn", "none", {"first": False}),
    ("vgg11", "none", {"mode": "scale", "rescale": "inverse"}),
    ("vgg11", "bn", {}),
    ("vgg11", "gn", {"rescale": "sqrt"}),
    ("resnet32", "bn", {"resnet": "branch"}),
    ("resnet32", "gn", {"resnet": "inner", "rescale": "inverse"}),
    ("resnet32", "none", {"resnet": "literal", "rescale": "sqrt"}),
    ("resnet32", "bn", {"resnet": "literal", "mode": "scale"}),
]


@pytest.mark.parametrize(("name", "norm", "settings"), CASES)
def test_gathered_equals_masked(name, norm, settings):
    model, shape = SMALL[name]
    model = model.clone(norm=norm, gates=GateSettings(0.5, **settings))
    variables = draw_variables(model, shape)
    images = draw((2, *shape))

    @jax.jit
    def both(variables, images):
        gathered = jax.lax.map(lambda x: gathered_predict(model, variables, x), images)
        return gathered, masked(model, variables, images)

    found, expected = both(variables, images)
    scale = float(jnp.abs(expected).max())
    assert scale > 1e-3
    np.testing.assert_allclose(found, expected, atol=2e-5 * scale)


@pytest.mark.parametrize("name", ["cnn", "resnet32", "resnet9"])
def test_layers_that_are_not_gathered_give_the_same(name, monkeypatch):
    model, shape = SMALL[name]
    model = model.clone(gates=GateSettings(0.5))
    variables, image = draw_variables(model, shape), draw(shape)
    found = []
    for gathers in (True, False):
        monkeypatch.setattr(blocks, "is_gathered", lambda *_, g=gathers: g)
        found.append(
            jax.jit(lambda v, x: gathered_predict(model, v, x))(variables, image)
        )
    scale = float(jnp.abs(found[0]).max())
    np.testing.assert_allclose(found[1], found[0], atol=2e-5 * scale)


def test_gathered_reads_maps_of_several_pixels_and_odd_sizes():
    model, shape = SMALL["cnn"][0].clone(gates=GateSettings(0.5)), (9, 15, 2)
    variables = draw_variables(model, shape)
    found, expected = jax.jit(
        lambda v, x: (gathered_predict(model, v, x[0]), masked(model, v, x)[0])
    )(variables, draw((1, *shape)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_gathered_can_be_mapped():
    model, shape = SMALL["cnn"]
    model = model.clone(gates=GateSettings(0.5))
    variables = draw_variables(model, shape)
    images = draw((3, *shape))
    mapped, expected = jax.jit(
        lambda v, x: (
            jax.vmap(lambda image: gathered_predict(model, v, image))(x),
            masked(model, v, x),
        )
    )(variables, images)
    np.testing.assert_allclose(mapped, expected, rtol=1e-4, atol=1e-5)


def product_sizes(jaxpr):
    """Sums the multiply-accumulates of all products, in inner jaxprs too."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += equation.outvars[0].aval.size * math.prod(
                shape[axis] for axis in contracted
            )
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            dimensions = equation.params["dimension_numbers"]
            out_channels = kernel.shape[dimensions.rhs_spec[0]]
            per_output = kernel.size // out_channels
            total += equation.outvars[0].aval.size * per_output
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(value, "eqns"):
                total += product_sizes(value)
    return total


@pytest.mark.parametrize(
    "model",
    [
        VGG11(10, gates=GateSettings(0.705)),
        ResNet32(10, gates=GateSettings(0.61)),
        ResNet32(10, gates=GateSettings(0.5, resnet="inner")),
        ResNet32(10, gates=GateSettings(0.707, resnet="literal")),
        CNN(10, gates=GateSettings(0.5, first=False)),
    ],
    ids=["vgg11", "branch", "inner", "literal", "cnn"],
)
def test_products_are_as_small_as_the_table_says(model, monkeypatch):
    # The table counts by definition; Winograd's form multiplies less.
    monkeypatch.setattr(convolution, "form_of", lambda *_: "patches")
    # Large kernels on small maps are not gathered, because copying takes longer.
    monkeypatch.setattr(blocks, "is_gathered", lambda *_: True)
    shape = (32, 32, 3)
    variables = jax.eval_shape(lambda: start(model, shape))
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    batch = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    counted = macs(model, shape)
    small = jax.make_jaxpr(lambda v, x: gathered_predict(model, v, x))(variables, image)
    assert product_sizes(small.jaxpr) == counted.kept + counted.gates
    # The same count for the masked model, which saves nothing.
    large = jax.make_jaxpr(lambda v, x: masked(model, v, x))(variables, batch)
    assert product_sizes(large.jaxpr) == counted.dense + counted.gates
