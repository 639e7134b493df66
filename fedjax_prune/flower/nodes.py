"""The nodes of a run: which client each of them is, and letters to them and back."""

import time
from collections.abc import Iterable, Mapping
from logging import getLogger
from typing import NamedTuple

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedjax_prune.flower.kept import NOTHING

_LOG = getLogger("flwr")
_PAUSE = 0.5
"""Seconds between two looks at what has arrived."""
_ASKING = 300.0
"""Seconds that a node has to say who it is. It starts Python and reads its data."""


_TELLING = 10.0
"""Seconds between two messages to the user that nodes are missing."""


class MissingNodesError(RuntimeError):
    """Clients have no node; the message says which."""


class Answers(NamedTuple):
    """What clients, or nodes, have answered.

    Attributes:
      contents: of those that have.
      reasons: why the others have not.
    """

    contents: dict[int, RecordDict]
    reasons: dict[int, str]


class Nodes:
    """The nodes of a run.

    Attributes:
      sizes: [num_clients] int64, examples of each client; 0 if it was never seen.
      arrived: client -> the last round whose reply counts; NOTHING if there is none. It
        is told to the client with the next letter, see `kept`.
    """

    def __init__(self, grid: Grid, num_clients: int, patience: float):
        """Asks nobody yet.

        Args:
          grid: of the run.
          num_clients: in the population.
          patience: seconds that a client has to answer a letter; 0 is no limit.
        """
        self.sizes = np.zeros(num_clients, np.int64)
        self.arrived = dict.fromkeys(range(num_clients), NOTHING)
        self._grid, self._patience = grid, patience
        self._asked: set[int] = set()
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
            missing = np.flatnonzero(self.sizes == 0).tolist()
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
        """Sends a letter to clients and waits for their answers.

        Args:
          kind: of the letter, a type of message.
          clients: who receive it.
          records: of the letter.
          facts: that it has beside them.

        Returns:
          Answers by client. Clients without a node have not answered.
        """
        self._look()
        letters, unreachable = {}, {}
        for client in map(int, clients):
            node = self._nodes.get(client)
            if node is None:
                unreachable[client] = "no node of this client is connected"
                continue
            own = ConfigRecord({**facts, "arrived": self.arrived[client]})
            content = RecordDict({**records, "facts": own})
            round = str(facts["number"])
            letters[client] = Message(content, node, kind, group_id=round)
        answers = _exchange(self._grid, letters, self._patience)
        return answers._replace(reasons=answers.reasons | unreachable)

    def _look(self) -> None:
        """Asks the nodes that have not said who they are.

        A SuperNode that was started again is another node; it replaces the old one.
        """
        connected = set(self._grid.get_node_ids())
        new = sorted(connected - self._asked)
        questions = {node: Message(RecordDict(), node, "query") for node in new}
        answers = _exchange(self._grid, questions, _ASKING)
        for node, content in answers.contents.items():
            told = content.config_records["client"]
            client = int(str(told["id"]))
            self._nodes[client] = node
            self.sizes[client] = int(str(told["num-examples"]))
            self._asked.add(node)
        for node, reason in answers.reasons.items():
            self._reason = f" Node {node} has answered: {reason}"
            _LOG.warning("Node %s does not say which client it is: %s", node, reason)
        self._nodes = {c: node for c, node in self._nodes.items() if node in connected}


def _exchange(grid: Grid, letters: Mapping[int, Message], seconds: float) -> Answers:
    """Sends letters, each to another node, and waits for the answers.

    Args:
      grid: of the run.
      letters: whoever receives it -> letter.
      seconds: after which those who have not answered are given up; 0 is no limit.

    Returns:
      Answers by the keys of the letters.
    """
    began, answers = time.monotonic(), Answers({}, {})
    # An id is None if the letter was not sent.
    ids = grid.push_messages(list(letters.values())) if letters else []
    receivers = {i: key for i, key in zip(ids, letters, strict=False) if i}
    while receivers:
        for reply in grid.pull_messages(set(receivers)):
            # The error of a lost node comes from the SuperLink.
            receiver = receivers.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                answers.reasons[receiver] = str(reply.error.reason)
            else:
                answers.contents[receiver] = reply.content
        if seconds and time.monotonic() - began > seconds:
            break
        if receivers:
            time.sleep(_PAUSE)
    known = answers.contents.keys() | answers.reasons.keys()
    silent = dict.fromkeys(letters.keys() - known, "it has not answered")
    return answers._replace(reasons=answers.reasons | silent)
