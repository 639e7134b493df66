"""One client's training: the lanes' result, the client's own examples, step sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.engine import store
from fedjax_prune.engine.local import LocalTraining, train_client
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.engine.transforms import add_proximal, make_transformation
from fedjax_prune.types import Anchor, Mean, RoundInputs
from tests import problems, toys

COHORT = [3, 0, 2, 1]
FIELDS = {"prunefl": {"byte_time": 0.1, "constant_time": 0.1}}
"""With these PruneFL prunes before its second round."""
PRUNES = {"autoflip", "fedsnip", "magnitude", "prunefl", "random_pruning"}
"""The linear model has no channels that `eflprune` could remove."""


def inputs_of_rules(inputs):
    """The inputs of a round under masks as the rules of its algorithm see them."""
    state, rows = inputs.state, inputs.rows
    masks = state.server.masks
    params = jax.tree.map(lambda m, p: jnp.where(m, p, 0), masks, state.params)
    rows = rows._replace(client=rows.client.base)
    return inputs._replace(state=state._replace(params=params), rows=rows)


def where_pruned_too(state, rows):
    """Moves what server and clients keep below the masks, also where those prune."""

    def moved(kept):
        base = jax.tree.map(
            lambda x: x + 0.1 if jnp.issubdtype(x.dtype, jnp.floating) else x, kept.base
        )
        return kept._replace(base=base)

    state = state._replace(server=moved(state.server))
    return state, rows._replace(client=moved(rows.client))


def under_masks(inputs, state, rows):
    """What a masked round makes of the state and the rows that its rules give.

    Parameters, and what server and clients keep for them, stay where the masks prune.
    """
    masks, old = state.server.masks, inputs.state

    def is_masked(tree):
        return isinstance(tree, dict) and tree.keys() == masks.keys()

    def keep(new, old):
        return jax.tree.map(np.where, masks, new, old) if is_masked(new) else new

    kept = inputs.rows.client
    params, base, rows_base = jax.tree.map(
        keep,
        (state.params, state.server.base, rows.client),
        (old.params, old.server.base, kept.base),
        is_leaf=is_masked,
    )
    version = jnp.full_like(kept.version, state.server.version)
    return (
        state._replace(params=params, server=state.server._replace(base=base)),
        rows._replace(client=kept._replace(base=rows_base, version=version)),
    )


def client_by_client(algorithm, inputs):
    """State and rows after the round in plain Python and numpy, by its rules."""
    state, rows, dataset, cohort, key, _ = inputs
    rules = algorithm.rules
    program = rules.program(state, cohort)
    anchor = Anchor(state.params, state.model_state, state.round)
    messages, new_rows = [], []
    for place, client_id in enumerate(cohort.client_ids):
        row = jax.tree.map(lambda x, p=place: x[p], rows)
        result = train_client(
            task=problems.task(),
            solver=rules.solver,
            program=program,
            anchor=anchor,
            row=row,
            dataset=dataset,
            indices=jnp.asarray(cohort.indices[place]),
            size=jnp.asarray(cohort.sizes[place]),
            key=jax.random.fold_in(key, client_id),
        )
        message, row = program.upload(result, row)
        messages.append(message)
        new_rows.append(row)
    received = {}
    for name, part in messages[0].items():
        weights = [1.0] * len(messages)
        if isinstance(part, Mean):
            weights = np.array([float(m[name].weight) for m in messages])
            weights = weights / weights.sum()
        values = [m[name].values for m in messages]
        received[name] = jax.tree.map(
            lambda *xs, w=weights: jnp.asarray(
                sum(k * np.asarray(x, np.float64) for k, x in zip(w, xs, strict=True))
            ).astype(xs[0].dtype),
            *values,
        )
    after = rules.update(state, received)
    rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *new_rows)
    return after._replace(round=state.round + 1), rows


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        *((name, FIELDS.get(name, {})) for name in sorted(ALGORITHMS)),
        ("autoflip", {"base": "scaffold"}),
    ],
)
def test_clients_one_by_one_are_the_lanes(name, fields):
    """Both in float64: equal to nine digits, whatever the algorithm."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        algorithm = problems.build.__wrapped__(name, **fields)
        state, rows = problems.begin(algorithm)
        cohort = toys.contiguous_cohort(problems.SIZES, COHORT, num_lanes=2)
        inputs = RoundInputs(
            state=state,
            rows=store.take(rows, cohort.client_ids),
            dataset=problems.dataset_of_clients(),
            cohort=cohort,
            key=jax.random.key(5),
        )
        run = jax.jit(algorithm.round)
        # One round first, so that no control or momentum is 0.
        state, rows_before, _ = run(inputs)
        if algorithm.masked is not None:
            state, rows_before = where_pruned_too(state, rows_before)
        inputs = inputs._replace(state=state, rows=rows_before, key=jax.random.key(6))
        after, rows, _ = run(inputs)
        assert after.params["kernel"].dtype == jnp.float64
        if algorithm.masked is None:
            expected = client_by_client(algorithm, inputs)
        else:
            remask = jax.jit(algorithm.masked.remask)
            inputs = inputs._replace(state=remask(state, rows_before, cohort))
            expected = client_by_client(algorithm, inputs_of_rules(inputs))
            expected = under_masks(inputs, *expected)
            pruned = ~np.asarray(after.server.masks["kernel"])
            assert pruned.any() == (name in PRUNES)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
            (after, rows),
            expected,
        )


