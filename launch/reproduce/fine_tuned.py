"""Simpler ways to a model of each client's own: fine-tuning, and its largest class."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from fedjax_prune.data.padded import table_of
from fedjax_prune.data.validation import class_counts
from fedjax_prune.engine.contract import ClientProgram
from fedjax_prune.engine.evaluate import correct_examples, local_accuracy
from fedjax_prune.engine.keys import seed_key
from fedjax_prune.engine.local import train_client
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.runs.evaluated import last_clients
from fedjax_prune.runs.learning import Learning, data_info
from fedjax_prune.runs.tables import difference, markdown, with_interval
from fedjax_prune.types import Anchor, ClientState, Dataset, Tree, Variables

from .newest import by_column, newest


class Accuracies(NamedTuple):
    """Accuracies of a run's newest checkpoint, means over clients.

    Attributes:
      own: on own validation, as delivered.
      test: on the test set, as delivered.
      tuned_own: on own validation, after each client has trained the model once more.
      tuned_test: on the test set, after that.
      largest: on own validation, if a client always names the class of which it has
        most training examples.
    """

    own: float
    test: float
    tuned_own: float
    tuned_test: float
    largest: float


def fine_tuned(runs: Mapping[str, Sequence[Path]]) -> str:
    """Accuracies before and after each client trains on its own, in Markdown.

    Args:
      runs: name -> workdirs of its seeds; all have the same clients.

    Returns:
      Means over clients and seeds, with a 95 % interval, after the last round. The last
      two columns are a run's accuracies without fine-tuning minus those of the first
      run with it, seed by seed.
    """
    found = by_column(runs, lambda workdir: accuracies(workdir)._asdict())
    first = next(iter(found))
    rows = []
    for name, columns in found.items():
        shown = [
            with_interval(list(columns[field].values()))
            for field in ("own", "test", "tuned_own", "tuned_test")
        ]
        shown += [
            difference(columns[field], found[first][f"tuned_{field}"])
            for field in ("own", "test")
        ]
        rows.append([name, str(len(columns["own"])), *shown])
    largest = next(iter(found[first]["largest"].values()))
    rows.append(["always the client's largest class", "", f"{largest:.1%}", *[""] * 5])
    header = ["run", "seeds", "own validation", "test"]
    header += [f"fine-tuned, {name}" for name in header[2:]]
    header += [f"{name} less fine-tuned {first}" for name in header[2:4]]
    return markdown(header, rows)


def accuracies(workdir: Path) -> Accuracies:
    """Measures a run's newest checkpoint before and after fine-tuning.

    A client trains the delivered model, and its gates if there are any, as in a round
    of FedAvg: with the run's optimiser, step size, local epochs and batch size, and
    without control variates and proximal terms. Clients are those that the run has
    evaluated after its last round.

    Args:
      workdir: of a run without masks; validation sets are of test images.

    Raises:
      WorkdirError, CheckpointError, DataError: if there is nothing to measure.
    """
    with newest(workdir) as (experiment, state, rows):
        (learning, data), config = experiment, experiment.config
        ids = last_clients(config)
        shared = jax.jit(learning.algorithm.deliver)(state)
        train, test = jax.device_put((data.train, data.test))
        held, gates = table_of(data.population, ids), rows.take(ids).personal
        round_key = jax.random.fold_in(seed_key(config.seed), int(state.round))
        keys = jax.vmap(lambda client: jax.random.fold_in(round_key, client))(ids)

        @jax.jit
        def correct(anchor: Anchor, train: Dataset, test: Dataset, clients: tuple):
            tuned = _fine_tuning(learning, anchor, train)

            def of_client(client: tuple) -> list[jax.Array]:
                before = Variables(anchor.params, client[0], anchor.model_state)
                models = (before, tuned(*client))
                return [correct_examples(learning.task, m, test) for m in models]

            return jax.lax.map(of_client, clients)

        anchor = Anchor(shared.params, shared.model_state, state.round)
        clients = (gates, held.indices, held.sizes, keys)
        before, after = correct(anchor, train, test, clients)
        validation = data.validation(ids)
        num_classes = data_info(config).num_classes
        counts = class_counts(data.train.labels, data.population, num_classes)[ids]
        largest = data.test.labels[None, :] == counts.argmax(1)[:, None]
        return Accuracies(
            own=float(local_accuracy(before, validation).mean()),
            test=float(before.mean()),
            tuned_own=float(local_accuracy(after, validation).mean()),
            tuned_test=float(after.mean()),
            largest=float(local_accuracy(largest, validation).mean()),
        )


def _fine_tuning(
    learning: Learning, anchor: Anchor, train: Dataset
) -> Callable[..., Variables]:
    """(gates, indices, size, key) -> what a client makes of the shared model."""
    solver = make_solver(**learning.config.client)
    program = ClientProgram(upload=lambda result, row: ({}, row))

    def tuned(gates: Tree, indices: jax.Array, size: jax.Array, key: jax.Array):
        row = ClientState(personal=gates, client={})
        found = train_client(
            task=learning.task,
            solver=solver,
            program=program,
            anchor=anchor,
            row=row,
            dataset=train,
            indices=indices,
            size=size,
            key=key,
        )
        params = jax.tree.map(lambda x, dx: x - dx, anchor.params, found.delta)
        return Variables(params, found.personal, found.model_state)

    return tuned
