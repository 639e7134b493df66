"""Which runs of a page are one line, how lines are named, and what they are made of."""

import json

import numpy as np
import pytest

from fedjax_prune.runs.files import WorkdirError
from fedjax_prune.runs.page import (
    bands,
    clients,
    facts,
    masks,
    partition,
    speed,
    target,
    troubled,
)
from fedjax_prune.runs.page.panel import as_csv, thinned
from fedjax_prune.runs.page.read import as_lines, differences, read_runs
from fedjax_prune.runs.workdir import runs_below
from tests.made_up_runs import config_of, lines_of, write_run


def test_seeds_are_one_line_and_configurations_are_named_by_what_differs(tmp_path):
    lines = lines_of(
        tmp_path,
        config_of("fedavg", seed=1, **{"client.lr": 0.1}),
        config_of("fedavg", seed=0, devices=1, save_every=3, **{"client.lr": 0.1}),
        config_of("fedavg", **{"client.lr": 0.03}),
        config_of("fedprox", **{"client.lr": 0.03}),
    )
    assert [line.name for line in lines] == [
        "fedavg, client.lr=0.1",
        "fedavg, client.lr=0.03",
        "fedprox, client.lr=0.03",
    ]
    assert [run.config["seed"] for run in lines[0].runs] == [0, 1]
    found = differences([line.runs[0].config for line in lines])
    assert found["algorithm.name"] == ["fedavg", "fedavg", "fedprox"]
    assert found["client.lr"] == [0.1, 0.03, 0.03]
    assert found["algorithm.mu"][:2] == ["-", "-"] and "save_every" not in found


@pytest.mark.parametrize("name", ["arrays", "image_folder", "femnist", "shakespeare"])
def test_folders_that_are_the_data_set_are_lines_of_their_own(tmp_path, name):
    a, b = (
        config_of(rounds=1, seed=seed, **{"data.name": name, "data.dir": folder})
        for seed, folder in enumerate(("/data/hospital_a", "/data/hospital_b"))
    )
    lines = lines_of(tmp_path, a, b)
    assert [line.name for line in lines] == [
        "data.dir=/data/hospital_a",
        "data.dir=/data/hospital_b",
    ]
    table = facts.configurations(lines)
    assert table is not None and "data.dir" not in table.words
    assert table.rows == [("data.dir", "/data/hospital_a", "/data/hospital_b")]


@pytest.mark.parametrize("name", ["cifar10", "digits", "synthetic"])
def test_folders_that_hold_a_copy_of_a_set_are_not_compared(tmp_path, name):
    a, b = (
        config_of(rounds=1, seed=seed, **{"data.name": name, "data.dir": folder})
        for seed, folder in enumerate(("/copy_a", "/copy_b"))
    )
    (line,) = lines_of(tmp_path, a, b)
    assert len(line.runs) == 2


def test_seeds_that_are_not_equally_far_are_compared_where_all_have_been(tmp_path):
    """By hand: accuracies 0.5 and 0.7 at round 5 have the mean 0.6 +- 12.706 * 0.1."""
    config = {"eval.every": 5}
    lines = lines_of(
        tmp_path,
        config_of(rounds=20, seed=0, **config),
        config_of(rounds=20, seed=1, **config),
    )
    (line,) = lines
    del line.runs[1].rows[7:]
    line.runs[0].rows[4]["eval/headline"] = 0.5
    line.runs[1].rows[4]["eval/headline"] = 0.7
    for run in line.runs:
        for row in run.rows:
            row["seconds"] = 2.0
    (row,) = facts.results(lines).rows
    found = dict(zip(facts.results(lines).columns, row, strict=True))
    assert (found["rounds"], found["test accuracy"]) == ("7-20", "60.0% ± 127.1%")
    # 3 MB and 2 TFLOP a round.
    spent = [found[name] for name in ("MB sent", "TFLOP", "seconds")]
    assert spent == ["21.0", "14", "14"]
    for row in line.runs[1].rows:
        row.pop("eval/headline", None)
    assert facts.results(lines).rows[0][3] == ""


