"""How fast runs were, from their rows of metrics."""

import math

import numpy as np

from fedjax_prune.runs.metrics_log import read_metrics
from launch.reproduce.pace import pace, seconds_of_a_round
from tests.made_up_runs import config_of, write_run


def test_the_pace_is_that_of_rounds_without_an_evaluation(tmp_path):
    config = config_of(rounds=8, **{"eval.every": 4})
    fields = {
        "seconds": lambda n: 0.5 if n % 4 else 9.0,
        "flops/dense": lambda n: 2e12,
        "seconds/compile": lambda n: 7.0 if n == 1 else 0.0,
    }
    run = write_run(tmp_path / "run", config, records=False, **fields)
    *_, line = pace({"FedDP": [run]}, {"FedDP": "83.5%"}, 4).splitlines()
    row = read_metrics(run)[3]
    accuracies = (row["eval/client_gated/mean"], row["eval/client_local/mean"])
    shown = " | ".join(f"{accuracy:.1%}" for accuracy in accuracies)
    assert line == f"| FedDP | 8 | 0.500 | 4.00 | 21 | 7 | {shown} | 4 | 83.5% |"


def test_the_seconds_of_a_round_are_without_the_waiting_for_checkpoints(tmp_path):
    fields = {"seconds": lambda n: 2.0 + n, "seconds/save": lambda n: 1.0 * n}
    for every, seconds in ((2, 2.0), (1, math.nan)):
        config = config_of(rounds=8, **{"eval.every": every})
        run = write_run(tmp_path / str(every), config, records=False, **fields)
        np.testing.assert_equal(seconds_of_a_round(read_metrics(run)), seconds)
    *_, line = pace({"FedDP": [run]}, {}, 8).splitlines()
    assert line.startswith("| FedDP | 8 |  |  | 52 | 11 |")
