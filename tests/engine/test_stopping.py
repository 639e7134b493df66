"""Early stopping: which loss is watched, and since when it has not fallen."""

import jax.numpy as jnp
import pytest

from fedjax_prune.engine.stopping import make_stopping


def stops(epochs, monitor, patience, unwatched=0):
    """Whether to stop after each epoch, from the losses of its batches."""
    stopping = make_stopping(patience, monitor)._replace(unwatched=unwatched)
    watch, found = stopping.start(), []
    for losses in epochs:
        for place, loss in enumerate(losses):
            sums = {"loss": jnp.float32(loss), "count": jnp.float32(1)}
            is_last = jnp.asarray(place + 1 == len(losses))
            watch, stop = stopping.after_step(watch, sums, is_last)
        found.append(bool(stop))
    return found


@pytest.mark.parametrize(
    ("monitor", "expected"),
    [("epoch", [False, False, True]), ("last_batch", [False, True, True])],
)
def test_the_mean_of_an_epoch_or_its_last_batch_is_watched(monitor, expected):
    """Means are 3, 2 and 2.95, last batches 2, 3 and 2.9."""
    assert stops([(4, 2), (1, 3), (3, 2.9)], monitor, 1) == expected


def test_epochs_without_a_lower_loss_are_counted_in_a_row():
    assert stops([(3,), (4,), (2,), (4,), (3,)], "epoch", 2) == [False] * 4 + [True]


def test_a_loss_must_be_below_the_lowest():
    assert stops([(1,), (4,), (3,), (2,)], "epoch", 3) == [False] * 3 + [True]


@pytest.mark.parametrize(("patience", "stopped"), [(1, 3), (2, 4)])
def test_first_epochs_can_go_unwatched(patience, stopped):
    """The second epoch has the lowest loss watched; the first one is lower."""
    found = stops([(1,), (2,), (4,), (3,)], "epoch", patience, unwatched=1)
    assert found.index(True) == stopped - 1


def test_a_task_must_sum_what_is_watched():
    stopping = make_stopping(2)
    message = "must hold loss and count.*: count missing, got loss"
    with pytest.raises(ValueError, match=message):
        stopping.after_step(stopping.start(), {"loss": jnp.float32(0)}, jnp.bool_(True))
