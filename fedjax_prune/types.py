"""The records that cross module borders.

Shapes are named by the glossary: `num_clients` clients in the population,
`cohort_size` of them in a round, `num_lanes` lanes on each device running them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Tree = Any
"""A pytree of arrays. `{}` stands for "nothing here", never `None`."""

Config = Any
"""An `ml_collections.ConfigDict` with the fields of configs/base.py."""

Sums = dict[str, jax.Array]
"""Flat metrics as sums and counts, so that they add up over steps and batches."""


class Dataset(NamedTuple):
    """Labelled examples, whole in memory.

    Attributes:
      images: [num_examples, height, width, channels] uint8.
      labels: [num_examples] int32, in [0, num_classes).
    """

    images: Any
    labels: Any


class Population(NamedTuple):
    """Who holds which examples.

    Attributes:
      indices: [num_clients, max_size] int32 into a Dataset, padded with 0.
      sizes: [num_clients] int32, the number of real entries, at least 1.
    """

    indices: Any
    sizes: Any


class Cohort(NamedTuple):
    """The clients of one round, dealt to devices and to lanes.

    The leading axis is cut into one block of places for each device. With one
    device it has `cohort_size` places; with more, or where clients come in groups, some
    places are empty.

    Attributes:
      client_ids: [num_places] int32; `num_clients` at empty places.
      sizes: [num_places] int32, examples per client; 0 at empty places.
      indices: [num_places, max_size] int32 into a Dataset, padded with 0.
      queues: [num_devices * num_lanes, block_size] int32, the places of its device's
        block that each lane runs, in order, padded with `block_size`.
      cohort_size: [] int32, clients in this cohort, or in all groups together.
      cohort_examples: [] int32, their examples.
      num_clients: [] int32, clients in the whole population.
      num_examples: [] int32, examples in the whole population.
    """

    client_ids: Any
    sizes: Any
    indices: Any
    queues: Any
    cohort_size: Any
    cohort_examples: Any
    num_clients: Any
    num_examples: Any


class Batch(NamedTuple):
    """One step's examples.

    Attributes:
      images: [batch_size, height, width, channels] uint8.
      labels: [batch_size] int32.
      example_mask: [batch_size] bool, False = padding.
    """

    images: jax.Array
    labels: jax.Array
    example_mask: jax.Array


class Variables(NamedTuple):
    """Everything a model reads.

    Attributes:
      params: shared, trained and sent.
      personal: trained on the client, never sent (gates); `{}` if none.
      model_state: batch statistics, sent and averaged; `{}` if none.
      alive: for the gates, which channels were not pruned; `{}` if all.
    """

    params: Tree
    personal: Tree
    model_state: Tree
    alive: Tree = {}  # noqa: RUF012 (never changed)


class Task(NamedTuple):
    """A model and its loss as pure functions.

    Attributes:
      init: key -> Variables.
      loss: (variables, batch, key) -> (scalar, (model_state, sums)). The scalar
        is a mean over the real examples of the batch.
      predict: (variables, images) -> logits [batch_size, num_classes] float32.
      groups: the model's ChannelGroups; None if it does not say.
      layers: what the model's layers cost.
    """

    init: Callable[[jax.Array], Variables]
    loss: Callable[[Variables, Batch, jax.Array], tuple[jax.Array, tuple[Tree, Sums]]]
    predict: Callable[[Variables, jax.Array], jax.Array]
    groups: tuple[Any, ...] | None = None
    layers: tuple[Any, ...] = ()


class ServerState(NamedTuple):
    """What the server keeps between rounds.

    Attributes:
      round: [] int32, finished rounds.
      params: shared parameters, float32.
      model_state: averaged batch statistics; `{}` if none.
      server: what this algorithm keeps at the server.
    """

    round: jax.Array
    params: Tree
    model_state: Tree
    server: Tree


class ClientState(NamedTuple):
    """What one client keeps between its rounds: its row.

    Attributes:
      personal: trained, never sent (gates); `{}` if none.
      client: what this algorithm keeps at the client; `{}` if none.
    """

    personal: Tree
    client: Tree


class LocalResult(NamedTuple):
    """What local training leaves behind on one client.

    Attributes:
      delta: anchor minus params, float32, so that it acts as a gradient.
      personal: the client's trained personal parameters.
      model_state: the client's batch statistics.
      step_mass: [] float32, the sum of the step sizes really taken, momentum
        included (A_k); 0 if the solver has none.
      solver_state: the last state of the solver's chain for params.
    """

    delta: Tree
    personal: Tree
    model_state: Tree
    step_mass: jax.Array
    solver_state: Tree


class ClientProgram(NamedTuple):
    """What an algorithm adds to local training.

    Attributes:
      extra_args: row -> keyword arguments of the solver's `shared_tx.update`, beside
        those that each step has: `step_size`, `key`, `epoch`, `batch`.
      upload: (result, row, weight) -> (message, row). `weight` is the client's
        share of the cohort's examples (p_k). Messages are summed over the cohort,
        so each comes already weighted; the returned row is what the client keeps.
      alive: `Variables.alive` of all clients.
    """

    extra_args: Callable[[ClientState], dict[str, Tree]]
    upload: Callable[[LocalResult, ClientState, jax.Array], tuple[Tree, ClientState]]
    alive: Tree = {}  # noqa: RUF012 (never changed)


class Collector(NamedTuple):
    """How a device gathers what its clients send.

    Attributes:
      empty: (one message's shapes, block_size) -> gathered, before the first client.
      add: (gathered, messages [num_lanes, ...], finished [num_lanes] bool, position
        [num_lanes] in the block, block_size where nothing has finished) -> gathered.
    """

    empty: Callable[[Tree, int], Tree]
    add: Callable[[Tree, Tree, jax.Array, jax.Array], Tree]


class CohortResult(NamedTuple):
    """What the clients of one device leave behind.

    Attributes:
      messages: as the collector gathered them.
      rows: [block_size, ...] new client states.
      sums: of the task and the probe, [block_size, ...], with `steps` and
        `nonfinite`.
      trips: [] int32, steps that the lanes made side by side, counted where they
        run.
    """

    messages: Tree
    rows: ClientState
    sums: Sums
    trips: jax.Array


class Probe(NamedTuple):
    """A measurement of clients after local training, before their params go.

    Attributes:
      measure: (Variables, examples) -> sums.
      examples: what is measured on; `{}` if nothing is needed.
      wanted: [num_places] bool, which clients of the cohort are measured; the sums of
        the others mean nothing. It may be traced, so that rounds with and without a
        measurement are one program.
    """

    measure: Callable[[Variables, Tree], Sums]
    examples: Tree
    wanted: Any


class Preparation(NamedTuple):
    """What some clients do once, before the first round.

    They may come in groups, so that nothing on a device grows with their number.

    Attributes:
      num_clients: clients in the population -> how many take part.
      start: state -> what is gathered before the first client.
      gather: (state, gathered, rows, dataset, cohort, key, probe, placement) ->
        (gathered, rows, sums) of one group. Its cohort's `cohort_size` and
        `cohort_examples` are those of all groups together.
      finish: (state, gathered, key) -> the state, with the same number of finished
        rounds, and scalars about it.
      messages: like `FederatedAlgorithm.messages`.
    """

    num_clients: Callable[[int], int]
    start: Callable[[ServerState], Tree]
    gather: Callable[..., tuple[Tree, ClientState, Sums]]
    finish: Callable[[ServerState, Tree, jax.Array], tuple[ServerState, Sums]]
    messages: Callable[[ServerState], tuple[Tree, Tree]]

    def run(
        self,
        state: ServerState,
        rows: ClientState,
        dataset: Dataset,
        cohort: Cohort,
        key: jax.Array,
        *rest: Any,
    ) -> tuple[ServerState, ClientState, Sums]:
        """All clients in one group, called like `FederatedAlgorithm.round`."""
        gathered = self.start(state)
        gathered, rows, sums = self.gather(
            state, gathered, rows, dataset, cohort, key, *rest
        )
        state, facts = self.finish(state, gathered, key)
        return state, rows, sums | facts


class MaskedRound(NamedTuple):
    """A round in two parts, of an algorithm whose shared parameters are masked.

    Attributes:
      remask: (state, rows, cohort) -> the state with the masks of this round.
      train: like `FederatedAlgorithm.round`, under the masks that the state has; its
        sums are without `facts`.
      facts: state -> scalars about its masks, which a whole round adds to its sums.
      final: state after the last round -> masks of the model that is delivered.
    """

    remask: Callable[[ServerState, ClientState, Cohort], ServerState]
    train: Callable[..., tuple[ServerState, ClientState, Sums]]
    facts: Callable[[ServerState], Sums]
    final: Callable[[ServerState], Tree]


class FederatedAlgorithm(NamedTuple):
    """A federated algorithm as pure functions.

    `rows` is a ClientState whose leaves carry a leading axis `num_places`.

    Attributes:
      init: key -> ServerState. Given the same key, `row` shares its start.
      row: key -> ClientState of a client never seen, the same for all of them.
      round: (state, rows, dataset, cohort, key, probe, placement) -> (state, rows,
        sums); leaves of sums are per client, [num_places, ...], but for the scalar
        `steps_executed`. `key` belongs to the round; see `rounds.make_round`.
      messages: state -> what one client receives and what it sends, as shapes, before
        any mask.
      deliver: state -> the shared part of what is evaluated.
      rules: what the round is made of, for algorithms that are built on this one.
      prepare: what is done once before the first round; None if nothing is.
      masked: the two parts of the round if parameters are masked, else None.
    """

    init: Callable[[jax.Array], ServerState]
    row: Callable[[jax.Array], ClientState]
    round: Callable[..., tuple[ServerState, ClientState, Sums]]
    messages: Callable[[ServerState], tuple[Tree, Tree]]
    deliver: Callable[[ServerState], Variables]
    rules: Any
    prepare: Preparation | None = None
    masked: MaskedRound | None = None