def test_a_row_that_is_lost_is_not_counted(tmp_path):
    """Round 7 of one seed; the other ended there."""
    configs = [config_of(rounds=20, seed=seed) for seed in (0, 1)]
    (line,) = lines_of(tmp_path, *configs)
    del line.runs[1].rows[7:], line.runs[0].rows[6]
    (row,) = facts.results([line]).rows
    found = dict(zip(facts.results([line]).columns, row, strict=True))
    assert found["MB sent"] == "19.5"  # of 6 and 7 rounds of 3 MB


def test_a_whole_number_is_equal_to_its_float(tmp_path):
    configs = [config_of(seed=seed, **{"data.alpha": 1.0}) for seed in (0, 1)]
    (line,) = lines_of(tmp_path, *configs)
    line.runs[1].config["data.alpha"] = 1
    assert len(as_lines(line.runs)) == 1


def test_churn_is_that_of_arrays_that_masks_prune(tmp_path):
    """By hand: (10 % + 30 %) / 2; a bias and a norm are not pruned, so not counted."""
    (line,) = lines_of(tmp_path, config_of(rounds=5))
    run = line.runs[0]
    run.records[0] = run.records[0]._replace(
        churn={
            "conv1/kernel": np.float32(0.1),
            "conv1/bias": np.float32(0),
            "embed/embedding": np.float32(0.3),
            "norm/scale": np.float32(0),
        }
    )
    panel = masks.churn([line])
    assert panel is not None
    (value,) = panel.values
    assert value["churn"] == pytest.approx(20) and "resumed" not in panel.words


def test_churn_of_a_resumed_run_says_with_which_round_it_compares(tmp_path):
    (line,) = lines_of(tmp_path, config_of(rounds=15))
    run = line.runs[0]
    run.records[1] = run.records[1]._replace(churn_since=7)
    panel = masks.churn([line])
    assert panel is not None and [v["since"] for v in panel.values] == [0, 7, 10]
    assert "where it went on: round 10 with round 7." in panel.words


def test_two_runs_of_a_seed_are_not_two_seeds(tmp_path):
    with pytest.raises(WorkdirError, match=r"0 and \S+1 are runs of one .* seed"):
        lines_of(tmp_path, config_of(rounds=2), config_of(rounds=2, save_every=1))


def test_fields_that_tell_nothing_more_are_not_in_a_name(tmp_path):
    """All fields of an algorithm differ from those of another one."""
    configs = config_of("fedavg"), config_of("autoflip")
    lines = lines_of(tmp_path, *configs)
    assert [line.name for line in lines] == ["fedavg", "autoflip"]
    (alone,) = lines_of(tmp_path / "alone", config_of(**{"model.gated": True}))
    assert alone.name == "scaffold with gates"


def test_a_run_of_an_earlier_version_has_the_fields_gained_since(tmp_path):
    write_run(tmp_path / "new", config_of())
    write_run(tmp_path / "old", config_of(seed=1))
    file = tmp_path / "old" / "config.json"
    config = json.loads(file.read_text())
    del config["report"], config["logger"], config["aggregator"]
    file.write_text(json.dumps(config))
    (line,) = as_lines(read_runs([tmp_path / "new", tmp_path / "old"]))
    assert len(line.runs) == 2


def test_workdirs_that_cannot_be_drawn_are_all_named(tmp_path):
    write_run(tmp_path / "empty", config_of(rounds=1))
    (tmp_path / "empty" / "metrics.jsonl").write_text("")
    with pytest.raises(WorkdirError) as error:
        read_runs([tmp_path / "empty", tmp_path / "none"])
    empty, none = str(error.value).splitlines()
    assert empty == f"{tmp_path / 'empty'} has no finished round."
    assert none.endswith("no run was started here.")


def test_a_folder_stands_for_the_runs_below_it(tmp_path):
    for name in ("b/seed=1", "a"):
        write_run(tmp_path / name, config_of(rounds=1))
    assert runs_below(tmp_path / "a") == [tmp_path / "a"]
    assert runs_below(tmp_path) == [tmp_path / "a", tmp_path / "b" / "seed=1"]
    assert runs_below(tmp_path / "nothing") == []


