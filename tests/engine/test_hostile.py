"""Hostile clients: who they are, what they send, and what aggregators are worth."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import hostile as config_file
from fedjax_prune.engine.devices import ONE_DEVICE
from fedjax_prune.engine.hostile import Hostile, make_hostile
from fedjax_prune.engine.policy import make_policy
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.runs.settings import problems as mistakes
from fedjax_prune.types import Mean, Total
from tests import problems, toys

NUM_CLIENTS, SIZE, NUM_CLASSES = 10, 30, 3
SHAPE = (3, 3, 1)


def test_hostile_clients_are_a_share_of_the_population_by_seed():
    chosen = [
        make_hostile(fraction=0.2, num_clients=20, seed=seed).client_ids
        for seed in range(50)
    ]
    assert all(len({*ids}) == 4 and ids == tuple(sorted(ids)) for ids in chosen)
    assert chosen[0] == make_hostile(fraction=0.2, num_clients=20, seed=0).client_ids
    assert {*range(20)} == {client for ids in chosen for client in ids}
    assert make_hostile(fraction=0.0, num_clients=20, seed=0) is None
    assert make_hostile(fraction=0.04, num_clients=20, seed=0) is None


def test_an_attack_scales_changes_of_hostile_clients():
    attacker = Hostile((1, 4), -3.0)
    message = {
        "delta": Mean({"w": jnp.float32(2), "n": jnp.int32(5)}, jnp.float32(7)),
        "model_state": Mean({"var": jnp.float32(0.5)}, jnp.float32(7)),
        "control_change": Total(jnp.float32(-1)),
        "signs": Mean(jnp.array([-1.0, 0.0, 1.0]), jnp.float32(7)),
        "step_mass": Mean(jnp.float32(0.25), jnp.float32(7)),
    }
    attack = jax.jit(attacker.attack)
    sent = attack(message, jnp.int32(4))
    assert (float(sent["delta"].values["w"]), int(sent["delta"].values["n"])) == (-6, 5)
    assert float(sent["delta"].weight) == 7
    assert float(sent["model_state"].values["var"]) == 0.5
    assert float(sent["control_change"].values) == 3
    assert sent["signs"].values.tolist() == [1, 0, -1]
    assert float(sent["step_mass"].values) == 0.25
    chex.assert_trees_all_equal(attack(message, jnp.int32(3)), message)


def train(policy, rounds=15):
    """The mean loss of the honest clients, by the model after some rounds."""
    task = toys.linear_task(SHAPE, NUM_CLASSES)
    solver = make_solver(epochs=1, batch_size=10, lr=0.5)
    algorithm = problems.build(
        "fedavg", model_task=task, solver=solver, server_tx=SERVER_TX
    )
    dataset = toys.image_dataset(NUM_CLIENTS * SIZE, SHAPE, NUM_CLASSES)
    cohort = toys.contiguous_cohort([SIZE] * NUM_CLIENTS, num_lanes=5)
    state, rows = toys.first(algorithm, NUM_CLIENTS, jax.random.key(0))
    run = toys.compiled_round(algorithm, ONE_DEVICE._replace(policy=policy))
    for number in range(rounds):
        key = jax.random.fold_in(jax.random.key(3), number)
        state, rows, sums = run(state, rows, dataset, cohort, key)
    x = np.asarray(dataset.images, float).reshape(len(dataset.labels), -1) / 255
    logits = x @ np.asarray(state.params["kernel"], float) + np.asarray(
        state.params["bias"], float
    )
    logits -= logits.max(1, keepdims=True)
    chosen = logits[np.arange(len(x)), dataset.labels]
    return (np.log(np.exp(logits).sum(1)) - chosen).mean(), sums


SERVER_TX = make_server_tx()


def test_what_each_aggregator_is_worth_with_a_fifth_of_hostile_clients():
    """Ten clients alike, two of which send ten times the wrong way."""
    hostile = make_hostile(
        fraction=0.2, attack="scaled", num_clients=NUM_CLIENTS, seed=0
    )
    honest, _ = train(make_policy(on_bad_client="drop"))
    losses = {}
    for aggregator in ("mean", "median", "trimmed_mean", "norm_clipping"):
        policy = make_policy(
            aggregator=aggregator,
            trim_fraction=0.2,
            clip_norm=0.5,
            on_bad_client="drop",
            hostile=hostile,
        )
        losses[aggregator], sums = train(policy)
        np.testing.assert_array_equal(
            np.flatnonzero(sums["hostile"]), hostile.client_ids
        )
    first = np.log(NUM_CLASSES)
    assert honest < 0.5 * first
    # The mean of eight updates and two times -10 of one goes the wrong way.
    assert losses["mean"] > 2 * first
    assert losses["norm_clipping"] < 0.9 * first
    for aggregator in ("median", "trimmed_mean"):
        # One-sided outliers shift them towards the slower of the honest clients.
        assert honest < losses[aggregator] < 1.25 * honest


@pytest.mark.parametrize("aggregator", ["mean", "median"])
@pytest.mark.parametrize("attack", ["", ",scaled", ",none"])
def test_the_config_file(aggregator, attack):
    config = config_file.get_config(aggregator + attack)
    assert mistakes(config) == []
    assert config.hostile.fraction == (0.0 if attack == ",none" else 0.2)
    assert config.hostile.attack == ("scaled" if attack == ",scaled" else "sign_flip")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mode", "AGGREGATOR must be one of mean, .* got 'mode'"),
        ("median,flip", "ATTACK must be one of sign_flip, scaled, none, got 'flip'"),
        ("", "AGGREGATOR must be one of mean, .* got ''"),
    ],
)
def test_a_config_of_another_text_lists_the_choices(text, told):
    with pytest.raises(ValueError, match=told):
        config_file.get_config(text)
