"""Every config file states a run that has no mistakes."""

import pytest

from configs import base, feddp, feddp_cpu, quickstart
from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.runs.learning import macs_for
from fedjax_prune.runs.settings import default_config, flatten, problems


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_base_has_no_mistake_for_any_algorithm(name):
    config = base.get_config(name)
    assert config.algorithm.name == name
    assert problems(config) == []


def test_base_is_the_declared_fields_and_feddps_weight_decay():
    config = base.get_config().to_dict()
    assert config["client"].pop("weight_decay") == 5e-4
    declared = default_config()
    assert declared["client"].pop("weight_decay") == 0.0
    assert config == declared


def test_base_refuses_an_unknown_algorithm():
    known = "fedavg, fedprox, fednova, scaffold, autoflip"
    with pytest.raises(ValueError, match=f"one of {known}, .*, got 'fedadam'"):
        base.get_config("fedadam")


@pytest.mark.parametrize(
    ("clients", "cohort_size", "rounds"),
    [("10", 10, 100), ("30", 12, 200), ("50", 35, 200), ("100", 40, 500)],
)
@pytest.mark.parametrize("model", ["vgg11", "resnet32"])
def test_paper_settings(clients, cohort_size, rounds, model):
    for method in feddp.METHODS:
        config = feddp.get_config(f"{method},{model},{clients}")
        assert problems(config) == []
        assert config.data.num_clients == int(clients)
        assert (config.cohort_size, config.rounds) == (cohort_size, rounds)
        assert (config.model.name, config.model.norm) == (model, "bn")
        assert config.model.dropout == {"vgg11": 0.5, "resnet32": 0.0}[model]
        client = config.client
        assert (client.epochs, client.batch_size, client.lr) == (10, 64, 0.1)
        assert (client.lr_schedule, client.weight_decay) == ("cosine_epoch", 5e-4)
        assert (config.data.alpha, config.data.seed) == (0.1, 2020)


@pytest.mark.parametrize(
    ("method", "algorithm", "gated"),
    [
        ("fedavg", "fedavg", False),
        ("scaffold", "scaffold", False),
        ("fedprox_dp", "fedprox", True),
        ("feddp", "scaffold", True),
        ("scaffold_dp", "scaffold", True),
    ],
)
def test_a_method_is_an_algorithm_with_or_without_gates(method, algorithm, gated):
    config = feddp.get_config(f"{method},vgg11,10")
    assert (config.algorithm.name, config.model.gated) == (algorithm, gated)


def test_controls_differ_from_feddp_in_one_thing():
    methods = ("feddp", "feddp_nograd", "scaffold", "scaffold_narrow")
    feddp_fields, nograd, scaffold, narrow = (
        flatten(feddp.get_config(f"{method},vgg11,10")) for method in methods
    )
    assert nograd == feddp_fields | {"model.gate_mode": "hard_nograd"}
    assert narrow == scaffold | {"model.width": 0.5**0.5}


@pytest.mark.parametrize("text", ["", "feddp", "feddp,vgg11,10,1"])
def test_a_bad_config_string_lists_the_choices(text):
    with pytest.raises(ValueError, match=f"got '{text}'") as error:
        feddp.get_config(text)
    for choices in ("fednova_dp, scaffold_dp", "MODEL: vgg11, resnet32", "50, 100"):
        assert choices in str(error.value)


@pytest.mark.parametrize("data", feddp_cpu.WORKS)
def test_small_runs_are_those_of_the_paper_on_another_network(data):
    for clients in feddp_cpu.WORKS[data].rounds:
        for method in feddp.METHODS:
            small = feddp_cpu.get_config(f"{data},{method},{clients}")
            assert problems(small) == []
            paper = feddp.get_config(f"{method},vgg11,{clients}")
            assert small.algorithm == paper.algorithm
            assert small.cohort_size == paper.cohort_size
            assert small.client.lr == (0.03 if data == "cifar10" else paper.client.lr)
            assert (small.model.gated, small.model.gate_mode) == (
                paper.model.gated,
                paper.model.gate_mode,
            )
            assert (small.data.partitioner, small.data.alpha, small.data.seed) == (
                "dirichlet",
                0.1,
                2020,
            )


@pytest.mark.parametrize("data", feddp_cpu.WORKS)
def test_a_narrow_network_has_the_macs_that_gates_keep(data):
    gated, narrow = (
        macs_for(config)
        for config in (
            feddp_cpu.get_config(f"{data},{method},10")
            for method in ("feddp", "scaffold_narrow")
        )
    )
    assert narrow.kept == narrow.dense == pytest.approx(gated.kept, rel=0.015)


def test_a_number_of_clients_that_a_data_set_lacks_is_refused():
    with pytest.raises(ValueError, match="CLIENTS must be one of 10 for digits, got"):
        feddp_cpu.get_config("digits,feddp,30")


def test_quickstart_is_feddp_on_embedded_data():
    config = quickstart.get_config()
    assert problems(config) == []
    assert (config.data.name, config.data.num_clients) == ("digits", 10)
    assert (config.data.partitioner, config.data.alpha) == ("dirichlet", 0.1)
    assert (config.algorithm.name, config.model.gated) == ("scaffold", True)
    assert config.cohort_size == 10


def test_a_bad_part_of_a_config_string_is_named_with_its_choices():
    with pytest.raises(ValueError) as error:
        feddp.get_config("feddp,vgg16,11")
    assert str(error.value) == (
        "MODEL must be one of vgg11, resnet32, got 'vgg16'; "
        "CLIENTS must be one of 10, 30, 50, 100, got '11'"
    )
