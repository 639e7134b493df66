"""Costs: the counts of the papers' models, from shapes alone."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.models import (
    CNN,
    FEMNISTCNN,
    VGG11,
    NextCharLSTM,
    ResNet9,
    ResNet32,
    TwoCNN,
)
from fedjax_prune.models.costs import (
    keep_ratio_for,
    macs,
    num_entries,
    params_used,
    tree_bytes,
)
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.task import make_task

SHAPE = (32, 32, 3)


def shapes(model, image_shape=SHAPE, dtype=jnp.float32):
    """Returns the model's collections as shapes."""
    key = jax.random.key(0)
    return jax.eval_shape(
        lambda: model.init(
            {"params": key, "gates": key},
            jnp.zeros((1, *image_shape), dtype),
            train=False,
            example_mask=jnp.ones(1, bool),
        )
    )


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def gated(model, keep_ratio, **settings):
    return model(10, gates=GateSettings(keep_ratio, **settings))


def test_vgg11_has_the_published_parameters_and_macs():
    variables = shapes(gated(VGG11, 0.705))
    assert count(variables["params"]) == 9_750_922
    sizes = [256, 8_320, 33_024, 65_792, 131_584, 262_656, 262_656, 262_656]
    gates = variables["gates"]
    assert [count(gates[f"conv{i}"]) for i in range(1, 9)] == sizes
    weights = [
        math.prod(variables["params"][f"conv{i}"]["kernel"].shape) for i in range(1, 9)
    ]
    assert weights == [
        1_728, 73_728, 294_912, 589_824, 1_179_648, 2_359_296, 2_359_296, 2_359_296
    ]  # fmt: skip
    counted = macs(VGG11(10), SHAPE)
    per_conv = [counted.layers[f"conv{i}"].dense for i in range(1, 9)]
    assert per_conv == [
        1_769_472, 18_874_368, 18_874_368, 37_748_736,
        18_874_368, 37_748_736, 9_437_184, 9_437_184,
    ]  # fmt: skip
    assert sum(per_conv) == 152_764_416
    assert counted.dense == counted.kept == 153_293_824
    assert counted.gates == 0
    assert sum(counted.layers[f"fc{i}"].dense for i in (1, 2, 3)) == 529_408


def test_vgg11_with_batch_norm_keeps_its_biases():
    variables = shapes(VGG11(10, norm="bn"))
    assert count(variables["params"]) == 9_756_426
    assert count(variables["batch_stats"]) == 5_504


def test_resnet32_has_the_published_parameters_and_macs():
    variables = shapes(gated(ResNet32, 0.61))
    params = variables["params"]
    assert count(params) == 464_154
    assert count(variables["batch_stats"]) == 2_272
    assert count(variables["gates"]) == 52_320
    assert count(variables["gates"]["stage2_block1"]["conv_a"]) == 544
    assert count(variables["gates"]["stage3_block5"]["conv_b"]) == 4_160
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
    assert count(kernels) == 461_232
    counted = macs(ResNet32(10), SHAPE)
    assert counted.dense == 68_862_592
    assert counted.layers["stem"].dense == 442_368
    assert counted.layers["stage2_block1/conv_a"].dense == 1_179_648
    stage_3 = [c.dense for n, c in counted.layers.items() if n.startswith("stage3")]
    assert sum(stage_3) == 1_179_648 + 21_233_664
    assert counted.layers["fc"].dense == 640


@pytest.mark.parametrize(
    ("model", "image_shape", "params", "layers"),
    [
        (
            TwoCNN(10),
            (24, 24, 1),
            1_663_370,
            [387_200, 5_120_000, 1_605_632, 5_120],
        ),
        (
            TwoCNN(10),
            (24, 24, 3),
            1_664_970,
            [1_161_600, 5_120_000, 1_605_632, 5_120],
        ),
        (
            TwoCNN(100, width=4),
            (24, 24, 3),
            7_303_524,
            [4_646_400, 81_920_000, 6_422_528, 51_200],
        ),
        (
            FEMNISTCNN(62),
            (28, 28, 1),
            13_180_734,
            [1_081_600, 29_491_200, 12_845_056, 126_976],
        ),
    ],
)
def test_networks_of_autoflip(model, image_shape, params, layers):
    assert count(shapes(model, image_shape)["params"]) == params
    counted = macs(model, image_shape)
    assert [layer.dense for layer in counted.layers.values()] == layers
    assert counted.dense == sum(layers)


