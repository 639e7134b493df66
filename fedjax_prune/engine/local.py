"""One client's local training: the only place where a client's loss is differentiated.

A lane of a cohort runs the steps of `LocalTraining`, one client after another;
`train_client` runs them for one client alone. Both give the same result.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from fedjax_prune.data.pairs import check_pairs
from fedjax_prune.data.population import as_indices
from fedjax_prune.engine.contract import ClientProgram
from fedjax_prune.engine.floats import float_dtype
from fedjax_prune.engine.keys import reproducible
from fedjax_prune.engine.solver import LocalSolver, num_batches, pad_to_batches
from fedjax_prune.engine.stopping import Watch
from fedjax_prune.types import (
    Anchor,
    Batch,
    ClientState,
    Dataset,
    LocalResult,
    Sums,
    Task,
    Tree,
    Variables,
)


class Progress(NamedTuple):
    """The state of one client's local training."""

    size: jax.Array  # [] int32, examples of the client
    key: jax.Array  # [] of the client and the round
    step: jax.Array  # [] int32, local steps done
    epoch: jax.Array  # [] int32, local epochs done
    batch: jax.Array  # [] int32, batches done of this epoch
    order: jax.Array  # [padded size] int32, this epoch's examples
    variables: Variables
    row: ClientState
    shared_state: Tree
    personal_state: Tree
    mass: jax.Array  # [], dtype of the parameters
    mass_state: Tree
    watch: Watch | tuple[()]  # () without early stopping
    most_steps: jax.Array | tuple[()]  # [] int32; () if the epochs say
    sums: Sums  # of the steps done


