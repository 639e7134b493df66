"""Early stopping: a client ends its local training when its loss no longer falls."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_prune.fields import at_least, checked, one_of
from fedjax_prune.types import Sums

MONITORS = ("epoch", "last_batch")

Patience = Annotated[
    int, at_least(1), "Epochs in a row without a lower loss before a client stops [C]."
]
Monitor = Annotated[
    str,
    one_of(MONITORS),
    "Whose mean training loss is watched, the epoch's [R] or its last batch's [C].",
]


class Watch(NamedTuple):
    """The state of early stopping for one client: scalars of JAX's default dtypes."""

    loss: jax.Array  # float, sum of this epoch
    count: jax.Array  # float, its examples
    best: jax.Array  # float, lowest monitored loss
    waited: jax.Array  # int32, epochs since then; below 0 before the first one watched


class EarlyStopping(NamedTuple):
    """A rule by which a client ends its local training before its last epoch.

    Attributes:
      patience: epochs in a row without a loss below the lowest so far.
      monitor: the mean training loss that is watched, of the `epoch` or of its
        `last_batch`.
      unwatched: epochs at the beginning whose loss is not watched, at least 0.

    References:
      https://github.com/ChristianInterno/AutoFLIP, which looks at the last batch.
    """

    patience: Patience
    monitor: Monitor = "epoch"
    unwatched: int = 0

    def start(self) -> Watch:
        """Returns the state before the first step."""
        zero = jnp.zeros((), float)
        return Watch(
            zero, zero, jnp.full_like(zero, jnp.inf), jnp.int32(-self.unwatched)
        )

    def after_step(
        self, watch: Watch, sums: Sums, ends_epoch: jax.Array
    ) -> tuple[Watch, jax.Array]:
        """Updates the state after a step.

        Args:
          watch: before it.
          sums: of the step; its `loss` and `count` are read.
          ends_epoch: [] bool, whether the step was the last of its epoch.

        Returns:
          The watch after the step and whether the client stops, [] bool.

        Raises:
          ValueError: if the task does not sum them.
        """
        if missing := [name for name in ("loss", "count") if name not in sums]:
            raise ValueError(
                "The sums of the task's loss must hold loss and count, so that a "
                f"client can stop early: {' and '.join(missing)} missing, got "
                f"{', '.join(sums) or 'none'}."
            )
        step_loss, step_count = (
            sums[name].astype(watch.best.dtype) for name in ("loss", "count")
        )
        loss, count = watch.loss + step_loss, watch.count + step_count
        monitored = loss / count
        if self.monitor == "last_batch":
            monitored = step_loss / step_count
        monitored = jnp.where(watch.waited < 0, jnp.inf, monitored)
        waited = jnp.where(monitored < watch.best, 0, watch.waited + 1)
        zero, best = jnp.zeros_like(loss), jnp.minimum(monitored, watch.best)
        after = Watch(zero, zero, best, waited)
        within = watch._replace(loss=loss, count=count)
        watch = jax.tree.map(lambda a, w: jnp.where(ends_epoch, a, w), after, within)
        return watch, ends_epoch & (waited >= self.patience)


@checked
def make_stopping(patience: Patience, monitor: Monitor = "epoch") -> EarlyStopping:
    """Makes an early stopping rule.

    Raises:
      ValueError: if the patience is out of its range or the monitor unknown.

    Examples:
      >>> make_stopping(0)
      Traceback (most recent call last):
      ValueError: patience must be at least 1, got 0.
    """
    return EarlyStopping(patience, monitor)
