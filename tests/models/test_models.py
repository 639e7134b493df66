"""The models: start, masks, gates and gradients."""

from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.models import CNN, VGG11, NextCharLSTM, ResNet32, TwoCNN
from fedjax_prune.models.blocks import GatedConv, TorchDense, scaled
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.pooling import max_pool
from fedjax_prune.models.resnet import Block
from tests.small_models import SMALL, draw, draw_variables, start


def apply(module, *arguments, **keywords) -> Any:
    """Calls a module; Flax's own annotation fits no use of the result."""
    return module.apply(*arguments, **keywords)


def train_step(model, variables, images, example_mask, key=0) -> Any:
    return model.apply(
        variables,
        images,
        train=True,
        example_mask=example_mask,
        mutable=["batch_stats", "gate_sums"],
        rngs={"dropout": jax.random.key(key)},
    )


@pytest.mark.parametrize("name", SMALL)
def test_params_do_not_depend_on_the_gates(name):
    model, shape = SMALL[name]
    half = model.clone(gates=GateSettings(0.5))
    everything = model.clone(gates=GateSettings(1.0))
    plain, gated, full = jax.jit(
        lambda: tuple(start(m, shape) for m in (model, half, everything))
    )()
    jax.tree.map(np.testing.assert_array_equal, plain["params"], gated["params"])
    jax.tree.map(np.testing.assert_array_equal, plain, full)
    assert "gates" not in plain
    kernels = [x for x in jax.tree.leaves(plain["params"]) if x.ndim > 1]
    assert all(len(np.unique(x)) > x.size / 2 for x in kernels)
    expected = {
        f"{layer.name}/gate/{leaf}"
        for layer in half.layers(shape)
        if layer.gated
        for leaf in ("kernel", "bias")
    }
    names = flax.traverse_util.flatten_dict(gated["gates"], sep="/")
    assert set(names) == expected


@pytest.mark.parametrize("name", SMALL)
def test_keep_ratio_one_is_the_ungated_model_and_less_is_counted(name):
    model, shape = SMALL[name]
    half = model.clone(gates=GateSettings(0.5))
    everything = model.clone(gates=GateSettings(1.0, rescale="inverse"))
    variables = draw_variables(half, shape)
    images = draw((3, *shape))
    mask = jnp.array([True, True, False])
    plain, full, gated = jax.jit(
        lambda v, x: tuple(train_step(m, v, x, mask) for m in (model, everything, half))
    )(variables, images)
    jax.tree.map(np.testing.assert_array_equal, plain, full)
    assert "gate_sums" not in full[1]
    logits, state = gated
    assert logits.shape == (3, 4) and logits.dtype == jnp.float32
    assert float(jnp.abs(logits - plain[0]).max()) > 0
    sums: Any = flax.traverse_util.flatten_dict(state["gate_sums"], sep="/")
    for layer in half.layers(shape):
        if layer.gated:
            selected = sums[f"{layer.name}/gate/selected"]
            assert selected.shape == (layer.out_channels,)
            assert float(selected.sum()) == 2 * layer.kept_out
            assert float(sums[f"{layer.name}/gate/lasso"]) > 0


@pytest.mark.parametrize(
    ("name", "norm"),
    [("cnn", "bn"), ("cnn", "gn"), ("resnet32", "bn"), ("resnet9", "bn")],
)
def test_padding_changes_nothing_real(name, norm):
    model, shape = SMALL[name]
    model = model.clone(norm=norm, gates=GateSettings(0.5))
    variables = draw_variables(model, shape)
    images = draw((3, *shape))
    mask = jnp.array([True, True, False])
    step = jax.jit(lambda v, x, mask: train_step(model, v, x, mask))
    padded, padded_state = step(variables, images, mask)
    changed, changed_state = step(variables, images.at[2].set(100.0), mask)
    alone, alone_state = step(variables, images[:2], mask[:2])
    np.testing.assert_array_equal(padded[:2], changed[:2])
    np.testing.assert_allclose(padded[:2], alone, rtol=1e-5, atol=1e-6)
    for one, two, tolerance in (
        (padded_state, changed_state, 0),
        (padded_state, alone_state, 1e-5),
    ):
        jax.tree.map(
            lambda a, b, r=tolerance: np.testing.assert_allclose(a, b, rtol=r, atol=r),
            one,
            two,
        )


