"""Costs under masks: the counts of small examples, by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.models import CNN
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.lstm import LSTM
from fedjax_prune.models.task import make_task
from fedjax_prune.pruning.costs import masked_macs, traffic
from fedjax_prune.pruning.masks import prunable
from fedjax_prune.pruning.wire import mask_facts
from tests.small_models import Headed
from tests.sparse_messages import encode_masks, encode_values


def test_traffic_of_masked_messages_by_hand():
    """Five clients, 2 of 5 kernel entries and the bias kept, a statistic of 4 bytes."""
    params = {"fc": {"kernel": jnp.zeros((5, 1)), "bias": jnp.zeros(1)}}
    masks = {
        "fc": {"kernel": np.eye(5, 1, dtype=bool), "bias": np.ones(1, bool)},
    }
    masks["fc"]["kernel"][3] = True
    counted = mask_facts(masks, (), prunable(masks))
    facts = {name: int(x) for name, x in counted.items()}
    facts |= {"mask/sent": 3, "mask/extra": 7}
    down, up = (params, jnp.float32(0)), {"a": params, "b": params}
    found = traffic((down, up), 5, facts)
    values = 5 * 4 * (2 + 1 + 1)
    assert found.down == values + 3 * len(encode_masks(masks))
    assert found.spec_down == values + 3 * 1
    assert found.up == found.spec_up == 5 * 4 * (2 * 3 + 7)
    # Two of the five do not report.
    fewer = traffic((down, up), 5, facts, num_absent=2)
    assert fewer.up == fewer.spec_up == 3 * 4 * (2 * 3 + 7)
    assert (fewer.down, fewer.spec_down) == (found.down, found.spec_down)


def test_messages_have_four_bytes_a_value_whatever_the_dtype():
    """Also for parameters in float64."""
    masks = {"fc": {"kernel": np.eye(5, 2, dtype=bool), "bias": np.ones(2, bool)}}
    counted = mask_facts(masks, (), prunable(masks))
    facts = {name: int(x) for name, x in counted.items()}
    for dtype in (np.float32, np.float64):
        params = {"fc": {"kernel": np.ones((5, 2), dtype), "bias": np.ones(2, dtype)}}
        length = len(encode_values(params, masks))
        assert length == 4 * 4
        assert traffic((params, params), 3, facts)[:2] == (3 * length, 3 * length)


def test_macs_under_a_mask_by_hand():
    """A CNN of 2 and 4 channels and 8 hidden units on 8x8x1 images, 3 classes."""
    model, shape = CNN(3, width=0.125), (8, 8, 1)
    # Weights and positions of its layers: 18 x 64, 72 x 16, 128 x 1 and 24 x 1.
    kept = {
        "conv1/kernel": 9,
        "conv1/bias": 2,
        "conv2/kernel": 18,
        "fc1/kernel": 64,
        "fc2/kernel": 12,
    }
    facts = {f"mask/kept/{name}": count for name, count in kept.items()}
    # One of two channels left of conv1: conv2 keeps 36 weights.
    facts |= {"mask/channels/conv1": 1, "mask/channels/conv2": 4}
    facts |= {"mask/channels/fc1": 8}
    found = masked_macs(model, shape, facts)
    assert found.dense == 18 * 64 + 72 * 16 + 128 + 24
    assert found.theoretical == 9 * 64 + 18 * 16 + 64 + 12
    assert found.realisable == 9 * 64 + 36 * 16 + 128 + 24
    assert found.hybrid == found.theoretical
    assert found.kept == found.realisable
    unmasked = masked_macs(model, shape, {})
    assert set(unmasked) == {found.dense}
    # Of conv2 the mask keeps also what reads the removed channel.
    found = masked_macs(model, shape, facts | {"mask/kept/conv2/kernel": 40})
    assert found.hybrid == found.realisable - 64 - 12


def test_gates_change_kept_macs_alone():
    """One of two channels, then two of four, all of the hidden units."""
    shape = (8, 8, 1)
    plain = CNN(3, width=0.125)
    gated = plain.clone(gates=GateSettings(0.5))
    found = masked_macs(gated, shape, {})
    assert found[:-1] == masked_macs(plain, shape, {})[:-1]
    assert found.kept == 9 * 64 + 18 * 16 + 64 + 24
    # A mask leaves one channel of conv1 and two of conv2, of which the gates keep all.
    facts = {"mask/channels/conv1": 1, "mask/channels/conv2": 2, "mask/channels/fc1": 8}
    found = masked_macs(gated, shape, facts)
    assert found.kept == found.realisable == 9 * 64 + 18 * 16 + 64 + 24


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(3, name="fc")(LSTM(4, name="lstm")(images[..., 0])[:, -1])


@pytest.mark.parametrize(
    ("model", "shape", "macs"),
    [(Recurrent(), (5, 2, 1), 5 * 6 * 16 + 12), (Headed(), (2, 2, 1), 2 * 6 * 16 + 12)],
)
def test_a_mask_that_keeps_all_costs_what_the_dense_model_does(model, shape, macs):
    """The first has layers that are two kernels of one module, the other personal ones.

    Each has a cell of 2 inputs and 4 units, and a head of 4 by 3 weights.
    """
    task = make_task(model, shape)
    params = jax.eval_shape(task.init, jax.random.key(0)).params
    masks = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
    counted = mask_facts(masks, (), prunable(masks))
    facts = {name: int(x) for name, x in counted.items()}
    found = masked_macs(model, shape, facts, layers=task.layers)
    assert set(found) == {macs}
