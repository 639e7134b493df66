"""The nodes of a run: which client each of them is, and requests to them."""

import time
from collections.abc import Iterable, Mapping, Set
from logging import getLogger
from typing import Any, NamedTuple

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedjax_prune.flower.kept import NOTHING

_LOG = getLogger("flwr")
_PAUSE = 0.5
"""Seconds between two looks at what has arrived."""
_ASKING = 300.0
"""Seconds that a node has to say who it is. It starts Python and reads its data."""
_AGAIN = 30.0
"""Seconds until a node that could not say who it is, is asked again."""
_CLOCKS = 60.0
"""Seconds by which the clocks of nodes may differ."""
_TELLING = 10.0
"""Seconds between two messages to the user that nodes are missing."""

_SILENT, _LOST = "it has not answered", "no node of this client is connected"


class MissingNodesError(RuntimeError):
    """Clients have no node; the message says which."""


class Answers(NamedTuple):
    """What clients have answered to a request.

    Attributes:
      contents: of those that have.
      reasons: why the others have not.
    """

    contents: dict[int, RecordDict]
    reasons: dict[int, str]


class _Client(NamedTuple):
    """Who a node is.

    Attributes:
      id: of the client.
      num_examples: that it has.
    """

    id: int
    num_examples: int


class Nodes:
    """The nodes of a run.

    Attributes:
      sizes: [num_clients] int64, examples of each client; 0 if it was never seen.
      arrived: client -> the last round whose reply counts; NOTHING if there is none. It
        is told to the client with the next request, see `kept`.
    """

    def __init__(self, grid: Grid, num_clients: int, classes: str, patience: float):
        """Asks nobody yet.

        Args:
          grid: of the run.
          num_clients: in the population.
          classes: that every node must have, as `named_classes` gives them.
          patience: seconds that a client has to answer a request; 0 is no limit.
        """
        self.sizes = np.zeros(num_clients, np.int64)
        self.arrived = dict.fromkeys(range(num_clients), NOTHING)
        self._grid, self._classes, self._patience = grid, classes, patience
        self._connected: set[int] = set()
        # By id of a node. The one that has answered last is the last.
        self._known: dict[int, _Client] = {}
        # When it is asked at the earliest, and until when rounds wait for its answer.
        self._ask_at: dict[int, float] = {}
        self._awaited_until: dict[int, float] = {}
        # Id of a message -> the node that is asked who it is.
        self._questions: dict[str, int] = {}
        # Client -> its newest node that is connected.
        self._nodes: dict[int, int] = {}
        self._reason = ""

    def wait(self, seconds: float) -> None:
        """Waits until every client has a node.

        Raises:
          MissingNodesError: if one has none after so many seconds.
        """
        began = told = time.monotonic()
        while True:
            self._look()
            missing = sorted(set(range(len(self.sizes))) - self._nodes.keys())
            if not missing:
                return
            count = f"{len(missing)} of {len(self.sizes)} clients have no node"
            if time.monotonic() - began > seconds:
                raise MissingNodesError(
                    f"{count} after {seconds:g} seconds, the first of them "
                    f"{missing[:5]}: start a SuperNode for each with --node-config "
                    "'partition-id=CLIENT', or in a simulation --federation-config "
                    f"'num-supernodes={len(self.sizes)}', or take a smaller "
                    f"data.num_clients.{self._reason}"
                )
            if time.monotonic() - told > _TELLING:
                _LOG.info("%s, the first of them %s; waiting", count, missing[:5])
                told = time.monotonic()
            time.sleep(_PAUSE)

    def ask(
        self,
        kind: str,
        clients: Iterable[int],
        records: RecordDict,
        facts: Mapping[str, int],
    ) -> Answers:
        """Sends a request to clients and waits for their answers.

        While a new node has not yet said who it is, it may be that of a client without
        a node, or replace one that was killed. So clients are waited for until then,
        and a request without an answer is also sent to the new node.

        Args:
          kind: of the request, a type of message.
          clients: who receive it.
          records: of the request.
          facts: that it has beside them.

        Returns:
          Answers by client.
        """
        began, answers = time.monotonic(), Answers({}, {})
        waiting = everyone = [int(client) for client in clients]
        asked: set[tuple[int, int]] = set()
        pending: dict[str, int] = {}
        while waiting:
            self._look()
            placed = {c: self._nodes[c] for c in waiting if c in self._nodes}
            new = dict(placed.items() - asked)
            asked |= new.items()
            pending |= self._push(
                {c: self._request(kind, c, records, facts) for c in sorted(new)}
            )
            self._pull(pending, answers)
            waiting = [c for c in waiting if c not in answers.contents]
            if not self._is_awaiting():
                waiting = [c for c in waiting if c in pending.values()]
            if self._patience and time.monotonic() - began > self._patience:
                break
            if waiting:
                time.sleep(_PAUSE)
        reached = {client for client, _ in asked}
        reasons = {
            client: answers.reasons.get(client, _SILENT if client in reached else _LOST)
            for client in everyone
            if client not in answers.contents
        }
        return answers._replace(reasons=reasons)

    def _request(
        self, kind: str, client: int, records: RecordDict, facts: Mapping[str, int]
    ) -> Message:
        own = ConfigRecord({**facts, "client": client, "arrived": self.arrived[client]})
        content = RecordDict({**records, "facts": own})
        node, round = self._nodes[client], str(facts["number"])
        # A node that is late would else train rounds that are over.
        ttl = self._patience + _CLOCKS if self._patience else None
        return Message(content, node, kind, ttl=ttl, group_id=round)

    def _push(self, requests: Mapping[int, Message]) -> dict[str, int]:
        """Sends messages.

        Args:
          requests: whoever receives it, a client or a node -> message.

        Returns:
          Id of a message -> who receives it; of those that were sent.
        """
        ids = self._grid.push_messages(list(requests.values())) if requests else []
        # An id is empty, or there is none at all, if the message was not sent.
        return {i: receiver for i, receiver in zip(ids, requests, strict=False) if i}

    def _pull(self, receivers: dict[str, int], answers: Answers) -> None:
        """Takes what has arrived by now.

        Args:
          receivers: as `_push` gives them; those who have answered are taken out.
          answers: gets their answers.
        """
        for reply in self._grid.pull_messages(set(receivers)) if receivers else ():
            # The error of a lost node comes from the SuperLink.
            receiver = receivers.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                answers.reasons[receiver] = str(reply.error.reason)
            else:
                answers.contents[receiver] = reply.content

    def _look(self) -> None:
        """Asks new nodes who they are, and takes what nodes have answered by now.

        A SuperNode that was started again is another node, unless it authenticates
        itself. Then it may come back as another client.
        """
        now, answers = time.monotonic(), Answers({}, {})
        self._connected = set(self._grid.get_node_ids())
        for node in self._known.keys() - self._connected:
            # An answer to an older question may have come after it was gone.
            del self._known[node]
            self._ask_at.pop(node, None)
            self._awaited_until.pop(node, None)
        strangers = self._connected - self._known.keys()
        due = {node for node in strangers if self._ask_at.get(node, 0) <= now}
        sent = self._push(
            {node: Message(RecordDict(), node, "query") for node in sorted(due)}
        )
        for node in sent.values():
            # Only the first time, because a node may never answer.
            self._awaited_until.setdefault(node, now + _ASKING)
            self._ask_at[node] = now + _ASKING
        self._questions |= sent
        self._pull(self._questions, answers)
        for node, content in sorted(answers.contents.items()):
            try:
                self._known[node] = _read_client(
                    content, len(self.sizes), self._classes
                )
            except (KeyError, TypeError, ValueError) as error:
                answers.reasons[node] = f"it is no client of this run: {why(error)}"
        for node, reason in answers.reasons.items():
            self._awaited_until[node], self._ask_at[node] = now, now + _AGAIN
            self._reason = f" Node {node} has answered: {reason}"
            _LOG.warning("Node %s does not say which client it is: %s", node, reason)
        self._place(answers.contents.keys())

    def _place(self, new: Set[int]) -> None:
        """Finds the newest connected node of each client.

        Args:
          new: nodes that have just said who they are.
        """
        self._nodes = {}
        for node, (client, _) in self._known.items():
            if node not in self._connected:
                continue
            if client in self._nodes and node in new:
                _LOG.warning(
                    "Client %s has two nodes, %s and %s: %s, the newer one, is used "
                    "while it is connected. Each SuperNode needs a partition-id of its "
                    "own.",
                    client,
                    self._nodes[client],
                    node,
                    node,
                )
            self._nodes[client] = node
        for client, node in self._nodes.items():
            num_examples = self._known[node].num_examples
            if self.sizes[client] not in (0, num_examples):
                _LOG.warning(
                    "Client %s has %s examples in place of %s. With "
                    "algorithm.control_weights=size the mean of the control variates "
                    "is no longer weighted by examples.",
                    client,
                    num_examples,
                    self.sizes[client],
                )
            self.sizes[client] = num_examples

    def _is_awaiting(self) -> bool:
        """Whether a connected node may soon say who it is."""
        now = time.monotonic()
        asked = self._connected.intersection(self._questions.values())
        return any(self._awaited_until.get(node, now) > now for node in asked)


def why(error: Exception) -> str:
    """Says what is wrong with an answer that could not be read.

    Examples:
      >>> why(KeyError("counts"))
      "the answer lacks 'counts'"
    """
    return f"the answer lacks {error}" if isinstance(error, KeyError) else str(error)


def _read_client(content: RecordDict, num_clients: int, classes: str) -> _Client:
    """Reads who a node is.

    Raises:
      KeyError, TypeError, ValueError: if it is no client of the population, has no
        examples or has other classes than the server.
    """
    told: Any = content.config_records["client"]
    client = _Client(int(told["id"]), int(told["num-examples"]))
    if not 0 <= client.id < num_clients or client.num_examples < 1:
        raise ValueError(
            f"id must be in [0, {num_clients}) and num-examples at least 1, got "
            f"{client.id} and {client.num_examples}."
        )
    if told["classes"] != classes:
        raise ValueError(
            f"its data must have the server's classes {classes}, got {told['classes']}."
        )
    return client
