"""Mistakes in a configuration, and in the command line that makes one."""

import math

import pytest

from configs import base
from fedjax_prune.data.load import DATASETS
from fedjax_prune.settings import RELATIONS, RULES, SettingsError, check, flatten
from fedjax_prune.settings import problems as problems_of
from launch.flags import load_config, parse


def changed(fields, algorithm="scaffold"):
    config = base.get_config(algorithm).unlock()
    for name, value in fields.items():
        section, _, field = name.rpartition(".")
        target = config[section] if section else config
        with target.ignore_type():
            target[field] = value
    return config


def problems(fields, algorithm="scaffold"):
    return problems_of(changed(fields, algorithm), base.get_config(algorithm))


def test_rules_and_relations_are_about_fields_that_exist():
    fields = set()
    for algorithm in base.ALGORITHM_FIELDS:
        fields |= flatten(base.get_config(algorithm)).keys()
    assert RULES.keys() <= fields
    assert {name for relation in RELATIONS for name in relation.fields} <= fields


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("client.batch_size", 0, "client.batch_size must be at least 1, got 0"),
        ("rounds", 0, "rounds must be at least 1, got 0"),
        ("client.lr", math.nan, "client.lr must be above 0, got nan"),
        ("client.lr", math.inf, "client.lr must be above 0, got inf"),
        ("client.momentum", 1.0, "client.momentum must be in [0, 1), got 1.0"),
        ("model.flops_target", 0.0, "model.flops_target must be in (0, 1], got 0.0"),
        (
            "model.keep_ratio",
            1.5,
            "model.keep_ratio must be in (0, 1], or None to follow "
            "model.flops_target, got 1.5",
        ),
        ("model.norm", "ln", "model.norm must be one of none, bn, gn, got 'ln'"),
        ("rounds", 2.5, "rounds must be a whole number, got 2.5"),
        ("rounds", True, "rounds must be a whole number, got True"),
        ("model.gated", 1, "model.gated must be true or false, got 1"),
        ("client.lr", "fast", "client.lr must be a number, got 'fast'"),
        ("data.name", None, "data.name must be a string, got None"),
        (
            "cohort_size",
            11,
            "cohort_size must be at most data.num_clients = 10, got 11",
        ),
        (
            "client.lr_min",
            0.2,
            "client.lr_min must be at most client.lr = 0.1, got 0.2",
        ),
        (
            "client.batchsize",
            3,
            "client.batchsize is not a field; did you mean client.batch_size?",
        ),
        ("alpha", 0.5, "alpha is not a field; did you mean data.alpha?"),
    ],
)
def test_one_mistake_gives_one_sentence(name, value, message):
    assert problems({name: value}) == [message]


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("data.name", DATASETS),
        ("data.partitioner", ("iid", "dirichlet", "quantity", "shards")),
        ("model.name", ("vgg11", "resnet32", "cnn")),
        ("algorithm.name", base.ALGORITHM_FIELDS),
    ],
)
def test_an_unknown_name_lists_the_known_ones(name, known):
    (message,) = problems({name: "nope"})
    assert message.startswith(f"{name} must be one of ") and "got 'nope'" in message
    assert all(choice in message for choice in known)


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


def test_adam_suits_the_algorithms_without_step_mass():
    assert problems({"client.optimizer": "adam"}, "fedprox") == []


def test_a_missing_field_is_named_with_its_default():
    config = base.get_config().unlock()
    del config.data["alpha"]
    assert problems_of(config, base.get_config()) == [
        "data.alpha is missing; its default is 0.1"
    ]


def test_check_raises_all_mistakes_in_one_list():
    config = changed({"client.batch_size": 0, "cohort_size": 0, "model.norm": "ln"})
    with pytest.raises(SettingsError) as error:
        check(config, base.get_config())
    assert str(error.value).splitlines() == [
        "client.batch_size must be at least 1, got 0",
        "cohort_size must be at least 1, got 0",
        "model.norm must be one of none, bn, gn, got 'ln'",
    ]
    check(base.get_config(), base.get_config())


def test_overrides_are_applied_in_all_spellings():
    arguments = parse(
        [
            "prog",
            "--config.rounds=3",
            "-config.client.lr",
            "1",
            "--config.model.gated",
            "--noconfig.model.gate_first",
            "--config.model.keep_ratio=0.5",
        ]
    )
    config = load_config("configs/base.py", arguments[1:])
    assert (config.rounds, config.client.lr, config.model.gated) == (3, 1.0, True)
    assert (config.model.gate_first, config.model.keep_ratio) == (False, 0.5)


def test_an_algorithm_override_brings_its_fields():
    arguments = ["--config.algorithm.mu=0.1", "--config.algorithm.name=fedprox"]
    config = load_config("configs/feddp.py:feddp,vgg11,30", arguments)
    assert config.algorithm.to_dict() == {"name": "fedprox", "mu": 0.1}
    assert config.data.num_clients == 30


def test_all_mistakes_of_a_command_line_are_told_at_once():
    arguments = parse(
        [
            "prog",
            "--wrkdir=x",
            "--cohort_size=3",
            "--config.round=3",
            "--config.client.lr=fast",
            "--config.client.batch_size=0",
            "--config.data.name=cifar",
            "more",
        ]
    )
    with pytest.raises(SettingsError) as error:
        load_config("configs/feddp.py", arguments[1:], ["first"])
    assert [p.partition(" one of")[0] for p in error.value.problems] == [
        "first",
        "--wrkdir is not an argument; did you mean --workdir?",
        "--cohort_size is not an argument; did you mean --config.cohort_size?",
        "more is not an argument",
        "round is not a field; did you mean rounds?",
        "client.lr must be a number, got 'fast'",
        "client.batch_size must be at least 1, got 0",
        "data.name must be",
    ]
