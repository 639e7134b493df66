"""Inputs of a round that do not belong together are refused before compiling."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_prune.engine import store
from fedjax_prune.engine.devices import ONE_DEVICE, make_placement
from fedjax_prune.engine.outcome import (
    TrainingError,
    require_finite,
    require_finite_server,
)
from fedjax_prune.engine.rounds import check_inputs, require_prepared
from fedjax_prune.types import Probe, RoundInputs
from tests import problems, toys


def inputs_of(ids, num_rows, **changes):
    """Inputs of three clients and two lanes, with the rows of `num_rows` clients."""
    algorithm = problems.build("scaffold")
    key = jax.random.key(0)
    cohort = toys.contiguous_cohort(problems.SIZES, ids, num_lanes=2)
    state, rows = toys.first(algorithm, num_rows, key)
    inputs = RoundInputs(state, rows, problems.dataset_of_clients(), cohort, key)
    return inputs._replace(**changes)


def test_inputs_of_one_cohort_are_taken():
    inputs = inputs_of([0, 2, 4], 3)
    check_inputs(inputs, ONE_DEVICE)
    after, rows, sums = jax.jit(problems.build("scaffold").round)(inputs)
    assert int(after.round) == 1 and len(jax.tree.leaves(rows)[0]) == 3
    np.testing.assert_array_equal(sums["count"], 2 * np.array([5, 1, 3]))


def test_rows_of_another_cohort_are_refused():
    """As when the rows of all clients are passed to a round."""
    algorithm = problems.build("scaffold")
    words = r"rows must have the cohort's 3 places as leading axis, got \[5, 9, 3\]"
    inputs = inputs_of([0, 2, 4], 5)
    rows = inputs.rows._replace(client={"kernel": inputs.rows.client["kernel"]})
    with pytest.raises(ValueError, match=words):
        jax.jit(algorithm.round)(inputs._replace(rows=rows))


def test_a_cohort_for_another_placement_is_refused():
    words = r"placement's 2 devices, got 4 places in blocks of 4: pass the round's"
    inputs = inputs_of([0, 1, 2, 4], 4)
    with pytest.raises(ValueError, match=words):
        check_inputs(inputs, make_placement(2))


def test_the_rules_of_a_prepared_algorithm_begin_as_it_does():
    """An algorithm that is made of these rules is not prepared, either."""
    algorithm = problems.build("fedsnip")
    state = algorithm.rules.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"call fedjax_prune\.prepare"):
        require_prepared(state)


@pytest.mark.parametrize("name", ["autoflip", "fedsnip", "prunefl"])
def test_a_preparation_is_not_made_twice(name):
    """A second exploration would start from what rounds have trained."""
    algorithm = problems.build(name)
    prepared = algorithm.init(jax.random.key(0))._replace(pending=())
    inputs = inputs_of([0, 2, 4], 3)._replace(state=prepared)
    with pytest.raises(ValueError, match="is prepared already: pass it on to the next"):
        algorithm.prepare.run(inputs)


def test_a_servers_step_that_is_too_large_is_told():
    """Clients stay finite; the parameters leave the range of float32."""
    inputs = inputs_of([0, 2, 4], 3)
    found = {}
    for lr in (1.0, 3e38):
        server_tx = optax.chain(optax.scale(-lr), optax.scale(10.0))
        algorithm = problems.build("fedavg", server_tx=server_tx)
        begin = inputs._replace(
            state=algorithm.init(inputs.key),
            rows=store.create(algorithm.row(inputs.key), 3),
        )
        _, _, found[lr] = jax.jit(algorithm.round)(begin)
        np.testing.assert_array_equal(found[lr]["nonfinite"], 0)
    assert found[1.0]["server_nonfinite"] == 0 < found[3e38]["server_nonfinite"]
    require_finite_server(found[1.0], 1)
    with pytest.raises(TrainingError, match=r"server's step of round 7 .* server\.lr"):
        require_finite_server(found[3e38], 7)


@pytest.mark.parametrize(("number", "told"), [(0, False), (1, False), (2, True)])
def test_the_server_is_named_only_where_it_has_made_a_step(number, told):
    cohort = jax.device_get(inputs_of([0, 2, 4], 3).cohort)
    sums = {"nonfinite": np.ones(len(cohort.client_ids))}
    with pytest.raises(TrainingError, match=f"in round {number}") as caught:
        require_finite(sums, number, cohort)
    assert ("server.lr may be too large" in str(caught.value)) == told


def test_a_probe_of_another_cohort_is_refused():
    probe = Probe(lambda variables, examples: {}, {}, np.ones(2, bool))
    with pytest.raises(ValueError, match=r"probe.wanted .* 3 places, got \[2\]"):
        check_inputs(inputs_of([0, 2, 4], 3, probe=probe), ONE_DEVICE)


def test_a_probe_with_the_name_of_another_sum_is_refused():
    wanted = np.ones(3, bool)
    probe = Probe(lambda variables, examples: {"loss": jnp.zeros(())}, {}, wanted)
    algorithm, inputs = problems.build("fedavg"), inputs_of([0, 2, 4], 3, probe=probe)
    inputs = inputs._replace(state=algorithm.init(inputs.key))
    rows = store.create(algorithm.row(inputs.key), 3)
    with pytest.raises(ValueError, match=r"probe.measure must .* its own, .* loss\."):
        jax.jit(algorithm.round)(inputs._replace(rows=rows))


@pytest.mark.parametrize("raw", [False, True])
def test_keys_whose_draws_depend_on_lanes_are_refused(raw):
    inputs = inputs_of([0, 2, 4], 3)
    with jax.default_prng_impl("rbg"):
        key = jax.random.PRNGKey(0) if raw else jax.random.key(0)
        with pytest.raises(ValueError, match=r"be one of threefry2x32, .* of rbg"):
            jax.jit(lambda k: check_inputs(inputs._replace(key=k), ONE_DEVICE))(key)


def test_images_without_labels_are_refused():
    inputs = inputs_of([0, 2, 4], 3)
    fewer = inputs.dataset._replace(labels=inputs.dataset.labels[:-1])
    with pytest.raises(ValueError, match=r"shape \(29,\), one for each .* got \(28,\)"):
        check_inputs(inputs._replace(dataset=fewer), ONE_DEVICE)


def test_a_cohort_whose_arrays_disagree_is_refused():
    inputs = inputs_of([0, 2, 4], 3)
    cohort = inputs.cohort._replace(sizes=np.ones(2, np.int32))
    with pytest.raises(AssertionError, match="shape prefix"):
        check_inputs(inputs._replace(cohort=cohort), ONE_DEVICE)
    cohort = inputs.cohort._replace(queues=inputs.cohort.queues[0])
    with pytest.raises(AssertionError, match="rank"):
        check_inputs(inputs._replace(cohort=cohort), ONE_DEVICE)
