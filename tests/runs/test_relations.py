"""Fields that must fit together, and what models and algorithms declare."""

from typing import Annotated

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs import synthetic
from fedjax_prune.algorithms import ALGORITHMS, Algorithm, fedavg
from fedjax_prune.algorithms.autoflip.autoflip import MASKED_BASES
from fedjax_prune.engine.policy import make_policy
from fedjax_prune.engine.privacy import make_privacy
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.fields import (
    Relation,
    at_least,
    checked,
    fields_of,
    related,
    relations_of,
)
from fedjax_prune.models import MODELS
from fedjax_prune.runs import settings
from fedjax_prune.runs.relations import relations_for
from fedjax_prune.runs.sections import RELATED
from tests import toys


def problems(fields, algorithm="scaffold"):
    config = ConfigDict(settings.default_config(algorithm))
    config.update_from_flattened_dict(fields)
    return settings.problems(config)


def test_relations_are_about_fields_that_exist():
    for algorithm in ALGORITHMS:
        for model in MODELS:
            values = {"algorithm.name": algorithm, "model.name": model}
            named = {name for r in relations_for(values) for name in r.fields}
            assert named <= settings.declared(values).keys()


def test_magnitude_pruning_must_prune_before_the_last_round():
    fields = {"algorithm.warmup_rounds": 20, "rounds": 20}
    (problem,) = problems(fields, "magnitude")
    assert problem.startswith("algorithm.warmup_rounds must be below rounds = 20, or ")
    assert not problems(fields | {"rounds": 21}, "magnitude")


def test_relations_of_an_unknown_model_or_algorithm_are_left_out():
    for unknown in ("nope", None, ["scaffold"]):
        values = {"algorithm.name": unknown, "model.name": unknown}
        assert relations_for(values) == relations_for({})


BROKEN = [
    ("privacy", "make_privacy", {"clip_norm": 0.0, "noise_multiplier": 1.0}),
    ("", "make_policy", {"aggregator": "norm_clipping", "on_bad_client": "clip"}),
    ("client", "make_solver", {"lr_min": 0.2}),
    ("client", "make_solver", {"optimizer": "adam", "momentum": 0.9}),
    (
        "algorithm",
        "scaffold",
        {"control_divisor": "m_legacy", "control_weights": "size"},
    ),
    ("algorithm", "prunefl", {"byte_time": 0.0, "mac_time": 0.0}),
    ("algorithm", "autoflip", {"base": "scaffold", "server_store": "sparse"}),
    (
        "algorithm",
        "autoflip",
        {"mask_schedule": "agreement", "threshold_scope": "per_tensor"},
    ),
    ("algorithm", "autoflip", {"structured_rule": "guidance_l1"}),
    ("algorithm", "autoflip", {"threshold_ramp": 5}),
    ("algorithm", "autoflip", {"threshold_start": 0.1}),
]
"""Section, builder, and values that break one of the relations declared beside it."""


BUILDERS = {
    ("client", "make_solver"): make_solver,
    ("", "make_policy"): make_policy,
    ("privacy", "make_privacy"): make_privacy,
}


def call(section, builder, values):
    if section != "algorithm":
        return BUILDERS[section, builder](**values)
    own = toys.linear_task((4, 4, 1), 3), make_solver(), make_server_tx()
    return ALGORITHMS[builder](*own, **values)


@pytest.mark.parametrize(("section", "builder", "values"), BROKEN)
def test_builder_and_settings_refuse_a_relation_in_the_same_words(
    section, builder, values
):
    with pytest.raises(ValueError) as error:
        call(section, builder, values)
    prefix = f"{section}." if section else ""
    fields = {f"{prefix}{name}": value for name, value in values.items()}
    (message,) = problems(fields, builder if section == "algorithm" else "fedavg")
    assert message.startswith(prefix)
    assert message.replace(prefix, "") + "." == str(error.value)


def test_each_declared_relation_is_broken_by_an_example():
    builders = BUILDERS | {("algorithm", n): a.build for n, a in ALGORITHMS.items()}
    declared = {r for builder in builders.values() for r in relations_of(builder)}
    assert declared >= {r for relations in RELATED.values() for r in relations}
    broken = set()
    for section, name, values in BROKEN:
        builder = builders[section, name]
        defaults = {name: f.default for name, f in fields_of(builder).items()}
        found = [r for r in relations_of(builder) if r.unmet(defaults | values)]
        assert len(found) == 1
        broken |= {*found}
    assert broken == declared