class LocalTraining(NamedTuple):
    """What all clients of a round have in common.

    Attributes:
      task: the model and its loss.
      solver: optimiser, step sizes, epochs and batch size.
      program: the algorithm's part.
      anchor: what every client starts from.
      dataset: on the device.
    """

    task: Task
    solver: LocalSolver
    program: ClientProgram
    anchor: Anchor
    dataset: Dataset

    def begin(
        self,
        row: ClientState,
        indices: jax.Array,
        size: jax.Array,
        key: jax.Array,
        sums: Sums,
        most_steps: jax.Array | tuple[()] = (),
    ) -> Progress:
        """Returns the progress of a client before its first step.

        Args:
          row: what the client has kept.
          indices: [padded size] int32 into the dataset; the padded size is a multiple
            of the batch size.
          size: [] int32, how many of them are real.
          key: of the client and the round.
          sums: zeros, as `no_sums` gives them.
          most_steps: [] int32, after which the client ends; () is all of them.
        """
        params, model_state, _ = self.anchor
        mass = jnp.zeros((), float_dtype(params))
        mass_tx, stopping = self.solver.mass_tx, self.solver.stopping
        return Progress(
            size=size,
            key=key,
            step=jnp.int32(0),
            epoch=jnp.int32(0),
            batch=jnp.int32(0),
            order=indices,
            variables=Variables(params, row.personal, model_state, self.program.alive),
            row=row,
            shared_state=self.solver.shared_tx.init(params),
            personal_state=self.solver.personal_tx.init(row.personal),
            mass=mass,
            mass_state=() if mass_tx is None else mass_tx.init(mass),
            watch=() if stopping is None else stopping.start(),
            most_steps=most_steps,
            sums=sums,
        )

    def no_sums(self, progress: Progress) -> Sums:
        """Returns zeros like the sums of a step, whatever sums the progress has."""

        def of_step() -> Sums:
            # The loss alone is cheaper to trace than a step.
            batch = self._batch(progress)
            loss, (_, sums) = self.task.loss(progress.variables, batch, progress.key)
            return _with_counts(sums, loss)

        return jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_step)
        )

    def has_finished(self, progress: Progress) -> jax.Array:
        """Says whether the client has made its last step, [] bool."""
        done, most = progress.epoch == self.solver.epochs, progress.most_steps
        return done if isinstance(most, tuple) else done | (progress.step >= most)

    def draw_order(self, progress: Progress, indices: jax.Array) -> jax.Array:
        """Draws the order of the client's examples in the epoch that begins.

        Args:
          progress: between two epochs.
          indices: of the client, as in `begin`.

        Returns:
          [padded size] int32: first a permutation of the real indices, then the
          padding.
        """
        key = jax.random.fold_in(jax.random.fold_in(progress.key, 0), progress.epoch)
        # Each place has its number, whatever the padding, and the padding comes last.
        # The dtype is given, because with x64 numbers would be larger than the
        # padding's.
        numbers = jnp.where(
            jnp.arange(indices.shape[0], dtype=jnp.int32) < progress.size,
            jax.random.bits(key, indices.shape, jnp.uint32),
            jnp.uint32(0xFFFFFFFF),
        )
        return jax.lax.sort_key_val(numbers, indices)[1]

    def step(self, progress: Progress) -> Progress:
        """Makes one local step. Before the first of an epoch, `draw_order` is due."""
        batches = num_batches(progress.size, self.solver.batch_size)
        key = jax.random.fold_in(jax.random.fold_in(progress.key, 1), progress.step)
        params, personal = progress.variables.params, progress.variables.personal
        loss, model_state, sums, gradients = self._gradients(progress, key)
        step_size = self._step_size(progress, batches)
        updates, shared_state = self.solver.shared_tx.update(
            gradients[0],
            progress.shared_state,
            params,
            step_size=step_size,
            # The loss may split its key, so this one is no child of it.
            key=jax.random.fold_in(jax.random.fold_in(progress.key, 2), progress.step),
            epoch=progress.epoch,
            batch=progress.batch,
            anchor=self.anchor.params,
            **self.program.extra_args(progress.row),
        )
        personal_updates, personal_state = self.solver.personal_tx.update(
            gradients[1], progress.personal_state, personal, step_size=step_size
        )
        mass, mass_state = self._advance_mass(progress, step_size)
        ends_epoch = progress.batch + 1 == batches
        watch, next_epoch = self._watch(progress, sums, ends_epoch)
        return progress._replace(
            step=progress.step + 1,
            epoch=jnp.where(ends_epoch, next_epoch, progress.epoch),
            batch=jnp.where(ends_epoch, 0, progress.batch + 1),
            variables=progress.variables._replace(
                params=optax.apply_updates(params, updates),
                personal=optax.apply_updates(personal, personal_updates),
                model_state=model_state,
            ),
            shared_state=shared_state,
            personal_state=personal_state,
            mass=mass,
            mass_state=mass_state,
            watch=watch,
            sums=jax.tree.map(jnp.add, progress.sums, _with_counts(sums, loss)),
        )

    def result(self, progress: Progress) -> LocalResult:
        """Returns what local training leaves behind, after the client's last step."""
        params = progress.variables.params
        return LocalResult(
            delta=jax.tree.map(jnp.subtract, self.anchor.params, params),
            personal=progress.variables.personal,
            model_state=progress.variables.model_state,
            num_examples=progress.size,
            step_mass=progress.mass,
            solver_state=progress.shared_state,
            sums=progress.sums,
        )

    def _gradients(
        self, progress: Progress, key: jax.Array
    ) -> tuple[jax.Array, Tree, Sums, tuple[Tree, Tree]]:
        """Computes the loss of a batch, model state, sums and both gradients."""
        batch, variables = self._batch(progress), progress.variables

        def objective(trained: tuple[Tree, Tree]):
            params, personal = trained
            return self.task.loss(
                variables._replace(params=params, personal=personal), batch, key
            )

        (loss, (model_state, sums)), gradients = jax.value_and_grad(
            objective, has_aux=True
        )((variables.params, variables.personal))
        return loss, model_state, sums, gradients

    def _step_size(self, progress: Progress, batches: jax.Array) -> jax.Array:
        step_size = self.solver.step_size(progress.epoch, progress.batch, batches)
        step_size = step_size.astype(progress.mass.dtype)
        if self.solver.lr_decay != 1:
            rounds = self.anchor.round.astype(step_size.dtype)
            step_size *= self.solver.lr_decay**rounds
        return step_size

    def _batch(self, progress: Progress) -> Batch:
        batch_size = self.solver.batch_size
        start = progress.batch * batch_size
        chosen = jax.lax.dynamic_slice_in_dim(progress.order, start, batch_size)
        mask = start + jnp.arange(batch_size, dtype=jnp.int32) < progress.size
        # Places without an example read one of the client's own. One of another client
        # may be NaN, and NaN times 0 is NaN.
        chosen = jnp.where(mask, chosen, progress.order[0])
        images, labels = jax.tree.map(
            lambda x: x.at[chosen].get(mode="clip", wrap_negative_indices=False),
            (self.dataset.images, self.dataset.labels),
        )
        return Batch(images, labels, mask)

    def _advance_mass(
        self, progress: Progress, step_size: jax.Array
    ) -> tuple[jax.Array, Tree]:
        if self.solver.mass_tx is None:
            return progress.mass, progress.mass_state
        update, state = self.solver.mass_tx.update(
            jnp.ones_like(progress.mass), progress.mass_state, step_size=step_size
        )
        return jax.tree.map(jnp.subtract, progress.mass, update), state

    def _watch(
        self, progress: Progress, sums: Sums, ends_epoch: jax.Array
    ) -> tuple[Watch | tuple[()], jax.Array]:
        """Updates early stopping and says which epoch follows this one."""
        watch, next_epoch = progress.watch, progress.epoch + 1
        if self.solver.stopping is None or not isinstance(watch, Watch):
            return watch, next_epoch
        watch, stops = self.solver.stopping.after_step(watch, sums, ends_epoch)
        return watch, jnp.where(stops, self.solver.epochs, next_epoch)


