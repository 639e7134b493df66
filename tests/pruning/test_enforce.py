"""Masks act on trees of their own shapes only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.models import CNN
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.task import make_task
from fedjax_prune.pruning.enforce import apply_masks, freeze_pruned, gate_flags
from fedjax_prune.pruning.mask_rule import GuardedMasks
from fedjax_prune.pruning.masked_round import MaskedServer, with_masks
from fedjax_prune.types import ServerState

MASKS = {"w": jnp.array([True, False, True])}
PARAMS = {"w": jnp.array([1.0, jnp.inf, 3.0])}


def test_pruned_parameters_are_zero_whatever_they_were():
    np.testing.assert_array_equal(apply_masks(MASKS, PARAMS)["w"], [1, 0, 3])


@pytest.mark.parametrize("masks", [{"w": jnp.array([True])}, {"v": MASKS["w"]}])
def test_masks_of_another_model_are_refused(masks):
    with pytest.raises(AssertionError):
        apply_masks(masks, PARAMS)


def test_steps_of_pruned_parameters_are_zero():
    tx = freeze_pruned()
    steps, _ = tx.update({"w": jnp.array([1.0, jnp.nan, 3.0])}, (), masks=MASKS)
    np.testing.assert_array_equal(steps["w"], [1, 0, 3])


def server_state():
    """Masks that prune nothing, of version 0."""
    ones = {"w": jnp.ones(3, bool)}
    server = MaskedServer((), ones, jnp.int32(0), jnp.int32(0), ())
    return ServerState(jnp.int32(0), PARAMS, {}, server)


def test_the_version_grows_when_masks_differ():
    first = with_masks(server_state(), GuardedMasks(MASKS, jnp.int32(2)), "guide")
    assert (int(first.server.version), int(first.server.guarded)) == (1, 2)
    again = with_masks(first, GuardedMasks(MASKS, jnp.int32(2)), "guide")
    assert int(again.server.version) == 1


def test_new_masks_must_have_the_old_shapes_and_be_bool():
    for wrong in (jnp.ones(2, bool), jnp.ones(3)):
        with pytest.raises(AssertionError):
            with_masks(server_state(), GuardedMasks({"w": wrong}, jnp.int32(0)), ())


class Shifted(CNN):
    """A gated network with one more personal array, which belongs to no channel."""

    def setup(self):
        super().setup()
        self.shift = self.variable("gates", "shift", jnp.zeros, (1,))

    def __call__(self, images, *, train, example_mask):
        images = images + self.shift.value[None, None, None]
        return super().__call__(images, train=train, example_mask=example_mask)


def test_personal_arrays_that_are_no_gates_have_no_flags():
    gates = GateSettings(0.5)
    task = make_task(Shifted(3, width=0.25, gates=gates), (8, 8, 1))
    variables = task.init(jax.random.key(0))
    masks = jax.tree.map(lambda x: jnp.ones(x.shape, bool), variables.params)
    masks["conv1"]["kernel"] = masks["conv1"]["kernel"].at[..., 1].set(False)
    masks["conv1"]["bias"] = masks["conv1"]["bias"].at[1].set(False)
    alive = gate_flags(task, masks)
    flags = alive["conv1"]["gate"]["alive"]
    np.testing.assert_array_equal(flags, np.arange(4) != 1)
    assert not jax.tree.leaves(alive["shift"])
    logits = task.predict(
        variables._replace(alive=alive), jnp.zeros((2, 8, 8, 1), jnp.uint8)
    )
    assert logits.shape == (2, 3)
