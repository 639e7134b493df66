"""The runs of a sweep: which there are, how they are called, what is refused."""

import itertools

import pytest

from fedjax_prune.runs.settings import SettingsError
from launch import grid

CONFIG = "quickstart"


def problems(*args, **kwargs):
    with pytest.raises(SettingsError) as error:
        grid.make_grid(*args, **kwargs)
    return error.value.problems


def test_a_grid_is_the_product_of_settings_and_axes():
    axes = ["seed=0,1", "client.lr=0.1,0.20"]
    runs = grid.make_grid("feddp_cpu", ["mnist,fedavg,10", "mnist,feddp,30"], axes, [])
    assert [run.folder for run in runs] == [
        f"{setting}/client.lr={lr}/seed={seed}"
        for setting in ("mnist,fedavg,10", "mnist,feddp,30")
        for lr in ("0.1", "0.2")
        for seed in (0, 1)
    ]
    assert {run.group for run in runs} == {
        "mnist,fedavg,10/client.lr=0.1",
        "mnist,fedavg,10/client.lr=0.2",
        "mnist,feddp,30/client.lr=0.1",
        "mnist,feddp,30/client.lr=0.2",
    }
    last = runs[-1]
    assert last.path == "feddp_cpu:mnist,feddp,30"
    assert last.overrides == ("--config.client.lr=0.20", "--config.seed=1")
    assert (last.config.client.lr, last.config.seed) == (0.2, 1)
    assert last.config.data.num_clients == 30


def test_values_are_read_by_the_rules_of_their_fields():
    axes = ["lanes=auto,2", "model.gated=1,false", "model.keep_ratio=None,0.5"]
    runs = grid.make_grid(CONFIG, [], axes, ["--config.rounds=3"])
    assert len(runs) == 8
    values = [(r.config.lanes, r.config.model.gated) for r in runs[::2]]
    assert values == [("auto", True), ("auto", False), (2, True), (2, False)]
    assert runs[0].folder == "lanes=auto/model.gated=true/model.keep_ratio=None"
    assert {run.config.rounds for run in runs} == {3}


def test_an_axis_of_algorithms_brings_their_fields():
    axes = ["algorithm.mu=0.1,1", "algorithm.name=fedprox"]
    runs = grid.make_grid(CONFIG, [], axes, [])
    assert [run.config.algorithm.mu for run in runs] == [0.1, 1.0]


def test_semicolons_separate_values_with_commas():
    axes = grid.read_axes(["data.dir=a,b;c", "model.name=x,y;"], found := [])
    assert axes == [
        grid.Axis("data.dir", ("a,b", "c")),
        grid.Axis("model.name", ("x,y",)),
    ]
    assert found == []


def test_folders_stay_inside_and_apart_whatever_the_values():
    values = "../../x;a/b;a%2Fb;" + "l" * 300 + "a;" + "l" * 300 + "b;*[1]"
    runs = grid.make_grid(CONFIG, [], [f"data.dir={values}"], [])
    names = [run.folder for run in runs]
    assert names[:3] == [
        "data.dir=..%2F..%2Fx",
        "data.dir=a%2Fb",
        "data.dir=a%252Fb",
    ]
    assert len(set(names)) == 6 and max(map(len, names)) <= 120
    assert not any(set("/*[]") & set(name) for name in names)
    assert grid.safe_name("..") == "%2E%2E"


def test_every_mistake_in_every_axis_is_reported_at_once():
    axes = [
        "seed=0,-1,x",
        "data.num_client=3",
        "client.lr=0,0.1",
        "cohort_size=2,11",
        "rounds",
        "eval.every=",
        "server.lr=1,,2",
    ]
    found = ["--workdir must name a folder, got ''"]
    told = problems(CONFIG, [], axes, ["--config.rounds=0"], found=found)
    assert told[:4] == [
        "--workdir must name a folder, got ''",
        "--axis must be FIELD=VALUE,VALUE,... got 'rounds'",
        "--axis must be FIELD=VALUE,VALUE,... got 'eval.every='",
        "--axis must be FIELD=VALUE,VALUE,... got 'server.lr=1,,2'",
    ]
    assert sorted(told[4:]) == [
        "client.lr must be above 0, got 0.0",
        "cohort_size must be at most data.num_clients = 10, got 11",
        "data.num_client is not a field; did you mean data.num_clients?",
        "rounds must be at least 1, got 0",
        "seed must be a whole number, got 'x'",
        "seed must be in [0, 2^32), got -1",
    ]


def test_a_mistake_of_some_settings_names_one_of_them():
    axes = ["algorithm.name=scaffold,fedavg", "algorithm.control_weights=size,x"]
    told = problems(CONFIG, [], axes, ["--config.rounds=0"])
    size, x = sorted(m for m in told if "algorithm.control_weights" in m)
    assert size.startswith("algorithm.control_weights is not a field")
    assert size.endswith("(with algorithm.name=fedavg)")
    assert x.endswith("got 'x' (with algorithm.name=scaffold)")
    assert "rounds must be at least 1, got 0" in told


def test_values_and_fields_are_given_once():
    told = problems(CONFIG, [], ["client.lr=0.1,0.10", "seed=0", "seed=1"], [])
    assert "--axis must name each field once, got seed 2 times" in told
    told = problems(CONFIG, [], ["client.lr=0.1,0.10"], [])
    assert told == ["values and settings must differ, got client.lr=0.1 2 times"]
    told = problems(CONFIG, [], ["model.gated=true"], ["--noconfig.model.gated"])
    assert told == ["model.gated is set by --axis and by --config.model.gated"]


def test_a_grid_has_a_largest_size():
    numbers = ",".join(map(str, range(101)))
    axes = [f"seed={numbers}", f"data.seed={numbers}"]
    told = problems(CONFIG, [], axes, ["--config.rounds=0"])
    assert told == [
        "the grid must have at most 10,000 runs, got 10,201",
        "rounds must be at least 1, got 0",
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12])
def test_shards_are_disjoint_and_cover_all(n):
    runs = list(range(7))
    shards = [
        grid.of_shard(runs, grid.read_shard(f"{i + 1}/{n}", [])) for i in range(n)
    ]
    assert sorted(itertools.chain(*shards)) == runs
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize(
    "text", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", "1/3/3", "½/1"]
)
def test_shards_are_counted_from_1(text):
    grid.read_shard(text, found := [])
    assert found == [f"--shard must be i/n with i in [1, n], got {text!r}"]


def test_no_shard_is_all():
    assert grid.of_shard([1, 2], grid.read_shard("", [])) == [1, 2]