def train_client(
    task: Task,
    solver: LocalSolver,
    program: ClientProgram,
    anchor: Anchor,
    row: ClientState,
    dataset: Dataset,
    indices: jax.Array,
    size: jax.Array,
    key: jax.Array,
) -> LocalResult:
    """Trains one client as a round's lanes do.

    Args:
      task: the model and its loss.
      solver: optimiser, step sizes, epochs and batch size.
      program: the algorithm's part; `program.upload` makes a message of the result.
      anchor: what the client has received.
      row: what the client has kept.
      dataset: of this client or of all.
      indices: [max_size] int32 into the dataset, padded with 0.
      size: [] int32, how many of them are the client's, at least 1.
      key: `jax.random.fold_in(round_key, client_id)`.

    Raises:
      ValueError: if `indices` are not whole numbers on one axis or, if they are known,
        not traced, outside of the dataset; if a known `size` is not in [1, max_size];
        if the key is not `reproducible`.

    Examples:
      One step of size 0.5 on the loss (w - 3)^2 / 2, from w = 1 to w = 2.

      >>> import fedjax_prune as fp
      >>> def loss(variables, batch, key):
      ...     return (variables.params["w"] - 3) ** 2 / 2, ({}, {})
      >>> result = fp.train_client(
      ...     task=fp.Task(init=None, loss=loss, predict=None),
      ...     solver=fp.make_solver(epochs=1, batch_size=1, lr=0.5),
      ...     program=fp.ClientProgram(upload=None),
      ...     anchor=Anchor({"w": jnp.float32(1)}, {}, round=jnp.int32(0)),
      ...     row=fp.ClientState(personal={}, client={}),
      ...     dataset=fp.Dataset(jnp.zeros((1, 1, 1, 1), jnp.uint8), jnp.zeros(1, int)),
      ...     indices=jnp.zeros(1, jnp.int32),
      ...     size=jnp.int32(1),
      ...     key=jax.random.key(0),
      ... )
      >>> result.delta["w"].item(), result.step_mass.item(), result.sums["steps"].item()
      (-1.0, 0.5, 1.0)
    """
    if indices.ndim != 1 or not jnp.issubdtype(indices.dtype, jnp.integer):
        got = f"{indices.dtype}{list(indices.shape)}"
        raise ValueError(f"indices must be whole numbers on one axis, got {got}.")
    check_pairs(dataset)
    if not isinstance(indices, Tracer):
        as_indices("the client", indices, len(dataset.labels))
    # A client without examples would never make a last step.
    whole = jnp.issubdtype(jnp.result_type(size), jnp.integer)
    if not isinstance(size, Tracer) and not (whole and 1 <= size <= len(indices)):
        raise ValueError(f"size must be in [1, {len(indices)}], got {size}.")
    indices = pad_to_batches(indices, solver.batch_size)
    training = LocalTraining(task, solver, program, anchor, dataset)
    first = training.begin(row, indices, size, reproducible(key), {})

    def step(progress: Progress) -> Progress:
        order = jax.lax.cond(
            progress.batch == 0,
            lambda: training.draw_order(progress, indices),
            lambda: progress.order,
        )
        return training.step(progress._replace(order=order))

    last = jax.lax.while_loop(
        lambda progress: ~training.has_finished(progress),
        step,
        first._replace(sums=training.no_sums(first)),
    )
    return training.result(last)


def _with_counts(sums: Sums, loss: jax.Array) -> Sums:
    return sums | {
        "steps": jnp.float32(1),
        "nonfinite": (~jnp.isfinite(loss)).astype(jnp.float32),
    }
