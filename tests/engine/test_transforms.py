"""What each transformation adds to a gradient."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_prune.engine.transforms import (
    add_control_variates,
    add_proximal,
    descend,
    remember_first_epoch,
)

GRADIENT = {"w": jnp.array([1.0, -2.0])}
PARAMS = {"w": jnp.array([3.0, 5.0])}


def test_proximal_pulls_towards_the_anchor():
    """g + mu (w - a) = (1, -2) + 0.5 ((3, 5) - (1, 1)) = (2, 0)."""
    tx = add_proximal(0.5)
    update, _ = tx.update(
        GRADIENT, tx.init(PARAMS), PARAMS, anchor={"w": jnp.array([1.0, 1.0])}
    )
    np.testing.assert_allclose(update["w"], [2.0, 0.0])


def test_proximal_with_zero_weight_changes_nothing():
    tx = add_proximal(0.0)
    update, _ = tx.update(GRADIENT, tx.init(PARAMS), PARAMS, anchor=PARAMS)
    np.testing.assert_array_equal(update["w"], GRADIENT["w"])


def test_control_variates_have_the_sign_of_scaffold():
    """g - c_k + c = (1, -2) - (0.5, 0.5) + (2, 0) = (2.5, -2.5)."""
    tx = add_control_variates()
    update, _ = tx.update(
        GRADIENT,
        tx.init(PARAMS),
        server_control={"w": jnp.array([2.0, 0.0])},
        client_control={"w": jnp.array([0.5, 0.5])},
    )
    np.testing.assert_allclose(update["w"], [2.5, -2.5])


def test_transformations_compose_and_ignore_foreign_arguments():
    """-0.1 (g - c_k + c + 1 (w - a)), all in one chain."""
    tx = optax.chain(add_control_variates(), add_proximal(1.0), descend())
    zeros = {"w": jnp.zeros(2)}
    update, _ = tx.update(
        GRADIENT,
        tx.init(PARAMS),
        PARAMS,
        anchor=zeros,
        server_control=zeros,
        client_control=GRADIENT,
        step_size=jnp.float32(0.1),
        masks=zeros,
    )
    np.testing.assert_allclose(update["w"], [-0.3, -0.5], rtol=1e-6)


def test_a_forgotten_argument_is_named():
    tx = add_control_variates()
    with pytest.raises(TypeError, match="client_control"):
        tx.update(GRADIENT, tx.init(PARAMS), server_control=PARAMS)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"mu must be at least 0, got -1\.0"):
        add_proximal(-1.0)
    tx = add_proximal(1.0)
    with pytest.raises(ValueError, match="add_proximal needs params"):
        tx.update(GRADIENT, tx.init(PARAMS), anchor=PARAMS)


def test_the_end_of_the_first_epoch_is_remembered():
    """What the first step of the second epoch starts from."""
    tx = remember_first_epoch()
    state = tx.init({"w": jnp.float32(-1)})
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    for value, (epoch, batch) in enumerate(places):
        params, at = {"w": jnp.float32(value)}, (jnp.int32(epoch), jnp.int32(batch))
        _, state = tx.update({}, state, params, epoch=at[0], batch=at[1])
    assert float(state.first_epoch["w"]) == 2
