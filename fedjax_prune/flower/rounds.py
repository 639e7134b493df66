"""The rounds of a run with nodes, from the server's side.

It draws the cohorts that a simulation with this configuration draws, and holds neither
examples nor the rows of clients. A client whose node is not connected, fails or is lost
is dropped from the round.
"""

import time
from functools import partial, reduce
from logging import getLogger
from typing import Any, NamedTuple

import jax
import numpy as np
from flwr.app import ArrayRecord, RecordDict

from fedjax_prune.engine.aggregate import join
from fedjax_prune.engine.dealing import draw_clients
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.outcome import (
    TrainingError,
    require_finite,
    require_finite_server,
)
from fedjax_prune.engine.preparation import PREPARATION
from fedjax_prune.flower.node_half import (
    Facts,
    Step,
    make_cohort,
    make_preparation_step,
    make_training_step,
    round_key,
    traced,
)
from fedjax_prune.flower.nodes import Answers, Nodes, why
from fedjax_prune.flower.server_half import ServerHalf
from fedjax_prune.flower.trees import from_record, to_record
from fedjax_prune.runs import metrics
from fedjax_prune.runs.evaluated import evaluated_clients
from fedjax_prune.runs.learning import Learning, start
from fedjax_prune.runs.policy import policy_of
from fedjax_prune.types import Cohort, Mean, ServerState, Tree

_LOG = getLogger("flwr")

Row = dict[str, Any]
"""Fields of metrics.jsonl."""

_UNREADABLE = (KeyError, TypeError, ValueError)
"""What reading an answer raises that does not hold what it should."""


class Replies(NamedTuple):
    """What the clients of a round have sent.

    Attributes:
      sent: place in the cohort -> what was sent, of the clients that have arrived.
      sums: of all clients, [cohort_size, ...], numpy; `absent` is 1 where a client has
        not replied, and all other sums are then 0.
      bytes: `bytes_flower/down` and `bytes_flower/up`, of the arrays that clients who
        have replied were sent, and that have arrived.
    """

    sent: dict[int, Tree]
    sums: dict[str, np.ndarray]
    bytes: dict[str, int]


