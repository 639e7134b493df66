"""Channel groups that own networks describe, and the errors for wrong ones."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.layers import ChannelGroup, Layer, Slot
from fedjax_prune.models.channels import between, drop_channels
from fedjax_prune.models.costs import conv_layer, dense_layer
from fedjax_prune.models.resnet import ResNet32
from fedjax_prune.models.task import make_task
from tests.small_models import Headed

SHAPE = (2, 2, 1)


class Hidden(nn.Module):
    """Hidden units `a`, and a further layer of as many units inside a module."""

    groups: tuple[ChannelGroup, ...]
    biased: bool = False
    left: Mapping[str, int] = nn.FrozenDict()

    @nn.compact
    def __call__(self, images):
        units = self.left.get("a", 4)
        x = nn.relu(nn.Dense(units, name="a")(images.reshape(len(images), -1)))
        return nn.Dense(3, name="b")(Inner(self.biased, name="inner")(x))

    def layers(self, image_shape):
        units = self.left.get("a", 4)
        return (
            dense_layer("a", 4, units, 4),
            dense_layer("inner/a", units, 4, units),
            dense_layer("b", 4, 3, 4),
        )

    def channel_groups(self, image_shape):
        return self.groups


class Wrapped(nn.Module):
    """One layer `a`, which lies in a module."""

    groups: tuple[ChannelGroup, ...]
    left: Mapping[str, int] = nn.FrozenDict()

    @nn.compact
    def __call__(self, images):
        x = images.reshape(len(images), -1)
        return nn.Dense(3, name="b")(Inner(True, name="inner")(x))

    def layers(self, image_shape):
        return (dense_layer("inner/a", 4, 4, 4), dense_layer("b", 4, 3, 4))

    def channel_groups(self, image_shape):
        return self.groups


class Inner(nn.Module):
    biased: bool

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(4, name="a", use_bias=self.biased)(x))


def written(path=("a", "kernel"), axis=-1, size=4, start=0):
    """A group with the reader of Hidden."""
    reader = Slot(("inner", "a", "kernel"), -2)
    return ChannelGroup("a", size, (Slot(path, axis, start),), (), (reader,))


class WithoutLeft(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Dense(4, name="a")(images.reshape(len(images), -1))
        return nn.Dense(3, name="b")(x)

    def channel_groups(self, image_shape):
        return (between("a", 4, "b"),)


class WithoutLayers(WithoutLeft):
    left: Mapping[str, int] = nn.FrozenDict()


@pytest.mark.parametrize("model", [WithoutLeft(), WithoutLayers()])
def test_channels_that_cannot_be_removed_are_refused(model):
    with pytest.raises(ValueError, match=r"must have the method layers and .* left"):
        make_task(model, SHAPE)


KNOWN = "a/bias, a/kernel, b/bias, b/kernel, inner/a/kernel"


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (
            written(("typo", "kernel")),
            f"Hidden: a must be written by one of {KNOWN}, got typo/kernel",
        ),
        (
            written(("kernel",)),
            "must name one array by kernel, got params/a/kernel and",
        ),
        (
            between("inner/a", 4, "typo"),
            f"Hidden: inner/a must be read by one of {KNOWN}, got typo/kernel, typo",
        ),
        (
            written(size=5),
            r"have its 5 channels on an axis of params/a/kernel \[4, 4\]",
        ),
        (written(start=1), r"its 4 channels .*, got axis -1, start 1 and repeats 1"),
        (written(axis=-3), r"its 4 channels .*, got axis -3, start 0 and repeats 1"),
    ],
)
def test_groups_that_do_not_fit_the_arrays_are_refused(group, message):
    with pytest.raises(ValueError, match=message):
        make_task(Hidden((group,)), SHAPE)


def test_what_a_channel_has_may_not_be_left_out():
    """Else the arrays of a compacted network would not fit it."""
    message = (
        r"Hidden must name all that a channel has: with one channel less of each group "
        r"params/a/bias has the shape \[3\], but the groups say \[4\]"
    )
    with pytest.raises(ValueError, match=message):
        make_task(Hidden((written(),)), SHAPE)


class Flattened(nn.Module):
    """Two channels of 2 x 2 pixels, and a dense layer that reads all eight numbers."""

    repeats: int
    listed: tuple[Layer, ...] = (
        conv_layer("conv", 1, 2, kept_in=1, gates=None, size=(2, 2)),
        dense_layer("fc", 2, 3, 2, taps=4),
    )
    left: Mapping[str, int] = nn.FrozenDict()

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(self.left.get("conv", 2), (3, 3), name="conv")(images)
        return nn.Dense(3, name="fc")(x.reshape(len(x), -1))

    def layers(self, image_shape):
        return self.listed

    def channel_groups(self, image_shape):
        return (between("conv", 2, "fc", repeats=self.repeats),)


def test_pixels_of_a_flattened_map_may_not_be_left_out():
    make_task(Flattened(repeats=4), SHAPE)
    message = r"params/fc/kernel has the shape \[4, 3\], but the groups say \[7, 3\]"
    with pytest.raises(ValueError, match=message):
        make_task(Flattened(repeats=1), SHAPE)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (
            (dense_layer("Dense_0", 2, 3, 2, taps=4),),
            "Dense_0 must have in_channels .* taps weights, 24, got 0 in the kernels",
        ),
        ((dense_layer("fc", 2, 3, 2),), "fc must have .* weights, 6, got 24 in the"),
        (
            (dense_layer("fc", 2, 3, 2, taps=4),) * 2,
            "fc must be listed once, .* of all its uses, got it 2 times",
        ),
    ],
)
def test_layers_that_are_not_those_of_the_arrays_are_refused(listed, message):
    with pytest.raises(ValueError, match=f"layers of Flattened: {message}"):
        make_task(Flattened(repeats=4, listed=listed), SHAPE)


def test_kernels_of_modules_inside_and_personal_arrays_are_layers():
    assert [layer.name for layer in make_task(Headed(), SHAPE).layers] == [
        "cell",
        "head",
    ]


class Halves(Flattened):
    """The norm divides the channels by two, so that one less cannot be."""

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(self.left.get("conv", 2), (3, 3), name="conv")(images)
        x = nn.GroupNorm(2, use_bias=False, use_scale=False)(x)
        return nn.Dense(3, name="fc")(x.reshape(len(x), -1))


def test_a_network_that_cannot_have_one_channel_less_is_no_mistake():
    make_task(Halves(repeats=4), SHAPE)


def test_groups_without_channels_stay_empty():
    """Of stage2 a width of 0.04 leaves as many channels as the shortcut brings."""
    task = make_task(ResNet32(10, width=0.04), (32, 32, 3))
    assert {group.name: group.size for group in task.groups}["stage2"] == 0


def test_of_two_paths_that_end_alike_the_longer_one_is_meant():
    """Without the units of `a` nothing is missing of what `inner/a` writes."""
    group = written()._replace(entries=(Slot(("a", "bias"), -1),))
    task = make_task(Hidden((group,)), SHAPE)
    params = jax.eval_shape(task.init, jax.random.key(0)).params
    ones = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
    alive = np.array([True, False, True, True])
    masks = drop_channels(ones, task.groups, {"a": jnp.asarray(alive)})
    rows = np.broadcast_to(alive, (4, 4))
    np.testing.assert_array_equal(masks["a"]["kernel"], rows)
    np.testing.assert_array_equal(masks["inner"]["a"]["kernel"], rows.T)


def test_a_slot_whose_arrays_are_all_named_by_longer_paths_is_refused():
    """Without the refusal what it reads would keep the rows of removed channels."""
    short = Slot(("kernel",), -2)
    logits = ChannelGroup("b", 3, (Slot(("b", "kernel"), -1),), (), (short,))
    with pytest.raises(ValueError, match="b must name a/kernel by its whole path, got"):
        make_task(Hidden((written(), logits)), SHAPE)


def test_an_entry_is_named_by_its_whole_path():
    """Else a channel of which its bias alone is left would be taken for removed."""
    producer, entry = Slot(("inner", "a", "kernel"), -1), Slot(("a", "bias"), -1)
    reader = Slot(("b", "kernel"), -2)
    units = ChannelGroup("inner/a", 4, (producer,), (entry,), (reader,))
    with pytest.raises(ValueError, match="inner/a/bias by its whole path, got a/bias"):
        make_task(Wrapped((units,)), SHAPE)


def test_a_path_that_two_arrays_end_in_is_refused():
    """The bias of `inner/a`, which no slot names, would lose the channels of `a`."""
    group = written()._replace(entries=(Slot(("a", "bias"), -1),))
    message = (
        "Hidden: a must name one array by a/bias, got params/a/bias and "
        "params/inner/a/bias: give one of the modules another name"
    )
    with pytest.raises(ValueError, match=message):
        make_task(Hidden((group,), biased=True), SHAPE)
