"""Removing silent channels changes no logit, and what is removed comes back."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.models import NextCharLSTM
from fedjax_prune.models.channels import (
    alive_channels,
    drop_channels,
    trained_channels,
)
from fedjax_prune.models.costs import macs
from fedjax_prune.models.gates import GateSettings, num_kept
from fedjax_prune.pruning.smaller import compact, expand, kept_channels, shrink
from tests.small_models import SMALL, draw, draw_variables, start

CASES = [
    ("cnn", "none", {}),
    ("cnn", "gn", {"gates": GateSettings(0.5, mode="scale", rescale="sqrt")}),
    ("dropout_cnn", "none", {}),
    ("vgg11", "bn", {"gates": GateSettings(0.6)}),
    ("vgg11", "none", {}),
    ("two_cnn", "none", {"gates": GateSettings(0.5)}),
    ("femnist_cnn", "none", {}),
    ("resnet32", "bn", {}),
    ("resnet32", "gn", {"gates": GateSettings(0.5, resnet="literal")}),
    ("resnet9", "bn", {"gates": GateSettings(0.5)}),
    ("resnet9", "none", {}),
]


def ones_like(tree):
    return jax.tree.map(lambda x: np.ones(x.shape, bool), tree)


def masked_variables(model, shape, share=0.6, seed=1):
    """Makes variables and masks in which random channels of every group are pruned."""
    variables = draw_variables(model, shape)
    rng = np.random.default_rng(seed)
    groups = model.channel_groups(shape)
    alive = {g.name: jnp.asarray(rng.random(g.size) > share) for g in groups}
    for group in groups:
        alive[group.name] = alive[group.name].at[group.size // 2].set(True)
    drop = jax.jit(lambda tree, alive: drop_channels(tree, groups, alive))
    masks = drop(ones_like(variables["params"]), alive)
    params = jax.tree.map(np.multiply, variables["params"], masks)
    variables = variables | {"params": jax.tree.map(jnp.asarray, params)}
    if "gates" in variables:
        gates = jax.tree.map(
            lambda gate: {"alive": jnp.ones(gate["bias"].shape, bool)},
            variables["gates"],
            is_leaf=lambda tree: isinstance(tree, dict) and "bias" in tree,
        )
        variables["alive"] = drop(gates, alive)
    return variables, masks, alive


def predict(model, variables, images):
    mask = jnp.ones(images.shape[0], bool)
    return jax.jit(lambda v, x: model.apply(v, x, train=False, example_mask=mask))(
        variables, images
    )


@pytest.mark.parametrize(("name", "norm", "settings"), CASES)
def test_compacted_equals_masked(name, norm, settings):
    model, shape = SMALL[name]
    multiple = 4 if norm == "none" else 1
    model = model.clone(norm=norm, **settings)
    variables, masks, alive = masked_variables(model, shape)
    small = compact(model, variables, masks, shape, multiple=multiple)
    images = draw((3, *shape))
    expected = predict(model, variables, images)
    found = predict(small.model, small.variables, images)
    scale = float(jnp.abs(expected).max())
    assert scale > 1e-4
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)
    for group in model.channel_groups(shape):
        left = len(small.kept[group.name])
        living = int(alive[group.name].sum())
        assert left == min(group.size, -(-living // multiple) * multiple)
    fresh = jax.eval_shape(lambda: start(small.model, shape))
    shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)  # noqa: E731
    assert shapes(fresh["params"]) == shapes(small.variables["params"])
    kernels = flax.traverse_util.flatten_dict(small.variables["params"], sep="/")
    for layer in small.model.layers(shape):
        kernel = kernels[f"{layer.name}/kernel"]
        assert kernel.shape[-1] == layer.out_channels
        assert kernel.size == layer.taps * layer.in_channels * layer.out_channels
    assert macs(small.model, shape).dense < macs(model, shape).dense


@pytest.mark.parametrize(("name", "norm", "settings"), CASES[::2])
def test_perturbing_what_is_removed_changes_no_logit(name, norm, settings):
    """The weights that read a silent channel may have any value."""
    model, shape = SMALL[name]
    model = model.clone(norm=norm, **settings)
    variables, _, alive = masked_variables(model, shape)
    groups = model.channel_groups(shape)
    readers = [g._replace(producers=(), entries=()) for g in groups]
    writers = [g._replace(consumers=()) for g in groups]

    @jax.jit
    def perturb(params):
        untouched = drop_channels(ones_like(params), readers, alive)
        silent = drop_channels(ones_like(params), writers, alive)
        return jax.tree.map(
            lambda p, read, written: jnp.where(~read & written, 7.0, p),
            params,
            untouched,
            silent,
        )

    params = perturb(variables["params"])
    images = draw((2, *shape))
    expected = predict(model, variables, images)
    found = predict(model, variables | {"params": params}, images)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", SMALL)
def test_what_is_shrunk_comes_back(name):
    model, shape = SMALL[name]
    variables, masks, _ = masked_variables(model, shape)
    groups = model.channel_groups(shape)
    kept = kept_channels(model, masks, shape)
    # The rows of two clients have a leading axis; `t` is not an array of the model.
    tree = {"rows": jax.tree.map(lambda x: np.stack([x, 2 * x]), variables), "t": 3}
    smaller = jax.jit(lambda tree: shrink(tree, groups, kept))
    whole = jax.jit(lambda small, full: expand(small, groups, kept, full))
    small = smaller(tree)
    back = whole(small, jax.tree.map(np.zeros_like, tree))
    # Only entries of removed channels are left out.
    jax.tree.map(np.testing.assert_array_equal, small, smaller(back))
    removed = jax.tree.map(lambda b, t: np.all((b == 0) | (b == t)), back, tree)
    assert all(jax.tree.leaves(removed))
    jax.tree.map(np.testing.assert_array_equal, whole(small, tree), tree)
    # Here the paths are not longer than those of the slots.
    alone = smaller(variables["params"])
    first = jax.tree.map(lambda x: x[0], small["rows"]["params"])
    jax.tree.map(np.testing.assert_array_equal, alone, first)


def test_a_gate_ranks_pruned_channels_last():
    """A gate that keeps 4 of 8 channels keeps all three that are alive."""
    model, shape = SMALL["cnn"]
    model = model.clone(gates=GateSettings(0.5))
    variables = draw_variables(model, shape)
    channels = model.layers(shape)[0].out_channels
    assert num_kept(0.5, channels) == 4
    alive = jnp.zeros(channels, bool).at[jnp.array([1, 4, 6])].set(True)
    variables["alive"] = {"conv1": {"gate": {"alive": alive}}}
    mask = jnp.ones(5, bool)
    _, sown = jax.jit(
        lambda v, x: model.apply(
            v, x, train=True, example_mask=mask, mutable=["gate_sums"]
        )
    )(variables, draw((5, *shape)))
    selected = sown["gate_sums"]["conv1"]["gate"]["selected"]
    np.testing.assert_array_equal(selected, 5 * np.asarray(alive, np.float32))


def test_a_channel_is_alive_by_its_bias_alone():
    model, shape = SMALL["cnn"]
    masks = ones_like(draw_variables(model, shape)["params"])
    masks["conv1"]["kernel"][..., 2] = False
    group = model.channel_groups(shape)[0]
    assert alive_channels(masks, group).all()
    masks["conv1"]["bias"][2] = False
    np.testing.assert_array_equal(np.flatnonzero(~alive_channels(masks, group)), [2])


def test_a_pruned_channel_that_is_read_is_trained():
    """fc1 reads channel 1 of conv2 at the second pixel of its map."""
    model, shape = SMALL["cnn"]
    masks = jax.tree.map(
        np.zeros_like, ones_like(draw_variables(model, shape)["params"])
    )
    _, group, _ = model.channel_groups(shape)
    assert not trained_channels(masks, group).any()
    masks["fc1"]["kernel"][group.size + 1, 0] = True
    assert not alive_channels(masks, group).any()
    np.testing.assert_array_equal(np.flatnonzero(trained_channels(masks, group)), [1])
    masks["conv2"]["bias"][0] = True
    np.testing.assert_array_equal(
        np.flatnonzero(trained_channels(masks, group)), [0, 1]
    )


def test_of_a_group_without_channels_one_stays():
    model, shape = SMALL["cnn"]
    masks = jax.tree.map(
        np.zeros_like, ones_like(draw_variables(model, shape)["params"])
    )
    kept = kept_channels(model, masks, shape)
    assert [len(indices) for indices in kept.values()] == [1, 1, 1]
    with pytest.raises(ValueError, match="multiple must be at least 1, got 0"):
        kept_channels(model, masks, shape, multiple=0)


def test_nothing_of_an_lstm_can_be_removed():
    assert NextCharLSTM(11).channel_groups((5, 1, 1)) == ()
