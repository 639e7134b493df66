"""Mistakes in a configuration, and in the command line that makes one."""

import math

import pytest

from configs import base
from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.data.datasets import DATASETS
from fedjax_prune.runs.settings import (
    SettingsError,
    check,
    declared,
    default_config,
    describe,
    flatten,
)
from fedjax_prune.runs.settings import problems as problems_of
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
    return problems_of(changed(fields, algorithm))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_default_is_allowed(algorithm):
    config = default_config(algorithm)
    assert problems_of(config) == []
    for name, field in declared(flatten(config)).items():
        assert field.unmet(field.default) == "", name
        assert field.text and field.words.endswith("."), name


def test_fields_are_described_in_order_with_the_values_of_the_configuration():
    described = describe(base.get_config("fedprox"))
    names = [field.name for field in described]
    assert names == list(flatten(default_config("fedprox")))
    by_name = {field.name: tuple(field[1:]) for field in described}
    assert by_name["seed"][:2] == (0, "in [0, 2^32)")
    assert by_name["model.gated"][:2] == (True, "true or false")
    assert by_name["data.dir"][:2] == ("", "a string")
    assert by_name["client.lr"] == (0.1, "above 0", "First step size of every round.")
    assert by_name["client.weight_decay"][0] == 5e-4
    assert by_name["algorithm.mu"] == (
        0.01,
        "at least 0",
        "Weight of the proximal term; 0 is FedAvg.",
    )
    assert by_name["data.name"][1] == f"one of {', '.join(DATASETS)}"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("client.batch_size", 0, "client.batch_size must be at least 1, got 0"),
        ("rounds", 0, "rounds must be at least 1, got 0"),
        ("client.lr", math.nan, "client.lr must be finite and above 0, got nan"),
        ("client.lr", math.inf, "client.lr must be finite and above 0, got inf"),
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
            "rounds",
            2**31,
            "rounds must be at least 1 and below 2^31, got 2147483648",
        ),
        (
            "client.epochs",
            99999999999999999999,
            "client.epochs must be at least 1 and below 2^31, got 99999999999999999999",
        ),
        ("seed", 2**32, "seed must be in [0, 2^32), got 4294967296"),
        (
            "lanes",
            2**31,
            "lanes must be a whole number, at least 1 and below 2^31, or auto, got "
            "2147483648",
        ),
        (
            "client.lr",
            1e39,
            "client.lr must be above 0 and below 2^128, got 1e+39",
        ),
        (
            "model.keep_ratio",
            "half",
            "model.keep_ratio must be in (0, 1], or None to follow "
            "model.flops_target, got 'half'",
        ),
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
        (
            "algorithm.mu",
            1.0,
            "algorithm.mu is not a field of this algorithm, but of fedprox, autoflip, "
            "random_pruning",
        ),
        ("alpha", 0.5, "alpha is not a field; did you mean data.alpha?"),
        (
            "server.learning_rate",
            1,
            "server.learning_rate is not a field; did you mean server.lr?",
        ),
        ("num_rounds", 3, "num_rounds is not a field; did you mean rounds?"),
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
        ("algorithm.name", ALGORITHMS),
    ],
)
def test_an_unknown_name_lists_the_known_ones(name, known):
    (message,) = problems({name: "nope"})
    assert message.startswith(f"{name} must be one of ") and "got 'nope'" in message
    assert all(choice in message for choice in known)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "None"),
        ((1, 2), "(1, 2)"),
        ("fc1/*", "'fc1/*'"),
    ],
)
def test_patterns_are_a_list_of_strings(value, told):
    (message,) = problems({"algorithm.exempt_layers": value}, "autoflip")
    assert message == f"algorithm.exempt_layers must be a list of strings, got {told}"
    assert problems({"algorithm.exempt_layers": ["fc1/*"]}, "autoflip") == []


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 - 1])
def test_seeds_have_all_bits(seed):
    assert problems({"seed": seed, "model.keep_ratio": None}) == []


def test_random_pruning_has_one_mask():
    (message,) = problems({"algorithm.mask_schedule": "participants"}, "random_pruning")
    assert message == "algorithm.mask_schedule must be one of fixed, got 'participants'"


