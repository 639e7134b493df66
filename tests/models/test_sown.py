"""What the gates of one's own module sow for the lasso and the counts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from fedjax_prune.models.task import make_task
from fedjax_prune.types import Batch

SHAPE = (2, 2, 1)
KEY = jax.random.key(0)


class Sower(nn.Module):
    @nn.compact
    def __call__(self, x):
        for value in (1.0, 2.0):
            self.sow("gate_sums", "lasso", jnp.float32(value))
            self.sow("gate_sums", "selected", value * jnp.arange(3.0))
        return x


class Sowing(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Sower(name="layer")(nn.Dense(3)(x.reshape(x.shape[0], -1)))


def test_what_a_module_sows_is_added_up():
    """Flax makes tuples of it by default."""
    images = jnp.zeros((4, *SHAPE), jnp.uint8)
    batch = Batch(images, jnp.array([0, 1, 2, 0]), jnp.arange(4) < 3)
    losses = []
    for weight in (0.0, 0.5):
        task = make_task(Sowing(), SHAPE, lasso_weight=weight)
        loss, (_, sums) = jax.jit(task.loss)(task.init(KEY), batch, KEY)
        losses.append(float(loss))
        assert sums["selected/layer"].tolist() == [0, 3, 6]
    three_examples = 3
    assert losses[1] - losses[0] == pytest.approx(0.5 * (1 + 2) / three_examples)
