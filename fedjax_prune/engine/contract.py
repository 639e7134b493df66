"""The records of a federated algorithm: pure functions that the engine calls.

`rounds.make_algorithm` makes a FederatedAlgorithm out of Rules.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.core import Tracer

from fedjax_prune.engine.devices import ONE_DEVICE, Placement
from fedjax_prune.engine.outcome import NOBODY, TrainingError
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
"""For each part of the messages, its mean or total over the clients that arrived."""

Round = Callable[..., tuple[ServerState, ClientState, Sums]]
"""(inputs, placement=ONE_DEVICE) -> (state, rows, sums).

Leaves of sums are [num_places, ...], one entry a client, except for the scalar
`steps_executed` and `server_nonfinite` and the scalars about masks."""


class ClientProgram(NamedTuple):
    """The part of an algorithm that runs on the clients, beside local training.

    Attributes:
      upload: (result, row) -> (message, row). The returned row is what the client
        keeps if its message arrives.
      extra_args: row -> keyword arguments of the solver's `shared_tx.update`, beside
        those that each step has: `step_size`, `key`, `epoch`, `batch` and `anchor`,
        the parameters that the client has received. The default adds none.
      alive: `Variables.alive` of all clients.
      settle: (row before, row to keep, message) -> the row to keep. It is called where
        `Policy.bounds_parts` is set, with the message as it is sent, also if it needed
        no scaling or is that of an attack. The default changes nothing.

    Examples:
      >>> import fedjax_prune as fp
      >>> def upload(result, row):
      ...     return {"delta": fp.Mean(result.delta, result.num_examples)}, row
      >>> program = fp.ClientProgram(upload)
      >>> result = fp.LocalResult({"w": 0.5}, {}, {}, 8, 0.1, (), {})
      >>> program.upload(result, fp.ClientState({}, {}))[0]
      {'delta': Mean(values={'w': 0.5}, weight=8)}
    """

    upload: Callable[[LocalResult, ClientState], tuple[Message, ClientState]]
    extra_args: Callable[[ClientState], dict[str, Tree]] = lambda row: {}
    alive: Tree = {}  # noqa: RUF012 (never changed)
    settle: Callable[[ClientState, ClientState, Message], ClientState] = (
        lambda before, row, message: row
    )


class Rules(NamedTuple):
    """The functions that make an algorithm: what its clients and its server do.

    An algorithm can be made from another one by replacing or wrapping some of its
    rules.

    Attributes:
      solver: local training.
      init: key -> ServerState.
      row: key -> the first row of a client, as the program reads it.
      program: (state, cohort) -> the clients' part of this round; of the cohort it may
        read the numbers of clients and examples.
      update: (state, received) -> the state after the server's step. It is not called
        for a round in which nothing arrives, unless it is private: then it is given
        noise. `make_round` counts the round.

    Examples:
      >>> import fedjax_prune as fp
      >>> task = fp.make_task(fp.CNN(num_classes=3, width=0.1), (8, 8, 1))
      >>> rules = fp.fedavg(task, fp.make_solver(), fp.make_server_tx()).rules
      >>> jax.eval_shape(rules.init, jax.random.key(0)).params["fc2"]["kernel"].shape
      (6, 3)
    """

    solver: LocalSolver
    init: Callable[[jax.Array], ServerState]
    row: Callable[[jax.Array], ClientState]
    program: Callable[[ServerState, Cohort], ClientProgram]
    update: Callable[[ServerState, Received], ServerState]


class Preparation(NamedTuple):
    """What some clients do once, before the first round.

    The clients may come in groups, so that no array on a device grows with their
    number. What they send is added up as it is: policies are for rounds.

    Attributes:
      solver: how the clients train in it.
      num_clients: clients in the population -> how many take part.
      start: state -> what is gathered before the first client.
      gather: (gathered, inputs, placement) -> (gathered, rows, sums) of one group. The
        `cohort_size` of its cohort is that of all groups together.
      finish: (state, gathered, key) -> the state, with the same number of finished
        rounds, and scalars about it.
      messages: like `FederatedAlgorithm.messages`.
      most_trainings: how often `gather` trains each client, at most.
    """

    solver: LocalSolver
    num_clients: Callable[[int], int]
    start: Callable[[ServerState], Tree]
    gather: Callable[..., tuple[Tree, ClientState, Sums]]
    finish: Callable[[ServerState, Tree, jax.Array], tuple[ServerState, Sums]]
    messages: Callable[[ServerState], tuple[Tree, Tree]]
    most_trainings: int = 1

    def run(
        self, inputs: RoundInputs, placement: Placement = ONE_DEVICE
    ) -> tuple[ServerState, ClientState, Sums]:
        """Runs all clients as one group; it is called like a round.

        Raises:
          ValueError: as `require_public`, or if the state is prepared already.
          TrainingError: if it is not traced, and no client is left.
        """
        self.require_public(placement)
        gathered = self.start(inputs.state)
        gathered, rows, sums = self.gather(gathered, inputs, placement.plain)
        arrived = sums["arrived"].sum()
        if not isinstance(arrived, Tracer) and arrived == 0:
            raise TrainingError(NOBODY)
        # Compiled, so that no two arrays of the state share a buffer: donating the
        # state would donate it twice.
        state, facts = jax.jit(self.finish)(inputs.state, gathered, inputs.key)
        return state, rows, sums | facts

    def require_public(self, placement: Placement) -> None:
        """Refuses private rounds.

        Raises:
          ValueError: if the rounds are private.
        """
        if placement.policy.privacy is not None:
            raise ValueError(
                "a preparation sends what has no bound and no noise: the rounds of "
                "this algorithm cannot be private."
            )


class MaskedRound(NamedTuple):
    """The two parts of a round of an algorithm whose shared parameters are masked.

    Attributes:
      remask: (state, rows, cohort) -> the state with the masks of this round.
      train: like `FederatedAlgorithm.round`, under the masks that the state has; its
        sums are without `facts`.
      facts: state -> scalars about its masks, which a whole round adds to its sums.
      delivered: state -> masks of the model that `FederatedAlgorithm.deliver` gives.
      sent: state -> the state that clients start from: pruned parameters are 0.
      restored: (state, after) -> what the server's step has made of `sent(state)`, with
        all that the masks prune as it was in `state`.
    """

    remask: Callable[[ServerState, ClientState, Cohort], ServerState]
    train: Round
    facts: Callable[[ServerState], Sums]
    delivered: Callable[[ServerState], Tree]
    sent: Callable[[ServerState], ServerState]
    restored: Callable[[ServerState, ServerState], ServerState]


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

    Examples:
      >>> import fedjax_prune as fp
      >>> task = fp.make_task(fp.CNN(num_classes=3, width=0.1), (8, 8, 1))
      >>> algorithm = fp.fedavg(task, fp.make_solver(), fp.make_server_tx())
      >>> state = jax.eval_shape(algorithm.init, jax.random.key(0))
      >>> state.params["conv1"]["kernel"].shape, state.round.dtype
      ((3, 3, 1, 2), dtype('int32'))
      >>> algorithm.prepare is None and algorithm.masked is None
      True
    """

    init: Callable[[jax.Array], ServerState]
    row: Callable[[jax.Array], ClientState]
    round: Round
    messages: Callable[[ServerState], tuple[Tree, Tree]]
    deliver: Callable[[ServerState], Variables]
    rules: Rules
    prepare: Preparation | None = None
    masked: MaskedRound | None = None
