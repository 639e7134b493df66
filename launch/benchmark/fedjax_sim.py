"""Federated averaging with FedJAX, on a JAX old enough for it.

python -m launch.benchmark.fedjax_sim --work=w1 --data=FILE.npz --threads=2

Its batches are always full: a client's last one is filled with repeated examples.
"""
# pyright: reportMissingImports=false

from collections.abc import Callable

import fedjax
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from fedjax.algorithms import fed_avg

from . import worker


def _dropout(x: jax.Array, rate: float) -> jax.Array:
    return hk.dropout(hk.next_rng_key(), rate, x)


def _cnn(x: jax.Array, num_classes: int) -> jax.Array:
    x = jax.nn.relu(hk.Conv2D(32, 3, padding="VALID")(x))
    x = jax.nn.relu(hk.Conv2D(64, 3, padding="VALID")(x))
    x = hk.MaxPool((1, 2, 2, 1), (1, 2, 2, 1), "VALID")(x)
    x = hk.Flatten()(_dropout(x, 0.25))
    x = _dropout(jax.nn.relu(hk.Linear(128)(x)), 0.5)
    return hk.Linear(num_classes)(x)


def _vgg11(x: jax.Array, num_classes: int, width: float) -> jax.Array:
    # Without normalisation layers, Haiku's own scale makes the signal vanish.
    w_init = hk.initializers.VarianceScaling(2.0, "fan_out", "normal")
    for layer in worker.VGG_LAYERS:
        if layer == 0:
            x = hk.MaxPool((1, 2, 2, 1), (1, 2, 2, 1), "VALID")(x)
        else:
            x = jax.nn.relu(hk.Conv2D(int(layer * width), 3, w_init=w_init)(x))
    x = _dropout(hk.Flatten()(x), 0.5)
    hidden = int(worker.VGG_DENSE * width)
    x = _dropout(jax.nn.relu(hk.Linear(hidden)(x)), 0.5)
    x = jax.nn.relu(hk.Linear(hidden)(x))
    return hk.Linear(num_classes)(x)


def _build(work: str, data: worker.Data) -> fedjax.Model:
    def forward(batch: dict[str, jax.Array]) -> jax.Array:
        x = batch["x"].astype(jnp.float32) / 255
        if work == "w2":
            return _vgg11(x, data.num_classes, data.width)
        return _cnn(x, data.num_classes)

    return fedjax.create_model_from_haiku(
        transformed_forward_pass=hk.transform(forward),
        sample_batch={"x": data.images[:1], "y": data.labels[:1]},
        train_loss=lambda batch, logits: fedjax.metrics.unreduced_cross_entropy_loss(
            batch["y"], logits
        ),
    )


def make(
    work: str, data: worker.Data
) -> tuple[
    Callable[[], fedjax.Params], Callable[[np.ndarray], None], Callable[[], float]
]:
    """Returns functions for the parameters, for a round and for the checksum."""
    model = _build(work, data)
    clients = {}
    for client in range(len(data.sizes)):
        examples = data.examples(client)
        clients[client] = {"x": data.images[examples], "y": data.labels[examples]}
    federated_data = fedjax.InMemoryFederatedData(clients)
    algorithm = fed_avg.federated_averaging(
        grad_fn=fedjax.model_grad(model),
        client_optimizer=fedjax.optimizers.sgd(data.client_lr),
        server_optimizer=fedjax.optimizers.sgd(data.server_lr),
        client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(
            batch_size=data.batch_size, num_epochs=data.epochs
        ),
    )
    state = algorithm.init(model.init(jax.random.PRNGKey(0)))
    leaves = jax.tree_util.tree_leaves(state.params)
    worker.check_num_params(work, data, sum(leaf.size for leaf in leaves))
    round = 0

    def run_round(cohort: np.ndarray) -> None:
        nonlocal state, round
        # As FedJAX's own samplers draw the keys.
        keys = jax.random.split(jax.random.PRNGKey(round), len(cohort))
        sampled = federated_data.get_clients(cohort.tolist())
        state, _ = algorithm.apply(
            state,
            [(*client, key) for client, key in zip(sampled, keys, strict=True)],
        )
        jax.block_until_ready(state.params)
        round += 1

    def checksum() -> float:
        leaves = jax.tree_util.tree_leaves(state.params)
        total = sum(np.asarray(leaf).sum(dtype=np.float64) for leaf in leaves)
        return float(total / sum(leaf.size for leaf in leaves))

    return lambda: state.params, run_round, checksum


def main() -> None:
    """Serves the orchestrator."""
    options, channel, data = worker.start()
    _, run_round, checksum = make(options.work, data)
    worker.serve(
        channel,
        data,
        peer="fedjax",
        package="fedjax",
        run_round=run_round,
        checksum=checksum,
    )


if __name__ == "__main__":
    main()
