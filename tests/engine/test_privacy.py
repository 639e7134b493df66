"""Private rounds: whole messages are clipped, and their sum gets noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.engine.devices import ONE_DEVICE, make_placement
from fedjax_prune.engine.policy import make_policy
from fedjax_prune.engine.preparation import prepare
from fedjax_prune.engine.privacy import NOISE, Privacy, make_privacy
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.types import Anchor, Mean, RoundInputs, Total
from tests import problems, seven_clients, toys

SILENT = 1e-30
"""A noise multiplier whose noise is lost in rounding."""
KEY = jax.random.key(7)


def private(clip_norm, noise_multiplier=SILENT, **fields):
    privacy = make_privacy(clip_norm=clip_norm, noise_multiplier=noise_multiplier)
    return make_policy(on_bad_client="drop", privacy=privacy, **fields)


def build(name="fedavg"):
    return problems.build(name, server_tx=make_server_tx())


def play(algorithm, ids, policy=None, *, begin=None, dataset=None):
    placement = ONE_DEVICE if policy is None else ONE_DEVICE._replace(policy=policy)
    state, rows = begin or problems.begin(algorithm)
    cohort = toys.contiguous_cohort(problems.SIZES, ids, num_lanes=2, width=12)
    run = toys.compiled_round(algorithm, placement)
    dataset = dataset or problems.dataset_of_clients()
    return run(state, rows, dataset, cohort, KEY)


def flat(state):
    """The parameters and the batch statistics, which are all that FedAvg sends."""
    leaves = jax.tree.leaves((state.params, state.model_state))
    return np.concatenate([np.ravel(x) for x in leaves], dtype=float)


@pytest.mark.parametrize("name", ["fedavg", "magnitude"])
def test_whole_messages_are_clipped_and_count_the_same(name):
    algorithm = build(name)
    before, rows = problems.begin(algorithm)
    before = before._replace(model_state={"mean": jnp.float32(0.2)})
    begin = before, rows
    changes = np.stack(
        [flat(play(algorithm, [k], begin=begin)[0]) - flat(before) for k in range(5)]
    )
    norms = np.linalg.norm(changes, axis=1, keepdims=True)
    bound = float(np.sort(norms[:, 0])[2]) * 1.01
    expected = flat(before) + (changes * np.minimum(1, bound / norms)).sum(0) / 5
    after, _, sums = play(algorithm, range(5), private(bound), begin=begin)
    np.testing.assert_allclose(flat(after), expected, atol=1e-6)
    assert "clipped" not in sums


def test_the_divisor_is_the_cohort_as_it_was_drawn():
    """Who does not report adds zeros, and so does who is not finite."""
    algorithm = build()
    before, _ = problems.begin(algorithm)
    images = np.asarray(problems.dataset_of_clients().images, np.float32)
    broken = images.copy()
    broken[:5] = np.nan  # of client 0
    clean, poisoned = (
        problems.dataset_of_clients()._replace(images=jnp.asarray(x))
        for x in (images, broken)
    )
    policy = private(1e6)
    alone, _, _ = play(algorithm, [1], policy, dataset=clean)
    after, _, sums = play(algorithm, [0, 1], policy, dataset=poisoned)
    np.testing.assert_array_equal(sums["arrived"], [0, 1])
    moved, own = (flat(x) - flat(before) for x in (after, alone))
    np.testing.assert_allclose(moved, own / 2, atol=1e-6)


def noise_of(privacy, seed, size=40_000, cohort_size=4):
    sums = {
        "delta": Mean({"a": jnp.zeros(size), "b": jnp.zeros(size)}, jnp.float32(3)),
        "change": Total(jnp.zeros(size)),
    }
    anchor = Anchor({}, {}, jnp.int32(0))
    receive = jax.jit(privacy.receive)
    return receive(sums, jnp.int32(cohort_size), jax.random.key(seed), anchor)


def test_noise_has_the_deviation_of_the_gaussian_mechanism():
    privacy = Privacy(clip_norm=0.5, noise_multiplier=3.0, delta=1e-5)
    noise = noise_of(privacy, 0)
    parts = [noise["delta"]["a"] * 4, noise["delta"]["b"] * 4, noise["change"]]
    for values in parts:
        assert abs(np.mean(values)) < 4 * 1.5 / 200
        np.testing.assert_allclose(np.std(values), 1.5, rtol=0.02)
        # The fourth moment of a Gaussian is 3 sigma^4.
        np.testing.assert_allclose(
            np.mean(np.square(np.square(values))), 15.19, rtol=0.1
        )
    assert np.abs(np.corrcoef(np.stack(parts)) - np.eye(3)).max() < 0.03
    again, other = noise_of(privacy, 0), noise_of(privacy, 1)
    np.testing.assert_array_equal(noise["change"], again["change"])
    assert abs(np.corrcoef(noise["change"], other["change"])[0, 1]) < 0.03


def test_an_empty_round_is_noise():
    """Its scale is that of the multiplier over the clients of the cohort."""
    algorithm = build()
    before, _ = problems.begin(algorithm)

    def moved(cohort, noise_multiplier):
        policy = private(1.0, noise_multiplier, client_dropout=0.999)
        after, _, sums = play(algorithm, cohort, policy)
        assert not sums["arrived"].any()
        return flat(after) - flat(before)

    of_five = moved(range(5), 2.0)
    assert (of_five != 0).all()
    np.testing.assert_allclose(of_five.std(), 2.0 / 5, rtol=0.5)
    np.testing.assert_allclose(moved(range(5), 4.0), 2 * of_five, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved([0], 2.0), 5 * of_five, rtol=1e-4, atol=1e-5)


def test_several_devices_add_the_same_noise():
    results = []
    algorithm = fedavg(
        seven_clients.TASKS["linear"](), seven_clients.SOLVER, make_server_tx()
    )
    state, rows = toys.first(algorithm, 7, KEY)
    for num_devices in (1, 2):
        placement = make_placement(num_devices, policy=private(0.5, 1.0))
        cohort = seven_clients.draw_cohort(placement, (0, 1, 3, 4, 6))
        inputs = RoundInputs(state, rows, seven_clients.dataset(), cohort, KEY)
        run = jax.jit(lambda inputs, where=placement: algorithm.round(inputs, where))
        results.append(flat(run(inputs)[0]))
    np.testing.assert_allclose(*results, atol=1e-6)


def test_clients_that_keep_something_are_refused():
    with pytest.raises(ValueError, match="clients that keep nothing between rounds"):
        play(build("scaffold"), range(5), private(1.0, 1.0))


def test_integers_are_refused():
    linear = problems.task()

    def init(key):
        return linear.init(key)._replace(model_state={"count": jnp.int32(0)})

    def loss(variables, batch, key):
        mean, (_, sums) = linear.loss(variables, batch, key)
        return mean, ({"count": variables.model_state["count"] + 1}, sums)

    algorithm = fedavg(
        linear._replace(init=init, loss=loss), make_solver(), make_server_tx()
    )
    begin = toys.first(algorithm, 5, KEY)
    with pytest.raises(ValueError, match="floats only, got int32 in the part model_st"):
        play(algorithm, range(5), private(1.0, 1.0), begin=begin)


def test_a_step_mass_is_refused():
    with pytest.raises(ValueError, match="must not have a step mass, as FedNova's has"):
        play(build("fednova"), range(5), private(1.0, 1.0))


def test_preparations_are_refused():
    algorithm = problems.build("fedsnip")
    state = jax.eval_shape(algorithm.init, KEY)
    placement = ONE_DEVICE._replace(policy=private(1.0, 1.0))
    with pytest.raises(ValueError, match="a preparation sends what has no bound"):
        prepare(algorithm, state, None, None, None, seed=0, placement=placement)
    with pytest.raises(ValueError, match="a preparation sends what has no bound"):
        algorithm.prepare.run(None, placement)


def test_what_a_pruning_method_keeps_of_a_client_is_refused():
    """With `participants` the masks would come from the deviations in the rows."""
    algorithm = problems.build("autoflip")
    begin = problems.begin(algorithm)
    with pytest.raises(ValueError, match="clients that keep nothing between rounds"):
        play(algorithm, range(5), private(1.0, 1.0), begin=begin)


@pytest.mark.parametrize(
    "fields", [{"aggregator": "median"}, {"on_bad_client": "abort"}]
)
def test_policies_that_cannot_be_private(fields):
    privacy = make_privacy(clip_norm=1.0, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="privacy needs aggregator = mean and on_bad"):
        make_policy(privacy=privacy, **{"on_bad_client": "drop"} | fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip_norm": 1.0}, "must both be 0 or both above 0, got 1.0 and 0.0"),
        ({"noise_multiplier": 1.0}, "must both be 0 or both above 0, got 0.0 and 1.0"),
        ({"delta": 1.0}, r"delta must be in \(0, 1\), got 1\.0"),
    ],
)
def test_bad_privacy(fields, message):
    with pytest.raises(ValueError, match=message):
        make_privacy(**fields)
    assert make_privacy() is None


def test_noise_is_drawn_with_no_clients_key():
    assert NOISE >= 2**31
    zeros = Mean({"a": jnp.zeros(50)}, jnp.float32(1))
    privacy, anchor = Privacy(1.0, 1.0, 1e-5), Anchor({}, {}, jnp.int32(0))
    noise = privacy.receive({"delta": zeros}, jnp.int32(1), KEY, anchor)["delta"]["a"]
    for client in range(3):
        own = jax.random.normal(jax.random.fold_in(KEY, client), (50,))
        assert abs(np.corrcoef(noise, own)[0, 1]) < 0.6
