"""Tiny tasks, datasets, cohorts and their rounds, small enough to follow by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.engine import store as stores
from fedjax_prune.engine.contract import FederatedAlgorithm
from fedjax_prune.engine.devices import ONE_DEVICE, Placement
from fedjax_prune.engine.placing import put_split
from fedjax_prune.engine.store import Store, make_store
from fedjax_prune.types import (
    ClientState,
    Cohort,
    Dataset,
    Probe,
    RoundInputs,
    ServerState,
    Sums,
    Task,
    Tree,
    Variables,
)


def quadratic_task(num_dims: int) -> Task:
    """Each example is a bowl: loss = 1/2 sum_d h_d (w_d - x_d)^2.

    An example's image [2, num_dims, 1] holds x in its first row, h in its second.
    There is one personal parameter, whose gradient is its distance to 1.
    """

    def init(key):
        return Variables(
            {"w": jax.random.normal(key, (num_dims,))}, {"v": jnp.float32(0)}, {}
        )

    def loss(variables, batch, key):
        del key
        x, h = batch.images[:, 0, :, 0], batch.images[:, 1, :, 0]
        distance = variables.params["w"][None] - x
        losses = jnp.where(batch.example_mask, (0.5 * h * distance**2).sum(axis=1), 0.0)
        count = batch.example_mask.sum(dtype=jnp.float32)
        mean = losses.sum() / jnp.maximum(count, 1)
        mean += 0.5 * (variables.personal["v"] - 1) ** 2
        sums = {"loss": losses.sum(), "correct": jnp.float32(0), "count": count}
        return mean, ({}, sums)

    return Task(init, loss, lambda variables, images: images[:, 0, :, 0])


def linear_task(image_shape: tuple[int, int, int], num_classes: int) -> Task:
    """Softmax regression on the pixels, with a batch statistic: the mean pixel."""
    num_features = int(np.prod(image_shape))

    def init(key):
        kernel = 0.01 * jax.random.normal(key, (num_features, num_classes))
        return Variables(
            {"kernel": kernel, "bias": jnp.zeros(num_classes)},
            {},
            {"mean": jnp.zeros((), kernel.dtype)},
        )

    def predict(variables, images):
        kernel, bias = variables.params["kernel"], variables.params["bias"]
        x = images.reshape(images.shape[0], -1).astype(kernel.dtype) / 255
        return x @ kernel + bias[None]

    def loss(variables, batch, key):
        del key
        logits = predict(variables, batch.images)
        losses = -jnp.take_along_axis(
            jax.nn.log_softmax(logits), batch.labels[:, None], axis=1
        )[:, 0]
        losses = jnp.where(batch.example_mask, losses, 0.0)
        count = batch.example_mask.sum(dtype=losses.dtype)
        pixels = (batch.images.astype(losses.dtype) / 255).mean(axis=(1, 2, 3))
        mean_pixel = jnp.where(batch.example_mask, pixels, 0.0).sum() / count
        correct = batch.example_mask & (logits.argmax(-1) == batch.labels)
        sums = {
            "loss": losses.sum(),
            "correct": correct.sum(dtype=losses.dtype),
            "count": count,
        }
        return losses.sum() / jnp.maximum(count, 1), ({"mean": mean_pixel}, sums)

    return Task(init, loss, predict, groups=())


def quadratic_dataset(sizes, num_dims: int, seed: int = 0) -> tuple[Dataset, list]:
    """Bowls whose centre and curvature belong to their client.

    Returns:
      The dataset and, per client, its (mean of h, minimiser) as float64.
    """
    rng = np.random.default_rng(seed)
    images, bowls = [], []
    for size in sizes:
        h = np.repeat(rng.uniform(0.2, 2.0, (1, num_dims)), size, axis=0)
        x = rng.normal(0, 2, (1, num_dims)) + rng.normal(0, 0.1, (size, num_dims))
        images.append(np.stack([x, h], axis=1)[..., None])
        bowls.append((h[0], x.mean(axis=0)))
    images = np.concatenate(images).astype(np.float32)
    return Dataset(images, np.zeros(len(images), np.int32)), bowls


def image_dataset(num_examples: int, image_shape, num_classes: int, seed: int = 0):
    """Separable uint8 images: each class is bright in its own pixels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_examples).astype(np.int32)
    prototypes = rng.integers(0, 200, (num_classes, *image_shape))
    noise = rng.integers(0, 55, (num_examples, *image_shape))
    return Dataset((prototypes[labels] + noise).astype(np.uint8), labels)


