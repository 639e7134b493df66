"""Flower's apps in one process, and the simulation that they are compared with."""

import itertools

import jax
import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from configs import base, synthetic
from fedjax_prune.engine.dealing import draw_clients, make_cohort
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.preparation import prepare
from fedjax_prune.engine.store import make_store
from fedjax_prune.runs.experiment import load_data
from fedjax_prune.runs.learning import own_personal, start
from fedjax_prune.runs.policy import policy_of
from fedjax_prune.types import RoundInputs

RUN = 7
SMALL = {"rounds": 3, "cohort_size": 2, "lanes": 1, "data.num_clients": 3}


def vectors(algorithm, fields=None):
    """Logistic regression on the vectors of three clients."""
    config = synthetic.get_config()
    config.update_from_flattened_dict(
        SMALL | {"data.client_size": 15, "client.epochs": 2}
    )
    config.algorithm = base.algorithm(algorithm)
    config.algorithm.update(fields or {})
    return config


def is_training(request, number, node):
    """Whether a request asks a node to train in a round."""
    data = request.metadata
    return (data.message_type, data.group_id, data.dst_node_id) == (
        "train",
        str(number),
        node,
    )


class MemoryGrid(Grid):
    """Nodes that answer at once.

    Attributes:
      contexts: node id -> context, as Flower keeps it.
      sent: all requests and answers, in their order.
      loses: (request) -> "request" or "reply" if the SuperLink says that it is lost,
        "both" if nobody ever says so, else "".
    """

    def __init__(self, client_app, num_clients, loses=lambda request: "", **config):
        # Flower's processes know who they are, and messages say it.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN, 1, 1
        self.contexts = {}
        self.sent = []
        self.loses = loses
        self._app, self._numbers = client_app, itertools.count(1)
        self._replies = {}
        for client in range(num_clients):
            self.connect(100 + client, {"partition-id": client} | config)

    def connect(self, node, config):
        self.contexts[node] = Context(RUN, node, config, RecordDict(), {})

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
        for request in messages:
            ids.append(str(next(self._numbers)))
            request.metadata.__dict__["_message_id"] = ids[-1]
            lost, node = self.loses(request), request.metadata.dst_node_id
            if lost == "both":
                self.sent.append(request)
                continue
            reply = Message(Error(0, "the network is down"), reply_to=request)
            if lost != "request":
                try:
                    answer = self._app(request, self.contexts[node])
                    reply = reply if lost else answer
                except (RuntimeError, ValueError) as error:  # as Flower's processes do
                    reply = Message(Error(0, str(error)), reply_to=request)
            if lost:  # it is the SuperLink that tells of it
                reply.metadata.__dict__["_src_node_id"] = 1
            self.sent += [request, reply]
            self._replies[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids):
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError


def simulate(learning, dropped=lambda number, client: False):
    """The state and the rows of all clients after a run without Flower.

    Args:
      learning: of the run.
      dropped: (round, client) -> whether the client does not take part.
    """
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
    for number in range(config.rounds):
        drawn = draw_clients(
            config.data.num_clients,
            config.cohort_size,
            seed=config.seed,
            round=number,
        )
        cohort = make_cohort(
            population,
            [client for client in drawn if not dropped(number + 1, client)],
            num_lanes=1,
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
    return jax.device_get(state), rows


def largest_gap(tree, other):
    """The largest difference of two trees of the same shapes, all finite."""
    largest = 0.0
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    for one, two in pairs:
        one, two = np.asarray(one, float), np.asarray(two, float)
        assert one.shape == two.shape
        assert np.isfinite(one).all() and np.isfinite(two).all()
        largest = max(largest, float(np.abs(one - two).max(initial=0)))
    return largest