@pytest.mark.parametrize(("num_classes", "params"), [(10, 6_575_370), (100, 6_621_540)])
def test_resnet9(num_classes, params):
    model = ResNet9(num_classes, norm="bn")
    found = shapes(model)["params"]
    assert count(found) == params
    assert count(found["fc"]) == 512 * num_classes + num_classes
    # By hand: a 3x3 convolution has 9 in out MACs for each of its side^2 pixels.
    widths = [3, 64, 128, 128, 128, 256, 512, 512, 512]
    sides = [32, 32, 16, 16, 16, 8, 4, 4]
    convolutions = sum(
        9 * a * b * side**2
        for a, b, side in zip(widths[:-1], widths[1:], sides, strict=True)
    )
    assert macs(model, SHAPE).dense == convolutions + 512 * num_classes
    assert round(convolutions / 1e6, 1) == 379.3


def test_next_char_lstm():
    model, shape = NextCharLSTM(80), (80, 1, 1)
    params = shapes(model, shape, jnp.int32)["params"]
    # PyTorch has two bias vectors in each layer, and this model has one.
    assert count(params) == 817_872 == 819_920 - 2 * 4 * 256
    counted = macs(model, shape)
    assert counted.dense == 80 * (270_336 + 524_288) + 256 * 80 == 63_590_400


def outputs_only(keep_ratio):
    layers = gated(VGG11, keep_ratio).layers(SHAPE)
    return sum(x.in_channels * x.kept_out * x.taps * x.positions for x in layers)


FRACTIONS = {
    # keep ratio: VGG-11 all, first dense, outputs only; ResNet-32 branch, inner,
    # literal
    0.25: (0.067, 0.098, 0.253, 0.158, 0.255, 0.075),
    0.50: (0.255, 0.291, 0.502, 0.375, 0.503, 0.263),
    0.60: (0.364, 0.399, 0.602, 0.484, 0.607, 0.378),
    0.707: (0.502, 0.532, 0.708, 0.598, 0.705, 0.505),
    0.75: (0.566, 0.592, 0.751, 0.655, 0.752, 0.572),
    0.90: (0.811, 0.823, 0.900, 0.848, 0.896, 0.807),
}


@pytest.mark.parametrize("keep_ratio", FRACTIONS)
def test_kept_share_of_the_macs(keep_ratio):
    models = [
        gated(VGG11, keep_ratio),
        gated(VGG11, keep_ratio, first=False),
        *(
            gated(ResNet32, keep_ratio, resnet=gating)
            for gating in ("branch", "inner", "literal")
        ),
    ]
    counted = [macs(model, SHAPE) for model in models]
    found = [c.kept / c.dense for c in counted]
    found.insert(2, outputs_only(keep_ratio) / 153_293_824)
    np.testing.assert_allclose(found, FRACTIONS[keep_ratio], atol=5.001e-4)


def test_gates_add_less_than_one_percent():
    assert macs(gated(VGG11, 0.5), SHAPE).gates == 1_024_192
    assert macs(gated(ResNet32, 0.5), SHAPE).gates == 51_200
    assert macs(gated(VGG11, 1.0), SHAPE).gates == 0


@pytest.mark.parametrize(
    ("model", "keep_ratio", "kept", "used", "k"),
    [
        (VGG11, 0.705, 76_527_512, 0.516, [45, 90, 180, 180, 361, 361, 361, 361]),
        (ResNet32, 0.610, 34_517_440, 0.490, [10] * 10 + [20] * 10 + [39] * 10),
    ],
)
def test_half_the_macs(model, keep_ratio, kept, used, k):
    assert keep_ratio_for(model(10), SHAPE, 0.5) == keep_ratio
    pruned = gated(model, keep_ratio)
    assert macs(pruned, SHAPE).kept == kept
    assert [x.kept_out for x in pruned.layers(SHAPE) if x.gated] == k
    assert params_used(pruned.layers(SHAPE)) == pytest.approx(used, abs=5e-4)


