"""The ClientApp: one client of an algorithm on a node of its own.

A node knows its client id from `partition-id` in its configuration. It may also have
`data-dir`, in place of the run's `data.dir`, and `rows-dir`, see `kept`.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flwr.app import (
    ConfigRecord,
    Context,
    Message,
    RecordDict,
)
from flwr.clientapp import ClientApp

from fedjax_prune.engine.evaluate import correct_examples
from fedjax_prune.flower.examples import Examples, Load, load_share, named_classes
from fedjax_prune.flower.kept import read_rows, row_after, write_rows
from fedjax_prune.flower.node_half import (
    Facts,
    NodeStep,
    make_cohort,
    make_preparation_step,
    make_training_step,
    padded,
    round_key,
    shapes_of,
)
from fedjax_prune.flower.trees import from_record, to_record
from fedjax_prune.models.precision import product_precision
from fedjax_prune.runs.learning import Learning, first_row, make_learning
from fedjax_prune.runs.policy import policy_of
from fedjax_prune.runs.settings import check
from fedjax_prune.types import ClientState, Config, Variables

PARTITION_ID, DATA_DIR = "partition-id", "data-dir"

ReadConfig = Callable[[Mapping[str, Any]], Config]
"""What `flwr run` has as the run's configuration -> a checked configuration."""


class Programs(NamedTuple):
    """What all clients of a process have in common, compiled when it is used.

    Attributes:
      learning: of the run.
      state: shapes of the server's state.
      first: client id [] int32 -> the row before anything is trained.
      train: half of a round.
      prepare: half of the preparation, if the algorithm has one.
      correct: (variables, dataset) -> [num_examples] bool.
    """

    learning: Learning
    state: Any
    first: Callable[[np.int32], ClientState]
    train: NodeStep
    prepare: NodeStep | None
    correct: Callable[..., jax.Array]


class Given(NamedTuple):
    """What the configuration of a node is made of, so that it can be looked up.

    Attributes:
      read_config: reads the configuration of the run.
      fields: of the run, as Flower has them.
      data_dir: of the node, in place of `data.dir`; None if it has none.
    """

    read_config: ReadConfig
    fields: frozenset[tuple[str, Any]]
    data_dir: str | None

    def config(self) -> Config:
        """Reads the configuration; the node's folder is its last change.

        Raises:
          SettingsError: with every mistake in it.
        """
        config = self.read_config(dict(self.fields))
        if self.data_dir is None:
            return config
        config = copy.deepcopy(config)
        with config.unlocked():
            config.data.dir = self.data_dir
        check(config)
        return config


# A simulation sends the app to its processes with each message, as pickled functions.
# So what they keep cannot be in the app.
@functools.lru_cache(maxsize=4)
def _programs(given: Given) -> Programs:
    config = given.config()
    learning = make_learning(config)
    prepares = learning.algorithm.prepare is not None
    return Programs(
        learning=learning,
        state=shapes_of(learning)[0],
        first=jax.jit(functools.partial(first_row, learning)),
        train=jax.jit(make_training_step(learning, policy_of(config))),
        prepare=jax.jit(make_preparation_step(learning)) if prepares else None,
        correct=jax.jit(functools.partial(correct_examples, learning.task)),
    )


@functools.lru_cache(maxsize=64)
def _examples(load: Load, given: Given, client_id: int) -> Examples:
    config = _programs(given).learning.config
    examples = load(config, client_id)
    examples.check(config)
    return examples


