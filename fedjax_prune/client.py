"""Local training of a cohort: clients run one after another in parallel lanes.

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

from fedjax_prune.lanes import over_lanes, put_lanes, select_lanes, take_next
from fedjax_prune.solver import LocalSolver, num_batches
from fedjax_prune.stopping import Watch
from fedjax_prune.types import (
    Batch,
    ClientProgram,
    ClientState,
    Cohort,
    CohortResult,
    Collector,
    Dataset,
    LocalResult,
    Probe,
    ServerState,
    Sums,
    Task,
    Tree,
    Variables,
)


class _Lane(NamedTuple):
    """The client a lane is running. Leaves carry a leading axis `num_lanes`."""

    position: jax.Array  # [] int32 in the block; block_size = nothing left to do
    size: jax.Array  # [] int32, examples of the client
    key: jax.Array  # [] of the client
    step: jax.Array  # [] int32, local steps done
    epoch: jax.Array  # [] int32, local epochs done
    batch: jax.Array  # [] int32, batches done of this epoch
    order: jax.Array  # [padded size] int32, this epoch's examples
    variables: Variables
    row: ClientState
    shared_state: Tree
    personal_state: Tree
    mass: jax.Array  # [] float32
    mass_state: Tree
    watch: Watch | tuple[()]  # () without early stopping
    sums: Sums  # of the steps done


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

    def run_until_one_has_finished(carry: _Carry) -> _Carry:
        # A loop of its own: in a conditional, XLA would copy the parameters at every
        # step at which no client finishes.
        trips, lanes = jax.lax.while_loop(
            lambda inner: ~run.has_finished(inner[1]).any(),
            lambda inner: (inner[0] + 1, run.step(run.shuffle(inner[1]))),
            (carry.trips, carry.lanes),
        )
        return run.flush(carry._replace(trips=trips, lanes=lanes))

    carry = jax.lax.while_loop(
        lambda carry: run.is_active(carry.lanes).any(),
        run_until_one_has_finished,
        run.start(rows),
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

    def has_finished(self, lanes: _Lane) -> jax.Array:
        return self.is_active(lanes) & (lanes.epoch == self.solver.epochs)

    def start(self, rows: ClientState) -> _Carry:
        """All lanes about to run their first clients; nothing sent, nothing summed."""
        num_lanes = self.cohort.queues.shape[0]
        everyone = jnp.ones(num_lanes, bool)
        taken, position = take_next(
            self.cohort.queues,
            self.block_size,
            jnp.zeros(num_lanes, jnp.int32),
            everyone,
        )
        lanes = self.load(position, rows, {})
        # Shapes of one client's; the loss alone is cheaper to trace than a step.
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), lanes)
        sums = jax.eval_shape(self._loss_sums, one)
        message, _, _ = jax.eval_shape(self._finish_one, one)
        probed = {}
        if self.probe is not None:
            probed = jax.eval_shape(
                self.probe.measure, one.variables, self.probe.examples
            )
        return _Carry(
            trips=jnp.int32(0),
            taken=taken,
            lanes=lanes._replace(sums=_zeros(sums, num_lanes)),
            messages=self.collector.empty(message, self.block_size),
            rows=rows,
            sums=_zeros(sums | probed, self.block_size),
        )

    def load(self, position: jax.Array, rows: ClientState, sums: Sums) -> _Lane:
        """Lanes about to run the clients at these positions of the block.

        Args:
          position: [num_lanes] int32.
          rows: [block_size, ...].
          sums: what the lanes' sums begin with.
        """

        def load_one(lane: tuple[jax.Array, Sums]) -> _Lane:
            position, sums = lane
            client_id, size, order, row = self._at(
                (self.cohort.client_ids, self.cohort.sizes, self.cohort.indices, rows),
                position,
            )
            params, model_state = self.state.params, self.state.model_state
            mass = jnp.float32(0)
            mass_tx, stopping = self.solver.mass_tx, self.solver.stopping
            return _Lane(
                position=position,
                size=size,
                key=jax.random.fold_in(self.key, client_id),
                step=jnp.int32(0),
                epoch=jnp.int32(0),
                batch=jnp.int32(0),
                order=order,
                variables=Variables(
                    params, row.personal, model_state, self.program.alive
                ),
                row=row,
                shared_state=self.solver.shared_tx.init(params),
                personal_state=self.solver.personal_tx.init(row.personal),
                mass=mass,
                mass_state=() if mass_tx is None else mass_tx.init(mass),
                watch=() if stopping is None else stopping.start(),
                sums=sums,
            )

        return over_lanes(load_one, (position, sums))

    def _at(self, tree: Tree, position: jax.Array) -> Tree:
        # Beyond the block, where only idle lanes look, this reads its last place.
        return jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, position, keepdims=False), tree
        )

    def shuffle(self, lanes: _Lane) -> _Lane:
        """Draws a new order for the lanes that begin an epoch."""
        begins = self.is_active(lanes) & (lanes.batch == 0)

        def draw(lane: _Lane) -> jax.Array:
            indices = self._at(self.cohort.indices, lane.position)
            key = jax.random.fold_in(jax.random.fold_in(lane.key, 0), lane.epoch)
            # One number for each place, whatever the padding; padding goes last.
            numbers = jnp.where(
                jnp.arange(indices.shape[0]) < lane.size,
                jax.random.bits(key, indices.shape),
                jnp.uint32(0xFFFFFFFF),
            )
            return jax.lax.sort_key_val(numbers, indices)[1]

        order = jax.lax.cond(
            begins.any(),
            lambda: select_lanes(begins, jax.vmap(draw)(lanes), lanes.order),
            lambda: lanes.order,
        )
        return lanes._replace(order=order)

    def step(self, lanes: _Lane) -> _Lane:
        """One local step of every lane; nothing at all if its queue is finished."""
        stepped, sums = over_lanes(self.train, lanes)
        stepped = stepped._replace(sums=jax.tree.map(jnp.add, lanes.sums, sums))
        return select_lanes(self.is_active(lanes), stepped, lanes)

    def train(self, lane: _Lane) -> tuple[_Lane, Sums]:
        """One local step of one lane, and its sums."""
        batches = num_batches(lane.size, self.solver.batch_size)
        batch = self._batch(lane)
        key = jax.random.fold_in(jax.random.fold_in(lane.key, 1), lane.step)
        params, personal = lane.variables.params, lane.variables.personal

        def objective(trained: tuple[Tree, Tree]):
            params, personal = trained
            variables = lane.variables._replace(params=params, personal=personal)
            return self.task.loss(variables, batch, key)

        (loss, (model_state, sums)), (params_grad, personal_grad) = jax.value_and_grad(
            objective, has_aux=True
        )((params, personal))
        step_size = self.solver.step_size(lane.epoch, lane.batch, batches)
        if self.solver.lr_decay != 1:
            rounds = self.state.round.astype(jnp.float32)
            step_size *= self.solver.lr_decay**rounds
        updates, shared_state = self.solver.shared_tx.update(
            params_grad,
            lane.shared_state,
            params,
            step_size=step_size,
            key=jax.random.fold_in(key, 0),
            epoch=lane.epoch,
            batch=lane.batch,
            **self.program.extra_args(lane.row),
        )
        personal_updates, personal_state = self.solver.personal_tx.update(
            personal_grad, lane.personal_state, personal, step_size=step_size
        )
        mass, mass_state = self._advance_mass(lane, step_size)
        ends_epoch = lane.batch + 1 == batches
        watch, next_epoch = lane.watch, lane.epoch + 1
        if self.solver.stopping is not None and isinstance(watch, Watch):
            watch, stops = self.solver.stopping.after_step(watch, sums, ends_epoch)
            next_epoch = jnp.where(stops, self.solver.epochs, next_epoch)
        stepped = lane._replace(
            step=lane.step + 1,
            epoch=jnp.where(ends_epoch, next_epoch, lane.epoch),
            batch=jnp.where(ends_epoch, 0, lane.batch + 1),
            variables=lane.variables._replace(
                params=optax.apply_updates(params, updates),
                personal=optax.apply_updates(personal, personal_updates),
                model_state=model_state,
            ),
            shared_state=shared_state,
            personal_state=personal_state,
            mass=mass,
            mass_state=mass_state,
            watch=watch,
        )
        return stepped, _with_counts(sums, loss)

    def _loss_sums(self, lane: _Lane) -> Sums:
        loss, (_, sums) = self.task.loss(lane.variables, self._batch(lane), lane.key)
        return _with_counts(sums, loss)

    def _batch(self, lane: _Lane) -> Batch:
        batch_size = self.solver.batch_size
        start = lane.batch * batch_size
        chosen = jax.lax.dynamic_slice_in_dim(lane.order, start, batch_size)
        mask = start + jnp.arange(batch_size) < lane.size
        images, labels = jax.tree.map(
            lambda x: x.at[chosen].get(mode="clip", wrap_negative_indices=False),
            (self.dataset.images, self.dataset.labels),
        )
        return Batch(images, labels, mask)

    def _advance_mass(
        self, lane: _Lane, step_size: jax.Array
    ) -> tuple[jax.Array, Tree]:
        if self.solver.mass_tx is None:
            return lane.mass, lane.mass_state
        update, state = self.solver.mass_tx.update(
            jnp.float32(1), lane.mass_state, step_size=step_size
        )
        return jax.tree.map(jnp.subtract, lane.mass, update), state

    def _finish_one(self, lane: _Lane) -> tuple[Tree, ClientState, jax.Array]:
        """What a lane's client sends, keeps, and whether it has diverged."""
        result = LocalResult(
            delta=jax.tree.map(jnp.subtract, self.state.params, lane.variables.params),
            personal=lane.variables.personal,
            model_state=lane.variables.model_state,
            step_mass=lane.mass,
            solver_state=lane.shared_state,
        )
        weight = lane.size / self.cohort.cohort_examples
        message, row = self.program.upload(result, lane.row, weight)
        return message, row, ~jnp.isfinite(optax.tree.norm(result.delta))

    def measure(self, lanes: _Lane, finished: jax.Array, zeros: Sums) -> Sums:
        """The probe's sums, computed only when a client it wants has finished."""
        if self.probe is None:
            return {}
        measure, examples = self.probe.measure, self.probe.examples
        wanted = finished & self.probe.wanted[lanes.position]
        return jax.lax.cond(
            wanted.any(),
            lambda: jax.vmap(measure, (0, None))(lanes.variables, examples),
            lambda: zeros,
        )

    def flush(self, carry: _Carry) -> _Carry:
        """Takes in what finished clients leave and loads the next ones."""
        lanes = carry.lanes
        finished = self.has_finished(lanes)
        messages, rows, diverged = over_lanes(self._finish_one, lanes)
        nonfinite = lanes.sums["nonfinite"] + diverged.astype(jnp.float32)
        probed = {n: x for n, x in carry.sums.items() if n not in lanes.sums}
        probed = _zeros(jax.tree.map(lambda x: x[0], probed), len(finished))
        probed = self.measure(lanes, finished, probed)
        sums = lanes.sums | {"nonfinite": nonfinite} | probed
        position = jnp.where(finished, lanes.position, self.block_size)
        collected = self.collector.add(carry.messages, messages, finished, position)
        rows, sums = put_lanes((carry.rows, carry.sums), position, (rows, sums))
        taken, position = take_next(
            self.cohort.queues, self.block_size, carry.taken, finished
        )
        loaded = self.load(position, rows, jax.tree.map(jnp.zeros_like, lanes.sums))
        lanes = select_lanes(finished, loaded, lanes)
        return _Carry(carry.trips, taken, lanes, collected, rows, sums)


def _pad_to_batches(cohort: Cohort, batch_size: int) -> Cohort:
    # Every batch is then one slice of the order, the last partial one included.
    extra = -cohort.indices.shape[1] % batch_size
    return cohort._replace(indices=jnp.pad(cohort.indices, ((0, 0), (0, extra))))


def _with_counts(sums: Sums, loss: jax.Array) -> Sums:
    return sums | {
        "steps": jnp.float32(1),
        "nonfinite": (~jnp.isfinite(loss)).astype(jnp.float32),
    }


def _zeros(shapes: Tree, count: int) -> Tree:
    return jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), shapes)