def test_keep_ratio_takes_the_smallest_of_equals_and_follows_the_settings():
    # With 2 and 4 channels K is 1 and 1 for all ratios below 0.375.
    small = CNN(3, width=0.125)
    least = macs(small.clone(gates=GateSettings(0.001)), (8, 8, 1))
    assert keep_ratio_for(small, (8, 8, 1), least.kept / least.dense) == 0.001
    dense_first = gated(VGG11, 0.123, first=False)
    chosen = keep_ratio_for(dense_first, SHAPE, 0.5)
    grid = np.arange(1, 1001) / 1000
    shares = []
    for ratio in grid:
        counted = macs(gated(VGG11, ratio, first=False), SHAPE)
        shares.append(counted.kept / counted.dense)
    assert chosen == grid[np.argmin(np.abs(np.array(shares) - 0.5))]
    assert chosen < 0.705
    for target in (0.0, 1.1):
        with pytest.raises(ValueError, match=r"flops_target must be in \(0, 1\], got"):
            keep_ratio_for(VGG11(10), SHAPE, target)


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 0), (28, 28, 1.0), 28])
def test_a_shape_of_an_image_has_three_whole_numbers(shape):
    message = r"image_shape must be \(height, width, channels\), whole numbers of at"
    for function in (make_task, macs):
        with pytest.raises(ValueError, match=message):
            function(VGG11(10), shape)
    with pytest.raises(ValueError, match=message):
        keep_ratio_for(VGG11(10), shape, 0.5)


def test_bytes_of_a_message():
    vgg, resnet = shapes(VGG11(10)), shapes(ResNet32(10))
    assert tree_bytes(vgg["params"]) == 39_003_688
    assert tree_bytes(resnet["params"]) == 1_856_616
    sent = (resnet["params"], resnet["batch_stats"])
    assert tree_bytes(sent) == 1_865_704
    assert tree_bytes((sent, resnet["params"])) == 3_722_320
    assert tree_bytes({"a": jnp.zeros((3, 2), jnp.int8), "b": np.zeros(2)}) == 22
    assert tree_bytes({}) == num_entries({}) == 0
    assert num_entries({"a": jnp.zeros((3, 2), jnp.int8), "b": np.zeros(2)}) == 8


def test_bytes_of_a_round():
    vgg, resnet = shapes(VGG11(10)), shapes(ResNet32(10))
    sent = (resnet["params"], resnet["batch_stats"])
    one_way = [
        tree_bytes(vgg["params"]),
        tree_bytes((vgg["params"], vgg["params"])),
        tree_bytes(sent),
        tree_bytes((sent, resnet["params"])),
    ]
    table = {
        10: (780.1, 1560.1, 37.31, 74.45),
        12: (936.1, 1872.2, 44.78, 89.34),
        35: (2730.3, 5460.5, 130.60, 260.56),
        40: (3120.3, 6240.6, 149.26, 297.79),
    }
    for cohort_size, megabytes in table.items():
        found = [2 * cohort_size * size / 1e6 for size in one_way]
        np.testing.assert_allclose(found[:2], megabytes[:2], atol=0.051)
        np.testing.assert_allclose(found[2:], megabytes[2:], atol=0.0051)


def test_published_flops_are_not_a_multiple_of_the_macs():
    dense = [macs(model(10), SHAPE).dense for model in (VGG11, ResNet32)]
    ratios = [15.48e9 / dense[0], 7.36e9 / dense[1]]
    np.testing.assert_allclose(ratios, [101.0, 106.9], atol=0.05)
    np.testing.assert_allclose(np.array(ratios) / 2, [50.5, 53.4], atol=0.05)
    halves = [macs(gated(VGG11, 0.705), SHAPE), macs(gated(ResNet32, 0.61), SHAPE)]
    np.testing.assert_allclose([c.kept / c.dense for c in halves], 0.5, atol=5e-3)
