"""Fields that must fit together, and what models and algorithms declare."""

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.models import MODELS
from fedjax_prune.runs import settings
from fedjax_prune.runs.relations import RELATIONS
from tests import toys


def problems(fields, algorithm="scaffold"):
    config = ConfigDict(settings.default_config(algorithm))
    config.update_from_flattened_dict(fields)
    return settings.problems(config)


def test_relations_are_about_fields_that_exist():
    fields = set()
    for algorithm in ALGORITHMS:
        fields |= settings.declared({"algorithm.name": algorithm}).keys()
    assert {name for relation in RELATIONS for name in relation.fields} <= fields


@pytest.mark.parametrize(
    ("fields", "algorithm", "part"),
    [
        ({"client.optimizer": "adam"}, "fednova", "step mass"),
        ({"client.optimizer": "adam"}, "scaffold", "step mass"),
        (
            {"client.optimizer": "adam", "client.momentum": 0.9},
            "fedavg",
            "client.momentum must be 0 with client.optimizer adam, got 0.9",
        ),
        ({"data.num_train": 50}, "fedavg", "data.min_size must be at most"),
        ({"data.num_train": 5}, "fedavg", "at least data.num_clients = 10, got 5"),
        ({"data.name": "mnist"}, "fedavg", "multiples of 32, got data.name 'mnist'"),
        (
            {"data.name": "mnist", "model.name": "cnn", "data.normalize": "cifar10"},
            "fedavg",
            "data.normalize must be none for mnist",
        ),
        (
            {"data.partitioner": "shards", "data.classes_per_client": 11},
            "fedavg",
            "number of classes of cifar10, got 11",
        ),
        (
            {
                "algorithm.control_weights": "size",
                "algorithm.control_divisor": "m_legacy",
            },
            "scaffold",
            "algorithm.control_divisor must be num_clients",
        ),
    ],
)
def test_fields_that_do_not_fit_together(fields, algorithm, part):
    (message,) = problems(fields, algorithm)
    assert part in message


TEXT = {
    "data.name": "shakespeare",
    "data.partitioner": "by_client",
    "data.local_val": "holdout",
    "data.augment": "none",
    "model.name": "next_char_lstm",
    "model.gated": False,
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, None),
        ({"model.gated": True}, "model.gated must be false for next_char_lstm"),
        ({"model.norm": "bn"}, "model.norm must be none for next_char_lstm, got 'bn'"),
        (
            {"data.size": 24},
            "data.size must be 0 and data.augment none for shakespeare",
        ),
        ({"model.name": "cnn"}, "must suit the kind of data.name shakespeare (image: "),
        (
            {"data.partitioner": "iid"},
            "by_client for femnist and shakespeare, and for them alone, got 'iid'",
        ),
        ({"data.local_val": "matched_test"}, "must be holdout for shakespeare"),
    ],
)
def test_text_needs_a_model_that_reads_text(fields, message):
    found = problems(TEXT | fields, "fedavg")
    assert len(found) == (message is not None)
    assert all(message in sentence for sentence in found)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("side", [3, 24, 32])
def test_a_model_takes_exactly_the_sizes_that_it_declares(model, side):
    needs = MODELS[model].needs()
    if needs.kind == "text":
        assert needs.sides.holds(side)
        return
    found = problems({"model.name": model, "data.size": side, "model.gated": False})
    network = MODELS[model](num_classes=10)
    try:
        network.layers((side, side, 3))
    except ValueError as error:
        assert needs.sides.text in str(error)
        (message,) = found
        assert message == (
            f"model.name {model} needs images {needs.sides.text}, got data.name "
            f"'cifar10' and data.size {side}"
        )
    else:
        assert found == []
        images = jnp.zeros((1, side, side, 3))
        jax.eval_shape(
            lambda: network.init(
                jax.random.key(0), images, train=False, example_mask=jnp.ones(1, bool)
            )
        )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_has_the_properties_that_it_declares(name):
    solver = make_solver(epochs=1, batch_size=1, lr=0.1, optimizer="adam")
    task = toys.linear_task((4, 4, 1), 3)
    if ALGORITHMS[name].needs_step_mass:
        with pytest.raises(ValueError, match="divides by the step mass"):
            ALGORITHMS[name](task, solver, make_server_tx())
        assert not ALGORITHMS[name].has_masks
        return
    algorithm = ALGORITHMS[name](task, solver, make_server_tx())
    assert (algorithm.masked is not None) == ALGORITHMS[name].has_masks


def test_a_base_declares_what_its_server_may_keep():
    (message,) = problems(
        {"algorithm.base": "scaffold", "algorithm.server_store": "sparse"}, "autoflip"
    )
    assert message == (
        "algorithm.server_store must be dense with algorithm.base scaffold, got "
        "'sparse'"
    )
    (message,) = problems(
        {"algorithm.base": "scaffold", "client.optimizer": "adam"}, "autoflip"
    )
    assert message.startswith(
        "client.optimizer must be sgd with algorithm.base scaffold"
    )


def test_time_of_a_weight_is_above_0():
    fields = {"algorithm.byte_time": 0.0, "algorithm.mac_time": 0.0}
    assert problems(fields, "prunefl") == [
        "algorithm.byte_time must be above 0 if algorithm.mac_time is 0, got 0.0"
    ]


def test_adam_suits_the_algorithms_without_step_mass():
    assert problems({"client.optimizer": "adam"}, "fedprox") == []
