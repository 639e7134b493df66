"""The records that cross module borders.

Shapes are named by the glossary: `num_clients` clients in the population,
`cohort_size` of them in a round, `num_lanes` lanes on each device running them.
"""

import dataclasses
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


class Slot(NamedTuple):
    """Where the channels of a group lie in one array.

    Attributes:
      path: end of the array's path, such as ("conv1", "kernel").
      axis: that runs over the channels, counted from the last, which is -1.
      start: of the group's first channel among those of the axis.
      repeats: how often the axis runs over its channels, the channel fastest: the
        pixels of a map that was flattened, 1 elsewhere.
    """

    path: tuple[str, ...]
    axis: int
    start: int = 0
    repeats: int = 1


class ChannelGroup(NamedTuple):
    """Channels that exist or go together.

    A slot may name an array that the model does not have: the norm of a model without.

    Attributes:
      name: of the group, by which a model is told how many channels are left.
      size: number of channels.
      producers: kernels that write them; several where branches are added.
      entries: what else a channel has: bias, norm, statistics, gate.
      consumers: kernels and gates that read them.
    """

    name: str
    size: int
    producers: tuple[Slot, ...]
    entries: tuple[Slot, ...]
    consumers: tuple[Slot, ...]

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (*self.producers, *self.entries, *self.consumers)


class Layer(NamedTuple):
    """What a layer costs, read by `costs` in place of its name.

    A dense layer on a flattened map counts as a convolution by a kernel as large
    as the map.

    Attributes:
      name: path of its parameters, joined by "/".
      in_channels: channels it reads.
      out_channels: channels it writes.
      kept_in: channels it reads for one sample, at most `in_channels`.
      kept_out: channels it writes for one sample, at most `out_channels`.
      taps: height times width of the kernel.
      positions: height times width of the output.
      gated: whether a gate from `in_channels` to `out_channels` belongs to it.
    """

    name: str
    in_channels: int
    out_channels: int
    kept_in: int
    kept_out: int
    taps: int
    positions: int
    gated: bool


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
    groups: tuple[ChannelGroup, ...] | None = None
    layers: tuple[Layer, ...] = ()


class ServerState(NamedTuple):
    """What the server keeps between rounds.

    Attributes:
      round: [] int32, finished rounds.
      params: shared parameters, float32.
      model_state: averaged batch statistics; `{}` if none.
      server: what this algorithm keeps at the server.
      pending: Unprepared before a preparation that the algorithm needs, else ().
    """

    round: jax.Array
    params: Tree
    model_state: Tree
    server: Tree
    pending: "Unprepared | tuple[()]" = ()


class Unprepared(NamedTuple):
    """Marks a state in its structure, so that a round sees it while it is traced."""


class ClientState(NamedTuple):
    """What one client keeps between its rounds: its row.

    Attributes:
      personal: trained, never sent (gates); `{}` if none.
      client: what this algorithm keeps at the client; `{}` if none.
    """

    personal: Tree
    client: Tree


class Anchor(NamedTuple):
    """What a client receives and local training starts from.

    Attributes:
      params: shared parameters, float.
      model_state: averaged batch statistics; `{}` if none.
      round: [] int32, finished rounds.
    """

    params: Tree
    model_state: Tree
    round: jax.Array


class LocalResult(NamedTuple):
    """What local training leaves behind on one client.

    Attributes:
      delta: anchor minus params, so that it acts as a gradient.
      personal: the client's trained personal parameters.
      model_state: the client's batch statistics.
      num_examples: [] int32, its training examples (n_k).
      step_mass: [], dtype of the parameters, the sum of the step sizes really taken,
        momentum included (A_k); 0 if the solver has none.
      solver_state: the last state of the solver's chain for params. Read what a
        transformation has left there by name, with `optax.tree.get`.
      sums: of the task over all steps, with `steps` and `nonfinite`.
    """

    delta: Tree
    personal: Tree
    model_state: Tree
    num_examples: jax.Array
    step_mass: jax.Array
    solver_state: Tree
    sums: Sums


class Mean(NamedTuple):
    """A part of a message that the server averages over the clients that arrive.

    Attributes:
      values: of one client. Integers are not averaged: the largest is taken.
      weight: [], this client's weight, at least 0; such as its number of examples.
    """

    values: Tree
    weight: jax.Array


class Total(NamedTuple):
    """A part of a message that the server adds up over the clients that arrive.

    Attributes:
      values: of one client, scaled already by what does not depend on who else
        arrives, such as SCAFFOLD's 1 / num_clients.
    """

    values: Tree


Message = dict[str, Mean | Total]
"""What a client sends: named parts. The server receives a tree for each name."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Probe:
    """A measurement of clients after local training, before their params go.

    Attributes:
      measure: (Variables, examples) -> sums.
      examples: what is measured on; `{}` if nothing is needed.
      wanted: [num_places] bool, which clients of the cohort are measured; the sums of
        the others mean nothing. It may be traced, so that rounds with and without a
        measurement are one program.
    """

    measure: Callable[[Variables, Tree], Sums] = dataclasses.field(
        metadata={"static": True}
    )
    examples: Tree
    wanted: Any


class RoundInputs(NamedTuple):
    """What a round takes.

    Attributes:
      state: the server's, before the round.
      rows: leaves [num_places, ...], what the cohort's clients have kept.
      dataset: on every device.
      cohort: made for as many devices as the round's placement has.
      key: of this round. A client's randomness depends on it and on its client_id
        only, never on its place, lane or device.
      probe: measures clients when they have finished; None measures nothing.
    """

    state: ServerState
    rows: ClientState
    dataset: Dataset
    cohort: Cohort
    key: jax.Array
    probe: Probe | None = None
