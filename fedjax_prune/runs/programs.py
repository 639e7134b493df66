"""What a run compiles: its rounds and its evaluation.

A run's rounds are `WholeRounds` or, on the smaller models that masks leave,
`compact_rounds.CompactRounds`; the loop calls either.
"""

import time
from collections.abc import Collection
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.data.padded import Padded, pad_clients, width_of
from fedjax_prune.engine import evaluate
from fedjax_prune.engine.contract import Round
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.placing import put_whole
from fedjax_prune.engine.store import Store
from fedjax_prune.runs.experiment import Experiment
from fedjax_prune.runs.learning import Learning
from fedjax_prune.types import (
    ClientState,
    Dataset,
    RoundInputs,
    ServerState,
    Sums,
    Task,
    Tree,
)


class Rounds(Protocol):
    """Compiled rounds of a run.

    Attributes:
      seconds: spent compiling in the last call.
    """

    seconds: float

    def __call__(
        self, inputs: RoundInputs, test: Dataset, wanted: jax.Array
    ) -> tuple[ServerState, ClientState, Sums]:
        """Runs one round.

        Args:
          inputs: without a probe; its key is that of the run, from which each round
            makes its own. State and rows are donated.
          test: examples that clients are measured on before they are averaged.
          wanted: [num_places] bool, which clients of the cohort are measured.
        """
        ...


class WholeRounds:
    """Rounds on the whole model: a program for each width of cohorts.

    It is compiled in the first call with that width. Most populations have one width,
    see `data.padded.width_of`.

    Attributes:
      seconds: as in `Rounds`.
    """

    def __init__(self, task: Task, round: Round, placement: Placement):
        """Makes rounds that compile when they are called.

        Args:
          task: clients are measured by it.
          round: of an algorithm.
          placement: where the rounds run.
        """
        self.seconds = 0.0
        self._compiled: dict[int, jax.stages.Compiled] = {}

        @partial(jax.jit, donate_argnums=0)
        def train(
            kept: tuple[ServerState, ClientState],
            inputs: RoundInputs,
            test: Dataset,
            wanted: jax.Array,
        ) -> tuple[ServerState, ClientState, Sums]:
            state, rows = kept
            inputs = inputs._replace(
                state=state,
                rows=rows,
                key=jax.random.fold_in(inputs.key, state.round),
                probe=evaluate.after_local_probe(task, test, wanted),
            )
            return round(inputs, placement)

        self._train = train

    def compile(
        self, inputs: RoundInputs, test: Dataset, wanted: jax.Array
    ) -> jax.stages.Compiled:
        """Compiles the program for arguments of these shapes."""
        began = time.monotonic()
        compiled = self._train.lower(*_donated(inputs), test, wanted).compile()
        self._compiled[inputs.cohort.indices.shape[1]] = compiled
        self.seconds = time.monotonic() - began
        return compiled

    def __call__(
        self, inputs: RoundInputs, test: Dataset, wanted: jax.Array
    ) -> tuple[ServerState, ClientState, Sums]:
        """See `Rounds`."""
        self.seconds = 0.0
        run = self._compiled.get(inputs.cohort.indices.shape[1])
        run = run or self.compile(inputs, test, wanted)
        return run(*_donated(inputs), test, wanted)


def _donated(inputs: RoundInputs) -> tuple[tuple[ServerState, ClientState], Any]:
    """Separates state and rows from the other inputs, so that they can be donated."""
    kept: Any = ()
    return (inputs.state, inputs.rows), inputs._replace(state=kept, rows=kept)


def evaluation_program(learning: Learning, held_out: bool, placement: Placement) -> Any:
    """Makes the jitted function that evaluates some clients.

    Args:
      learning: of the run.
      held_out: whether clients are validated on training examples.
      placement: where it runs.

    Returns:
      (state, personal parameters of the clients, train, test, their validation sets) ->
      the accuracies of `Evaluation`.
    """
    gated = learning.model.gates is not None

    @jax.jit
    def measure(
        state: ServerState,
        personal: Tree,
        train: Dataset,
        test: Dataset,
        validation: Padded,
    ) -> dict[str, jax.Array]:
        # Every device evaluates all clients on its share of the examples.
        shared = learning.algorithm.deliver(state)
        own = shared._replace(personal=personal)
        correct = evaluate.correct_by_client(learning.task, own, test, placement)
        local = (
            evaluate.holdout_accuracy(learning.task, own, train, validation, placement)
            if held_out
            else evaluate.local_accuracy(correct, validation)
        )
        dense = correct
        if gated:
            dense = evaluate.correct_by_client(
                learning.dense_task, shared, test, placement
            )
        return {
            "global_dense": dense.mean(),
            "client_gated": jnp.broadcast_to(
                correct.mean(axis=1), validation.sizes.shape
            ),
            "client_local": local,
        }

    return measure


class Evaluation:
    """Accuracies of the delivered model with each client's personal parameters."""

    def __init__(self, experiment: Experiment, placement: Placement):
        """Sends the data to the devices.

        Args:
          experiment: of the run.
          placement: where the evaluation runs.
        """
        data, learning = experiment.data, experiment.learning
        self.train, self.test = put_whole(placement, (data.train, data.test))
        self._validation = data.validation
        self._placement = placement
        self._compiled: dict[tuple[int, int], Any] = {}
        self._measure = evaluation_program(learning, data.held_out, placement)

    def compile(self, state: ServerState, rows: Store, counts: Collection[int]) -> None:
        """Compiles the evaluation for each of these numbers of clients in advance."""
        for count in counts:
            # The last evaluation has these clients; others are mostly as wide.
            arguments = self._arguments(state, rows, np.arange(count, dtype=np.int32))
            shape = arguments[-1].indices.shape
            self._compiled[shape] = self._measure.lower(*arguments).compile()

    def __call__(
        self, state: ServerState, rows: Store, client_ids: np.ndarray
    ) -> dict[str, jax.Array]:
        """Evaluates some clients.

        Args:
          state: of the server.
          rows: of all clients.
          client_ids: [count] int32.

        Returns:
          `global_dense` [], `client_gated` and `client_local` [count], in [0, 1].
        """
        arguments = self._arguments(state, rows, client_ids)
        run = self._compiled.get(arguments[-1].indices.shape, self._measure)
        return run(*arguments)

    def _arguments(
        self, state: ServerState, rows: Store, client_ids: np.ndarray
    ) -> tuple[Any, ...]:
        width = width_of(self._validation, client_ids)
        validation = pad_clients(self._validation, client_ids, width)
        return (
            state,
            rows.personal(client_ids),
            self.train,
            self.test,
            put_whole(self._placement, validation),
        )
