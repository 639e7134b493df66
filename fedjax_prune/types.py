"""The records that cross the borders of rooms.

Their shapes use the words of the glossary: `num_clients` clients are in the population,
`cohort_size` of them take part in a round, and `num_lanes` lanes of each device run
them. "Float" means float32, or float64 with `jax_enable_x64`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fedjax_prune.layers import ChannelGroup, Layer

Tree = Any
"""A pytree of arrays. `{}` stands for "nothing here", never `None`."""

Config = Any
"""An `ml_collections.ConfigDict` with the fields of configs/base.py."""

Sums = dict[str, jax.Array]
"""Flat metrics as sums and counts, so that they add up over steps and batches."""


class Dataset(NamedTuple):
    """Labelled examples, all of them in memory.

    Attributes:
      images: [num_examples, height, width, channels] uint8, or float32 in [0, 1];
        vectors [num_examples, length, 1, 1] are any float32.
      labels: [num_examples] int32, in [0, num_classes).

    Examples:
      >>> Dataset(np.zeros((6, 8, 8, 1), np.uint8), np.arange(6) % 2).images.shape
      (6, 8, 8, 1)
    """

    images: Any
    labels: Any

    def at(self, places: Any) -> "Dataset":
        """The examples at some places: a slice, [n] int or [num_examples] bool."""
        return Dataset(self.images[places], self.labels[places])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Population:
    """All clients: it says which examples each of them holds.

    Attributes:
      indices: [total] int32 into a Dataset, one client after another.
      offsets: [num_clients + 1] int64, ascending from 0 to `total`: client k holds
        `indices[offsets[k] : offsets[k + 1]]`, at least one.

    Examples:
      >>> population = Population(np.array([0, 1, 2]), offsets=np.array([0, 2, 3]))
      >>> population.sizes.tolist(), population.of(0).tolist()
      ([2, 1], [0, 1])
    """

    indices: Any
    offsets: Any

    @functools.cached_property
    def sizes(self) -> Any:
        """The numbers of examples of the clients, [num_clients] int64."""
        return self.offsets[1:] - self.offsets[:-1]

    @functools.cached_property
    def max_size(self) -> int:
        """The number of examples of the largest client."""
        return int(self.sizes.max())

    def of(self, client: int) -> Any:
        """Returns the indices of a client, [size] int32."""
        return self.indices[self.offsets[client] : self.offsets[client + 1]]


class Cohort(NamedTuple):
    """The clients of one round, dealt to devices and to lanes.

    The leading axis is cut into the placement's blocks of places. A single block has
    `cohort_size` places; with several, or clients in groups, some places are empty.

    Attributes:
      client_ids: [num_places] int32; `num_clients` at empty places.
      sizes: [num_places] int32, examples of each client; 0 at empty places.
      indices: [num_places, width] int32 into a Dataset, padded with 0.
      queues: [num_blocks * num_lanes, block_size] int32, the places of its block that
        each lane runs, in order, padded with `block_size`.
      cohort_size: [] int32, clients in this cohort, or in all groups together.
      num_clients: [] int32, clients in the whole population.
      num_examples: [] float64 (on the device float), those of the whole population.

    Examples:
      >>> import fedjax_prune as fp
      >>> population = fp.to_population([[0, 1], [2], [3, 4, 5]], num_examples=6)
      >>> fp.make_cohort(population, [2, 0], 1, epochs=1, batch_size=2).sizes.tolist()
      [3, 2]
    """

    client_ids: Any
    sizes: Any
    indices: Any
    queues: Any
    cohort_size: Any
    num_clients: Any
    num_examples: Any


class Batch(NamedTuple):
    """The examples of one local step.

    Attributes:
      images: [batch_size, height, width, channels], dtype of the Dataset.
      labels: [batch_size] int32.
      example_mask: [batch_size] bool, False = padding.

    Examples:
      >>> batch = Batch(jnp.zeros((2, 8, 8, 1)), jnp.array([3, 0]), jnp.arange(2) < 1)
      >>> batch.example_mask.tolist()
      [True, False]
    """

    images: jax.Array
    labels: jax.Array
    example_mask: jax.Array


class Variables(NamedTuple):
    """Everything that a model reads, float unless said.

    Attributes:
      params: shared parameters, which are trained and sent.
      personal: parameters trained on the client and never sent (gates); `{}` if none.
      model_state: batch statistics, sent and averaged, or integers; `{}` if none.
      alive: bool, the channels that the gates may choose; `{}` if all of them.

    Examples:
      >>> Variables(params={"w": jnp.zeros(3)}, personal={}, model_state={}).alive
      {}
    """

    params: Tree
    personal: Tree
    model_state: Tree
    alive: Tree = {}  # noqa: RUF012 (never changed)


class Task(NamedTuple):
    """A model and its loss as pure functions; `make_task` makes one.

    Attributes:
      init: key -> Variables.
      loss: (variables, batch, key) -> (mean, (model_state, sums)). The mean is a
        float [] over the batch's real examples. AutoFLIP needs the sums loss and count.
      predict: (variables, images) -> logits [batch_size, num_classes] float.
      groups: the ChannelGroups that the model describes; None if it describes none.
      layers: what the layers of the model cost. `make_task` finds them in the program
        of a model that does not say; () if no weight is in a product.

    Examples:
      >>> task = fedjax_prune.make_task(fedjax_prune.CNN(10), (8, 8, 1))
      >>> [layer.name for layer in task.layers]
      ['conv1', 'conv2', 'fc1', 'fc2']
    """

    init: Callable[[jax.Array], Variables]
    loss: Callable[[Variables, Batch, jax.Array], tuple[jax.Array, tuple[Tree, Sums]]]
    predict: Callable[[Variables, jax.Array], jax.Array]
    groups: tuple[ChannelGroup, ...] | None = None
    layers: tuple[Layer, ...] = ()

    @property
    def shapes(self) -> Variables:
        """Shapes and dtypes of the first variables; nothing is computed."""
        return jax.eval_shape(lambda: self.init(jax.random.key(0)))


class Unprepared(NamedTuple):
    """Marks a state in its structure, so that a round sees it while it is traced."""


class ServerState(NamedTuple):
    """What the server keeps between rounds.

    Attributes:
      round: [] int32, finished rounds.
      params: shared parameters, float.
      model_state: averaged batch statistics; `{}` if none.
      server: what the algorithm keeps at the server.
      pending: Unprepared before a preparation that the algorithm needs, else ().

    Examples:
      >>> ServerState(jnp.int32(0), {"w": jnp.zeros(3)}, {}, server=()).pending
      ()
    """

    round: jax.Array
    params: Tree
    model_state: Tree
    server: Tree
    pending: Unprepared | tuple[()] = ()


class ClientState(NamedTuple):
    """What one client keeps between its rounds: its row.

    Attributes:
      personal: parameters that are trained and never sent (gates); `{}` if none.
      client: what the algorithm keeps at the client; `{}` if nothing.

    Examples:
      >>> ClientState(personal={}, client={"control": jnp.zeros(3)}).personal
      {}
    """

    personal: Tree
    client: Tree


class Anchor(NamedTuple):
    """What a client receives, from which its local training starts.

    Attributes:
      params: shared parameters, float.
      model_state: averaged batch statistics; `{}` if none.
      round: [] int32, finished rounds.

    Examples:
      >>> Anchor(params={"w": 0.5}, model_state={}, round=3).round
      3
    """

    params: Tree
    model_state: Tree
    round: jax.Array


class LocalResult(NamedTuple):
    """What local training returns for one client; `train_client` makes it.

    Attributes:
      delta: anchor minus params, float, so that it acts as a gradient.
      personal: the client's trained personal parameters.
      model_state: the client's batch statistics.
      num_examples: [] int32, the client's training examples (n_k).
      step_mass: [], dtype of the params: the sum of the step sizes really taken,
        momentum included (A_k); 0 if the solver has none.
      solver_state: the last state of the solver's chain for params. Read what a
        transformation has left there by name, with `optax.tree.get`.
      sums: the sums of the task over all steps, with `steps` and `nonfinite`.

    Examples:
      >>> LocalResult({"w": jnp.ones(3)}, {}, {}, jnp.int32(8), 0.1, (), {}).step_mass
      0.1
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
      values: a tree of one client. The server takes the largest of integers.
      weight: [] int32 or float, at least 0: this client's weight, such as its examples.

    Examples:
      >>> Mean({"w": jnp.ones(3)}, weight=jnp.float32(8)).weight.dtype
      dtype('float32')
    """

    values: Tree
    weight: jax.Array


class Total(NamedTuple):
    """A part of a message that the server adds up over the clients that arrive.

    Attributes:
      values: a tree of one client, already scaled by what does not depend on who else
        arrives, such as SCAFFOLD's 1 / num_clients.

    Examples:
      >>> Total({"control": jnp.ones(3) / 100}).values["control"].shape
      (3,)
    """

    values: Tree


Message = dict[str, Mean | Total]
"""What a client sends: named parts. The server receives a tree for each name."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Probe:
    """A measurement of clients after local training, before their params are dropped.

    Attributes:
      measure: (Variables, examples) -> sums.
      examples: the tree that `measure` reads; `{}` if it reads nothing.
      wanted: [num_places] bool, which clients of the cohort are measured; the sums of
        the others mean nothing. It may be traced: one program then does for all rounds.

    Examples:
      >>> Probe(lambda v, _: {"w": v.params["w"].sum()}, {}, np.ones(2, bool)).examples
      {}
    """

    measure: Callable[[Variables, Tree], Sums] = dataclasses.field(
        metadata={"static": True}
    )
    examples: Tree
    wanted: Any


class RoundInputs(NamedTuple):
    """What a round takes.

    Attributes:
      state: the server's state before the round.
      rows: leaves [num_places, ...], what the cohort's clients have kept.
      dataset: a Dataset, on every device.
      cohort: a Cohort made for as many devices as the round's placement has.
      key: of this round. A client's draws depend on it and on its client_id alone.
      probe: measures clients when they have finished; None measures nothing.

    Examples:
      >>> RoundInputs._fields
      ('state', 'rows', 'dataset', 'cohort', 'key', 'probe')
    """

    state: ServerState
    rows: ClientState
    dataset: Dataset
    cohort: Cohort
    key: jax.Array
    probe: Probe | None = None
