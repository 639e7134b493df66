"""Pictures of the accuracy against a property of the runs."""

import numpy as np
import pytest

from fedjax_prune.runs.page import computing, population
from fedjax_prune.runs.page.against import spread
from tests.made_up_runs import config_of, lines_of


def test_accuracy_is_drawn_against_multiplications_where_networks_differ(tmp_path):
    gated = [
        config_of(rounds=20, **{"model.flops_target": share, "eval.every": 1})
        for share in (0.25, 0.5)
    ]
    plain = config_of(rounds=20, **{"model.gated": False, "eval.every": 1})
    masked = config_of("magnitude", rounds=20, **{"model.gated": False})
    lines = lines_of(tmp_path, *gated, plain)
    assert computing.computing(lines[:2]) is None
    pruned = {"sparsity/all": lambda n: 0.3}
    others = lines_of(tmp_path / "masked", masked, **pruned)
    panel = computing.computing([*lines, *others])
    assert panel is not None
    kinds = [(value["kind"], value["line"]) for value in panel.values]
    assert kinds == [
        ("gates, hard_ste", lines[0].name),
        ("gates, hard_ste", lines[1].name),
        ("no gates", lines[2].name),
    ]
    quarter, half, whole = (value["macs"] for value in panel.values)
    assert abs(quarter / whole - 0.25) < 0.02 and abs(half / whole - 0.5) < 0.02
    last = [row["eval/client_gated/mean"] for row in lines[0].runs[0].rows[16:]]
    assert panel.values[0]["mean"] == pytest.approx(100 * np.mean(last))
    assert panel.spec()["datasets"]["computing"].count("\n") == 4


def test_seeds_that_end_apart_are_compared_at_the_end_of_the_shortest(tmp_path):
    configs = [config_of(seed=seed, **{"eval.every": 1}) for seed in (0, 1)]
    (line,) = lines_of(tmp_path, *configs)
    del line.runs[0].rows[10:]
    found = spread(line)
    assert found is not None
    first, second = (
        100 * np.mean([row["eval/headline"] for row in run.rows[8:10]])
        for run in line.runs
    )
    assert [found["low"], found["high"]] == pytest.approx(sorted((first, second)))
    assert found["mean"] == pytest.approx((first + second) / 2)


def test_accuracy_is_drawn_against_the_number_of_clients(tmp_path):
    """Cohorts may grow with the clients; two sizes at 20 clients are two lines."""
    few, many = ({"data.num_clients": n, "eval.every": 1} for n in (20, 50))
    plain = [
        config_of("fedavg", **few),
        config_of("fedavg", cohort_size=20, **many),
        config_of("scaffold", **few),
    ]
    lines = lines_of(tmp_path, *plain)
    assert population.population(lines[::2]) is None
    panel = population.population(lines)
    assert panel is not None
    values = [(value["kind"], value["clients"]) for value in panel.values]
    assert values == [("fedavg", 20), ("scaffold", 20), ("fedavg", 50)]
    last = [row["eval/headline"] for row in lines[0].runs[0].rows[16:]]
    assert panel.values[0]["mean"] == pytest.approx(100 * np.mean(last))
    assert panel.spec()["datasets"]["population"].count("\n") == 4

    apart = lines_of(tmp_path / "apart", *plain[:2], config_of("fedavg", cohort_size=5))
    panel = population.population(apart)
    assert panel is not None
    assert [value["clients"] for value in panel.values] == [20, 20, 50]
    assert len({value["kind"] for value in panel.values}) == 3

    names = ("FedAvg, narrow, 20 clients", "FedAvg, narrow, 50 clients", "SCAFFOLD")
    given = [
        line._replace(name=name, is_given=True)
        for line, name in zip(lines, names, strict=True)
    ]
    panel = population.population(given)
    assert panel is not None
    values = [(value["kind"], value["line"]) for value in panel.values]
    assert values == [
        ("FedAvg, narrow", names[0]),
        ("SCAFFOLD", names[2]),
        ("FedAvg, narrow", names[1]),
    ]

    (one, other) = lines_of(tmp_path / "one", *plain[:2])
    panel = population.population([one, other])
    assert panel is not None and {v["kind"] for v in panel.values} == {
        "fedavg with gates"
    }
