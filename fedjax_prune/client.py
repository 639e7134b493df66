"""Local training of a cohort: clients run one after another in parallel lanes.

Clients differ in size by a factor of a hundred, so padding all of them to the
largest would waste most of a round. Here a lane runs its queue of clients back to
back inside one loop whose trip count is data: when a lane's client has finished,
what it sends is added to the cohort's total and the lane loads its next client.
Lanes are the vmapped axis; nothing is compiled per client. Everything here happens on
one device, with its own lanes and its own block of the cohort.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_prune.solver import LocalSolver, num_batches
from fedjax_prune.types import (
    Batch,
    ClientState,
    Cohort,
    CohortResult,
    Collector,
    Dataset,
    Probe,
    ServerState,
    Sums,
    Task,
    Tree,
    Variables,
)


class LocalResult(NamedTuple):
    """What local training leaves behind on one client.

    Attributes:
      delta: anchor minus params, float32, so that it acts as a gradient.
      personal: the client's trained personal parameters.
      model_state: the client's batch statistics.
      step_mass: [] float32, the sum of the step sizes really taken, momentum
        included (A_k); 0 if the solver has none.
    """

    delta: Tree
    personal: Tree
    model_state: Tree
    step_mass: jax.Array


class ClientProgram(NamedTuple):
    """What an algorithm adds to local training.

    Attributes:
      extra_args: row -> keyword arguments of the solver's `shared_tx.update`.
      upload: (result, row, weight) -> (message, row). `weight` is the client's
        share of the cohort's examples (p_k). Messages are summed over the cohort,
        so each comes already weighted; the returned row is what the client keeps.
    """

    extra_args: Callable[[ClientState], dict[str, Tree]]
    upload: Callable[[LocalResult, ClientState, jax.Array], tuple[Tree, ClientState]]


class _Lane(NamedTuple):
    """The client a lane is running. Leaves carry a leading axis `num_lanes`."""

    turn: jax.Array  # [] int32, place in the lane's queue
    position: jax.Array  # [] int32 in the block; block_size = queue finished
    step: jax.Array  # [] int32, local steps done
    order: jax.Array  # [padded size] int32, this epoch's examples
    variables: Variables
    row: ClientState
    shared_state: Tree
    personal_state: Tree
    mass: jax.Array  # [] float32
    mass_state: Tree


class _Carry(NamedTuple):
    trips: jax.Array
    lanes: _Lane
    messages: Tree
    rows: ClientState
    sums: Sums


def train_cohort(
    task: Task,
    solver: LocalSolver,
    program: ClientProgram,
    state: ServerState,
    rows: ClientState,
    dataset: Dataset,
    cohort: Cohort,
    key: jax.Array,
    probe: Probe | None,
    collector: Collector,
) -> CohortResult:
    """Trains every client of one device's block from the same parameters.

    Args:
      task: the model and its loss.
      solver: optimiser, schedule, epochs and batch size.
      program: the algorithm's part.
      state: its params and model_state are what every client starts from.
      rows: [block_size, ...] client states.
      dataset: on the device.
      cohort: this device's block, on the device.
      key: of this round. A client's randomness depends on it and on its
        client_id only, never on its position or lane.
      probe: measures clients when they have finished.
      collector: takes in what they send.
    """
    cohort = _pad_to_batches(cohort, solver.batch_size)
    run = _Run(task, solver, program, state, dataset, cohort, key, probe, collector)
    lanes = run.first_clients(rows)
    messages, sums = run.zeros(lanes)

    def body(carry: _Carry) -> _Carry:
        lanes = run.shuffle(carry.lanes)
        position = lanes.position
        lanes, step_sums = over_lanes(run.step, lanes)
        sums = _add_at(carry.sums, position, step_sums)
        carry = _Carry(carry.trips + 1, lanes, carry.messages, carry.rows, sums)
        finished = run.is_active(lanes) & (lanes.step == run.num_steps(lanes.position))
        return jax.lax.cond(
            finished.any(), lambda c: run.flush(c, finished), lambda c: c, carry
        )

    carry = jax.lax.while_loop(
        lambda carry: run.is_active(carry.lanes).any(),
        body,
        _Carry(jnp.int32(0), lanes, messages, rows, sums),
    )
    return CohortResult(carry.messages, carry.rows, carry.sums, carry.trips)


class _Run(NamedTuple):
    """The arguments of one `train_cohort`, and the pieces of its loop."""

    task: Task
    solver: LocalSolver
    program: ClientProgram
    state: ServerState
    dataset: Dataset
    cohort: Cohort
    key: jax.Array
    probe: Probe | None
    collector: Collector

    @property
    def block_size(self) -> int:
        return self.cohort.sizes.shape[0]

    def is_active(self, lanes: _Lane) -> jax.Array:
        return lanes.position < self.block_size

    def batches(self, position: jax.Array) -> jax.Array:
        return num_batches(self.cohort.sizes[position], self.solver.batch_size)

    def num_steps(self, position: jax.Array) -> jax.Array:
        return self.solver.epochs * self.batches(position)

    def client_key(self, position: jax.Array) -> jax.Array:
        return jax.random.fold_in(self.key, self.cohort.client_ids[position])

    def load(self, turn: jax.Array, queue: jax.Array, rows: ClientState) -> _Lane:
        """A lane about to run the client at `turn` of its queue."""
        position = queue.at[turn].get(mode="fill", fill_value=self.block_size)
        row = jax.tree.map(lambda x: x[position], rows)
        params, model_state = self.state.params, self.state.model_state
        mass = jnp.float32(0)
        mass_tx = self.solver.mass_tx
        return _Lane(
            turn=turn,
            position=position,
            step=jnp.int32(0),
            order=self.cohort.indices[position],
            variables=Variables(params, row.personal, model_state),
            row=row,
            shared_state=self.solver.shared_tx.init(params),
            personal_state=self.solver.personal_tx.init(row.personal),
            mass=mass,
            mass_state=() if mass_tx is None else mass_tx.init(mass),
        )

    def first_clients(self, rows: ClientState) -> _Lane:
        queues = self.cohort.queues
        turns = jnp.zeros(queues.shape[:1], jnp.int32)
        return jax.vmap(self.load, (0, 0, None))(turns, queues, rows)

    def shuffle(self, lanes: _Lane) -> _Lane:
        """Draws a new order for the lanes that begin an epoch."""
        batches = self.batches(lanes.position)
        begins = self.is_active(lanes) & (lanes.step % batches == 0)

        def draw(lane: _Lane, batches: jax.Array) -> jax.Array:
            indices = self.cohort.indices[lane.position]
            key = jax.random.fold_in(self.client_key(lane.position), 0)
            key = jax.random.fold_in(key, lane.step // batches)
            # One number for each place, whatever the padding; padding goes last.
            place = jnp.arange(indices.shape[0])
            numbers = jnp.where(
                place < self.cohort.sizes[lane.position],
                jax.random.bits(key, indices.shape),
                jnp.uint32(0xFFFFFFFF),
            )
            return jax.lax.sort_key_val(numbers, indices)[1]

        order = jax.lax.cond(
            begins.any(),
            lambda: _select(begins, jax.vmap(draw)(lanes, batches), lanes.order),
            lambda: lanes.order,
        )
        return lanes._replace(order=order)

    def step(self, lane: _Lane) -> tuple[_Lane, Sums]:
        """One local step of one lane; nothing at all if its queue is finished."""
        batches = self.batches(lane.position)
        epoch, place = lane.step // batches, lane.step % batches
        batch = self._batch(lane, place)
        key = jax.random.fold_in(self.client_key(lane.position), 1)
        key = jax.random.fold_in(key, lane.step)
        params, personal, model_state = lane.variables

        def objective(trained: tuple[Tree, Tree]):
            params, personal = trained
            variables = Variables(params, personal, model_state)
            return self.task.loss(variables, batch, key)

        (loss, (model_state, sums)), (params_grad, personal_grad) = jax.value_and_grad(
            objective, has_aux=True
        )((params, personal))
        step_size = self.solver.step_size(epoch, place, batches)
        updates, shared_state = self.solver.shared_tx.update(
            params_grad,
            lane.shared_state,
            params,
            step_size=step_size,
            **self.program.extra_args(lane.row),
        )
        personal_updates, personal_state = self.solver.personal_tx.update(
            personal_grad, lane.personal_state, personal, step_size=step_size
        )
        mass, mass_state = self._advance_mass(lane, step_size)
        stepped = lane._replace(
            step=lane.step + 1,
            variables=Variables(
                optax.apply_updates(params, updates),
                optax.apply_updates(personal, personal_updates),
                model_state,
            ),
            shared_state=shared_state,
            personal_state=personal_state,
            mass=mass,
            mass_state=mass_state,
        )
        sums = sums | {
            "steps": jnp.float32(1),
            "nonfinite": (~jnp.isfinite(loss)).astype(jnp.float32),
        }
        active = self.is_active(lane)
        return jax.tree.map(lambda n, o: jnp.where(active, n, o), stepped, lane), sums

    def _batch(self, lane: _Lane, place: jax.Array) -> Batch:
        batch_size = self.solver.batch_size
        start = place * batch_size
        chosen = jax.lax.dynamic_slice_in_dim(lane.order, start, batch_size)
        mask = start + jnp.arange(batch_size) < self.cohort.sizes[lane.position]
        return Batch(self.dataset.images[chosen], self.dataset.labels[chosen], mask)

    def _advance_mass(
        self, lane: _Lane, step_size: jax.Array
    ) -> tuple[jax.Array, Tree]:
        if self.solver.mass_tx is None:
            return lane.mass, lane.mass_state
        update, state = self.solver.mass_tx.update(
            jnp.float32(1), lane.mass_state, step_size=step_size
        )
        return jax.tree.map(jnp.subtract, lane.mass, update), state

    def finish(self, lane: _Lane) -> tuple[Tree, ClientState, Sums]:
        """What a lane's client sends, keeps and reports."""
        result = LocalResult(
            delta=jax.tree.map(jnp.subtract, self.state.params, lane.variables.params),
            personal=lane.variables.personal,
            model_state=lane.variables.model_state,
            step_mass=lane.mass,
        )
        weight = self.cohort.sizes[lane.position] / self.cohort.cohort_examples
        message, row = self.program.upload(result, lane.row, weight)
        diverged = ~jnp.isfinite(optax.tree.norm(result.delta))
        return message, row, {"nonfinite": diverged.astype(jnp.float32)}

    def measure(self, lanes: _Lane, finished: jax.Array) -> Sums:
        """The probe's sums, computed only when a client it wants has finished."""
        if self.probe is None:
            return {}
        measure, examples = self.probe.measure, self.probe.examples
        wanted = finished & self.probe.wanted[lanes.position]
        measure_all = jax.vmap(measure, (0, None))
        shapes = jax.eval_shape(measure_all, lanes.variables, examples)
        return jax.lax.cond(
            wanted.any(),
            lambda: measure_all(lanes.variables, examples),
            lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
        )

    def flush(self, carry: _Carry, finished: jax.Array) -> _Carry:
        """Takes in what finished clients send and loads the next ones."""
        lanes = carry.lanes
        messages, rows, sums = jax.vmap(self.finish)(lanes)
        sums |= self.measure(lanes, finished)
        # A position outside the block is dropped by the scatter.
        position = jnp.where(finished, lanes.position, self.block_size)
        collected = self.collector.add(carry.messages, messages, finished, position)
        all_rows = jax.tree.map(
            lambda a, r: a.at[position].set(r, mode="drop"), carry.rows, rows
        )
        all_sums = carry.sums | _add_at(
            {name: carry.sums[name] for name in sums}, position, sums
        )
        loaded = jax.vmap(self.load, (0, 0, None))(
            lanes.turn + 1, self.cohort.queues, all_rows
        )
        lanes = _select(finished, loaded, lanes)
        return _Carry(carry.trips, lanes, collected, all_rows, all_sums)

    def zeros(self, lanes: _Lane) -> tuple[Tree, Sums]:
        """No messages and empty sums."""
        _, sums = jax.eval_shape(partial(over_lanes, self.step), lanes)
        messages, _, _ = jax.eval_shape(jax.vmap(self.finish), lanes)
        sums |= jax.eval_shape(self.measure, lanes, self.is_active(lanes))
        message = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), messages
        )
        sums = {
            name: jnp.zeros((self.block_size, *x.shape[1:]), x.dtype)
            for name, x in sums.items()
        }
        return self.collector.empty(message, self.block_size), sums


