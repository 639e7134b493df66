"""Records every `report.every` rounds what the page shows beside metrics.jsonl."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.data.augment import TO_INPUT
from fedjax_prune.data.validation import counts_of
from fedjax_prune.engine import processes
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.outcome import by_id
from fedjax_prune.engine.placing import gather_whole, put_whole
from fedjax_prune.engine.store import Store
from fedjax_prune.models.channels import array_name
from fedjax_prune.models.task import make_selection
from fedjax_prune.runs.evaluated import evaluated_clients
from fedjax_prune.runs.experiment import Experiment
from fedjax_prune.runs.learning import Learning, data_info
from fedjax_prune.runs.record import (
    CLASS_CLIENTS,
    CLASS_EXAMPLES,
    MOST_CLIENTS,
    MOST_TROUBLED,
    Record,
    make_record,
    recorded_rounds,
    remove_records,
    write_partition,
    write_record,
)
from fedjax_prune.types import Cohort, Dataset, ServerState, Tree

TROUBLES = ("nonfinite", "clipped", "hostile")
"""Sums above 0 of a client whose loss is wanted in rounds that are not due, too."""


class Recorder:
    """Records the rounds whose number `report.every` divides, and the last one.

    Of other rounds with TROUBLES, at most MOST_TROUBLED, it records the losses.
    """

    def __init__(
        self,
        experiment: Experiment,
        placement: Placement,
        folder: Path,
        finished: int,
    ):
        """Sends to the devices what it needs there; `report.every` 0 needs nothing.

        Args:
          experiment: of the run.
          placement: where it runs.
          folder: its workdir.
          finished: rounds done before.
        """
        config = experiment.config
        self._since = finished
        self._every, self._last = config.report.every, config.rounds
        self._experiment, self._folder = experiment, folder
        self._placement = placement
        self._masks: Tree = ()
        self._churn = self._select = None
        self._examples: Tree = ()
        if not self._every:
            return
        done = recorded_rounds(folder, finished)
        self._left = MOST_TROUBLED - sum(not self.is_due(number) for number in done)
        learning = experiment.learning
        if learning.algorithm.masked is not None:
            self._churn = churn_program()
        if learning.has_gates:
            self._select = selection_program(learning)
            examples = by_class(experiment.data.test, _num_classes(experiment))
            self._examples = put_whole(placement, examples)

    def begin(self, state: ServerState, rows: Store, ids: np.ndarray) -> None:
        """Removes later records, compiles, and writes who holds which classes.

        Args:
          state: of the server, after the rounds done before.
          rows: of all clients.
          ids: of a cohort.

        Raises:
          WorkdirError: if the file cannot be written.
          ProcessError: if the first process cannot write it.
        """
        # Also those of a lost attempt, where this one makes none.
        processes.on_first(lambda: remove_records(self._folder, self._since))
        if not self._every:
            return
        if self._churn is not None:
            # A MaskedServer, whose masks the next round would take with the state.
            self._masks = jax.tree.map(jnp.copy, state.server.masks)
        self(self._last, state, rows, ids)

        def write() -> None:
            data = self._experiment.data
            ids = np.arange(min(MOST_CLIENTS, len(data.population.offsets) - 1))
            num_classes = _num_classes(self._experiment)
            counts = counts_of(data.train.labels, data.population, ids, num_classes)
            write_partition(self._folder, counts.astype(np.int32))

        processes.on_first(write)

    def is_due(self, number: int) -> bool:
        """Whether a round is recorded as a whole.

        Args:
          number: finished rounds.
        """
        if not self._every:
            return False
        return number % self._every == 0 or number == self._last

    def __call__(
        self, number: int, state: ServerState, rows: Store, ids: np.ndarray
    ) -> dict[str, Tree]:
        """Starts to measure a round, and does not wait for it.

        Args:
          number: finished rounds.
          state: of the server, after the round.
          rows: of all clients.
          ids: of the cohort, ascending.

        Returns:
          `churn` and `classes` on the devices, as `Record` describes them; {} if the
          round is not due.
        """
        if not self.is_due(number):
            return {}
        found: dict[str, Tree] = {}
        if self._churn is not None:
            found["churn"], self._masks = self._churn(self._masks, state)
        if self._select is not None:
            personal = rows.personal(ids[:CLASS_CLIENTS])
            found["classes"] = self._select(state, personal, *self._examples)
        return gather_whole(self._placement, found)

    def write(
        self,
        number: int,
        cohort: Cohort,
        sums: Mapping[str, np.ndarray],
        recorded: Mapping[str, Mapping[str, np.ndarray]],
        accuracies: Mapping[str, np.ndarray],
    ) -> None:
        """Writes the record of a round, if it has one; for the first process alone.

        Args:
          number: finished rounds.
          cohort: numpy.
          sums: of the round, on the host, by ascending ids.
          recorded: what a call has given, on the host.
          accuracies: of the evaluation, on the host; {} if there was none.

        Raises:
          WorkdirError: if it cannot be written.
        """
        ids = cohort.client_ids[by_id(cohort)]
        if not self.is_due(number):
            if self._every and self._left > 0 and _is_troubled(sums):
                self._left -= 1
                write_record(self._folder, losses_record(number, ids, sums))
            return
        record = make_record(
            number,
            ids,
            sums,
            recorded=recorded,
            evaluated=evaluated_clients(self._experiment.config, cohort, number),
            accuracies=accuracies,
            churn_since=self._since,
        )
        self._since = number
        write_record(self._folder, record)


def losses_record(
    number: int, ids: np.ndarray, sums: Mapping[str, np.ndarray]
) -> Record:
    """Makes the record of a round that is not due: its clients and their losses."""
    losses = {name: sums[name] for name in ("count", "loss", "arrived")}
    return make_record(
        number,
        ids,
        losses,
        recorded={},
        evaluated=ids[:0],
        accuracies={},
        churn_since=0,
    )


def _is_troubled(sums: Mapping[str, np.ndarray]) -> bool:
    return any(np.any(np.asarray(sums.get(name, 0)) > 0) for name in TROUBLES)


def churn_program() -> Any:
    """Makes the jitted function that compares the masks of rounds.

    Returns:
      (masks, state of an algorithm under masks) -> (array -> [] float32, share of the
      entries of its mask that differ, and a copy of the masks of the state). The first
      argument is donated.
    """

    def compare(before: Tree, state: ServerState) -> tuple[dict[str, jax.Array], Tree]:
        now = state.server.masks
        pairs = zip(
            jax.tree_util.tree_leaves_with_path(before),
            jax.tree.leaves(now),
            strict=True,
        )
        changed = {array_name(path): (old != new).mean() for (path, old), new in pairs}
        # The next round is given the state, with the masks in it.
        return changed, jax.tree.map(jnp.copy, now)

    return jax.jit(compare, donate_argnums=0)


def selection_program(learning: Learning) -> Any:
    """Makes the jitted function that says which channels the classes select.

    Args:
      learning: with gates.

    Returns:
      (state, personal parameters [clients, ...], images, example_mask) -> layer ->
      [num_classes, channels] float16: share of the examples of a class that keep the
      channel of the delivered model, mean of the clients; NaN without examples. Images
      and mask are those of `by_class`.
    """
    config = learning.config
    kind = data_info(config).kind
    select = make_selection(
        learning.model, to_input=TO_INPUT[kind], normalize=config.data.normalize
    )

    def measure(
        state: ServerState, personal: Tree, images: jax.Array, example_mask: jax.Array
    ) -> dict[str, jax.Array]:
        shared = learning.algorithm.deliver(state)

        def of_class(examples: tuple[Tree, jax.Array, jax.Array]) -> Any:
            own, images, real = examples
            counted = select(shared._replace(personal=own), images, real)
            return jax.tree.map(lambda x: x / real.sum(dtype=x.dtype), counted)

        def of_client(own: Tree) -> Any:
            return jax.lax.map(lambda x: of_class((own, *x)), (images, example_mask))

        shares = jax.lax.map(of_client, personal)
        return jax.tree.map(lambda x: x.mean(0).astype(jnp.float16), shares)

    return jax.jit(measure)


def by_class(test: Dataset, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The first CLASS_EXAMPLES examples of each class.

    Args:
      test: numpy.
      num_classes: above every label.

    Returns:
      Images [num_classes, CLASS_EXAMPLES, ...] and [num_classes, CLASS_EXAMPLES] bool,
      False where a class has fewer examples.
    """
    labels = np.asarray(test.labels)
    places = np.zeros((num_classes, CLASS_EXAMPLES), np.int64)
    real = np.zeros(places.shape, bool)
    for label in range(num_classes):
        found = np.flatnonzero(labels == label)[:CLASS_EXAMPLES]
        places[label, : len(found)] = found
        real[label, : len(found)] = True
    return np.asarray(test.images)[places], real


def _num_classes(experiment: Experiment) -> int:
    return data_info(experiment.config).num_classes