def test_an_algorithm_brings_its_relations_with_its_entry(monkeypatch):
    ordered = Relation(
        ("low", "high"),
        lambda low, high: low <= high,
        "{low} must be at most {high} = {1}, got {0}",
    )

    @checked
    @related(ordered)
    def narrow(
        task,
        solver,
        server_tx,
        *,
        low: Annotated[float, at_least(0), "Low."] = 0.1,
        high: Annotated[float, at_least(0), "High."] = 0.2,
    ):
        return fedavg(task, solver, server_tx)

    monkeypatch.setitem(ALGORITHMS, "narrow", Algorithm(narrow))
    assert problems({}, "narrow") == []
    assert problems({"algorithm.low": 0.5}, "narrow") == [
        "algorithm.low must be at most algorithm.high = 0.2, got 0.5"
    ]
    with pytest.raises(ValueError) as error:
        call("algorithm", "narrow", {"low": 0.5})
    assert str(error.value) == "low must be at most high = 0.2, got 0.5."


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
            "by_client for femnist, shakespeare, synthetic, synthetic_images, and for "
            "them and your own data alone, got 'iid' for 'shakespeare'",
        ),
        ({"data.local_val": "matched_test"}, "must be holdout for shakespeare"),
    ],
)
def test_text_needs_a_model_that_reads_text(fields, message):
    found = problems(TEXT | fields, "fedavg")
    assert len(found) == (message is not None)
    assert all(message in sentence for sentence in found)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, None),
        ({"data.num_clients": 2_000_000}, None),
        (
            {"data.num_train": 50},
            "data.num_train must be 0 for synthetic, whose size follows from "
            "data.num_clients and data.client_size, got 50",
        ),
        (
            {"data.size": 24},
            "data.size must be 0 and data.augment none for synthetic, which has no "
            "images, got 24 and 'none'",
        ),
        ({"model.name": "cnn"}, "(image: "),
        ({"data.name": "digits"}, "vector: logistic_regression), got"),
        ({"data.client_size": 1}, "data.client_size must be at least 2, got 1"),
        (
            {"data.local_val": "matched_test"},
            "must be holdout for synthetic, whose clients have their own examples",
        ),
    ],
)
def test_generated_vectors_need_a_model_that_reads_vectors(fields, message):
    config = synthetic.get_config()
    config.update_from_flattened_dict(fields)
    found = settings.problems(config)
    assert found if message else not found
    assert not message or any(message in sentence for sentence in found)


def test_model_and_settings_refuse_a_norm_in_the_same_words():
    with pytest.raises(ValueError) as error:
        MODELS["next_char_lstm"](num_classes=5, norm="bn")
    (message,) = problems(TEXT | {"model.norm": "bn"}, "fedavg")
    assert message.startswith("model.norm must be none ")
    words = message.removeprefix("model.").replace("next_char_lstm", "NextCharLSTM")
    assert str(error.value) == f"{words}."


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("side", [3, 24, 32])
def test_a_model_takes_exactly_the_sizes_that_it_declares(model, side):
    needs = MODELS[model].needs()
    if needs.kind != "image":
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


def test_a_field_that_names_a_base_names_algorithms():
    found = {name: a.base_field for name, a in ALGORITHMS.items() if a.base_field}
    assert found == {"autoflip": "base", "random_pruning": "base"}
    assert MASKED_BASES.keys() <= ALGORITHMS.keys()
    task, adam = toys.linear_task((4, 4, 1), 3), make_solver(optimizer="adam")
    for name in found:
        for base in MASKED_BASES:
            values = {"algorithm.base": base, "client.optimizer": "adam"}
            refused = bool(problems(values, name))
            assert refused == ALGORITHMS[base].needs_step_mass
            if refused:
                with pytest.raises(ValueError, match="divides by the step mass"):
                    ALGORITHMS[name](task, adam, make_server_tx(), base=base)


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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trim_fraction": 0.0}, None),
        ({"aggregator": "trimmed_mean"}, None),
        (
            {"aggregator": "trimmed_mean", "cohort_size": 9},
            "trim_fraction must be at least 1 / cohort_size = 1 / 9 with aggregator "
            "trimmed_mean, got 0.1",
        ),
    ],
)
def test_policies_that_make_no_sense(fields, message):
    assert problems(fields) == ([] if message is None else [message])


PRIVATE = {
    "privacy.clip_norm": 1.0,
    "privacy.noise_multiplier": 1.0,
    "on_bad_client": "drop",
    "model.gated": False,
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, None),
        ({"aggregator": "median"}, "aggregator must be mean with privacy.clip_norm 1"),
        ({"on_bad_client": "abort"}, "on_bad_client must be drop with privacy.clip_"),
        ({"model.gated": True}, "model.gated must be false with privacy.clip_norm 1"),
        ({"model.norm": "bn"}, "model.norm must not be bn with privacy.clip_norm 1"),
    ],
)
def test_what_a_private_run_may_be(fields, message):
    found = problems(PRIVATE | fields, "fedavg")
    assert len(found) == (message is not None)
    assert all(sentence.startswith(message) for sentence in found)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_that_is_not_private_says_why(name):
    found, reason = problems(PRIVATE, name), ALGORITHMS[name].not_private
    assert len(found) == bool(reason)
    assert all(sentence.endswith(reason) for sentence in found)
