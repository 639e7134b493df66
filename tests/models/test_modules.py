"""What modules are given, and the switches that tell them whether they train."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_prune.models import CNN
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.modules import gates_of, without_gates
from fedjax_prune.models.task import make_task
from fedjax_prune.types import Batch

SHAPE = (2, 2, 1)
KEY = jax.random.key(0)


def a_batch() -> Batch:
    """Four images, of which the last one is padding."""
    images = np.random.default_rng(0).integers(0, 256, (4, *SHAPE)).astype(np.uint8)
    return Batch(
        jnp.asarray(images), jnp.array([0, 1, 2, 0], jnp.int32), jnp.arange(4) < 3
    )


class Dropping(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        return nn.Dense(3)(nn.Dropout(0.5)(x.reshape(x.shape[0], -1), not train))


class Training(nn.Module):
    @nn.compact
    def __call__(self, x, training: bool = False):
        return Dropping(name="told")(x, train=training)


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic: bool = True):
        return Dropping(name="told")(x, train=not deterministic)


class RunningAverage(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average: bool = True):
        return Dropping(name="told")(x, train=not use_running_average)


class Forwarding(nn.Module):
    @nn.compact
    def __call__(self, x, **further):
        del further["example_mask"]
        return Dropping(name="told")(x, **further)


def flat(x):
    return x.reshape(x.shape[0], -1)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential([flat, nn.Dense(5), nn.relu, nn.Dense(3)]),
        lambda rngs: nnx.Sequential(
            flat, nnx.Linear(4, 5, rngs=rngs), nnx.relu, nnx.Linear(5, 3, rngs=rngs)
        ),
    ],
)
def test_layers_in_sequence_are_given_images_alone(model):
    task = make_task(model, SHAPE)
    assert [layer.out_channels for layer in task.layers] == [5, 3]
    logits = task.predict(task.init(KEY), a_batch().images)
    loss, _ = task.loss(task.init(KEY), a_batch(), KEY)
    assert logits.shape == (4, 3) and np.isfinite(loss)


class Experts(nn.Module):
    gates: int = 4


def test_gates_that_are_no_gate_settings_are_the_modules_own():
    assert gates_of(Experts()) is None
    assert without_gates(Experts()).gates == 4
    assert gates_of(CNN(3, gates=GateSettings(0.5))) == GateSettings(0.5)


@pytest.mark.parametrize(
    "model", [Training(), Deterministic(), RunningAverage(), Forwarding()]
)
def test_every_switch_of_flax_turns_dropout_on_in_training_alone(model):
    """In evaluation the dense layer of NumPy, in training other losses by key."""
    task = make_task(model, SHAPE)
    variables, batch = task.init(KEY), a_batch()
    dense = jax.tree.map(np.asarray, variables.params["told"]["Dense_0"])
    x = np.asarray(batch.images, np.float64).reshape(4, 4) / 255
    np.testing.assert_allclose(
        task.predict(variables, batch.images),
        x @ dense["kernel"] + dense["bias"],
        rtol=1e-5,
        atol=1e-6,
    )
    losses = [
        float(task.loss(variables, batch, jax.random.key(n))[0]) for n in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


class SwitchedNorm(nn.Module):
    @nn.compact
    def __call__(self, x, example_mask, use_running_average=True):
        x = x.reshape(x.shape[0], -1)
        x = nn.BatchNorm(use_running_average)(x, mask=example_mask[:, None])
        return nn.Dense(3)(x)


def test_statistics_of_a_switched_norm_move_in_training():
    task, batch = make_task(SwitchedNorm(), SHAPE), a_batch()
    _, (state, _) = jax.jit(task.loss)(task.init(KEY), batch, KEY)
    x = np.asarray(batch.images[:3], np.float64).reshape(3, 4) / 255
    np.testing.assert_allclose(
        state["BatchNorm_0"]["mean"], 0.01 * x.mean(0), rtol=1e-5
    )