def test_the_partition_is_drawn_with_the_names_of_the_classes(tmp_path):
    """The same numbers of examples of other classes are another partition."""
    names = ("digits", "fashion_mnist")
    lines = lines_of(
        tmp_path, *(config_of(rounds=5, **{"data.name": name}) for name in names)
    )
    for line in lines:
        counts = np.zeros((2, 10), np.int32)
        counts[[0, 1, 1], [9, 2, 9]] = 4, 5, 6
        line.runs[0] = line.runs[0]._replace(partition=counts)
    panel = partition.partition(lines)
    assert panel is not None
    found = [(v["of"], v["class"], v["client"], v["examples"]) for v in panel.values]
    assert found == [
        ("digits", "2", 1, 5),
        ("digits", "9", 0, 4),
        ("digits", "9", 1, 6),
        ("fashion_mnist", "Pullover", 1, 5),
        ("fashion_mnist", "Ankle boot", 0, 4),
        ("fashion_mnist", "Ankle boot", 1, 6),
    ]


def test_points_are_the_mean_and_the_range_of_seeds(tmp_path):
    """By hand: MB and TFLOP of the made-up rows are 3 and 2 a round, once 1."""
    configs = [config_of(seed=seed, rounds=3) for seed in (0, 1)]
    lines = lines_of(tmp_path, *configs, **{"x": lambda n: 2.0 * n})
    run = lines[0].runs[1]
    for row in run.rows:
        row["x"] *= 3
        row["flops/kept"] = 1e12 if row["round"] == 3 else 2e12
    run.rows[2]["x"] = float("nan")
    found = bands.with_costs(lines[0], bands.points(lines[0], bands.field("x", 10)))
    assert [(p["round"], p["mean"], p["low"], p["high"]) for p in found] == [
        (1, 40, 20, 60),
        (2, 80, 40, 120),
        (3, 60, None, None),
    ]
    assert [(p["sent"], p["computed"]) for p in found] == [(3, 2), (6, 4), (9, 5.5)]


def test_lines_whose_seeds_end_apart_are_named(tmp_path):
    seeds = [config_of(seed=seed, rounds=5) for seed in (0, 1)]
    lines = lines_of(tmp_path, *seeds, config_of("fedavg", rounds=5))
    assert "Not all" not in bands.banded(lines)
    del lines[0].runs[1].rows[3:]
    assert bands.banded(lines).endswith("Not all seeds go to the end of scaffold. ")


def test_the_preparation_is_spent_before_the_first_round(tmp_path):
    (line,) = lines_of(tmp_path, config_of(rounds=2))
    run = line.runs[0]
    before = {"round": 0, "bytes/down": 5e6, "bytes/up": 0, "flops/dense": 7e12}
    run.rows.insert(0, before)
    assert bands.spent(run)[1] == (8, 9)
    run.rows[1]["flops/realisable"] = 1e12
    assert bands.spent(run)[1] == (8, 8)


def test_bars_show_what_the_target_costs_and_who_misses_it(tmp_path):
    """By hand: with `best` 1 the made-up accuracy 1 - exp(-n / 6) is 0.57 at 5."""
    good, bad = config_of("fedavg"), config_of("fedprox")
    folders = [
        write_run(tmp_path / "good", good, best=1.0),
        write_run(tmp_path / "bad", bad, best=0.4),
    ]
    lines = as_lines(read_runs(folders))
    panel = target.target(lines, 0.5)
    assert panel is not None
    values = {(v["line"], v["cost"]): v["value"] for v in panel.values}
    assert values == {
        ("fedavg", "rounds"): 5,
        ("fedavg", "MB sent, both directions"): 15,
        ("fedavg", "TFLOP of kept channels"): 10,
    }
    assert "fedprox: 0 of 1 runs reach it." in panel.words
    panel = target.target(lines, 0.505)
    assert panel is not None and panel.title == "What an accuracy of 50.5% costs"
    # Nobody reaches 99 %, so the accuracy that both reach is taken.
    panel = target.target(lines, 0.99)
    assert panel is not None and "No run reaches 99%." in panel.words
    assert {v["line"] for v in panel.values} == {"fedavg", "fedprox"}


