"""Flower's apps in one process, and the simulation that they are compared with."""

import itertools

import jax
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedjax_prune.engine.dealing import sample_cohort
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.preparation import prepare
from fedjax_prune.engine.store import make_store
from fedjax_prune.runs.experiment import load_data
from fedjax_prune.runs.learning import own_personal, start
from fedjax_prune.runs.policy import policy_of
from fedjax_prune.types import RoundInputs

RUN = 7


class MemoryGrid(Grid):
    """Nodes that answer at once; a node fails where `fails` says so.

    Attributes:
      contexts: node id -> context, as Flower keeps it.
      sent: all letters and answers, in their order.
      fails: (letter) -> a reason, or "".
    """

    def __init__(self, client_app, num_clients, node_config=None, fails=None):
        # Flower's processes know who they are, and messages say it.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN, 1, 1
        self.contexts = {}
        self.sent = []
        self.fails = fails or (lambda letter: "")
        self._app, self._numbers = client_app, itertools.count(1)
        self._replies = {}
        for client in range(num_clients):
            self.connect(100 + client, {"partition-id": client} | (node_config or {}))

    def connect(self, node, config):
        self.contexts[node] = Context(RUN, node, config, RecordDict(), {"a": 1})

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def get_node_ids(self):
        return list(self.contexts)

    def push_messages(self, messages):
        ids = []
        for letter in messages:
            ids.append(str(next(self._numbers)))
            letter.metadata.__dict__["_message_id"] = ids[-1]
            if reason := self.fails(letter):
                reply = Message(Error(0, reason), reply_to=letter)
            else:
                reply = self._app(letter, self.contexts[letter.metadata.dst_node_id])
            self.sent += [letter, reply]
            self._replies[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids):
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError


def simulate(learning, rounds, on_round=lambda number, state: None):
    """The state and the rows of all clients after some rounds without Flower."""
    config, algorithm = learning.config, learning.algorithm
    data = load_data(config)
    placement = Placement(reduction=config.reduction, policy=policy_of(config))
    state, row = start(learning)
    rows = make_store(
        "host", row, config.data.num_clients, placement, own_personal(learning)
    )
    population = data.population
    state = prepare(
        algorithm, state, rows, data.train, population, seed=config.seed
    ).state
    train_round = jax.jit(lambda inputs: algorithm.round(inputs, placement))
    key = jax.random.key(config.seed)
    for number in range(rounds):
        cohort = sample_cohort(
            population,
            config.cohort_size,
            num_lanes=1,
            seed=config.seed,
            round=number,
            epochs=config.client.epochs,
            batch_size=config.client.batch_size,
        )
        inputs = RoundInputs(
            state,
            rows.take(cohort.client_ids),
            data.train,
            cohort,
            jax.random.fold_in(key, number),
        )
        state, taken, _ = train_round(inputs)
        rows.put(cohort.client_ids, taken)
        on_round(number + 1, state)
    return state, rows
