"""What a client's gates know: its own classes, or all of them."""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.data.validation import class_counts
from fedjax_prune.engine.evaluate import correct_by_client, local_accuracy
from fedjax_prune.runs.learning import data_info
from fedjax_prune.runs.tables import difference, markdown, with_interval

from .newest import by_column, newest

OWN, MEAN, OTHER = "own", "mean", "another's"
"""Whose gates a client predicts with: its own, the mean of all clients', or those of
the client after it."""


class Swapped(NamedTuple):
    """What a run's newest checkpoint gets right with own and with other gates.

    Attributes:
      test: whose gates -> [num_clients, num_examples] bool, the right test images.
      validation: whose gates -> [num_clients], accuracies on own validation.
      counts: [num_clients, num_classes], training examples.
      labels: [num_examples], of the test images.
    """

    test: Mapping[str, np.ndarray]
    validation: Mapping[str, np.ndarray]
    counts: np.ndarray
    labels: np.ndarray

    def of_clients(self, *, has: bool) -> np.ndarray:
        """Accuracies with own gates on test images of classes that a client has.

        Args:
          has: False for images of the other classes.

        Returns:
          [num_clients], NaN without such images.
        """
        chosen = (self.counts[:, self.labels] > 0) == has
        return _means_of_chosen(self.test[OWN], chosen)

    def of_classes(self, *, has: bool) -> np.ndarray:
        """Accuracies with own gates, means over clients that have a class.

        Args:
          has: False for the clients that do not have it.

        Returns:
          [num_classes], NaN without such clients.
        """
        classes = np.arange(self.counts.shape[1])
        images = self.labels[None, :] == classes[:, None]
        right = self.test[OWN].astype(float) @ images.T / images.sum(1)
        return _means_of_chosen(right.T, (self.counts.T > 0) == has)


def _means_of_chosen(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The mean of the chosen values of each row, NaN if none is chosen."""
    count = chosen.sum(1)
    sums = np.where(chosen, values, 0).sum(1)
    return np.where(count > 0, sums / np.maximum(count, 1), math.nan)


def swapped_gates(runs: Mapping[str, Sequence[Path]]) -> str:
    """Accuracies of the shared parameters with other clients' gates, in Markdown.

    Args:
      runs: name -> workdirs of its seeds, all clients in every round.

    Returns:
      Means over clients and seeds, with a 95 % interval, after the last round: accuracy
      on a client's own validation set, on the test set, on test images of the classes
      of which it has training examples, and of the others. A second table has the
      differences of the other runs from the first one, seed by seed.
    """
    found = by_column(runs, lambda workdir: over_clients(swapped(workdir)))
    first, *others = found
    columns = list(found[first])
    rows = [
        [
            name,
            str(len(runs[name])),
            *(with_interval(list(values.values())) for values in found[name].values()),
        ]
        for name in found
    ]
    differences = [
        [name, *(difference(found[name][c], found[first][c]) for c in columns)]
        for name in others
    ]
    table = markdown(["run", "seeds", *columns], rows)
    if not others:
        return table
    return f"{table}\n{markdown([f'less {first}', *columns], differences)}"


def by_client_and_class(runs: Mapping[str, Sequence[Path]]) -> str:
    """Accuracies with own gates of each client and of each class, in Markdown.

    Args:
      runs: as for `swapped_gates`; all have the same clients.

    Returns:
      Two tables of means over seeds: for each client on its own validation set and on
      test images of classes that it has and that it has not, and for each class over
      the clients that have it and that have it not.
    """
    found = {name: [swapped(w) for w in workdirs] for name, workdirs in runs.items()}
    counts = next(iter(found.values()))[0].counts
    clients = ["client", "training examples", "classes"]
    classes = ["class", "clients that have it"]
    columns, class_columns = [], []
    for name, seeds in found.items():
        clients += [f"{name}, {w}" for w in ("own validation", "its classes", "others")]
        columns += [
            np.mean([seed.validation[OWN] for seed in seeds], 0),
            np.mean([seed.of_clients(has=True) for seed in seeds], 0),
            np.mean([seed.of_clients(has=False) for seed in seeds], 0),
        ]
        classes += [f"{name}, {w}" for w in ("clients that have it", "others")]
        class_columns += [
            np.mean([seed.of_classes(has=has) for seed in seeds], 0)
            for has in (True, False)
        ]
    facts = zip(counts.sum(1), (counts > 0).sum(1), strict=True)
    rows = [
        [str(n), *map(str, fact), *_cells(columns, n)] for n, fact in enumerate(facts)
    ]
    class_rows = [
        [str(n), str(owners), *_cells(class_columns, n)]
        for n, owners in enumerate((counts > 0).sum(0))
    ]
    return f"{markdown(clients, rows)}\n{markdown(classes, class_rows)}"


def _cells(columns: Sequence[np.ndarray], row: int) -> list[str]:
    return ["" if math.isnan(c[row]) else f"{c[row]:.1%}" for c in columns]


def over_clients(found: Swapped) -> dict[str, float]:
    """Column of `swapped_gates` -> mean over clients, in its order."""
    return {
        f"own validation, {whose} gates": float(values.mean())
        for whose, values in found.validation.items()
    } | {
        "test, own gates": float(found.test[OWN].mean()),
        "test, mean gates": float(found.test[MEAN].mean()),
        "test, own gates, classes that it has": _known_mean(found.of_clients(has=True)),
        "test, own gates, other classes": _known_mean(found.of_clients(has=False)),
    }


def _known_mean(values: np.ndarray) -> float:
    """The mean of the values that are not NaN, or NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


@functools.cache
def swapped(workdir: Path) -> Swapped:
    """Measures a run's newest checkpoint with swapped gates, once.

    Args:
      workdir: of a run whose clients have all been in a cohort; validation sets are of
        test images.

    Raises:
      WorkdirError, CheckpointError, DataError: if there is nothing to measure.
    """
    with newest(workdir) as (experiment, state, rows):
        (learning, data), config = experiment, experiment.config
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

        given = {
            OWN: own,
            MEAN: jax.tree.map(lambda x: jnp.broadcast_to(x.mean(0), x.shape), own),
            OTHER: jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), own),
        }
        found = {whose: correct(gates) for whose, gates in given.items()}
        num_classes = data_info(config).num_classes
        return Swapped(
            {whose: np.asarray(each) for whose, each in found.items()},
            {
                whose: np.asarray(local_accuracy(each, validation))
                for whose, each in found.items()
            },
            class_counts(data.train.labels, data.population, num_classes),
            np.asarray(data.test.labels),
        )