def alone(solver, *, task=None, round=0):
    """Arguments with which client 1, of 12 examples, trains alone."""
    algorithm = problems.build("fedavg", solver=solver)
    state, rows = problems.begin(algorithm)
    return {
        "task": task or problems.task(),
        "solver": solver,
        "program": algorithm.rules.program(state, ()),
        "anchor": Anchor(state.params, state.model_state, jnp.int32(round)),
        "row": jax.tree.map(lambda x: x[1], rows),
        "dataset": problems.dataset_of_clients(),
        "indices": jnp.arange(5, 17, dtype=jnp.int32),
        "size": jnp.int32(12),
        "key": jax.random.key(0),
    }


@pytest.mark.parametrize("round", [0, 1, 3])
def test_the_step_size_decays_from_the_second_round_on(round):
    """Round t, the first of which is 0, has 0.5 * 0.25^t."""
    solver = make_solver(epochs=1, batch_size=12, lr=0.5, lr_decay=0.25)
    mass = train_client(**alone(solver, round=round)).step_mass
    assert float(mass) == 0.5 * 0.25**round


def test_every_epoch_has_an_order_of_its_own():
    given = alone(make_solver(epochs=4, batch_size=4, lr=0.1))
    fields = ("task", "solver", "program", "anchor", "dataset")
    training = LocalTraining(**{name: given[name] for name in fields})
    indices = given["indices"]
    first = training.begin(given["row"], indices, given["size"], given["key"], {})
    orders = [
        training.draw_order(first._replace(epoch=jnp.int32(n)), indices)
        for n in range(4)
    ]
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_the_loss_draws_another_number_at_every_step():
    """Two epochs of three batches draw six of 1,000 numbers."""
    task = problems.task()

    def loss(variables, batch, key):
        mean, (state, sums) = task.loss(variables, batch, key)
        drawn = jax.nn.one_hot(jax.random.randint(key, (), 0, 1000), 1000)
        return mean, (state, sums | {"drawn": drawn})

    solver = make_solver(epochs=2, batch_size=4, lr=0.1)
    result = train_client(**alone(solver, task=task._replace(loss=loss)))
    assert int(jnp.count_nonzero(result.sums["drawn"])) == 6


@pytest.mark.parametrize("double", [False, True])
def test_every_epoch_is_a_permutation_of_the_clients_own_examples(double):
    """What a wrapped loss sees, epoch after epoch: example i is labelled i."""
    epochs, batch_size, num_examples = 3, 4, sum(problems.SIZES)
    task = problems.task()

    def loss(variables, batch, key):
        mean, (state, sums) = task.loss(
            variables, batch._replace(labels=batch.labels % 3), key
        )
        seen = jax.nn.one_hot(batch.labels, num_examples, dtype=jnp.float32)
        seen = jnp.where(batch.example_mask[:, None], seen, 0).sum(0)
        return mean, (state, sums | {"seen": seen})

    with jax.enable_x64(double), jax.numpy_dtype_promotion("standard"):
        dataset = problems.dataset_of_clients()._replace(
            labels=np.arange(num_examples, dtype=np.int32)
        )
        cohort = toys.contiguous_cohort(problems.SIZES, num_lanes=2, width=17)
        for count in range(1, epochs + 1):
            solver = make_solver(epochs=count, batch_size=batch_size, lr=0.1)
            algorithm = problems.build(
                "fedavg", model_task=task._replace(loss=loss), solver=solver
            )
            key = jax.random.key(1)
            state, rows = toys.first(algorithm, len(problems.SIZES), key)
            run = toys.compiled_round(algorithm)
            _, _, sums = run(state, rows, dataset, cohort, key)
            ends = np.cumsum(problems.SIZES)
            for seen, size, end in zip(sums["seen"], problems.SIZES, ends, strict=True):
                own = np.zeros(num_examples)
                own[end - size : end] = count
                np.testing.assert_array_equal(seen, own)


