"""What a federated algorithm is: pure functions that the engine calls.

`rounds.make_algorithm` makes an algorithm out of Rules. Whoever calls it reads only the
records of this file.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from fedjax_prune.engine.devices import ONE_DEVICE, Placement
from fedjax_prune.engine.solver import LocalSolver
from fedjax_prune.types import (
    ClientState,
    Cohort,
    LocalResult,
    Message,
    RoundInputs,
    ServerState,
    Sums,
    Tree,
    Variables,
)

Received = dict[str, Tree]
"""For each part of the messages, its mean or its sum over the clients that arrived."""

Round = Callable[..., tuple[ServerState, ClientState, Sums]]
"""(inputs, placement=ONE_DEVICE) -> (state, rows, sums).

Leaves of sums are per client, [num_places, ...], except the scalar `steps_executed`."""


class ClientProgram(NamedTuple):
    """What an algorithm adds to local training.

    Attributes:
      extra_args: row -> keyword arguments of the solver's `shared_tx.update`, beside
        those that each step has: `step_size`, `key`, `epoch`, `batch`.
      upload: (result, row) -> (message, row). The returned row is what the client
        keeps if its message arrives.
      alive: `Variables.alive` of all clients.
    """

    extra_args: Callable[[ClientState], dict[str, Tree]]
    upload: Callable[[LocalResult, ClientState], tuple[Message, ClientState]]
    alive: Tree = {}  # noqa: RUF012 (never changed)


class Rules(NamedTuple):
    """What an algorithm's clients and its server do.

    One algorithm can be made of another by replacing or wrapping some of its rules.

    Attributes:
      solver: local training.
      init: key -> ServerState.
      row: key -> the first row of a client, as the program reads it.
      program: (state, cohort) -> the clients' part of this round; of the cohort it may
        read the numbers of clients and examples.
      update: (state, received) -> the state after the server's step. It is not called
        for a round from which nothing arrived, and `make_round` counts the round.
    """

    solver: LocalSolver
    init: Callable[[jax.Array], ServerState]
    row: Callable[[jax.Array], ClientState]
    program: Callable[[ServerState, Cohort], ClientProgram]
    update: Callable[[ServerState, Received], ServerState]


class Preparation(NamedTuple):
    """What some clients do once, before the first round.

    They may come in groups, so that nothing on a device grows with their number.

    Attributes:
      solver: how the clients train in it.
      num_clients: clients in the population -> how many take part.
      start: state -> what is gathered before the first client.
      gather: (gathered, inputs, placement) -> (gathered, rows, sums) of one group. Its
        cohort's `cohort_size` and `cohort_examples` are those of all groups together.
      finish: (state, gathered, key) -> the state, with the same number of finished
        rounds, and scalars about it.
      messages: like `FederatedAlgorithm.messages`.
    """

    solver: LocalSolver
    num_clients: Callable[[int], int]
    start: Callable[[ServerState], Tree]
    gather: Callable[..., tuple[Tree, ClientState, Sums]]
    finish: Callable[[ServerState, Tree, jax.Array], tuple[ServerState, Sums]]
    messages: Callable[[ServerState], tuple[Tree, Tree]]

    def run(
        self, inputs: RoundInputs, placement: Placement = ONE_DEVICE
    ) -> tuple[ServerState, ClientState, Sums]:
        """All clients in one group, called like `FederatedAlgorithm.round`."""
        gathered = self.start(inputs.state)
        gathered, rows, sums = self.gather(gathered, inputs, placement)
        state, facts = self.finish(inputs.state, gathered, inputs.key)
        return state, rows, sums | facts


class MaskedRound(NamedTuple):
    """A round in two parts, of an algorithm whose shared parameters are masked.

    Attributes:
      remask: (state, rows, cohort) -> the state with the masks of this round.
      train: like `FederatedAlgorithm.round`, under the masks that the state has; its
        sums are without `facts`.
      facts: state -> scalars about its masks, which a whole round adds to its sums.
      delivered: state -> masks of the model that `FederatedAlgorithm.deliver` gives.
    """

    remask: Callable[[ServerState, ClientState, Cohort], ServerState]
    train: Round
    facts: Callable[[ServerState], Sums]
    delivered: Callable[[ServerState], Tree]


class FederatedAlgorithm(NamedTuple):
    """A federated algorithm as pure functions.

    Attributes:
      init: key -> ServerState. Given the same key, `row` shares its start.
      row: key -> ClientState of a client never seen, the same for all of them.
      round: one round; see Round and `rounds.make_round`.
      messages: state -> what one client receives and what it sends, as shapes, before
        any mask.
      deliver: state -> the shared part of the model that is evaluated and exported.
      rules: what the round is made of, for algorithms that are built on this one.
      prepare: what is done once before the first round; None if nothing is. Rounds
        refuse to run before it has.
      masked: the two parts of the round if parameters are masked, else None.
    """

    init: Callable[[jax.Array], ServerState]
    row: Callable[[jax.Array], ClientState]
    round: Round
    messages: Callable[[ServerState], tuple[Tree, Tree]]
    deliver: Callable[[ServerState], Variables]
    rules: Rules
    prepare: Preparation | None = None
    masked: MaskedRound | None = None
