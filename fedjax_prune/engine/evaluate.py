"""The four accuracies of a federated run, on the device in masked batches.

  global_dense   the shared parameters without gates, on the test set
  client_gated   the shared parameters with each client's own gates, on the test set
  client_local   the same, on each client's own validation set
  after_local    each client's parameters and gates before they are averaged away

Here they are counts or shares for each client; means are taken when a row is written.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.data.padded import Padded
from fedjax_prune.data.pairs import check_pairs
from fedjax_prune.engine.devices import ONE_DEVICE, Placement, share_work
from fedjax_prune.types import Dataset, Probe, Sums, Task, Variables

BATCH_SIZE = 100
"""Examples in a forward pass; the last batch overlaps the one before it."""


def correct_examples(task: Task, variables: Variables, dataset: Dataset) -> jax.Array:
    """Says which examples are classified correctly.

    Args:
      task: its `predict` is called on BATCH_SIZE examples at a time.
      variables: of one model.
      dataset: on the device.

    Returns:
      [num_examples] bool.

    Raises:
      ValueError: if there is no example, or images and labels differ in number.

    Examples:
      >>> import fedjax_prune as fp
      >>> task = fp.Task(None, None, lambda variables, images: images[:, 0, 0])
      >>> pixels = jnp.array([[1, 2, 3], [1, 3, 2]], jnp.uint8)
      >>> dataset = fp.Dataset(pixels[:, None, None], jnp.array([2, 0]))
      >>> fp.correct_examples(task, fp.Variables({}, {}, {}), dataset).tolist()
      [True, False]
    """
    check_pairs(dataset)
    num_examples = dataset.labels.shape[0]
    if num_examples == 0:
        raise ValueError("dataset must have at least one example, got 0.")
    batch_size = min(BATCH_SIZE, num_examples)
    num_batches = -(-num_examples // batch_size)
    # The last batch begins early instead of running over the end.
    starts = jnp.minimum(
        jnp.arange(num_batches) * batch_size, num_examples - batch_size
    )

    def one_batch(start: jax.Array) -> jax.Array:
        images = jax.lax.dynamic_slice_in_dim(dataset.images, start, batch_size)
        labels = jax.lax.dynamic_slice_in_dim(dataset.labels, start, batch_size)
        predicted = task.predict(variables, images).argmax(-1)
        return predicted.astype(labels.dtype) == labels

    correct = jax.lax.map(one_batch, starts)
    places = starts[:, None] + jnp.arange(batch_size)[None, :]
    return jnp.zeros(num_examples, bool).at[places].set(correct)


def correct_by_client(
    task: Task,
    variables: Variables,
    dataset: Dataset,
    placement: Placement = ONE_DEVICE,
) -> jax.Array:
    """Says which examples each client's gated model classifies correctly.

    Args:
      task: a gated or plain task.
      variables: shared `params` and `model_state`; `personal` with a leading axis
        `num_clients`, or `{}`, with which all clients have the same model and it is
        computed once.
      dataset: on every device.
      placement: the devices, each of which takes a part of the examples.

    Returns:
      [num_clients, num_examples] bool, or [1, num_examples] without personal
      parameters.

    Examples:
      >>> import fedjax_prune as fp
      >>> def predict(variables, images):
      ...     return images[:, 0, 0] + variables.personal["bias"][None]
      >>> images = jnp.array([[[[2.0, 1.0]]], [[[1.0, 2.0]]]])
      >>> dataset = fp.Dataset(images, jnp.array([0, 1]))
      >>> of_clients = {"bias": jnp.array([[0.0, 0.0], [5.0, 0.0]])}
      >>> task = fp.Task(init=None, loss=None, predict=predict)
      >>> variables = fp.Variables({}, of_clients, {})
      >>> fp.correct_by_client(task, variables, dataset).tolist()
      [[True, True], [True, False]]
    """

    def on_part(variables: Variables, part: Dataset) -> jax.Array:
        if not jax.tree.leaves(variables.personal):
            return correct_examples(task, variables, part)[None]
        return jax.lax.map(
            lambda personal: correct_examples(
                task, variables._replace(personal=personal), part
            ),
            variables.personal,
        )

    return share_work(placement, on_part, variables, dataset, out_axis=1)


def local_accuracy(correct: jax.Array, validation: Padded) -> jax.Array:
    """Computes each client's accuracy on its own validation set.

    Args:
      correct: [num_clients or 1, num_examples] bool, from `correct_by_client`.
      validation: indices into the same examples, one row per client.

    Returns:
      [num_clients] float.
    """
    indices = jnp.asarray(validation.indices)
    real = jnp.arange(indices.shape[1])[None, :] < validation.sizes[:, None]
    correct = jnp.broadcast_to(correct, (indices.shape[0], correct.shape[1]))
    hits = jnp.take_along_axis(correct, indices, axis=1) & real
    return hits.sum(axis=1, dtype=jnp.int32) / validation.sizes


def holdout_accuracy(
    task: Task,
    variables: Variables,
    dataset: Dataset,
    validation: Padded,
    placement: Placement = ONE_DEVICE,
) -> jax.Array:
    """Computes each client's accuracy on training examples that it has held out.

    Args:
      task: a gated or plain task.
      variables: as in `correct_by_client`.
      dataset: the training set, on every device.
      validation: indices into it, one row per client.
      placement: the devices, each of which takes a part of the clients.

    Returns:
      [num_clients] float.
    """

    def on_part(whole: tuple[Variables, Dataset], clients: tuple) -> jax.Array:
        variables, dataset = whole

        def one_client(client: tuple) -> jax.Array:
            personal, indices, size = client
            correct = correct_examples(
                task, variables._replace(personal=personal), dataset.at(indices)
            )
            hits = correct & (jnp.arange(indices.shape[0]) < size)
            return hits.sum(dtype=jnp.int32) / size

        return jax.lax.map(one_client, clients)

    shared = variables._replace(personal={})
    clients = (variables.personal, validation.indices, validation.sizes)
    return share_work(placement, on_part, (shared, dataset), clients)


def after_local_probe(task: Task, test: Dataset, wanted: jax.Array) -> Probe:
    """Makes a probe of clients' own models, before they are averaged.

    Args:
      task: a gated or plain task.
      test: on the device.
      wanted: [num_places] bool, which clients of the cohort to measure.

    Returns:
      A probe whose sum `after_local` is the number of correct test examples.
    """

    def measure(variables: Variables, test: Dataset) -> Sums:
        correct = correct_examples(task, variables, test)
        return {"after_local": correct.sum(dtype=jnp.float32)}

    return Probe(measure, test, wanted)


def summarise(accuracies: np.ndarray) -> dict[str, float]:
    """Computes mean, standard deviation, 10th percentile and minimum over clients.

    Args:
      accuracies: [num_clients], in [0, 1].

    Returns:
      The four numbers under `mean`, `std`, `p10`, `min`.
    """
    statistics: dict[str, Callable] = {
        "mean": np.mean,
        "std": np.std,
        "p10": lambda x: np.percentile(x, 10),
        "min": np.min,
    }
    accuracies = np.asarray(accuracies, np.float64)
    return {name: float(f(accuracies)) for name, f in statistics.items()}
