"""What other commands find in the workdir of a run on Flower."""

import json

import pytest

from fedjax_prune.flower.client import make_client_app
from fedjax_prune.flower.server import serve
from fedjax_prune.runs import environment, train
from fedjax_prune.runs.checkpoint import CheckpointError
from fedjax_prune.runs.export import export_model
from fedjax_prune.runs.learning import make_learning
from fedjax_prune.runs.metrics_log import read_metrics
from tests.flower_grid import SMALL, MemoryGrid, vectors
from tests.small_runs import tiny_config


def run(config, workdir):
    grid = MemoryGrid(make_client_app(lambda given: config), 3)
    serve(grid, make_learning(config), workdir=str(workdir))
    return workdir


def test_a_run_with_gates(tmp_path):
    config = tiny_config(**SMALL | {"rounds": 1, "data.num_train": 60})
    workdir = run(config, tmp_path / "run")
    (start,) = environment.read(workdir)
    assert start["finished"] == 0 and start["versions"]["jax"] and start["data"] == {}
    (row,) = read_metrics(workdir)
    assert not [name for name in row if name.startswith("gates/")]
    words = export_model(workdir, tmp_path / "model").words
    assert words.endswith(
        "without gates; the clients' gates are on the nodes of Flower"
    )
    facts = json.loads((tmp_path / "model" / "model.json").read_text())
    assert facts["training"]["starts"][0]["versions"] == start["versions"]
    assert "unknown" not in (tmp_path / "model" / "README.md").read_text()
    with pytest.raises(CheckpointError, match=r"gates, .* are on the nodes"):
        train.evaluate_workdir(workdir)
    with pytest.raises(CheckpointError, match=r"gates, .* are on the nodes"):
        export_model(workdir, tmp_path / "own", client=1)
    assert not (tmp_path / "own").exists()


def test_a_run_whose_clients_keep_nothing_can_be_evaluated(tmp_path):
    config = vectors("fedavg")
    config.rounds = 1
    results = train.evaluate_workdir(run(config, tmp_path / "run"))
    assert results["round"] == 1 and 0 <= results["eval/headline"] <= 1
