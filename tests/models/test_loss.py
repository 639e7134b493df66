"""The loss of a task: what is added to it, and which images its model sees."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.models import CNN
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.task import make_task
from fedjax_prune.types import Batch

KEY = jax.random.key(0)


def test_the_lasso_is_a_mean_over_the_real_examples():
    """lambda times the sum of |logits| of three real examples, over three."""
    model, shape = CNN(3, width=0.25, gates=GateSettings(0.5)), (8, 8, 1)
    real = jnp.array([True, True, False, True, False])
    images = np.random.default_rng(0).integers(0, 256, (5, *shape)).astype(np.uint8)
    batch = Batch(jnp.asarray(images), jnp.zeros(5, jnp.int32), real)
    free, task = (make_task(model, shape, lasso_weight=w) for w in (0.0, 0.5))
    variables = task.init(KEY)
    _, sown = model.apply(
        {"params": variables.params, "gates": variables.personal},
        images / np.float32(255),
        train=True,
        example_mask=real,
        mutable=["gate_sums"],
    )
    lasso = sum(float(layer["gate"]["lasso"]) for layer in sown["gate_sums"].values())
    with_lasso, without = (
        jax.jit(each.loss)(variables, batch, KEY)[0] for each in (task, free)
    )
    np.testing.assert_allclose(with_lasso - without, 0.5 * lasso / 3, rtol=1e-4)


def test_images_are_normalised_after_they_are_augmented():
    """Black images that an augmentation makes white are white ones to the model."""
    model, shape = CNN(3, width=0.25), (8, 8, 3)
    plain, whitened = (
        make_task(model, shape, normalize="cifar10", augment=augment)
        for augment in (None, lambda key, images: jnp.ones_like(images))
    )
    variables, labels = plain.init(KEY), jnp.array([0, 2])
    losses = [
        jax.jit(task.loss)(variables, Batch(images, labels, jnp.ones(2, bool)), KEY)[0]
        for task, images in (
            (plain, jnp.full((2, *shape), 255, jnp.uint8)),
            (whitened, jnp.zeros((2, *shape), jnp.uint8)),
        )
    ]
    np.testing.assert_allclose(*losses, rtol=1e-6)
