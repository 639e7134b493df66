"""What a node does in a round, and what the server knows of it.

A node trains as a lane of a cohort does, here of one client. So it also drops a result
that is not finite and follows the policy of the run. What it is sent is found out by
tracing: the arrays of the server's state that its step reads.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Var

from fedjax_prune.engine.aggregate import Gathered, Reduction, keep, keep_nothing
from fedjax_prune.engine.cohort_loop import train_cohort
from fedjax_prune.engine.devices import ONE_DEVICE
from fedjax_prune.engine.keys import seed_key
from fedjax_prune.engine.policy import Policy
from fedjax_prune.engine.preparation import PREPARATION
from fedjax_prune.models.platforms import tracing_for
from fedjax_prune.runs.learning import Learning, image_shape_of, init_key
from fedjax_prune.types import (
    ClientState,
    Cohort,
    Config,
    Dataset,
    Message,
    RoundInputs,
    ServerState,
    Sums,
    Tree,
    Unprepared,
)

REPORTED = (
    "loss",
    "correct",
    "count",
    "steps",
    "arrived",
    "nonfinite",
    "absent",
    "slow",
    "clipped",
    "hostile",
)
"""The sums that the server is sent. What the gates select stays on the node."""


class Facts(NamedTuple):
    """What a node is told of the clients of its round.

    Attributes:
      number: of the round, from 1; 0 is the preparation.
      cohort_size: clients that take part.
      num_clients: clients in the population.
      num_examples: of the population.
    """

    number: int
    cohort_size: int
    num_clients: int
    num_examples: int


def make_cohort(client_ids: np.ndarray, sizes: np.ndarray, facts: Facts) -> Cohort:
    """Makes the cohort of a node, of one client, or of the server.

    Args:
      client_ids: [count] int32, ascending.
      sizes: [count] int32, their examples, which are the first ones of the data set.
      facts: of the round.
    """
    count = len(client_ids)
    width = padded_size(int(sizes.max()))
    return Cohort(
        client_ids=np.asarray(client_ids, np.int32),
        sizes=np.asarray(sizes, np.int32),
        indices=np.broadcast_to(np.arange(width, dtype=np.int32), (count, width)),
        queues=np.arange(count, dtype=np.int32)[None],
        cohort_size=np.int32(facts.cohort_size),
        num_clients=np.int32(facts.num_clients),
        num_examples=np.float64(facts.num_examples),
    )


def padded_size(size: int) -> int:
    """Gives the length that a node pads its examples to, so that few programs differ.

    Examples:
      >>> padded_size(5), padded_size(300), padded_size(9000)
      (16, 512, 12288)
    """
    if size > 4096:
        return -(-size // 4096) * 4096
    return max(16, 1 << (size - 1).bit_length())


def padded(dataset: Dataset) -> Dataset:
    """Pads examples to `padded_size` of their number."""
    missing = padded_size(len(dataset.labels)) - len(dataset.labels)

    def pad(x: Any) -> np.ndarray:
        return np.pad(x, [(0, missing)] + [(0, 0)] * (np.ndim(x) - 1))

    return Dataset(pad(dataset.images), pad(dataset.labels))


NodeStep = Callable[..., tuple[Tree, ClientState, Sums]]
"""(state, row, dataset, cohort, key) -> (what is sent, row, sums), of one client."""


def round_key(config: Config, number: int) -> jax.Array:
    """Makes the key of a round, as a simulation does.

    Args:
      config: of the run.
      number: of the round, from 1; 0 is the preparation.
    """
    folded = number - 1 if number else PREPARATION
    return jax.random.fold_in(seed_key(config.seed), folded)


class Preparing(NamedTuple):
    """What a client of a preparation leaves.

    Attributes:
      gathered: as in Preparation, of this client alone.
      own: what the pruning method keeps for this client; () if nothing is pruned. It is
        made of what the client sends, and the server keeps it.
    """

    gathered: Tree
    own: Tree


def make_training_step(learning: Learning, policy: Policy) -> NodeStep:
    """Makes the half of a round that a node runs; it sends a Message, not weighted."""
    rules = learning.algorithm.rules

    def step(
        state: ServerState,
        row: ClientState,
        dataset: Dataset,
        cohort: Cohort,
        key: jax.Array,
    ) -> tuple[Message, ClientState, Sums]:
        with tracing_for(ONE_DEVICE.platform):
            result = train_cohort(
                task=learning.task,
                solver=rules.solver,
                program=rules.program(state, cohort),
                inputs=RoundInputs(state, as_lane(row), dataset, cohort, key),
                reduction=_AS_SENT,
                policy=policy,
            )
        messages, _ = result.messages
        return _of_lane((messages, result.rows, _reported(result.sums)))

    return step


def make_preparation_step(learning: Learning) -> NodeStep:
    """Makes what a node runs once before the first round; it sends a Preparing."""
    steps, first = learning.algorithm.prepare, learning.algorithm.row
    assert steps is not None
    masked = learning.algorithm.masked is not None

    def step(
        state: ServerState,
        row: ClientState,
        dataset: Dataset,
        cohort: Cohort,
        key: jax.Array,
    ) -> tuple[Preparing, ClientState, Sums]:
        whole = row
        if masked:  # There a row also has what only the server reads.
            client = first(init_key(learning.config)).client._replace(base=row.client)
            whole = row._replace(client=client)
        # The marker is no array, so it was not sent.
        state = state._replace(pending=Unprepared())
        inputs = RoundInputs(state, as_lane(whole), dataset, cohort, key)
        gathered, rows, sums = steps.gather(steps.start(state), inputs, ONE_DEVICE)
        whole = _of_lane(rows)
        sums = _of_lane(_reported(sums))
        if not masked:
            return Preparing(gathered, ()), whole, sums
        row = whole._replace(client=whole.client.base)
        return Preparing(gathered, whole.client.own), row, sums

    return step


class Step(NamedTuple):
    """What the server knows of a step that nodes make.

    Attributes:
      reads: a bool for each array of the server's state, whether the step reads it.
      sent: shapes of what a node sends.
      sums: shapes of the sums of a client.
    """

    reads: Tree
    sent: Tree
    sums: Sums


def traced(step: NodeStep, learning: Learning) -> Step:
    """Traces a step of a node, to find out what it reads and sends."""
    arguments = shapes_of(learning)
    closed, (sent, _, sums) = jax.make_jaxpr(step, return_shape=True)(*arguments)
    read = {x for eqn in closed.jaxpr.eqns for x in eqn.invars if isinstance(x, Var)}
    read |= {x for x in closed.jaxpr.outvars if isinstance(x, Var)}
    leaves, structure = jax.tree.flatten(arguments[0])
    flags = [x in read for x in closed.jaxpr.invars[: len(leaves)]]
    return Step(jax.tree.unflatten(structure, flags), sent, sums)


def shapes_of(learning: Learning) -> tuple[Any, ...]:
    """Gives the shapes of the arguments of a step, with few examples."""
    algorithm, key = learning.algorithm, seed_key(0)
    state = jax.eval_shape(algorithm.init, key)._replace(pending=())
    width = padded_size(1)
    images = jax.ShapeDtypeStruct((width, *image_shape_of(learning.config)), np.uint8)
    dataset = Dataset(images, jax.ShapeDtypeStruct((width,), np.int32))
    cohort = make_cohort(np.zeros(1), np.ones(1), Facts(1, 1, 1, 1))
    cohort = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, cohort))
    row = jax.eval_shape(algorithm.rules.row, key)
    return state, row, dataset, cohort, jax.eval_shape(lambda: key)


def _reported(sums: Sums) -> Sums:
    return {name: x for name, x in sums.items() if name in REPORTED}


def _never(*_: Any) -> Gathered:
    raise AssertionError("what a node sends is not added up there")


_AS_SENT = Reduction(lambda message: message, keep_nothing, keep, _never)


def as_lane(tree: Tree) -> Tree:
    """Makes the lanes of a single client: a leading axis of 1."""
    return jax.tree.map(lambda x: x[None], tree)


def _of_lane(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: x[0], tree)
