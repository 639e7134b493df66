"""The function that makes a Task, pure functions, of a Flax model and its loss."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

from fedjax_prune.data.augment import check_normalisation, normalise, to_float
from fedjax_prune.fields import ImageShape, at_least, checked
from fedjax_prune.models.checks import (
    check_collections,
    check_groups,
    check_layers,
    check_logits,
    check_smaller,
    check_state,
)
from fedjax_prune.models.modules import (
    Arguments,
    arguments_of,
    as_linen,
    described,
)
from fedjax_prune.models.precision import at_least_float32
from fedjax_prune.models.traced import traced_layers
from fedjax_prune.types import Batch, Sums, Task, Tree, Variables

ToInput = Callable[[jax.Array], jax.Array]
"""Stored examples [batch_size, height, width, channels] -> what the model reads."""

Augment = Callable[[jax.Array, jax.Array], jax.Array]
"""(key, images [batch_size, height, width, channels] float32) -> images like them."""

LassoWeight = Annotated[
    float, at_least(0), "Weight of the L1 norm of the gates' logits, FedDP's lambda."
]


@checked
def make_task(
    model: nn.Module | Callable[..., Any],
    image_shape: ImageShape,
    *,
    to_input: ToInput = to_float,
    augment: Augment | None = None,
    normalize: str = "none",
    lasso_weight: LassoWeight = 0.0,
) -> Task:
    """Makes a classification task of a model.

    The loss is the mean cross-entropy over the real examples of a batch plus,
    for gated models, `lasso_weight` times the mean over the same examples of
    the gates' L1 norm (FedDP, equations 5 and 8).

    Args:
      model: a linen module, or a function of `rngs` that makes an NNX module: its class
        or, with arguments, `functools.partial(Class, 10)`. It is called with float32
        images [batch_size, height, width, channels] and returns float logits
        [batch_size, num_classes]. If its `__call__` takes `train`, `training`,
        `deterministic` or `use_running_average`, it is told by them whether it trains;
        NNX modules are also switched by their `train()` and `eval()`. If it takes
        `example_mask`, [batch_size] bool, it is told which examples are real; a model
        with model state must, as padding may not count. Floats in the collection
        `params` are shared, and floats in `gates` are personal; `batch_stats` is model
        state, floats or integers such as counters. What `Gate` says of the collections
        `gate_sums` and `alive` holds for other gates, too. The methods `layers` and
        `channel_groups` may describe what it costs and which channels belong together;
        without the former, the layers are those that read weights in its program. If
        there are groups, `layers` is needed, and so is the attribute `left`, name of a
        group -> number of its channels that were not removed, {} if none was removed.
        With it the model is cloned to have fewer channels.
      image_shape: (height, width, channels).
      to_input: stored examples -> the examples that the model reads.
      augment: is applied to training images only; None leaves them as they are.
      normalize: `none` or `cifar10`; is applied after the augmentation.
      lasso_weight: FedDP's lambda, at least 0.

    Returns:
      The Task. The sums of its loss are `loss`, `correct` and `count`, each [] of the
      loss's dtype and summed over real examples, and `selected/NAME` [channels] for
      every gate. The loss and the logits are float32, or float64 with
      `jax_enable_x64`.

    Raises:
      ValueError: if `image_shape` is not one, `normalize` is unknown or `lasso_weight`
        is out of range, or if the model is no such module, needs other arguments, does
        not return logits, has no params, has weights that are not floats, model state
        without an example mask, or other collections, or layers or groups that do not
        fit its arrays, or cannot lose channels.
        Errors that show only in training mode are raised when the loss is traced.

    References:
      Yu et al., Heterogeneous Federated Learning using Dynamic Model Pruning and
      Adaptive Gradient, equations 5 and 8, https://arxiv.org/abs/2106.06921.

    Examples:
      >>> task = make_task(fedjax_prune.CNN(10), (8, 8, 1))
      >>> variables = jax.eval_shape(task.init, jax.random.key(0))
      >>> variables.params["conv1"]["kernel"].shape
      (3, 3, 1, 16)

      >>> import functools
      >>> from flax import nnx
      >>> class Net(nnx.Module):
      ...     def __init__(self, num_classes, *, rngs):
      ...         self.fc = nnx.Linear(64, num_classes, rngs=rngs)
      ...
      ...     def __call__(self, images):
      ...         return self.fc(images.reshape(len(images), -1))
      >>> task = make_task(functools.partial(Net, 10), (8, 8, 1))
      >>> [layer.name for layer in task.layers], task.groups
      (['fc'], None)
    """
    check_normalisation(normalize)
    module = as_linen(model)
    arguments = arguments_of(module)
    init = _make_init(module, arguments, image_shape, to_input)
    # The checks in `init` need only shapes. JAX reuses this trace at the first call.
    variables = jax.eval_shape(lambda: init(jax.random.key(0)))
    predict = _make_predict(module, arguments, to_input, normalize)
    layers = described(module, "layers", image_shape)
    if layers is None:
        layers = traced_layers(
            lambda params, rest, images: predict(rest._replace(params=params), images),
            variables.params,
            variables._replace(params={}),
            jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8),
        )
    else:
        check_layers(module, layers, variables)
    groups = described(module, "channel_groups", image_shape)
    if groups:
        check_groups(module, groups, variables)

        def shapes_of(smaller: nn.Module) -> Variables:
            arguments = arguments_of(smaller)
            init = _make_init(smaller, arguments, image_shape, to_input)
            return jax.eval_shape(lambda: init(jax.random.key(0)))

        check_smaller(module, groups, variables, shapes_of)
    return Task(
        init,
        _make_loss(
            module,
            arguments,
            to_input,
            augment,
            normalize=normalize,
            lasso_weight=lasso_weight,
        ),
        predict,
        groups=groups,
        layers=layers,
    )


def _make_init(
    model: nn.Module,
    arguments: Arguments,
    image_shape: tuple[int, int, int],
    to_input: ToInput,
) -> Callable[[jax.Array], Variables]:
    """Makes `Task.init`."""

    @jax.jit
    def init(key: jax.Array) -> Variables:
        params_key, gates_key = jax.random.split(key)
        # A wrapped NNX module needs the stream of its dropout when it is made.
        streams = {"params": params_key, "gates": gates_key, "dropout": key}
        logits, collections = model.init_with_output(
            streams,
            to_input(jnp.zeros((1, *image_shape), jnp.uint8)),
            **arguments(False, jnp.ones((1,), bool)),
        )
        check_logits(model, logits, 1)
        check_collections(model, collections, "example_mask" in arguments.taken)
        params = collections["params"]
        return Variables(
            params=params,
            personal=collections.get("gates", {}),
            model_state=_as_wide_as(params, collections.get("batch_stats", {})),
        )

    return init


def _make_loss(
    model: nn.Module,
    arguments: Arguments,
    to_input: ToInput,
    augment: Augment | None,
    normalize: str,
    lasso_weight: float,
) -> Callable[[Variables, Batch, jax.Array], tuple[jax.Array, tuple[Tree, Sums]]]:
    """Makes `Task.loss`."""

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
            **arguments(True, batch.example_mask),
            mutable=["batch_stats", "gate_sums"],
            rngs={"dropout": dropout_key},
        )
        check_logits(model, logits, batch.labels.shape[0])
        model_state = mutated.get("batch_stats", {})
        check_state(model, variables.model_state, model_state)
        sums = _measure(at_least_float32(logits), batch)
        gates = _sown(mutated)
        lasso = sum(
            (x for name, x in gates.items() if name.endswith("/lasso")),
            jnp.zeros((), sums["loss"].dtype),
        )
        mean = (sums["loss"] + lasso_weight * lasso) / jnp.maximum(sums["count"], 1)
        sums |= {
            f"selected/{layer}": x for layer, x in _by_layer(gates, "selected").items()
        }
        return mean, (model_state, sums)

    return loss


def _make_predict(
    model: nn.Module, arguments: Arguments, to_input: ToInput, normalize: str
) -> Callable[[Variables, jax.Array], jax.Array]:
    """Makes `Task.predict`."""

    def predict(variables: Variables, images: jax.Array) -> jax.Array:
        logits: Any = model.apply(
            _collections(variables),
            normalise(to_input(images), normalize),
            **arguments(False, jnp.ones(images.shape[:1], bool)),
        )
        return at_least_float32(logits)

    return predict


def make_selection(
    model: nn.Module, *, to_input: ToInput = to_float, normalize: str = "none"
) -> Callable[[Variables, jax.Array, jax.Array], dict[str, jax.Array]]:
    """Makes a function that counts which channels the gates keep when they predict.

    Args:
      model: a gated linen module, as in `make_task`.
      to_input: as in `make_task`.
      normalize: as in `make_task`.

    Returns:
      (variables, images [batch_size, ...], example_mask [batch_size] bool) -> layer ->
      [channels] float, the number of real examples that keep each channel.
    """
    sums = make_gate_sums(model, to_input=to_input, normalize=normalize)
    return lambda *arguments: sums(*arguments)["selected"]


def make_gate_sums(
    model: nn.Module, *, to_input: ToInput = to_float, normalize: str = "none"
) -> Callable[[Variables, jax.Array, jax.Array], dict[str, dict[str, jax.Array]]]:
    """Makes a function that adds up what the gates do when they predict.

    Args:
      model: as in `make_selection`.
      to_input: as in `make_task`.
      normalize: as in `make_task`.

    Returns:
      (variables, images, example_mask), as in `make_selection`, -> two sums over the
      real examples, each layer -> [channels] float: `selected`, the number that keep
      each channel, and `multiplier`, what it is multiplied by, 0 where it is dropped.
    """
    arguments = arguments_of(model)

    def add_up(
        variables: Variables, images: jax.Array, example_mask: jax.Array
    ) -> dict[str, dict[str, jax.Array]]:
        _, mutated = model.apply(
            _collections(variables),
            normalise(to_input(images), normalize),
            **arguments(False, example_mask),
            mutable=["gate_sums"],
        )
        # Gates that keep all channels are left out.
        sums = _sown(mutated)
        return {name: _by_layer(sums, name) for name in ("selected", "multiplier")}

    return add_up


def _sown(collections: Mapping[str, Any]) -> dict[str, Any]:
    """Path -> sum, of what gates have sown; Flax's `sow` makes tuples by default."""
    sums = flax.traverse_util.flatten_dict(collections.get("gate_sums", {}), sep="/")
    return {
        str(path): sum(x) if isinstance(x, tuple) else x for path, x in sums.items()
    }