def test_running_statistics_are_those_of_the_dense_output():
    conv = GatedConv(6, GateSettings(0.5), "bn")
    x = draw((4, 5, 5, 2))
    real = np.array([True, True, False, True])
    keys = {"params": jax.random.key(1), "gates": jax.random.key(2)}
    arguments = {"train": True, "example_mask": jnp.asarray(real)}

    @jax.jit
    def run(x):
        variables = conv.init(keys, x, **arguments)
        _, state = conv.apply(variables, x, **arguments, mutable=["batch_stats"])
        return variables["params"]["kernel"], state["batch_stats"]["norm"]

    kernel, found = run(x)
    padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    y = np.einsum("bhwcij,ijco->bhwo", windows, np.asarray(kernel))[real]
    # Initialising in training mode changes no statistics: they start from 0 and 1.
    np.testing.assert_allclose(found["mean"], 0.1 * y.mean((0, 1, 2)), atol=1e-6)
    variance = 0.9 + 0.1 * y.var((0, 1, 2))
    np.testing.assert_allclose(found["var"], variance, rtol=1e-5)


@pytest.mark.parametrize("mode", ["hard_ste", "scale", "hard_nograd"])
def test_filter_that_no_sample_selected_has_exactly_no_gradient(mode):
    model, shape = SMALL["cnn"]
    model = model.clone(width=1.0, gates=GateSettings(0.25, mode=mode))
    variables = draw_variables(model, shape)
    images = draw((2, *shape))

    def squares(params):
        logits, state = train_step(
            model, {**variables, "params": params}, images, jnp.ones(2, bool)
        )
        return (logits**2).sum(), state

    found, state = jax.jit(jax.grad(squares, has_aux=True))(variables["params"])
    for name in ("conv1", "conv2"):
        selected = np.asarray(state["gate_sums"][name]["gate"]["selected"]) > 0
        filters = np.abs(np.asarray(found[name]["kernel"])).sum((0, 1, 2))
        assert 0 < selected.sum() < selected.size
        assert (filters[~selected] == 0).all()
        assert (np.asarray(found[name]["bias"])[~selected] == 0).all()
        assert filters[selected].sum() > 0


def test_only_the_dense_surrogate_reaches_the_gates_of_dropped_channels():
    x = jnp.abs(draw((1, 4, 4, 3)))
    keys = {"params": jax.random.key(1), "gates": jax.random.key(2)}
    reached = {}
    for mode in ("hard_ste", "hard_dense_ste", "hard_nograd"):
        conv = GatedConv(8, GateSettings(0.5, mode=mode), "none")
        arguments = {"train": True, "example_mask": jnp.ones(1, bool)}

        def total(gates, variables, conv=conv, arguments=arguments):
            changed = {**variables, "gates": gates}
            features, mask = apply(conv, changed, x, **arguments)
            return features.sum(), mask[0]

        variables = jax.jit(
            lambda conv=conv, arguments=arguments: conv.init(keys, x, **arguments)
        )()
        gradient, mask = jax.jit(jax.grad(total, has_aux=True))(
            variables["gates"], variables
        )
        # The gradient of a gate's bias is that of its logit.
        reached[mode] = np.asarray(gradient["gate"]["bias"]) != 0
        assert not (reached[mode] & (np.asarray(mask) == 0)).any() or (
            mode == "hard_dense_ste"
        )
    assert reached["hard_dense_ste"].sum() > reached["hard_ste"].sum() > 0
    assert not reached["hard_nograd"].any()


