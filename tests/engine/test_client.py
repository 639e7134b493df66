"""Local training in lanes: what must not change its result, and what it counts."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.engine.packing import pack_lanes
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.types import Probe
from tests import toys
from tests.problems import SIZES, build, dataset_of_clients, task

EPOCHS, BATCH_SIZE = 2, 4
STEPS = np.array([EPOCHS * -(-n // BATCH_SIZE) for n in SIZES])
SOLVER = make_solver(
    epochs=EPOCHS, batch_size=BATCH_SIZE, lr=0.5, momentum=0.9, weight_decay=0.01
)
SERVER_TX = make_server_tx()


def bias(variables, _):
    return {"bias": variables.params["bias"]}


def one_round(cohort, *, name="scaffold", measured=0, measure=bias, dataset=None):
    """State and rows of all clients after the first round, and its sums."""
    algorithm = build(name, solver=SOLVER, server_tx=SERVER_TX)
    state, rows = toys.first(algorithm, len(SIZES), jax.random.key(1))
    return toys.compiled_round(algorithm)(
        state,
        rows,
        dataset=dataset or dataset_of_clients(),
        cohort=cohort,
        key=jax.random.key(2),
        probe=Probe(measure, {}, wanted=np.arange(len(cohort.sizes)) < measured),
    )


def assert_close(first, second, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance), first, second
    )


def lanes_of(cohort, num_lanes):
    steps = STEPS[cohort.client_ids]
    lanes = pack_lanes(steps, cohort.client_ids, num_lanes)
    queues = np.full((num_lanes, len(steps)), len(steps), np.int32)
    for queue, lane in zip(queues, lanes, strict=True):
        queue[: len(lane)] = lane
    return cohort._replace(queues=queues)


def test_steps_are_counted_where_they_run():
    """4, 6, 2, 4, 2 steps: 18 in one lane; 6+2+2 beside 4+4; 6 in each of five."""
    cohort = toys.contiguous_cohort(SIZES)
    for num_lanes, executed in ((1, 18), (2, 20), (5, 30)):
        _, _, sums = one_round(lanes_of(cohort, num_lanes))
        np.testing.assert_array_equal(sums["steps"], STEPS)
        assert int(sums["steps_executed"]) == executed
        np.testing.assert_array_equal(sums["count"], EPOCHS * np.array(SIZES))
        np.testing.assert_array_equal(sums["nonfinite"], 0)


def test_only_clients_that_have_finished_are_measured():
    """Others train on in the lanes beside them, and some are not wanted."""
    measured = []

    def measure(variables, _):
        jax.debug.callback(lambda x: measured.append(x), variables.params["bias"])
        return bias(variables, _)

    cohort = lanes_of(toys.contiguous_cohort(SIZES), 5)
    _, _, sums = one_round(cohort, measured=3, measure=measure)
    jax.effects_barrier()
    assert len(measured) == 3
    found = sorted(x.tolist() for x in measured)
    assert found == sorted(sums["bias"][:3].tolist())


def test_lanes_change_nothing_beyond_rounding():
    cohort = toys.contiguous_cohort(SIZES)
    one = one_round(lanes_of(cohort, 1))
    for num_lanes in (2, 3, 5):
        many = one_round(lanes_of(cohort, num_lanes))
        assert_close(one[0], many[0], atol=1e-6)
        assert_close(one[1], many[1], atol=1e-6)


def test_idle_lanes_change_no_bit():
    """More lanes than clients: the extra ones run padded steps only."""
    cohort = toys.contiguous_cohort(SIZES)
    five = one_round(lanes_of(cohort, 5))
    eight = one_round(lanes_of(cohort, 8))
    assert_close(five[1], eight[1], rtol=0, atol=0)
    assert_close(five[0], eight[0], rtol=0, atol=0)


def test_wider_padding_changes_no_bit():
    cohort = lanes_of(toys.contiguous_cohort(SIZES), 2)
    wide = lanes_of(toys.contiguous_cohort(SIZES, width=29), 2)
    first, second = one_round(cohort), one_round(wide)
    assert_close(first, second, rtol=0, atol=0)


def test_reversed_cohort_changes_no_bit():
    forward = lanes_of(toys.contiguous_cohort(SIZES), 2)
    backward = lanes_of(toys.contiguous_cohort(SIZES, np.arange(5)[::-1]), 2)
    first, second = one_round(forward), one_round(backward)
    assert_close(first[0], second[0], rtol=0, atol=0)
    assert_close(first[1], second[1], rtol=0, atol=0)


def test_clients_do_not_disturb_each_other():
    """A client's row is the same whoever else takes part."""
    everyone = one_round(lanes_of(toys.contiguous_cohort(SIZES), 2))
    alone = one_round(toys.contiguous_cohort(SIZES, [3]))
    rows = [jax.tree.map(lambda x: x[3], after[1]) for after in (everyone, alone)]
    assert_close(*rows, atol=1e-6)