def _by_layer(gate_sums: Mapping[str, Any], name: str) -> dict[str, jax.Array]:
    """Layer -> sum, of the sums that gates have sown as `.../LAYER/gate/NAME`."""
    return {
        path.removesuffix(f"/{name}").removesuffix("/gate"): value
        for path, value in gate_sums.items()
        if path.endswith(f"/{name}")
    }


def _measure(logits: jax.Array, batch: Batch) -> Sums:
    """Sums the cross-entropy, the right answers and the number of real examples."""
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(
        logits, batch.labels
    )
    predicted = logits.argmax(-1).astype(batch.labels.dtype)
    correct = batch.example_mask & (predicted == batch.labels)
    return {
        # A product would let NaN pass, and a padded example may give NaN.
        "loss": jnp.where(batch.example_mask, cross_entropy, 0.0).sum(),
        "correct": correct.sum(dtype=logits.dtype),
        "count": batch.example_mask.sum(dtype=logits.dtype),
    }


def _collections(variables: Variables) -> dict[str, Tree]:
    return {
        "params": variables.params,
        "gates": variables.personal,
        "batch_stats": variables.model_state,
        "alive": variables.alive,
    }


def _as_wide_as(params: Tree, model_state: Tree) -> Tree:
    # Flax's norms start with float32 statistics, but a step in float64 returns float64.
    if all(leaf.dtype != jnp.float64 for leaf in jax.tree.leaves(params)):
        return model_state

    def widen(leaf: jax.Array) -> jax.Array:
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(jnp.float64) if is_float else leaf

    return jax.tree.map(widen, model_state)