def test_the_worst_clients_are_named_with_their_data(tmp_path):
    config = config_of(rounds=5, **{"data.name": "cifar10"})
    (line,) = lines_of(tmp_path, config)
    run = line.runs[0]
    own = run.records[-1].accuracies["client_local"]
    own[:] = 1
    own[[7, 3]] = 0.25, 0.125
    run.partition[3] = [0, 0, 4, 0, 0, 9, 0, 0, 0, 0]
    first, second, *_ = clients.worst([line])
    assert (first.client, first.own, first.examples) == (3, 0.125, 13)
    assert first.classes == "dog: 9, bird: 4" and second.client == 7
    table = facts.worst_clients([line])
    assert table is not None and table.rows[0][1:3] == (3, "12.5%")


def test_clients_that_diverged_are_counted_with_their_last_finite_loss(tmp_path):
    def dropped(n):
        return "4 11" if n % 2 else "4"

    (line,) = lines_of(tmp_path, config_of(rounds=10), **{"clients/dropped": dropped})
    run = line.runs[0]
    for record, loss in zip(run.records, (2.5, float("nan")), strict=True):
        record.clients[:] = range(4, 12)
        record.loss[0] = loss
    found = troubled.troubled([line])
    assert [(x.client, x.words) for x in found] == [
        (4, "loss, update or gates not finite in 10 rounds"),
        (11, "loss, update or gates not finite in 5 rounds"),
    ]
    assert found[0].last == 2.5
    panel = troubled.losses([line])
    assert panel is not None
    of_client = [v for v in panel.values if v["of"] == "client 4"]
    assert [(v["round"], v["loss"]) for v in of_client] == [(5, 2.5), (10, None)]
    assert [v["row"] for v in of_client] == [None, 0]
    medians = [v for v in panel.values if v["of"] == "median client"]
    assert all(np.isfinite(v["loss"]) for v in medians)
    assert troubled.losses(lines_of(tmp_path / "calm", config_of(rounds=5))) is None


def test_a_round_without_a_step_has_no_loss(tmp_path):
    fields = {"clients/absent": lambda n: "4" if n == 5 else ""}
    (line,) = lines_of(tmp_path, config_of(rounds=10), **fields)
    for record in line.runs[0].records:
        record.clients[:], record.loss[:] = range(4, 12), 2.0
    first = line.runs[0].records[0]
    first.loss[0] = first.examples[0] = 0
    (found,) = troubled.troubled([line])
    assert (found.words, found.last) == ("did not report in 1 round", 2.0)
    panel = troubled.losses([line])
    assert panel is not None
    assert {(v["of"], v["round"], v["loss"]) for v in panel.values} == {
        ("client 4", 10, 2.0),
        ("median client", 5, 2.0),
        ("median client", 10, 2.0),
    }


def test_one_round_is_not_called_rounds(tmp_path):
    fields = {"clients/hostile": lambda n: "3" if n == 2 else ""}
    (line,) = lines_of(tmp_path, config_of(rounds=5), **fields)
    assert [x.words for x in troubled.troubled([line])] == ["attacked in 1 round"]


def test_the_time_of_a_run_is_split_without_rest(tmp_path):
    (line,) = lines_of(
        tmp_path, config_of(rounds=5), seconds=lambda n: 4.0, **{"eval/x": lambda n: 1}
    )
    rows = line.runs[0].rows
    rows[3]["seconds/save"] = 1.5
    assert speed.split(line.runs[0]) == {
        "compile": 11,
        "evaluate": 0.5,
        "save": 1.5,
        "train": 18,
    }


def test_numbers_that_are_not_finite_are_empty_in_the_data():
    values = [{"a": 1.23456789, "b": float("nan")}, {"a": 12, "b": None}]
    assert as_csv(values) == "a,b\n1.2346,\n12,\n"
    assert thinned(list(range(100)), 10)[-1] == 99