class Node(NamedTuple):
    """A node while it answers a message.

    Attributes:
      programs: of the run.
      context: of the node.
      client_id: of its client.
      examples: of its client.
    """

    programs: Programs
    context: Context
    client_id: int
    examples: Examples

    def row(self, arrived: int) -> ClientState:
        """Takes the row that the client goes on from.

        Args:
          arrived: the last round whose reply has arrived.
        """
        first = jax.device_get(self.programs.first(np.int32(self.client_id)))
        return row_after(read_rows(self.context, first, self.client_id), arrived, first)

    def step(self, message: Message, step: NodeStep | None) -> RecordDict:
        """Runs a step and keeps the row that it leaves.

        Returns:
          `message`, what the step sends, and `sums`.
        """
        assert step is not None, "only an algorithm that prepares sends this"
        said = _facts(message, self.client_id)
        arrived = said.pop("arrived")
        facts, row = Facts(**said), self.row(arrived)
        record = message.content.array_records["state"]
        config, train = self.programs.learning.config, self.examples.train
        size = np.array([len(train.labels)], np.int32)
        sent, after, sums = jax.device_get(
            step(
                from_record(record, self.programs.state, fill=True),
                row,
                padded(train),
                make_cohort(np.array([self.client_id]), size, facts),
                round_key(config, facts.number),
            )
        )
        rows = {arrived: row, facts.number: after}
        write_rows(self.context, rows, self.client_id)
        return RecordDict({"message": to_record(sent), "sums": to_record(sums)})


def make_client_app(read_config: ReadConfig, load: Load = load_share) -> ClientApp:
    """Makes the ClientApp.

    Args:
      read_config: reads the configuration of the run.
      load: gives a node the examples of its client. Write your own if a node has its
        own data: (configuration, client id) -> Examples. The server never asks for
        examples, only for their number and the names of the classes.

    Returns:
      The app. It answers `query` (who are you?), `train.prepare`, `train` and
      `evaluate`.
    """
    app = ClientApp()

    def node_at(context: Context) -> Node:
        folder = context.node_config.get(DATA_DIR)
        given = Given(
            read_config,
            frozenset(context.run_config.items()),
            None if folder is None else str(folder),
        )
        programs = _programs(given)
        client_id = _client_id(context, programs.learning.config)
        examples = _examples(load, given, client_id)
        return Node(programs, context, client_id, examples)

    def answering(
        answer: Callable[[Message, Node], RecordDict],
    ) -> Callable[[Message, Context], Message]:
        def handle(message: Message, context: Context) -> Message:
            node = node_at(context)
            with product_precision(node.programs.learning.config.precision):
                return Message(answer(message, node), reply_to=message)

        return handle

    app.query()(answering(_tell))
    app.train()(answering(lambda m, node: node.step(m, node.programs.train)))
    app.train("prepare")(answering(lambda m, node: node.step(m, node.programs.prepare)))
    app.evaluate()(answering(_evaluate))
    return app


def _client_id(context: Context, config: Config) -> int:
    given, count = context.node_config.get(PARTITION_ID), config.data.num_clients
    if type(given) is not int or not 0 <= given < count:
        raise ValueError(
            f"{PARTITION_ID} must be the number of a client in [0, {count}), got "
            f"{given!r}: start the SuperNode with --node-config '{PARTITION_ID}=0'."
        )
    return given


def _facts(message: Message, client_id: int) -> dict[str, int]:
    """Reads what a request says beside its arrays.

    Raises:
      ValueError: if it is for another client: a node may come back as another one.
    """
    facts = {
        name: int(str(value))
        for name, value in message.content.config_records["facts"].items()
    }
    if (asked := facts.pop("client")) != client_id:
        raise ValueError(
            f"the request is for client {asked}, but {PARTITION_ID} of its node is now "
            f"{client_id}."
        )
    return facts


def _tell(message: Message, node: Node) -> RecordDict:
    del message
    size = len(node.examples.train.labels)
    classes = named_classes(node.programs.learning.config)
    told = {"id": node.client_id, "num-examples": size, "classes": classes}
    return RecordDict({"client": ConfigRecord(told)})


def _evaluate(message: Message, node: Node) -> RecordDict:
    """Counts what the delivered model with the client's own gates gets right."""
    programs, dataset = node.programs, node.examples.validation
    if dataset is None:
        return RecordDict({"counts": ConfigRecord({"correct": 0, "count": 0})})
    shapes = jax.eval_shape(programs.learning.algorithm.deliver, programs.state)
    shared: Variables = from_record(message.content.array_records["model"], shapes)
    arrived = _facts(message, node.client_id)["arrived"]
    own = shared._replace(personal=node.row(arrived).personal)
    right = np.asarray(programs.correct(own, padded(dataset)))
    count = len(dataset.labels)
    correct = int(right[:count].sum())
    return RecordDict({"counts": ConfigRecord({"correct": correct, "count": count})})