def test_the_loss_and_the_transforms_draw_other_numbers():
    """Neither key of a step is a child of the other: either may split its own."""

    def drawn(key):
        keys = [key, *jax.random.split(key, 2)]
        return jnp.stack([jax.random.uniform(key) for key in keys])

    def loss(variables, batch, key):
        mean, (state, sums) = task.loss(variables, batch, key)
        return mean, (state, sums | {"drawn": drawn(key)})

    def update(updates, state, params=None, *, key, **extra_args):
        return updates, drawn(key)

    def init(params):
        return jnp.zeros(3)

    task = problems.task()
    solver = make_solver(epochs=1, batch_size=12).after_descent(
        make_transformation(update, init)
    )
    result = train_client(**alone(solver, task=task._replace(loss=loss)))
    of_transform = jax.tree.leaves(result.solver_state)[-1]
    assert len({*result.sums["drawn"].tolist(), *of_transform.tolist()}) == 6


@pytest.mark.parametrize("name", ["scaffold", "fednova"])
def test_a_step_size_of_zero_changes_nothing(name):
    """A decay of 0.5 a round: in round 200 of float32 nothing is left of a step."""
    solver = make_solver(epochs=1, batch_size=4, lr=0.5, lr_decay=0.5)
    algorithm = problems.build(name, solver=solver, server_tx=make_server_tx())
    key = jax.random.key(0)
    state, rows = toys.first(algorithm, len(problems.SIZES), key)
    cohort = toys.contiguous_cohort(problems.SIZES)
    dataset = problems.dataset_of_clients()
    run = toys.compiled_round(algorithm)
    moved, rows, _ = run(state, rows, dataset, cohort, key)
    late = moved._replace(round=jnp.int32(200))
    after, rows_after, _ = run(late, rows, dataset, cohort, key)
    jax.tree.map(
        np.testing.assert_array_equal,
        (late.params, late.server, rows),
        (after.params, after.server, rows_after),
    )
    assert (np.asarray(moved.params["kernel"]) != state.params["kernel"]).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": jnp.int32(0)}, r"size must be in \[1, 4\], got 0"),
        ({"size": 1.5}, r"size must be in \[1, 4\], got 1\.5"),
        ({"size": True}, r"size must be in \[1, 4\], got True"),
        ({"size": 2**40}, r"size must be in \[1, 4\], got 1099511627776"),
        ({"size": jnp.int32(5)}, r"size must be in \[1, 4\], got 5"),
        ({"indices": jnp.zeros((2, 2), jnp.int32)}, r"one axis, got int32\[2, 2\]"),
        ({"indices": jnp.zeros(4)}, r"indices must be whole numbers .* float32\[4\]"),
        (
            {"indices": jnp.array([0, -1])},
            r"client .* in \[0, 29\), got -1 at",
        ),
        ({"indices": jnp.array([29])}, r"in \[0, 29\), got 29 at position 0"),
        ({"key": jax.random.key(0, impl="rbg")}, r"key must .* got one of rbg"),
    ],
)
def test_a_client_without_its_own_examples_is_refused(changes, words):
    """Without an example its training would never end."""
    four = {"indices": jnp.zeros(4, jnp.int32), "size": jnp.int32(4)}
    with pytest.raises(ValueError, match=words):
        train_client(**alone(problems.SOLVER) | four | changes)


@pytest.mark.parametrize("name", ["fednova", "scaffold"])
def test_every_chain_gets_what_the_client_has_received(name):
    """FedProx's pull can be put on any algorithm."""
    cohort = toys.contiguous_cohort(problems.SIZES)
    solver = make_solver(epochs=2, batch_size=4, lr=0.1)
    moved = []
    for each in (solver, solver.before_descent(add_proximal(2.0), keeps_mass=True)):
        algorithm = problems.build(name, solver=each)
        state, rows = problems.begin(algorithm)
        own = {
            "program": algorithm.rules.program(state, cohort),
            "row": jax.tree.map(lambda x: x[1], rows),
        }
        moved.append(float(optax.tree.norm(train_client(**alone(each) | own).delta)))
    assert moved[1] < 0.9 * moved[0]


def test_transformations_draw_anew_in_every_step():
    def update(updates, drawn, params=None, *, key, **extra_args):
        return updates, jnp.roll(drawn, 1).at[0].set(jax.random.uniform(key))

    noise = make_transformation(update, lambda params: jnp.zeros(6))
    solver = make_solver(epochs=2, batch_size=4, lr=0.1).after_descent(noise)
    (drawn,) = (
        leaf
        for leaf in jax.tree.leaves(train_client(**alone(solver)).solver_state)
        if leaf.shape == (6,)
    )
    assert len(set(drawn.tolist())) == 6
