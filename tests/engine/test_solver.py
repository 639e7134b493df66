"""Step sizes, step mass and checks of the local solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.engine.solver import make_solver, num_batches, per_step_mass


def step_sizes(solver, num_epochs, batches):
    return np.array(
        [
            [
                solver.step_size(jnp.int32(e), jnp.int32(b), jnp.int32(batches))
                for b in range(batches)
            ]
            for e in range(num_epochs)
        ]
    )


def test_cosine_over_epochs_has_the_published_values():
    solver = make_solver(epochs=10, batch_size=64, lr=0.1)
    sizes = step_sizes(solver, 10, 2)
    published = [
        [0.1, 0.097553, 0.090451, 0.079389, 0.065451],
        [0.05, 0.034549, 0.020611, 0.009549, 0.002447],
    ]
    np.testing.assert_allclose(sizes[:, 0], np.ravel(published), atol=5e-7)
    np.testing.assert_array_equal(sizes[:, 0], sizes[:, 1])
    # lr (E + 1) / 2
    np.testing.assert_allclose(sizes[:, 0].sum(), 0.55, rtol=1e-6)


def test_cosine_over_steps_equals_numpy():
    solver = make_solver(
        epochs=2, batch_size=1, lr=0.5, lr_min=0.1, lr_schedule="cosine_step"
    )
    progress = np.arange(6) / 6
    expected = 0.1 + 0.4 * (1 + np.cos(np.pi * progress)) / 2
    np.testing.assert_allclose(step_sizes(solver, 2, 3).ravel(), expected, rtol=1e-6)


def test_constant_schedule_is_constant():
    solver = make_solver(epochs=2, batch_size=1, lr=0.3, lr_schedule="constant")
    np.testing.assert_allclose(step_sizes(solver, 2, 3), 0.3)


def test_num_batches_keeps_the_partial_batch():
    found = [int(num_batches(jnp.int32(n), 64)) for n in (1, 64, 65, 476)]
    assert found == [1, 1, 2, 8]


def test_mass_of_momentum_equals_the_closed_form():
    """A = lr (tau - beta (1 - beta^tau) / (1 - beta)) / (1 - beta), constant lr."""
    solver = make_solver(
        epochs=1, batch_size=1, lr=0.1, momentum=0.9, lr_schedule="constant"
    )
    state, mass = solver.mass_tx.init(jnp.float32(0)), 0.0
    for _ in range(7):
        update, state = solver.mass_tx.update(
            jnp.float32(1), state, step_size=jnp.float32(0.1)
        )
        mass -= float(update)
    beta, tau = 0.9, 7
    expected = 0.1 * (tau - beta * (1 - beta**tau) / (1 - beta)) / (1 - beta)
    np.testing.assert_allclose(mass, expected, rtol=1e-5)


def test_without_step_mass_nothing_has_moved():
    """Step sizes of 0.5^124 and less are 0 in float32: 0 / 0 counts as 0."""
    moved = {"w": jnp.array([3.0, -1.0])}
    found = jax.jit(per_step_mass)(moved, jnp.float32(0.5))
    np.testing.assert_array_equal(found["w"], [6.0, -2.0])
    still = {"w": jnp.zeros(2)}
    found = jax.jit(per_step_mass)(still, jnp.float32(0))
    np.testing.assert_array_equal(found["w"], [0.0, 0.0])


def test_weight_decay_is_coupled():
    """With momentum 0: w' = w - lr (g + decay w)."""
    solver = make_solver(epochs=1, batch_size=1, lr=0.5, weight_decay=0.1)
    params = {"w": jnp.array([2.0, -4.0])}
    gradient = {"w": jnp.array([1.0, 1.0])}
    update, _ = solver.shared_tx.update(
        gradient, solver.shared_tx.init(params), params, step_size=jnp.float32(0.5)
    )
    np.testing.assert_allclose(update["w"], [-0.6, -0.3], rtol=1e-6)


@pytest.mark.parametrize("factor", [0.0, 0.25, 1.0])
def test_steps_of_personal_parameters_have_their_factor(factor):
    """v' = v - factor lr (g + decay v); shared parameters take whole steps."""
    solver = make_solver(lr=0.5, weight_decay=0.1, personal_lr_factor=factor)
    value, gradient = jnp.array([2.0, -4.0]), jnp.array([1.0, 1.0])
    for tx, share in [(solver.personal_tx, factor), (solver.shared_tx, 1.0)]:
        update, _ = tx.update(
            gradient, tx.init(value), value, step_size=jnp.float32(0.5)
        )
        np.testing.assert_allclose(update, np.array([-0.6, -0.3]) * share, rtol=1e-6)


def test_adam_steps_and_has_no_mass():
    """Adam's first step is the step size against the gradient's sign."""
    solver = make_solver(epochs=1, batch_size=1, lr=0.5, optimizer="adam")
    assert solver.mass_tx is None
    params = jnp.array([2.0, -4.0])
    with jax.numpy_dtype_promotion("standard"):
        update, _ = solver.shared_tx.update(
            jnp.array([3.0, -0.2]),
            solver.shared_tx.init(params),
            params,
            step_size=jnp.float32(0.5),
        )
    np.testing.assert_allclose(update, [-0.5, 0.5], rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be above 0, got 0.0"),
        ({"lr_min": 0.2}, r"lr_min must be at most lr = 0.1, got 0.2"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
        (
            {"personal_lr_factor": -1.0},
            "personal_lr_factor must be at least 0, got -1.0",
        ),
        ({"optimizer": "sdg"}, "optimizer must be one of sgd, adam, got 'sdg'"),
        ({"lr_schedule": "exp"}, "lr_schedule must be one of cosine_epoch, .* 'exp'"),
        (
            {"optimizer": "adam", "momentum": 0.9},
            "momentum must be 0 with optimizer adam, got 0.9",
        ),
    ],
)
def test_bad_fields_are_named(fields, message):
    good = {"epochs": 1, "batch_size": 1, "lr": 0.1}
    with pytest.raises(ValueError, match=message):
        make_solver(**good | fields)