def contiguous_cohort(
    sizes, client_ids=None, *, num_lanes: int = 1, width: int | None = None
) -> Cohort:
    """Clients own consecutive examples; lanes take them in turn."""
    sizes = np.asarray(sizes, np.int32)
    client_ids = np.arange(len(sizes)) if client_ids is None else np.asarray(client_ids)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    cohort_sizes = sizes[client_ids]
    indices = np.zeros((len(client_ids), width or sizes.max()), np.int32)
    for place, client_id in enumerate(client_ids):
        size = sizes[client_id]
        indices[place, :size] = np.arange(size) + starts[client_id]
    queues = np.full((num_lanes, len(client_ids)), len(client_ids), np.int32)
    for place in range(len(client_ids)):
        queues[place % num_lanes, place // num_lanes] = place
    return Cohort(
        client_ids=client_ids.astype(np.int32),
        sizes=cohort_sizes,
        indices=indices,
        queues=queues,
        cohort_size=np.int32(len(client_ids)),
        num_clients=np.int32(len(sizes)),
        num_examples=sizes.sum(dtype=np.float64),
    )


class CompiledRound:
    """A round that takes and returns the rows of all clients.

    Attributes:
      num_traces: how often it has been traced.
    """

    def __init__(
        self, algorithm: FederatedAlgorithm, placement: Placement = ONE_DEVICE
    ):
        """Compiles nothing before the first call."""
        self.num_traces = 0

        @jax.jit
        def step(inputs: RoundInputs) -> tuple[ServerState, ClientState, Sums]:
            self.num_traces += 1
            ids, rows = inputs.cohort.client_ids, inputs.rows
            inputs = inputs._replace(rows=stores.take(rows, ids))
            state, taken, sums = algorithm.round(inputs, placement)
            return state, stores.put(rows, ids, taken), sums

        self._step = step

    def __call__(
        self,
        state: ServerState,
        rows: ClientState,
        dataset: Dataset,
        cohort: Cohort,
        key: jax.Array,
        probe: Probe | None = None,
    ) -> tuple[ServerState, ClientState, Sums]:
        """Runs one round; the rows of clients outside of the cohort stay."""
        inputs = RoundInputs(state, rows, dataset, cohort, key, probe=probe)
        return self._step(inputs)


@functools.cache
def compiled_round(
    algorithm: FederatedAlgorithm, placement: Placement = ONE_DEVICE
) -> CompiledRound:
    """One for all tests of an algorithm with the same settings."""
    return CompiledRound(algorithm, placement)


@functools.cache
def compiled_preparation(algorithm: FederatedAlgorithm):
    """Like `compiled_round`, but the rows are those of the cohort."""
    assert algorithm.prepare is not None
    return jax.jit(algorithm.prepare.run)


def first(
    algorithm: FederatedAlgorithm, num_clients: int, key: jax.Array
) -> tuple[ServerState, ClientState]:
    """The state and the rows of all clients before anything was done."""
    return algorithm.init(key), stores.create(algorithm.row(key), num_clients)


def prepare(
    algorithm: FederatedAlgorithm, dataset: Dataset, cohort: Cohort, key: jax.Array
) -> tuple[ServerState, ClientState, Sums]:
    """State and rows of all clients after the preparation by a cohort, and its sums."""
    state, rows = first(algorithm, int(cohort.num_clients), key)
    taken = stores.take(rows, cohort.client_ids)
    run = compiled_preparation(algorithm)
    state, taken, sums = run(RoundInputs(state, taken, dataset, cohort, key))
    return state, stores.put(rows, cohort.client_ids, taken), sums


def store_of(rows: Tree, placement: Placement = ONE_DEVICE) -> Store:
    """A store on the devices that holds these rows of all clients."""
    num_clients = jax.tree.leaves(rows)[0].shape[0]
    first = jax.tree.map(lambda x: x[0], rows)
    store = make_store("device", first, num_clients, placement)
    ids, places = _all_places(num_clients, placement)
    padded = jax.tree.map(lambda x: np.asarray(x)[places], rows)
    store.put(ids, put_split(placement, padded))
    return store


def all_rows(store: Store, placement: Placement = ONE_DEVICE) -> Tree:
    """The rows of all clients as one cohort, numpy."""
    leaves = jax.tree.leaves(store.shapes)
    num_clients = leaves[0].shape[0] if leaves else 1
    ids, _ = _all_places(num_clients, placement)
    return jax.tree.map(lambda x: np.asarray(x)[:num_clients], store.take(ids))


def assert_same_bits(actual: Tree, expected: Tree) -> None:
    """Compares dtypes, shapes and bytes of all leaves."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for a, e in pairs:
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        assert np.asarray(a).tobytes() == np.asarray(e).tobytes()


def _all_places(num_clients: int, placement: Placement) -> tuple:
    """Ids of all clients, padded with nobody, and the rows to put at these places."""
    places = np.arange(num_clients + -num_clients % placement.num_blocks)
    ids = np.minimum(places, num_clients).astype(np.int32)
    return ids, np.minimum(places, num_clients - 1)