class Rounds:
    """The rounds of a run, one after another."""

    def __init__(self, nodes: Nodes, learning: Learning):
        """Compiles nothing yet.

        Args:
          nodes: of all clients.
          learning: of the run.
        """
        config = learning.config
        placement = Placement(reduction=config.reduction, policy=policy_of(config))
        self._nodes, self._learning = nodes, learning
        self._half = ServerHalf(learning, placement)
        self._training = traced(
            make_training_step(learning, placement.policy), learning
        )
        self._own: dict[int, Tree] = {}
        self._first_own: Tree = ()
        # Client -> the masks that it has.
        self._masks: dict[int, int] = {}
        self._first_masks = 0
        self._deliver = jax.jit(learning.algorithm.deliver)

    def begin(self) -> ServerState:
        """Makes the state before anything is done."""
        state, row = jax.jit(partial(start, self._learning))()
        if self._learning.algorithm.masked is not None:
            client = jax.device_get(row.client)
            self._first_own, self._first_masks = client.own, int(client.version)
        return state

    def prepare(self, state: ServerState) -> tuple[ServerState, Row]:
        """Runs the preparation of an algorithm that has one.

        Returns:
          The state before the first round, and a row of metrics.

        Raises:
          TrainingError: if nobody has arrived, or a client has diverged and is not to
            be dropped.
        """
        began, learning = time.monotonic(), self._learning
        steps = learning.algorithm.prepare
        assert steps is not None
        count = steps.num_clients(learning.config.data.num_clients)
        cohort, facts = self._draw(0, PREPARATION, count)
        step = traced(make_preparation_step(learning), learning)
        state = state._replace(pending=())
        replies = self._ask("train.prepare", facts, cohort, state, step)
        if not replies.sent:
            require_finite(replies.sums, 0, cohort)
            raise TrainingError(
                "No client has arrived in the preparation: the log says why."
            )
        for place, preparing in replies.sent.items():
            self._own[int(cohort.client_ids[place])] = preparing.own
        # In a preparation of a single client there is nothing to join.
        parts = [replies.sent[place].gathered for place in sorted(replies.sent)]
        gathered = reduce(jax.jit(join), parts)
        key = round_key(learning.config, 0)
        messages = steps.messages(state)
        state, known = jax.jit(steps.finish)(state, gathered, key)
        row, sums = self._row(0, began, cohort, replies, jax.device_get(known))
        row |= metrics.preparation_costs(learning, messages, sums)
        row |= replies.bytes
        return state, row

    def run(self, state: ServerState, number: int) -> tuple[ServerState, Row]:
        """Runs a round.

        Args:
          state: before it.
          number: of the round, from 1.

        Returns:
          The state after it, and a row of metrics.

        Raises:
          TrainingError: as a simulated round.
        """
        began, learning = time.monotonic(), self._learning
        config = learning.config
        cohort, facts = self._draw(number, number - 1, config.cohort_size)
        state, known = self._half.remask(state, self._own_of(cohort), cohort)
        messages = learning.algorithm.messages(state)
        sent = self._half.sent(state)
        replies = self._ask("train", facts, cohort, sent, self._training)
        key = round_key(config, number)
        after, more = self._half.conclude(
            state, replies.sent, self._training.sent, cohort, key
        )
        known, more = jax.device_get((known, more))
        require_finite_server(more, number)
        row, sums = self._row(number, began, cohort, replies, known)
        if learning.algorithm.masked is not None:
            version = int(state.server.version)
            sums["mask/sent"] = self._sent_masks(version, cohort, replies)
        row |= metrics.cost_row(learning, messages, sums) | replies.bytes
        if number % config.eval.every == 0 or number == config.rounds:
            evaluated = time.monotonic()
            row |= self._evaluate(after, cohort, number)
            row["seconds/evaluate"] = time.monotonic() - evaluated
        row["seconds"] = time.monotonic() - began
        return after, row

    def _sent_masks(self, version: int, cohort: Cohort, replies: Replies) -> np.ndarray:
        """Counts the clients whose masks are not of this version, and remembers it."""
        old = [
            self._masks.get(int(client), self._first_masks) != version
            for client in cohort.client_ids
        ]
        # It is not known which masks a client has that was dropped.
        self._masks |= {int(cohort.client_ids[n]): version for n in replies.sent}
        return np.array(sum(old))

    def _draw(self, number: int, draw: int, count: int) -> tuple[Cohort, Facts]:
        """Draws the clients of a round.

        Args:
          number: of the round.
          draw: what draws take for the round.
          count: of clients.
        """
        sizes = self._nodes.sizes
        seed = self._learning.config.seed
        ids = draw_clients(len(sizes), count, seed=seed, round=draw)
        facts = Facts(
            number=number,
            cohort_size=count,
            num_clients=len(sizes),
            num_examples=int(sizes.sum()),
        )
        return make_cohort(ids, sizes[ids], facts), facts

    def _own_of(self, cohort: Cohort) -> Tree:
        """Stacks what the pruning method keeps of the clients of a round."""
        first = self._first_own
        own = [self._own.get(int(client), first) for client in cohort.client_ids]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *own)

    def _ask(
        self, kind: str, facts: Facts, cohort: Cohort, state: ServerState, step: Step
    ) -> Replies:
        """Sends the clients of a round what they read, and reads what they send.

        A client that sends what is not finite counts as one that has diverged.
        """
        record = to_record(state, step.reads)
        request = RecordDict({"state": record})
        answers = self._nodes.ask(kind, cohort.client_ids, request, facts._asdict())
        places = {int(client): n for n, client in enumerate(cohort.client_ids)}
        sent, sums, up = {}, {}, 0
        for client, content in answers.contents.items():
            place = places[client]
            try:
                told, tree = _read(content, step)
            except _UNREADABLE as error:
                answers.reasons[client] = why(error)
                continue
            sums[place] = told
            if told["arrived"] > 0:
                sent[place] = tree
                self._nodes.arrived[client] = facts.number
                up += _num_bytes(content.array_records["message"])
        _tell(answers, f"dropped from round {facts.number}")
        down = len(sums) * _num_bytes(record)
        stacked = _stack(sums, step.sums, len(places))
        return Replies(
            sent, stacked, {"bytes_flower/down": down, "bytes_flower/up": up}
        )

    def _row(
        self,
        number: int,
        began: float,
        cohort: Cohort,
        replies: Replies,
        facts: dict[str, np.ndarray],
    ) -> tuple[Row, dict[str, np.ndarray]]:
        """Makes a row of metrics, without costs, and the sums that it is made of."""
        config = self._learning.config
        if config.on_bad_client == "abort":
            require_finite(replies.sums, number, cohort)
        sums = replies.sums | facts
        metrics.require_alive(config, sums)
        row = metrics.round_row(number, time.monotonic() - began, sums)
        return row | metrics.named_clients(sums, cohort.client_ids), sums

    def _evaluate(self, state: ServerState, cohort: Cohort, number: int) -> Row:
        """Asks clients how well the model with their gates does on their own data."""
        config, model = self._learning.config, self._deliver(state)
        clients = evaluated_clients(config, cohort, number)
        request = RecordDict({"model": to_record(model)})
        answers = self._nodes.ask("evaluate", clients, request, {"number": number})
        accuracies = []
        for client, content in answers.contents.items():
            try:
                counts = content.config_records["counts"]
                correct, count = int(str(counts["correct"])), int(str(counts["count"]))
                if not 0 <= correct <= count:
                    raise ValueError(f"correct must be in [0, {count}], got {correct}")
            except _UNREADABLE as error:
                answers.reasons[client] = why(error)
                continue
            if count:
                accuracies.append(correct / count)
        _tell(answers, f"not evaluated after round {number}")
        if not accuracies:
            return {}
        row = metrics.statistics("client_local", np.array(accuracies))
        return row | {"eval/clients": len(accuracies)}