def test_clients_mapped_over_their_own_params_equal_one_by_one():
    model, shape = SMALL["cnn"]
    model = model.clone(norm="bn", gates=GateSettings(0.5))
    clients = [draw_variables(model, shape, seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *clients)
    images = draw((2, 3, *shape))

    def logits(variables, x):
        return train_step(model, variables, x, jnp.ones(3, bool))[0]

    found = jax.jit(jax.vmap(logits))(stacked, images)
    one_by_one = jax.jit(logits)
    for index, variables in enumerate(clients):
        expected = one_by_one(variables, images[index])
        np.testing.assert_allclose(found[index], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cnn", "vgg11"])
def test_dropout_acts_in_training_only(name):
    model, shape = SMALL[name]
    model = model.clone(dropout=0.5)
    variables = draw_variables(model, shape)
    images = draw((2, *shape))
    real = jnp.ones(2, bool)

    @jax.jit
    def run(key):
        step = {"example_mask": real, "mutable": ["batch_stats"]}
        rngs = {"dropout": key}
        train, _ = model.apply(variables, images, train=True, rngs=rngs, **step)
        return train, model.apply(variables, images, train=False, example_mask=real)

    (one, calm), (two, again) = (run(jax.random.key(seed)) for seed in (0, 1))
    assert float(jnp.abs(one - two).max()) > 0
    np.testing.assert_array_equal(calm, again)


def test_initial_values():
    conv = GatedConv(64, None, "none")
    arguments = {"train": False, "example_mask": jnp.ones(1, bool)}
    x = jnp.ones((1, 2, 2, 64))
    params = jax.jit(lambda: conv.init(jax.random.key(0), x, **arguments))()["params"]
    # The deviation of 36,864 draws has a standard error of 0.4 %.
    deviation = float(params["kernel"].std())
    assert deviation == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    np.testing.assert_array_equal(params["bias"], np.zeros(64))
    dense: Any = TorchDense(512).init(jax.random.key(0), jnp.ones((1, 256)))["params"]
    for leaf in jax.tree.leaves(dense):
        largest = float(jnp.abs(leaf).max())
        assert 0.98 / 16 < largest <= 1 / 16
    model, shape = SMALL["resnet32"]
    resnet = jax.eval_shape(lambda: start(model, shape))["params"]
    assert set(resnet["stem"]) == {"kernel", "norm"}
    bare = jax.eval_shape(lambda: start(model.clone(norm="none"), shape))["params"]
    assert set(bare["stem"]) == {"kernel", "bias"}


def test_shortcut_takes_every_second_pixel_and_appends_zeros():
    block = Block(4, None, "none", strides=2, inner=4, channels_before=4)
    x = jnp.arange(40.0).reshape(1, 5, 4, 2)
    arguments = {"train": False, "example_mask": jnp.ones(1, bool)}
    silent = {"kernel": jnp.zeros((3, 3, 2, 4)), "bias": jnp.zeros(4)}
    params = {"conv_a": silent, "conv_b": {**silent, "kernel": jnp.zeros((3, 3, 4, 4))}}
    out, _ = apply(block, {"params": params}, x, jnp.ones((1, 2)), **arguments)
    assert out.shape == (1, 3, 2, 4)
    np.testing.assert_array_equal(out[..., :2], x[:, ::2, ::2])
    np.testing.assert_array_equal(out[..., 2:], np.zeros((1, 3, 2, 2)))


def test_max_pool_leaves_an_odd_edge_out():
    x = jnp.arange(15, dtype=jnp.float32).reshape(1, 3, 5, 1)
    np.testing.assert_array_equal(max_pool(x)[0, :, :, 0], [[6, 8]])
    np.testing.assert_array_equal(max_pool(x[0])[:, :, 0], [[6, 8]])


def test_width_multiplies_channels_and_hidden_units():
    assert [scaled(0.25, c) for c in (64, 10, 1)] == [16, 3, 1]
    channels = [x.out_channels for x in VGG11(10, width=0.25).layers((32, 32, 3))]
    assert channels == [16, 32, 64, 64, 128, 128, 128, 128, 128, 128, 10]
    sizes = [x.positions for x in ResNet32(10).layers((28, 28, 1))]
    assert sizes == [784] * 11 + [196] * 10 + [49] * 10 + [1]


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (9, 7, 2)])
def test_cnn_takes_any_small_image(shape):
    model = CNN(3, width=0.25)
    variables = jax.eval_shape(lambda: start(model, shape))
    rows = (shape[0] // 4) * (shape[1] // 4) * 8
    assert variables["params"]["fc1"]["kernel"].shape == (rows, 16)


def test_impossible_models_are_refused():
    with pytest.raises(ValueError, match=r"gates must be None .*, got GateSettings\("):
        NextCharLSTM(10, gates=GateSettings(0.5))
    with pytest.raises(ValueError, match="multiples of 32, got 28x28"):
        VGG11(10).layers((28, 28, 1))
    with pytest.raises(ValueError, match="multiples of 32, got 28x28"):
        start(VGG11(10), (28, 28, 1))
    with pytest.raises(ValueError, match="blocks_per_stage must be at least 1, got 0"):
        ResNet32(10, blocks_per_stage=0)
    with pytest.raises(ValueError, match="at least 4x4, got 3x8"):
        CNN(10).layers((3, 8, 1))
    for model in (CNN, VGG11, ResNet32):
        with pytest.raises(ValueError, match=r"norm must be one of .*, gn, got 'ln'"):
            model(10, norm="ln")
        with pytest.raises(ValueError, match=r"width must be above 0, got 0\.0"):
            model(10, width=0.0)
        with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
            model(10, dropout=1.0)
        with pytest.raises(ValueError, match=r"keep_ratio must be in \(0, 1\], got 2"):
            model(10, gates=GateSettings(2))
        with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
            model(0)


def test_a_group_norm_of_one_pixel_is_refused():
    """It would be a constant: conv2 of TwoCNN has such a map on images of 6x6."""
    assert TwoCNN(10, norm="gn").layers((8, 8, 1))
    with pytest.raises(ValueError, match=r"none or bn for TwoCNN .*6x6.* of conv2"):
        TwoCNN(10, norm="gn").layers((6, 6, 1))
    small = {"norm": "gn", "width": 0.25, "blocks_per_stage": 1}
    assert ResNet32(10, **small).layers((5, 5, 1))
    with pytest.raises(ValueError, match=r"of 4x4 pixels, .* of stage3_block1"):
        ResNet32(10, **small).layers((4, 4, 1))
