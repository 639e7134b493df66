"""The local solver of a client: optimiser, step sizes, epochs and batches."""

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_prune.engine.stopping import EarlyStopping
from fedjax_prune.engine.transforms import descend
from fedjax_prune.fields import (
    ABOVE_ZERO,
    BELOW_ONE,
    Relation,
    above,
    at_least,
    checked,
    one_of,
    related,
)
from fedjax_prune.types import Tree

Epochs = Annotated[int, at_least(1), "Local epochs a round."]
BatchSize = Annotated[
    int, at_least(1), "Examples a step; the last batch may have fewer."
]

StepSize = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(epoch, batch in the epoch, batches per epoch) -> step size, all scalars.

The step size is of JAX's default float dtype, so float64 where `jax_enable_x64` is set;
`descend` rounds it to the dtype of each gradient.
"""


class LocalSolver(NamedTuple):
    """The settings of local training, without the model and the algorithm's part.

    Attributes:
      shared_tx: the chain for `params`; algorithms put their corrections first.
      personal_tx: the same optimiser without corrections, for `personal`.
      mass_tx: the optimiser without weight decay, if it is linear in the gradient. The
        step mass is how far it moves a scalar whose gradient is always 1. None if the
        optimiser is not linear, so that no step mass exists, or not known to be.
      step_size: the schedule within a round.
      epochs: local epochs a round, at least 1.
      batch_size: examples a step, at least 1; the last batch may have fewer.
      lr_decay: the factor of all step sizes from one round to the next.
      stopping: early stopping; None runs all epochs.

    Examples:
      A transformation before the descent: gradients are clipped to 1, then a step of
      size 0.5 is made.

      >>> import fedjax_prune as fp
      >>> tx = fp.make_solver().before_descent(optax.clip(1.0)).shared_tx
      >>> params, gradients = {"w": jnp.float32(0)}, {"w": jnp.float32(4)}
      >>> state, step_size = tx.init(params), jnp.float32(0.5)
      >>> updates, _ = tx.update(gradients, state, params, step_size=step_size)
      >>> updates["w"].item()
      -0.5
    """

    shared_tx: optax.GradientTransformationExtraArgs
    personal_tx: optax.GradientTransformationExtraArgs
    mass_tx: optax.GradientTransformationExtraArgs | None
    step_size: StepSize
    epochs: int
    batch_size: int
    lr_decay: float = 1.0
    stopping: EarlyStopping | None = None

    def num_steps(self, size: jax.Array) -> jax.Array:
        """Counts a client's local steps of a round, if it does not stop early.

        Args:
          size: [] int32, examples of the client.
        """
        return self.epochs * num_batches(size, self.batch_size)

    def before_descent(
        self, tx: optax.GradientTransformation, *, keeps_mass: bool = False
    ) -> "LocalSolver":
        """Returns a solver that applies `tx` first, to the gradients of `params`.

        Args:
          tx: an Optax transformation.
          keeps_mass: whether the step mass is still that of the optimiser. It is if
            `tx` adds to the gradients what does not depend on them, such as control
            variates. Otherwise the new solver has none, and SCAFFOLD and FedNova
            refuse it.
        """
        return self._with(_chain(tx, self.shared_tx), keeps_mass)

    def after_descent(
        self, tx: optax.GradientTransformation, *, keeps_mass: bool = False
    ) -> "LocalSolver":
        """Returns a solver that applies `tx` last, to the steps of `params`.

        Args:
          tx: an Optax transformation.
          keeps_mass: as in `before_descent`.
        """
        return self._with(_chain(self.shared_tx, tx), keeps_mass)

    def _with(
        self, shared_tx: optax.GradientTransformationExtraArgs, keeps_mass: bool
    ) -> "LocalSolver":
        mass_tx = self.mass_tx if keeps_mass else None
        return self._replace(shared_tx=shared_tx, mass_tx=mass_tx)


def num_batches(size: jax.Array, batch_size: int) -> jax.Array:
    """Computes the batches per epoch of a client; the last may be partial.

    Args:
      size: [] or [num_clients] integers, examples of a client.
      batch_size: at least 1.
    """
    # `//` would also compute how negative numbers are rounded.
    return jax.lax.div(size + (batch_size - 1), jnp.asarray(batch_size, size.dtype))


def pad_to_batches(indices: jax.Array, batch_size: int) -> jax.Array:
    """Pads the last axis with 0 to a multiple of the batch size."""
    extra = -indices.shape[-1] % batch_size
    return jnp.pad(indices, ((0, 0),) * (indices.ndim - 1) + ((0, extra),))


def require_step_mass(solver: LocalSolver, algorithm: str) -> None:
    """Refuses a solver without step mass.

    Raises:
      ValueError: if the client optimiser is not linear in the gradient, or a
        transformation was added to it that is not said to keep the step mass.
    """
    if solver.mass_tx is None:
        raise ValueError(
            f"{algorithm} divides by the step mass, which only client optimisers "
            "linear in the gradient have: client.optimizer must be "
            f"{' or '.join(LINEAR)}, and what before_descent and after_descent add "
            "must have keeps_mass=True."
        )


def per_step_mass(tree: Tree, step_mass: jax.Array) -> Tree:
    """Divides by the step mass; returns zeros if it is 0.

    The step mass is 0 where all step sizes of a round underflow, as with a small
    `lr_decay` after many rounds. The client has then not moved: its mean gradient is
    unknown and is taken as 0 in place of 0 / 0.

    Args:
      tree: what a client has moved, float.
      step_mass: A_k, [] float, at least 0.

    Returns:
      Like `tree`, dtypes included.

    Examples:
      >>> per_step_mass({"w": jnp.float32(3)}, jnp.float32(2))["w"].item()
      1.5
      >>> per_step_mass({"w": jnp.float32(0)}, jnp.float32(0))["w"].item()
      0.0
    """
    has_moved = step_mass > 0
    divisor = jnp.where(has_moved, step_mass, 1)
    return jax.tree.map(
        lambda x: jnp.where(has_moved, x / divisor.astype(x.dtype), 0), tree
    )


def _chain(
    *transformations: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    return optax.with_extra_args_support(optax.chain(*transformations))


def _sgd(momentum: float) -> tuple[optax.GradientTransformationExtraArgs, bool]:
    if momentum == 0:
        return descend(), True
    return _chain(optax.trace(momentum), descend()), True


def _adam(momentum: float) -> tuple[optax.GradientTransformationExtraArgs, bool]:
    del momentum  # is 0
    return _chain(optax.scale_by_adam(), descend()), False


def _constant(lr: float, lr_min: float, epochs: int) -> StepSize:
    del lr_min, epochs
    return lambda epoch, batch, batches: jnp.asarray(lr, float)


def _cosine_epoch(lr: float, lr_min: float, epochs: int) -> StepSize:
    def step_size(epoch, batch, batches):
        del batch, batches
        return _cosine(lr, lr_min, epoch.astype(float) / epochs)

    return step_size


def _cosine_step(lr: float, lr_min: float, epochs: int) -> StepSize:
    def step_size(epoch, batch, batches):
        within = batch.astype(float) / batches.astype(float)
        return _cosine(lr, lr_min, (epoch.astype(float) + within) / epochs)

    return step_size


def _cosine(lr: float, lr_min: float, progress: jax.Array) -> jax.Array:
    return lr_min + (lr - lr_min) * (1 + jnp.cos(math.pi * progress)) / 2


OPTIMIZERS = {"sgd": _sgd, "adam": _adam}
"""For each name, momentum -> (transformation, whether it is linear in the gradient)."""

LINEAR = tuple(name for name, make in OPTIMIZERS.items() if make(0.0)[1])
"""The optimisers linear in the gradient: those with momentum and step mass."""

SCHEDULES = {
    "cosine_epoch": _cosine_epoch,
    "cosine_step": _cosine_step,
    "constant": _constant,
}
"""For each name, (lr, lr_min, epochs) -> StepSize; it starts anew in every round."""


@checked
@related(
    Relation(
        ("lr_min", "lr"),
        lambda lr_min, lr: lr_min <= lr,
        "{lr_min} must be at most {lr} = {1}, got {0}",
    ),
    Relation(
        ("momentum", "optimizer"),
        lambda momentum, optimizer: momentum == 0 or optimizer in LINEAR,
        "{momentum} must be 0 with {optimizer} {1}, got {0}",
    ),
)
def make_solver(
    *,
    epochs: Epochs = 10,
    batch_size: BatchSize = 64,
    lr: Annotated[float, above(0), "First step size of every round."] = 0.1,
    optimizer: Annotated[
        str, one_of(OPTIMIZERS), "Optimiser of the clients; it starts anew each round."
    ] = "sgd",
    lr_schedule: Annotated[
        str, one_of(SCHEDULES), "Step sizes within a round."
    ] = "cosine_epoch",
    lr_min: Annotated[
        float, at_least(0), "Where the cosine schedules end, at most lr."
    ] = 0.0,
    lr_decay: Annotated[
        float, ABOVE_ZERO, "What all step sizes are multiplied by from round to round."
    ] = 1.0,
    momentum: Annotated[float, BELOW_ONE, "Momentum of sgd."] = 0.0,
    weight_decay: Annotated[
        float, at_least(0), "Weight decay, added to the gradient (coupled)."
    ] = 0.0,
    personal_lr_factor: Annotated[
        float, at_least(0), "Step size of gates over that of the other parameters."
    ] = 1.0,
) -> LocalSolver:
    """Makes a solver. Optimiser states start at zero in every round.

    Weight decay acts on `params` and `personal` alike. The steps of `personal` are
    multiplied by `personal_lr_factor`; 0 keeps personal parameters as they began.

    Returns:
      The solver.

    Raises:
      ValueError: if a value is out of its range, a name unknown, `lr_min` above `lr`,
        or the optimiser has no momentum and some is given.

    References:
      FedDP, section 5, https://arxiv.org/abs/2106.06921v2: SGD, batch 64, ten
      local epochs, cosine decay within the round, weight decay 5e-4.

    Examples:
      >>> solver = make_solver(epochs=2, lr=0.5, lr_schedule="cosine_epoch")
      >>> epochs, batch, batches = jnp.arange(2), jnp.int32(0), jnp.int32(1)
      >>> solver.step_size(epochs, batch, batches).round(3).tolist()
      [0.5, 0.25]
    """
    descent_tx, is_linear = OPTIMIZERS[optimizer](momentum)
    decayed_tx = _chain(optax.add_decayed_weights(weight_decay), descent_tx)
    return LocalSolver(
        shared_tx=decayed_tx,
        personal_tx=_chain(decayed_tx, optax.scale(personal_lr_factor)),
        mass_tx=descent_tx if is_linear else None,
        step_size=SCHEDULES[lr_schedule](lr, lr_min, epochs),
        epochs=epochs,
        batch_size=batch_size,
        lr_decay=lr_decay,
    )
