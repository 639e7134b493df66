"""Own classes with attributes that have the names of the library's."""

import re

import pytest

from fedjax_prune.models.own import load_class
from fedjax_prune.runs import report, train
from fedjax_prune.runs.learning import make_learning
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.settings import SettingsError, problems
from tests.own_files import write_nets
from tests.small_runs import own_config

NETS = """
from typing import Sequence

import flax.linen as nn
from flax import nnx
from fedjax_prune.models.channels import between

class Switched(nnx.Module):
    def __init__(self, num_classes, gates=None, *, rngs):
        self.fc = nnx.Linear(64, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.fc(x.reshape(len(x), -1))

class Experts(nn.Module):
    num_classes: int
    gates: int = 4
    widths: Sequence = (4,)

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        chosen = nn.softmax(nn.Dense(self.gates, name="router")(x))
        return nn.Dense(self.num_classes, name="fc")(chosen)

class Deep(nn.Module):
    num_classes: int
    gates: object = None
    layers: int = 2

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes, name="fc")(x.reshape(len(x), -1))

class Grouped(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes, name="fc")(x)

    def channel_groups(self, image_shape):
        return (between("hidden", 8, "fc"),)
"""


@pytest.mark.parametrize("cls", ["Switched", "Experts"])
def test_only_a_linen_class_whose_gates_are_none_can_be_gated(tmp_path, cls):
    config = own_config(write_nets(tmp_path, NETS), cls)
    assert make_learning(config).macs.dense > 0
    config.model.gated = True
    [message] = problems(config)
    assert re.search(rf"model.gated must be false for .*nets.py:{cls}, which", message)


def test_gates_that_are_a_number_can_be_set(tmp_path):
    """Those of the library's kind are set by the run alone."""
    nets = write_nets(tmp_path, NETS)
    assert load_class(f"{nets}:Experts").fields["gates"].default == 4
    assert "gates" not in load_class(f"{nets}:Deep").fields


def test_an_attribute_layers_is_no_method(tmp_path):
    config = own_config(write_nets(tmp_path, NETS), "Deep")
    config.model.gated = True
    with pytest.raises(SettingsError, match=r"keep_ratio must be given for .*Deep"):
        make_learning(config)


def test_channels_of_a_class_that_cannot_lose_them_are_refused(tmp_path):
    config = own_config(write_nets(tmp_path, NETS), "Grouped")
    with pytest.raises(SettingsError, match=r"^model and data: Grouped has .* left"):
        make_learning(config)


GATED = """
import flax.linen as nn
from fedjax_prune.models.blocks import GatedConv
from fedjax_prune.models.gates import GateSettings

class Undescribed(nn.Module):
    num_classes: int
    gates: GateSettings | None = None

    @nn.compact
    def __call__(self, images, *, train, example_mask):
        conv = GatedConv(8, self.gates, "none", name="conv")
        x, _ = conv(images, train=train, example_mask=example_mask)
        return nn.Dense(self.num_classes, name="logits")(x.mean((1, 2)))
"""


def test_gates_of_a_class_that_does_not_describe_its_layers_are_not_counted(tmp_path):
    changes = {"rounds": 1, "model.gated": True, "model.keep_ratio": 0.5}
    config = own_config(write_nets(tmp_path, GATED), "Undescribed", **changes)
    told = report.plan(make_learning(config))
    assert told["keep ratio"] == "0.500 of the channels"
    assert told["MACs an image"].replace(",", "").isdigit()
    assert train.run(config, tmp_path / "run") == 0
    (row,) = read_metrics(tmp_path / "run")
    assert row["flops/dense"] > 0 and "flops/kept" not in row
    assert "MACs an image" not in report.summary(make_learning(config), [row], tmp_path)


KEEPS = """
import flax.linen as nn
import jax.numpy as jnp
from fedjax_prune import GateSettings

class Net(nn.Module):
    num_classes: int
    gates: GateSettings | None = None

    @nn.compact
    def __call__(self, x):
        head = self.variable("gates", "head", jnp.zeros, (1, 1))
        return nn.Dense(self.num_classes)(x.mean((1, 2)) + head.value)
"""


def test_personal_arrays_of_the_network_without_gates_are_refused(tmp_path):
    """Its clients' average is evaluated, which has none."""
    fields = {"model.gated": True, "model.keep_ratio": 0.5}
    config = own_config(write_nets(tmp_path, KEEPS), "Net", **fields)
    with pytest.raises(
        SettingsError, match="must have no collection gates while its attribute gates"
    ):
        make_learning(config)
