"""From a Flax model to the pure functions that federated learning needs."""

from collections.abc import Callable
from typing import Annotated, Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

from fedjax_prune.data.augment import normalise, to_float
from fedjax_prune.fields import at_least, checked
from fedjax_prune.precision import at_least_float32
from fedjax_prune.types import Batch, Sums, Task, Tree, Variables

Augment = Callable[[jax.Array, jax.Array], jax.Array]
"""(key, images float32) -> images of the same shape."""

LassoWeight = Annotated[
    float, at_least(0), "Weight of the L1 norm of the gates' logits, FedDP's lambda."
]


@checked
def make_task(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    to_input: Callable[[jax.Array], jax.Array] = to_float,
    augment: Augment | None = None,
    normalize: str = "none",
    lasso_weight: LassoWeight = 0.0,
) -> Task:
    """Makes an image classification task.

    The loss is the mean cross-entropy over the real examples of a batch plus,
    for gated models, `lasso_weight` times the mean over the same examples of
    the gates' L1 norm (FedDP, equations 5 and 8).

    Args:
      model: a linen module called as `model(images, train=..., example_mask=...)`
        on float32 images [batch_size, height, width, channels], returning logits
        [batch_size, num_classes]. Weights in the collection `params` are shared,
        in `gates` personal, in `batch_stats` model state. What it sows into
        `gate_sums/.../NAME/{lasso, selected}` is added up.
      image_shape: (height, width, channels).
      to_input: makes stored uint8 examples what the model reads.
      augment: applied to training images only; None leaves them as they are.
      normalize: `none` or `cifar10`, applied after the augmentation.

    Returns:
      The Task. The sums of its loss are `loss`, `correct`, `count`, each a
      float32 scalar summed over real examples, and `selected/NAME` [channels]
      for every gate.

    Raises:
      ValueError: if `lasso_weight` is out of its range.
    """

    @jax.jit
    def init(key: jax.Array) -> Variables:
        params_key, gates_key = jax.random.split(key)
        collections = model.init(
            {"params": params_key, "gates": gates_key},
            to_input(jnp.zeros((1, *image_shape), jnp.uint8)),
            train=False,
            example_mask=jnp.ones((1,), bool),
        )
        return Variables(
            params=collections["params"],
            personal=collections.get("gates", {}),
            model_state=collections.get("batch_stats", {}),
        )

    def loss(
        variables: Variables, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Tree, Sums]]:
        augment_key, dropout_key = jax.random.split(key)
        images = to_input(batch.images)
        if augment is not None:
            images = augment(augment_key, images)
        logits, mutated = model.apply(
            _collections(variables),
            normalise(images, normalize),
            train=True,
            example_mask=batch.example_mask,
            mutable=["batch_stats", "gate_sums"],
            rngs={"dropout": dropout_key},
        )
        gate_sums: Any = flax.traverse_util.flatten_dict(
            mutated.get("gate_sums", {}), sep="/"
        )
        mask = batch.example_mask.astype(jnp.float32)
        count = mask.sum()
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(
            at_least_float32(logits), batch.labels
        )
        # A select, not a product: a padded example may be anything, even NaN.
        loss_sum = jnp.where(batch.example_mask, cross_entropy, 0.0).sum()
        lasso = sum(
            (x for name, x in gate_sums.items() if name.endswith("/lasso")),
            jnp.zeros((), loss_sum.dtype),
        )
        correct = batch.example_mask & (logits.argmax(-1) == batch.labels)
        sums = {
            "loss": loss_sum,
            "correct": correct.sum(dtype=jnp.float32),
            "count": count,
        }
        for name, value in gate_sums.items():
            if name.endswith("/selected"):
                layer = name.removesuffix("/selected").removesuffix("/gate")
                sums[f"selected/{layer}"] = value
        mean = (loss_sum + lasso_weight * lasso) / jnp.maximum(count, 1).astype(
            loss_sum.dtype
        )
        return mean, (mutated.get("batch_stats", {}), sums)

    def predict(variables: Variables, images: jax.Array) -> jax.Array:
        logits: Any = model.apply(
            _collections(variables),
            normalise(to_input(images), normalize),
            train=False,
            example_mask=jnp.ones(images.shape[:1], bool),
        )
        return at_least_float32(logits)

    describe = getattr(model, "channel_groups", None)
    return Task(
        init,
        loss,
        predict,
        groups=None if describe is None else describe(image_shape),
        layers=model.layers(image_shape) if hasattr(model, "layers") else (),
    )


def _collections(variables: Variables) -> dict[str, Tree]:
    return {
        "params": variables.params,
        "gates": variables.personal,
        "batch_stats": variables.model_state,
        "alive": variables.alive,
    }