def _tell(answers: Answers, what: str) -> None:
    """Logs which clients have not answered as they should, and why."""
    for client, reason in sorted(answers.reasons.items()):
        _LOG.warning("Client %s is %s: %s", client, what, reason)


def _read(content: RecordDict, step: Step) -> tuple[dict[str, np.ndarray], Tree]:
    """Reads the reply of a client.

    Returns:
      Sums, and what the client has sent; () if it has not arrived.

    Raises:
      KeyError, TypeError, ValueError: if arrays are missing or do not fit, or a weight
        is negative.
    """
    sums, sent = from_record(content.array_records["sums"], step.sums), ()
    # Of a client that has diverged the loss need not be finite.
    checked = sums | {"loss": np.zeros(())}
    if sums["arrived"] > 0:
        sent = from_record(content.array_records["message"], step.sent)
        _require_weights(sent)
        checked = (sums, sent)
    if all(np.isfinite(x).all() for x in jax.tree.leaves(checked)):
        return sums, sent
    bad = {name: np.zeros_like(x) for name, x in sums.items()}
    return bad | {"nonfinite": np.ones_like(sums["nonfinite"])}, ()


def _require_weights(sent: Tree) -> None:
    """Refuses means of a negative weight."""
    for path, part in jax.tree.leaves_with_path(
        sent, is_leaf=lambda node: isinstance(node, Mean)
    ):
        if isinstance(part, Mean) and np.any(part.weight < 0):
            raise ValueError(
                f"the weight of {jax.tree_util.keystr(path)} must be at least 0, got "
                f"{part.weight}"
            )


def _stack(
    told: dict[int, dict[str, np.ndarray]], shapes: dict[str, Any], count: int
) -> dict[str, np.ndarray]:
    """Joins the sums of clients by their places; 0 for those who have not replied."""
    zeros = {name: np.zeros(x.shape, x.dtype) for name, x in shapes.items()}
    every = [told.get(place, zeros) for place in range(count)]
    sums = {name: np.stack([each[name] for each in every]) for name in zeros}
    lost = np.array([place not in told for place in range(count)], np.float32)
    sums["absent"] = np.maximum(sums.get("absent", lost), lost)
    sums["steps_executed"] = sums["steps"].sum()
    return sums


def _num_bytes(record: ArrayRecord) -> int:
    return sum(len(array.data) for array in record.values())
