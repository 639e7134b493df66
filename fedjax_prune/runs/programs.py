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

from fedjax_prune.data.padded import Padded
from fedjax_prune.engine import evaluate
from fedjax_prune.engine.contract import Round
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.placing import gather_whole, put_whole
from fedjax_prune.engine.store import Store
from fedjax_prune.models.modules import gates_of
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

GROUP = 256
"""Most clients who are evaluated by one call of a program."""


class Rounds(Protocol):
    """Compiled rounds of a run.

    Attributes:
      seconds: spent compiling in the last call.
      compiled: when that ended, in seconds of the monotonic clock.
    """

    seconds: float
    compiled: float

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
      compiled: as in `Rounds`.
    """

    def __init__(self, task: Task, round: Round, placement: Placement):
        """Makes rounds that compile when they are called.

        Args:
          task: clients are measured by it.
          round: of an algorithm.
          placement: where the rounds run.
        """
        self.seconds = self.compiled = 0.0
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
        self.compiled = time.monotonic()
        self.seconds = self.compiled - began
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


def shared_program(learning: Learning, placement: Placement) -> Any:
    """Makes the jitted function that evaluates the delivered model without gates.

    Args:
      learning: of the run.
      placement: where it runs.

    Returns:
      (state, test) -> (accuracy, which test examples are correct). The latter is None
      with gates; without gates all clients have the same model.
    """
    gated = gates_of(learning.model) is not None

    @jax.jit
    def share(state: ServerState, test: Dataset) -> tuple[jax.Array, jax.Array | None]:
        shared = learning.algorithm.deliver(state)
        task = learning.dense_task if gated else learning.task
        dense = evaluate.correct_by_client(task, shared, test, placement)
        return dense.mean(), None if gated else dense

    return share


def own_program(learning: Learning, held_out: bool, placement: Placement) -> Any:
    """Makes the jitted function that evaluates the models of a group of clients.

    Args:
      learning: of the run.
      held_out: whether clients are validated on training examples.
      placement: where it runs.

    Returns:
      (state, personal parameters of the clients, second result of `shared_program`,
      train, test, validation sets of the clients) -> accuracies of the clients.
    """

    @jax.jit
    def measure(
        state: ServerState,
        personal: Tree,
        correct: jax.Array | None,
        train: Dataset,
        test: Dataset,
        validation: Padded,
    ) -> dict[str, jax.Array]:
        # Every device evaluates all clients on its share of the examples.
        own = learning.algorithm.deliver(state)._replace(personal=personal)
        if correct is None:
            correct = evaluate.correct_by_client(learning.task, own, test, placement)
        local = (
            evaluate.holdout_accuracy(learning.task, own, train, validation, placement)
            if held_out
            else evaluate.local_accuracy(correct, validation)
        )
        accuracy = jnp.broadcast_to(correct.mean(axis=1), validation.sizes.shape)
        return {"client_gated": accuracy, "client_local": local}

    return measure


class Evaluation:
    """Accuracies of the delivered model with each client's personal parameters.

    Clients are evaluated in groups of one size, so that neither what is compiled nor
    its memory grows with their number.
    """

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
        self._compiled_shared: Any = None
        self._compiled: dict[tuple[int, int], Any] = {}
        self._share = shared_program(learning, placement)
        self._measure = own_program(learning, data.held_out, placement)

    def compile(self, state: ServerState, rows: Store, counts: Collection[int]) -> None:
        """Compiles the evaluation for each of these numbers of clients in advance."""
        self._compiled_shared = self._share.lower(state, self.test).compile()
        _, correct = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            jax.eval_shape(self._share, state, self.test),
            self._compiled_shared.output_shardings,
        )
        for count in counts:
            # The last evaluation has these clients; others are mostly as wide.
            group = groups_of(np.arange(count, dtype=np.int32))[0]
            arguments = self._arguments(state, rows, correct, group)
            shape = arguments[-1].indices.shape
            self._compiled[shape] = self._measure.lower(*arguments).compile()

    def __call__(
        self, state: ServerState, rows: Store, client_ids: np.ndarray
    ) -> dict[str, Any]:
        """Evaluates some clients, without waiting for it if they are one group.

        Args:
          state: of the server.
          rows: of all clients.
          client_ids: [count] int32.

        Returns:
          `global_dense` [], `client_gated` and `client_local` [count], in [0, 1].
        """
        share = self._compiled_shared or self._share
        dense, correct = share(state, self.test)
        groups: list[dict[str, Any]] = []
        for ids in groups_of(client_ids):
            arguments = self._arguments(state, rows, correct, ids)
            run = self._compiled.get(arguments[-1].indices.shape, self._measure)
            groups.append(gather_whole(self._placement, run(*arguments)))
            # The devices compute one group while the next one is made, and no more.
            groups[-2:-1] = jax.device_get(groups[-2:-1])
        accuracies = groups[0]
        if len(groups) > 1:
            groups = jax.device_get(groups)
            accuracies = {
                name: np.concatenate([group[name] for group in groups])
                for name in accuracies
            }
            accuracies = {name: x[: len(client_ids)] for name, x in accuracies.items()}
        return {"global_dense": dense} | accuracies

    def _arguments(
        self, state: ServerState, rows: Store, correct: Any, client_ids: np.ndarray
    ) -> tuple[Any, ...]:
        return (
            state,
            rows.personal(client_ids),
            correct,
            self.train,
            self.test,
            put_whole(self._placement, self._validation(client_ids)),
        )


def groups_of(client_ids: np.ndarray) -> list[np.ndarray]:
    """Cuts clients into groups of one size, at most GROUP; the last repeats a client.

    Examples:
      >>> groups = groups_of(np.arange(GROUP + 1))
      >>> [len(group) for group in groups], groups[-1][-2:].tolist()
      ([129, 129], [256, 256])
    """
    number = -(-len(client_ids) // GROUP)
    size = -(-len(client_ids) // number)
    places = np.minimum(np.arange(number * size), len(client_ids) - 1)
    return np.split(client_ids[places], number)