def _pad_to_batches(cohort: Cohort, batch_size: int) -> Cohort:
    # Every batch is then one slice of the order, the last partial one included.
    extra = -cohort.indices.shape[1] % batch_size
    return cohort._replace(indices=jnp.pad(cohort.indices, ((0, 0), (0, extra))))


def over_lanes(step: Callable[[Any], Any], lanes: Any) -> Any:
    """Maps a function over the lanes; a single lane runs as it is.

    Mapped, its matrix products would be batches of one, whose transposed operands XLA
    copies on CPUs.

    Args:
      step: of one lane.
      lanes: leaves [num_lanes, ...].

    Returns:
      What `step` returns, leaves [num_lanes, ...].
    """
    if jax.tree.leaves(lanes)[0].shape[0] > 1:
        return jax.vmap(step)(lanes)
    result = step(jax.tree.map(lambda x: x[0], lanes))
    return jax.tree.map(lambda x: x[None], result)


def _select(flags: jax.Array, chosen: Tree, other: Tree) -> Tree:
    """Per lane: leaves of `chosen` where the flag is set."""

    def select(c: jax.Array, o: jax.Array) -> jax.Array:
        return jnp.where(flags.reshape(flags.shape + (1,) * (c.ndim - 1)), c, o)

    return jax.tree.map(select, chosen, other)


def _add_at(sums: Sums, position: jax.Array, values: Sums) -> Sums:
    return sums | {
        name: sums[name].at[position].add(value, mode="drop")
        for name, value in values.items()
    }
