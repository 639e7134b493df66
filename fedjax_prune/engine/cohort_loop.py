"""Local training of a cohort: lanes side by side, clients one after another.

Clients differ in size by a factor of a hundred, so padding all of them to the
largest would waste most of a round. Here a lane runs its queue of clients back to
back inside one loop whose trip count is data: when a lane's client has finished,
what it sends is added to the cohort's total and the lane loads its next client.
Lanes are the vmapped axis; nothing is compiled per client. Everything here happens on
one device, with its own lanes and its own block of the cohort.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_prune.engine.aggregate import Reduction
from fedjax_prune.engine.contract import ClientProgram
from fedjax_prune.engine.floats import is_float
from fedjax_prune.engine.lanes import over_lanes, put_lanes, select_lanes, take_next
from fedjax_prune.engine.local import LocalTraining, Progress
from fedjax_prune.engine.policy import Policy
from fedjax_prune.engine.sending import send
from fedjax_prune.engine.solver import LocalSolver, pad_to_batches
from fedjax_prune.types import (
    Anchor,
    ClientState,
    Cohort,
    Message,
    Probe,
    RoundInputs,
    Sums,
    Task,
    Tree,
)


class CohortResult(NamedTuple):
    """What the clients of one device leave behind.

    Attributes:
      messages: as the reduction keeps them.
      rows: [block_size, ...] new client states; a client whose message has not arrived
        keeps its old one.
      sums: of the task and the probe, [block_size, ...], with `steps`, `nonfinite`,
        `arrived` and, by policy, `clipped`, `absent`, `slow` and `hostile`.
      trips: [] int32, steps that the lanes have made side by side.
    """

    messages: Tree
    rows: ClientState
    sums: Sums
    trips: jax.Array


class _Lane(NamedTuple):
    """The clients that lanes run. Leaves have a leading axis `num_lanes`."""

    position: jax.Array  # [] int32 in the block; block_size = nothing left to do
    client: Progress


class _Carry(NamedTuple):
    trips: jax.Array
    taken: jax.Array  # [num_lanes] int32, clients taken from each queue
    lanes: _Lane
    messages: Tree
    rows: ClientState
    sums: Sums


def train_cohort(
    task: Task,
    solver: LocalSolver,
    program: ClientProgram,
    inputs: RoundInputs,
    reduction: Reduction,
    policy: Policy,
) -> CohortResult:
    """Trains every client of one device's block from the same parameters.

    A client whose loss, message or personal parameters become non-finite is dropped:
    its message does not arrive and its row stays. Where the policy takes a large
    message for a bad one, the row stays but for what `ClientProgram.settle` changes.

    Args:
      task: the model and its loss.
      solver: optimiser, schedule, epochs and batch size.
      program: the algorithm's part.
      inputs: of the round, with this device's rows and block of the cohort.
      reduction: gathers what the clients send.
      policy: what becomes of it before.
    """
    state, cohort = inputs.state, inputs.cohort
    # Every batch is then one slice of the order, the last partial one included.
    indices = pad_to_batches(cohort.indices, solver.batch_size)
    anchor = Anchor(state.params, state.model_state, state.round)
    run = _Run(
        training=LocalTraining(task, solver, program, anchor, inputs.dataset),
        cohort=cohort._replace(indices=indices),
        key=inputs.key,
        probe=inputs.probe,
        reduction=reduction,
        policy=policy,
    )

    def run_until_one_has_finished(carry: _Carry) -> _Carry:
        # This is a loop, because in a conditional XLA would copy the parameters at
        # every step at which no client finishes.
        trips, lanes = jax.lax.while_loop(
            lambda inner: ~run.has_finished(inner[1]).any(),
            lambda inner: (inner[0] + 1, run.step(run.shuffle(inner[1]))),
            (carry.trips, carry.lanes),
        )
        return run.flush(carry._replace(trips=trips, lanes=lanes))

    carry = jax.lax.while_loop(
        lambda carry: run.is_active(carry.lanes).any(),
        run_until_one_has_finished,
        run.start(inputs.rows),
    )
    return CohortResult(carry.messages, carry.rows, carry.sums, carry.trips)


class _Run(NamedTuple):
    """The arguments of one `train_cohort`, and the pieces of its loop."""

    training: LocalTraining
    cohort: Cohort
    key: jax.Array
    probe: Probe | None
    reduction: Reduction
    policy: Policy

    @property
    def block_size(self) -> int:
        return self.cohort.sizes.shape[0]

    def is_active(self, lanes: _Lane) -> jax.Array:
        return lanes.position < self.block_size

    def has_finished(self, lanes: _Lane) -> jax.Array:
        return self.is_active(lanes) & self.training.has_finished(lanes.client)

    def start(self, rows: ClientState) -> _Carry:
        """Returns the carry before the first step of every lane's first client."""
        num_lanes = self.cohort.queues.shape[0]
        taken, position = take_next(
            self.cohort.queues,
            self.block_size,
            jnp.zeros(num_lanes, jnp.int32),
            jnp.ones(num_lanes, bool),
        )
        lanes = self.load(position, rows, {})
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), lanes)
        sums = jax.eval_shape(self.training.no_sums, one.client)
        one = one._replace(client=one.client._replace(sums=sums))
        message, _, _, facts = jax.eval_shape(self._finish_one, one)
        arrived = {"arrived": jax.ShapeDtypeStruct((), jnp.float32)}
        known, probed = sums | arrived | facts, {}
        if self.probe is not None:
            probed = jax.eval_shape(
                self.probe.measure, one.client.variables, self.probe.examples
            )
            if twice := known.keys() & probed.keys():
                raise ValueError(
                    "probe.measure must have names of its own, not those of the "
                    f"round's sums, got {', '.join(sorted(twice))}."
                )
        client = lanes.client._replace(sums=_zeros(sums, num_lanes))
        return _Carry(
            trips=jnp.int32(0),
            taken=taken,
            lanes=lanes._replace(client=client),
            messages=self.reduction.empty(message, self.block_size),
            rows=rows,
            sums=_zeros(known | probed, self.block_size),
        )

    def load(self, position: jax.Array, rows: ClientState, sums: Sums) -> _Lane:
        """Returns lanes before the first step of the clients at some positions.

        Args:
          position: [num_lanes] int32, in the block.
          rows: [block_size, ...].
          sums: [num_lanes], with which the lanes' sums begin.
        """

        def load_one(lane: tuple[jax.Array, Sums]) -> _Lane:
            position, sums = lane
            client_id, size, indices, row = self._at(
                (self.cohort.client_ids, self.cohort.sizes, self.cohort.indices, rows),
                position,
            )
            key = jax.random.fold_in(self.key, client_id)
            most_steps = self._most_steps(key, size)
            progress = self.training.begin(
                row=row,
                indices=indices,
                size=size,
                key=key,
                sums=sums,
                most_steps=most_steps,
            )
            return _Lane(position, progress)

        return over_lanes(load_one, (position, sums))

    def _most_steps(self, key: jax.Array, size: jax.Array) -> jax.Array | tuple[()]:
        participation = self.policy.participation
        if participation is None:
            return ()
        return participation.num_steps(key, self.training.solver.num_steps(size))

    def _at(self, tree: Tree, position: jax.Array) -> Tree:
        # Beyond the block, where only idle lanes look, this reads its last place.
        return jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, position, keepdims=False), tree
        )

    def shuffle(self, lanes: _Lane) -> _Lane:
        """Draws a new order for the lanes that begin an epoch."""
        begins = self.is_active(lanes) & (lanes.client.batch == 0)

        def draw(lane: _Lane) -> jax.Array:
            indices = self._at(self.cohort.indices, lane.position)
            return self.training.draw_order(lane.client, indices)

        order = jax.lax.cond(
            begins.any(),
            lambda: select_lanes(begins, over_lanes(draw, lanes), lanes.client.order),
            lambda: lanes.client.order,
        )
        return lanes._replace(client=lanes.client._replace(order=order))

    def step(self, lanes: _Lane) -> _Lane:
        """Makes a local step in every lane that has a client."""
        stepped = over_lanes(self.training.step, lanes.client)
        client = select_lanes(self.is_active(lanes), stepped, lanes.client)
        return lanes._replace(client=client)

    def _finish_one(self, lane: _Lane) -> tuple[Message, ClientState, jax.Array, Sums]:
        """Returns message, row, how often numbers were not finite, and other sums."""
        client, anchor = lane.client, self.training.anchor
        result = self.training.result(client)
        program, policy = self.training.program, self.policy
        message, row = program.upload(result, client.row)
        message, sent = send(message, policy, anchor, self.cohort, lane.position)
        if policy.large_is_bad:
            row = optax.tree.where(sent["clipped"] > 0, client.row, row)
        if policy.bounds_parts:
            row = program.settle(client.row, row, message)
        message = self.reduction.weigh(message)
        # The norm also finds numbers whose squares overflow.
        left = jax.tree.leaves((message, result.personal))
        floats = [x for x in left if is_float(x)]
        diverged = ~jnp.isfinite(optax.tree.norm(floats))
        nonfinite = client.sums["nonfinite"] + diverged.astype(jnp.float32)
        facts = sent | self._missing_steps(client)
        if "absent" in facts:
            # What it would have sent is no fault of it.
            nonfinite = jnp.where(facts["absent"] > 0, 0, nonfinite)
            row = optax.tree.where(facts["absent"] > 0, client.row, row)
        return (
            message,
            optax.tree.where(nonfinite > 0, client.row, row),
            nonfinite,
            facts,
        )

    def _missing_steps(self, client: Progress) -> Sums:
        """Returns flags of a client that was told to make fewer steps or none."""
        most = client.most_steps
        if isinstance(most, tuple):
            return {}
        slow = (most > 0) & (most < self.training.solver.num_steps(client.size))
        flags = {"absent": most == 0, "slow": slow}
        return {name: flag.astype(jnp.float32) for name, flag in flags.items()}

    def measure(self, lanes: _Lane, finished: jax.Array, zeros: Sums) -> Sums:
        """Returns the probe's sums; zeros while no client that it wants finishes."""
        if self.probe is None:
            return {}
        measure, examples = self.probe.measure, self.probe.examples
        wanted = finished & self.probe.wanted[lanes.position]

        def measure_one(lane: tuple[Tree, jax.Array, Sums]) -> Sums:
            variables, is_wanted, zeros = lane
            return jax.lax.cond(
                is_wanted, lambda: measure(variables, examples), lambda: zeros
            )

        # One after another: side by side, the lanes that train on are measured, too.
        return jax.lax.cond(
            wanted.any(),
            lambda: jax.lax.map(measure_one, (lanes.client.variables, wanted, zeros)),
            lambda: zeros,
        )

    def flush(self, carry: _Carry) -> _Carry:
        """Gathers what finished clients leave and loads the next clients."""
        lanes, sums = carry.lanes, carry.lanes.client.sums
        finished = self.has_finished(lanes)
        messages, rows, nonfinite, facts = over_lanes(self._finish_one, lanes)
        arrived = nonfinite == 0
        if "absent" in facts:
            arrived &= facts["absent"] == 0
        known = {"nonfinite": nonfinite, "arrived": arrived.astype(jnp.float32)} | facts
        probed = {n: x for n, x in carry.sums.items() if n not in sums | known}
        probed = _zeros(jax.tree.map(lambda x: x[0], probed), len(finished))
        probed = self.measure(lanes, finished, probed)
        position = jnp.where(finished, lanes.position, self.block_size)
        kept = self.reduction.add(
            carry.messages, messages, finished & arrived, position
        )
        rows, all_sums = put_lanes(
            (carry.rows, carry.sums), position, (rows, sums | known | probed)
        )
        taken, position = take_next(
            self.cohort.queues, self.block_size, carry.taken, finished
        )
        loaded = self.load(position, rows, jax.tree.map(jnp.zeros_like, sums))
        lanes = select_lanes(finished, loaded, lanes)
        return _Carry(
            trips=carry.trips,
            taken=taken,
            lanes=lanes,
            messages=kept,
            rows=rows,
            sums=all_sums,
        )


def _zeros(shapes: Tree, count: int) -> Tree:
    return jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), shapes)