def test_a_missing_field_is_named_with_its_default():
    config = base.get_config().unlock()
    del config.data["alpha"]
    assert problems_of(config) == ["data.alpha is missing; its default is 0.1"]


def test_check_raises_all_mistakes_in_one_list():
    config = changed({"client.batch_size": 0, "cohort_size": 0, "model.norm": "ln"})
    with pytest.raises(SettingsError) as error:
        check(config)
    assert str(error.value).splitlines() == [
        "client.batch_size must be at least 1, got 0",
        "cohort_size must be at least 1, got 0",
        "model.norm must be one of none, bn, gn, got 'ln'",
    ]
    check(base.get_config())


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


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("model.keep_ratio=None", "model.keep_ratio", None),
        ("model.keep_ratio=0.5", "model.keep_ratio", 0.5),
        ("lanes=4", "lanes", 4),
        ("lanes=auto", "lanes", "auto"),
        ("seed=4294967295", "seed", 2**32 - 1),
        ("data.dir=", "data.dir", ""),
        ("data.dir=3", "data.dir", "3"),
        ("model.gated=False", "model.gated", False),
        ("algorithm.exempt_layers=fc1/*", "algorithm.exempt_layers", ("fc1/*",)),
        ("algorithm.exempt_layers=a/*,b/*", "algorithm.exempt_layers", ("a/*", "b/*")),
        ("algorithm.exempt_layers=('a/*',)", "algorithm.exempt_layers", ("a/*",)),
        ("algorithm.exempt_layers=['a/*']", "algorithm.exempt_layers", ("a/*",)),
        ("algorithm.exempt_layers=", "algorithm.exempt_layers", ()),
    ],
)
def test_overrides_are_read_by_the_type_of_their_field(override, field, value):
    config = load_config("configs/base.py:autoflip", [f"--config.{override}"])
    found = flatten(config)[field]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("client.lr=fast", "client.lr must be a number, got 'fast'"),
        ("client.lr=nan", "client.lr must be finite and above 0, got nan"),
        ("rounds=2.5", "rounds must be a whole number, got '2.5'"),
        ("model.gated=maybe", "model.gated must be true or false, got 'maybe'"),
        (
            "algorithm.explore_epochs=99999999999999999999",
            "algorithm.explore_epochs must be at least 1 and below 2^31, got "
            "99999999999999999999",
        ),
        (
            "algorithm.exempt_layers=None",
            "algorithm.exempt_layers must be a list of strings, got None",
        ),
        (
            "algorithm.exempt_layers=(1,2)",
            "algorithm.exempt_layers must be a list of strings, got (1, 2)",
        ),
        (
            "lanes=many",
            "lanes must be a whole number, at least 1 and below 2^31, or auto, got "
            "'many'",
        ),
    ],
)
def test_overrides_that_are_not_of_their_field(override, message):
    with pytest.raises(SettingsError) as error:
        load_config("configs/base.py:autoflip", [f"--config.{override}"])
    assert error.value.problems == [message]


def test_a_field_of_any_algorithm_may_be_a_switch():
    arguments = parse(["prog", "--config.algorithm.prune_biases", "--config.rounds=3"])
    config = load_config("configs/base.py:autoflip", arguments[1:])
    assert (config.algorithm.prune_biases, config.rounds) == (True, 3)


def test_an_algorithm_override_brings_its_fields():
    arguments = ["--config.algorithm.mu=0.1", "--config.algorithm.name=fedprox"]
    config = load_config("configs/feddp.py:feddp,vgg11,30", arguments)
    assert config.algorithm.to_dict() == {"name": "fedprox", "mu": 0.1}
    assert config.data.num_clients == 30


def test_all_mistakes_of_a_command_line_are_reported_at_once():
    arguments = parse(
        [
            "prog",
            "--wrkdir=x",
            "--cohort_size=3",
            "--lr=0.05",
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
        "--lr is not an argument; did you mean --config.client.lr?",
        "more is not an argument",
        "round is not a field; did you mean rounds?",
        "client.lr must be a number, got 'fast'",
        "client.batch_size must be at least 1, got 0",
        "data.name must be",
    ]
