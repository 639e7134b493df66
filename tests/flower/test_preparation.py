"""The preparation of AutoFLIP with nodes, and the masks that follow."""

import pytest

from fedjax_prune.engine.outcome import TrainingError
from fedjax_prune.flower.client import make_client_app
from fedjax_prune.flower.server import serve
from fedjax_prune.runs import train
from fedjax_prune.runs.learning import make_learning
from fedjax_prune.runs.metrics_log import read_metrics
from tests.flower_grid import MemoryGrid, vectors


def autoflip(**fields):
    small = {"explore_epochs": 2, "structured_rule": "off"}
    return vectors("autoflip", small | fields)


def grid_of(config, loses=lambda request: ""):
    return MemoryGrid(make_client_app(lambda given: config), 3, loses)


@pytest.mark.parametrize("policy", ["abort", "drop"])
def test_explorers_that_all_diverge_are_the_reason_of_the_end(policy):
    config = autoflip()
    config.client.lr, config.on_bad_client = 1e30, policy
    grid = grid_of(config)
    with pytest.raises(TrainingError, match="became non-finite in round 0"):
        serve(grid, make_learning(config))


def test_explorers_that_are_all_lost_end_the_run():
    config = autoflip()

    def loses(request):
        return "request" if request.metadata.message_type == "train.prepare" else ""

    grid = grid_of(config, loses)
    with pytest.raises(TrainingError, match="No client has arrived in the preparation"):
        serve(grid, make_learning(config))


@pytest.mark.parametrize("start_from", ["init", "explored_mean"])
def test_explorers_send_what_they_have_trained_only_where_rounds_begin_there(
    start_from,
):
    config = autoflip(start_from=start_from)
    grid = grid_of(config)
    serve(grid, make_learning(config))
    names = {
        name
        for message in grid.sent
        if message.metadata.message_type == "train.prepare"
        and "message" in message.content
        for name in message.content["message"]
        if not name.endswith(".weight")
    }
    assert any("'deviation'" in name for name in names)
    assert any("'delta'" in name for name in names) == (start_from == "explored_mean")


def test_traffic_is_that_of_a_simulation(tmp_path):
    """Masks go to those who have old ones, in the first round to all."""
    config = autoflip()
    config.cohort_size, config.rounds = 2, 6
    learning = make_learning(config)
    grid = grid_of(config)
    serve(grid, learning, workdir=str(tmp_path / "nodes"))
    train.run(config, tmp_path / "here")
    nodes, here = read_metrics(tmp_path / "nodes"), read_metrics(tmp_path / "here")
    costs = [name for name in here[-1] if name.startswith("bytes")]
    assert len(costs) > 3 and len(nodes) == len(here) == 7
    for ours, theirs in zip(nodes, here, strict=True):
        assert {n: ours[n] for n in costs} == {n: theirs[n] for n in costs}
    assert len({row["bytes/down"] for row in here[1:]}) > 1
