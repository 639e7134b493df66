"""A run with averaged gates beside the run whose gates stay on their clients."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from fedjax_prune.data.population import sizes_of
from fedjax_prune.runs import train
from fedjax_prune.runs.experiment import load_data
from fedjax_prune.runs.metrics_log import read_metrics
from tests.small_runs import final_state, tiny_config
from tests.toys import assert_same_bits

ROOT = Path(__file__).parents[2]
CONFIG = """
from tests.small_runs import tiny_config

def get_config():
    return tiny_config(**{fields})
"""


def train_averaged(folder, workdir="averaged", **fields):
    file = folder / "tiny.py"
    file.write_text(CONFIG.format(fields=fields))
    command = (sys.executable, "-m", "launch.reproduce.averaged_gates")
    path = folder / workdir if workdir else ""
    return subprocess.run(
        [*command, f"--config={file}", f"--workdir={path}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_after_a_round_only_the_gates_differ_and_are_their_mean(tmp_path):
    """All clients begin with the same gates, so the first round trains alike."""
    fields = {"rounds": 1, "cohort_size": 5, "eval.every": 1}
    config = tiny_config(**fields)
    assert train.run(config, tmp_path / "own") == 0
    done = train_averaged(tmp_path, **fields)
    assert done.returncode == 0, done.stderr
    state, rows = final_state(config, tmp_path / "own")
    averaged_state, averaged = final_state(config, tmp_path / "averaged")
    assert_same_bits(averaged_state, state)
    assert_same_bits(averaged.client, rows.client)
    sizes = sizes_of(load_data(config).population, np.arange(5))

    def is_mean(found, of):
        mean = np.average(of, axis=0, weights=sizes)
        np.testing.assert_allclose(found, [mean] * 5, rtol=1e-6, atol=1e-7)
        assert np.ptp(of, axis=0).max() > 0

    jax.tree.map(is_mean, averaged.personal, rows.personal)
    gates = sum(leaf.nbytes for leaf in jax.tree.leaves(averaged.personal))
    (own,), (both,) = (read_metrics(tmp_path / name) for name in ("own", "averaged"))
    for way in ("bytes/down", "bytes/up"):
        assert both[way] - own[way] == gates


def test_clients_that_do_not_report_in_a_round_would_keep_other_gates(tmp_path):
    fields = {"cohort_size": 3, "client_dropout": 0.2, "on_bad_client": "drop"}
    done = train_averaged(tmp_path, **fields)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: cohort_size must be data.num_clients = 5, got 3",
        "error: client_dropout must be 0, got 0.2",
        "error: on_bad_client must be abort, got 'drop'",
    ]


def test_a_run_needs_a_workdir(tmp_path):
    done = train_averaged(tmp_path, workdir="", cohort_size=5, rounds=0)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: --workdir must name a folder, got ''",
        "error: rounds must be at least 1, got 0",
    ]
