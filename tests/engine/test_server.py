"""The server's optimisers against their formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.engine.server import make_server_tx, scale, server_step

LR, B1, B2, EPS = 0.1, 0.9, 0.99, 1e-3
GRADIENTS = np.array([[0.3, -0.02], [0.1, 0.05], [-0.2, 0.04], [0.25, 0.01]])


def stepped(optimizer: str) -> np.ndarray:
    """The parameters after each of four steps from 1."""
    tx = make_server_tx(optimizer, lr=LR, b1=B1, b2=B2, eps=EPS, momentum=B1)
    params, found = jnp.ones(2), []
    state = tx.init(params)
    for gradient in GRADIENTS:
        params, state = server_step(tx, params, state, jnp.asarray(gradient, "float32"))
        found.append(np.asarray(params))
    return np.array(found)


def adaptive(second, first: float, debias: bool) -> np.ndarray:
    """Numpy: moments from `first`; `second` is (v, g^2) -> v."""
    w, m, v, found = np.ones(2), np.full(2, first), np.full(2, first), []
    for t, g in enumerate(GRADIENTS, start=1):
        m, v = B1 * m + (1 - B1) * g, second(v, g**2)
        if debias:
            step = m / (1 - B1**t) / (np.sqrt(v / (1 - B2**t)) + EPS)
        else:
            step = m / (np.sqrt(v) + EPS)
        w = w - LR * step
        found.append(w)
    return np.array(found)


def adam(v, square):
    return B2 * v + (1 - B2) * square


def yogi(v, square):
    return v - (1 - B2) * np.sign(v - square) * square


@pytest.mark.parametrize(
    ("name", "second", "first"), [("adam", adam, 0.0), ("yogi", yogi, 1e-6)]
)
@jax.numpy_dtype_promotion("standard")  # Optax corrects the bias by an integer power
def test_adaptive_optimisers_have_the_form_of_optax(name, second, first):
    """They correct the bias of both moments, which the paper's do not."""
    found = stepped(name)
    np.testing.assert_allclose(found, adaptive(second, first, True), rtol=1e-5)
    paper = adaptive(second, EPS**2, False)
    assert np.abs(found - paper).max() > 0.05


def test_linear_optimisers_equal_their_formulas():
    np.testing.assert_allclose(stepped("sgd"), 1 - LR * GRADIENTS.cumsum(0), rtol=1e-6)
    for name, share in (("momentum", 1.0), ("damped", 1 - B1)):
        w, v, expected = np.ones(2), np.zeros(2), []
        for g in GRADIENTS:
            v = B1 * v + share * g
            w = w - LR * v
            expected.append(w)
        np.testing.assert_allclose(stepped(name), expected, rtol=1e-6)


def test_scale_multiplies_every_array():
    tree = {"a": jnp.ones(2), "b": {"c": jnp.full((2, 2), 4.0)}}
    found = scale(tree, jnp.float32(0.25))
    np.testing.assert_array_equal(found["a"], [0.25, 0.25])
    np.testing.assert_array_equal(found["b"]["c"], np.ones((2, 2)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0.0}, "lr must be above 0, got 0.0"),
        ({"eps": 0.0}, "eps must be above 0, got 0.0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"b1": -0.1}, r"b1 must be in \[0, 1\), got -0.1"),
        ({"optimizer": "adamw"}, "optimizer must be one of sgd, .* 'adamw'"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        make_server_tx(**fields)