def test_every_epoch_sees_every_example_once():
    """A task that adds up the pixels it was shown, epoch after epoch."""
    linear = task()

    def loss(variables, batch, key):
        mean, (state, sums) = linear.loss(variables, batch, key)
        shown = jnp.where(
            batch.example_mask[:, None, None, None], batch.images, 0
        ).astype(jnp.float32)
        return mean, (state, sums | {"shown": shown.sum()})

    solver = make_solver(epochs=EPOCHS, batch_size=BATCH_SIZE, lr=0.1)
    algorithm = build("fedavg", model_task=linear._replace(loss=loss), solver=solver)
    key = jax.random.key(0)
    cohort = lanes_of(toys.contiguous_cohort(SIZES), 2)
    state, rows = toys.first(algorithm, len(SIZES), key)
    dataset = dataset_of_clients()
    _, _, sums = toys.compiled_round(algorithm)(state, rows, dataset, cohort, key)
    ends = np.cumsum(SIZES)
    pixels = np.asarray(dataset.images, np.int64).sum(axis=(1, 2, 3))
    totals = [pixels[e - n : e].sum() for e, n in zip(ends, SIZES, strict=True)]
    np.testing.assert_allclose(sums["shown"], EPOCHS * np.array(totals), rtol=1e-6)


def test_a_non_finite_client_is_named():
    dataset = dataset_of_clients()
    images = np.asarray(dataset.images, np.float32)
    images[6] = np.nan  # belongs to client 1
    _, _, sums = one_round(
        lanes_of(toys.contiguous_cohort(SIZES), 2),
        dataset=dataset._replace(images=jnp.asarray(images)),
    )
    np.testing.assert_array_equal(sums["nonfinite"] > 0, [False, True] + [False] * 3)


def test_probe_sees_each_client_before_its_params_are_dropped():
    """One client: what the probe sees is what FedAvg returns."""
    cohort = toys.contiguous_cohort(SIZES, [3])
    state, _, sums = one_round(cohort, name="fedavg", measured=2)
    np.testing.assert_allclose(sums["bias"][0], state.params["bias"], atol=1e-6)
    cohort = lanes_of(toys.contiguous_cohort(SIZES), 2)
    _, _, sums = one_round(cohort, name="fedavg", measured=2)
    assert (np.asarray(sums["bias"][:2]) != 0).all()


def test_batch_statistics_are_averaged_by_size():
    """Clients of one batch and one epoch: the statistic is its mean pixel."""
    sizes, dataset = (4, 2, 3), dataset_of_clients()
    solver = make_solver(epochs=1, batch_size=BATCH_SIZE, lr=0.1)
    for name in ("fedavg", "fednova", "scaffold", "eflprune"):
        algorithm = build(name, solver=solver, server_tx=SERVER_TX)
        key, cohort = jax.random.key(0), toys.contiguous_cohort(sizes)
        state, rows = toys.first(algorithm, len(sizes), key)
        run = toys.compiled_round(algorithm)
        state, _, _ = run(state, rows, dataset, cohort, key)
        mean = np.asarray(dataset.images[:9], np.float64).mean() / 255
        np.testing.assert_allclose(state.model_state["mean"], mean, rtol=1e-5)
