"""What a client's gates know: its own classes, or all of them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.data.validation import class_counts
from fedjax_prune.engine.evaluate import correct_by_client, local_accuracy
from fedjax_prune.models.precision import product_precision
from fedjax_prune.runs.experiment import load_data
from fedjax_prune.runs.learning import make_learning
from fedjax_prune.runs.start import restore
from fedjax_prune.runs.tables import markdown, with_interval
from fedjax_prune.runs.workdir import read_usable_config

OWN, MEAN, OTHER = "own", "mean", "another's"
"""Whose gates a client predicts with: its own, the mean of all clients', or those of
the client after it."""


def swapped_gates(
    runs: Mapping[str, Sequence[Path]],
    published: Mapping[str, str],
    most_rounds: float,
) -> str:
    """Accuracies of the shared parameters with other clients' gates, in Markdown.

    Args:
      runs: name -> workdirs of its seeds, all clients in every round.
      published: is not shown.
      most_rounds: is not used; the newest checkpoint is measured.

    Returns:
      Means over clients and seeds, with a 95 % interval, after the last round: accuracy
      on a client's own validation set, on the test set, on test images of the classes
      of which it has training examples, and of the others.
    """
    del published, most_rounds
    rows, columns = [], []
    for name, workdirs in runs.items():
        of_seeds = [measure(workdir) for workdir in workdirs]
        columns = list(of_seeds[0])
        cells = [with_interval([seed[key] for seed in of_seeds]) for key in columns]
        rows.append([name, str(len(workdirs)), *cells])
    return markdown(["run", "seeds", *columns], rows)


def measure(workdir: Path) -> dict[str, float]:
    """Measures a run's newest checkpoint with swapped gates.

    Args:
      workdir: of a run whose clients have all been in a cohort; validation sets are of
        test images.

    Returns:
      Column -> mean over clients, in the order of the table.

    Raises:
      WorkdirError, CheckpointError, DataError: if there is nothing to measure.
    """
    config = read_usable_config(workdir)
    with product_precision(config.precision):
        learning, data = make_learning(config), load_data(config)
        state, rows = restore(learning, workdir)
        ids = np.arange(config.data.num_clients, dtype=np.int32)
        own = rows.take(ids).personal
        variables = jax.jit(learning.algorithm.deliver)(state)
        test, validation = jax.device_put(data.test), data.validation(ids)

        @jax.jit
        def correct(gates: Any) -> jax.Array:
            found = correct_by_client(
                learning.task, variables._replace(personal=gates), test
            )
            return jnp.broadcast_to(found, (len(ids), found.shape[1]))

        swapped = {
            OWN: own,
            MEAN: jax.tree.map(lambda x: jnp.broadcast_to(x.mean(0), x.shape), own),
            OTHER: jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), own),
        }
        found = {whose: correct(gates) for whose, gates in swapped.items()}
        num_classes = 1 + int(data.train.labels.max())
        counts = class_counts(data.train.labels, data.population, num_classes)
        has = counts[:, np.asarray(data.test.labels)] > 0
        hits = np.asarray(found[OWN])

        def of_clients(chosen: np.ndarray) -> float:
            """The mean over the clients that have such images."""
            means = [h[c].mean() for h, c in zip(hits, chosen, strict=True) if c.any()]
            return float(np.mean(means)) if means else math.nan

        return {
            f"own validation, {whose} gates": float(
                local_accuracy(each, validation).mean()
            )
            for whose, each in found.items()
        } | {
            "test, own gates": float(hits.mean()),
            "test, mean gates": float(found[MEAN].mean()),
            "test, own gates, classes that it has": of_clients(has),
            "test, own gates, other classes": of_clients(~has),
        }
