"""Logistic regression against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.models import LogisticRegression
from fedjax_prune.models.costs import macs, num_entries
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.task import make_task
from fedjax_prune.types import Batch, Variables

SHAPE = (6, 1, 1)


def test_loss_and_gradient_are_those_of_the_formulas():
    """Mean of -log softmax(x W + b)[y]; its gradient by the logits is (p - y) / n."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 6)), np.array([0, 3, 1, 1, 2])
    kernel, bias = rng.normal(size=(6, 4)), rng.normal(size=4)
    logits = x @ kernel + bias
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(5), y]).mean()
    by_logits = (p - np.eye(4)[y]) / 5
    task = make_task(LogisticRegression(4), SHAPE)
    params = {"fc": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}
    images = jnp.float32(x)[:, :, None, None]
    batch = Batch(images, jnp.int32(y), jnp.ones(5, bool))

    def mean(params):
        variables = Variables(params, {}, {})
        return task.loss(variables, batch, jax.random.key(0))[0]

    value, gradient = jax.jit(jax.value_and_grad(mean))(params)
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    np.testing.assert_allclose(
        gradient["fc"]["kernel"], x.T @ by_logits, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        gradient["fc"]["bias"], by_logits.sum(axis=0), rtol=1e-4, atol=1e-6
    )
    predicted = task.predict(Variables(params, {}, {}), images)
    np.testing.assert_allclose(predicted, logits, rtol=1e-4, atol=1e-5)


def test_what_it_costs_and_what_can_be_removed():
    model = LogisticRegression(10)
    assert macs(model, (60, 1, 1)).dense == 600
    assert model.channel_groups((60, 1, 1)) == ()
    task = make_task(model, (60, 1, 1))
    params = jax.eval_shape(task.init, jax.random.key(0)).params
    assert num_entries(params) == 610
    with jax.enable_x64(True):
        params = jax.eval_shape(make_task(model, (60, 1, 1)).init, jax.random.key(0))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float64"}


def test_gates_and_norms_are_refused():
    with pytest.raises(ValueError, match="norm must be none for LogisticRegression"):
        LogisticRegression(10, norm="bn")
    with pytest.raises(ValueError, match="gates must be None for LogisticRegression"):
        LogisticRegression(10, gates=GateSettings(0.5))
