"""Rounds of Flower's apps are those of a simulation."""

import functools

import jax
import numpy as np
import pytest

from fedjax_prune.engine.outcome import TrainingError
from fedjax_prune.flower.client import make_client_app
from fedjax_prune.flower.examples import Examples, load_share
from fedjax_prune.flower.kept import read_rows
from fedjax_prune.flower.nodes import MissingNodesError
from fedjax_prune.flower.server import serve
from fedjax_prune.runs.learning import make_learning, start
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.start import restore_state
from fedjax_prune.runs.workdir import WorkdirError
from fedjax_prune.types import Dataset
from tests.flower_grid import (
    SMALL,
    MemoryGrid,
    is_training,
    largest_gap,
    simulate,
    vectors,
)
from tests.small_runs import tiny_config


def feddp():
    return tiny_config(**SMALL, **{"data.partitioner": "iid", "data.num_train": 90})


CONFIGS = {
    "fedavg": lambda given=None: vectors("fedavg"),
    "scaffold": lambda given=None: vectors("scaffold"),
    "feddp": lambda given=None: feddp(),
    "autoflip": lambda given=None: vectors(
        "autoflip", {"explore_epochs": 2, "structured_rule": "off"}
    ),
}


SENT = {
    "fedavg": {".params"},
    "scaffold": {".params", ".server.control"},
    "feddp": {".params", ".server.control", ".model_state"},
    "autoflip": {".params", ".server.masks"},
}
"""The parts of the server's state that a round sends to a client."""


SUMS = {
    "['loss']",
    "['correct']",
    "['count']",
    "['steps']",
    "['arrived']",
    "['nonfinite']",
}
"""What a node tells the server beside what its algorithm sends."""


def everyone(given=None):
    """All clients take part in every round, so that who was lost comes back."""
    config = vectors("scaffold")
    config.update_from_flattened_dict({"cohort_size": 3, "save_every": 3})
    return config


@functools.cache
def simulated(name):
    return simulate(make_learning(CONFIGS[name]()))


def no_validation(config, client):
    return Examples(load_share(config, client).train)


@pytest.mark.parametrize("name", CONFIGS)
def test_three_rounds_equal_the_simulation(name):
    read_config = CONFIGS[name]
    learning = make_learning(read_config())
    load = load_share if name == "feddp" else no_validation
    grid = MemoryGrid(make_client_app(read_config, load), 3)
    state = serve(grid, learning)
    expected, rows = simulated(name)
    assert largest_gap(state, expected) < 1e-5
    _, first = start(learning)
    if learning.algorithm.masked is not None:
        assert not all(np.all(mask) for mask in jax.tree.leaves(state.server.masks))
        first = first._replace(client=first.client.base)
    requests = [m for m in grid.sent if m.metadata.dst_node_id in grid.contexts]
    sent = [m.content["state"] for m in requests if m.metadata.message_type == "train"]
    assert {name.split("[")[0] for record in sent for name in record} == SENT[name]
    secrets = set()
    for client, context in enumerate(grid.contexts.values()):
        kept = read_rows(context, first, client)
        ours, theirs = kept[max(kept)], rows.take(np.array([client]))
        if learning.algorithm.masked is not None:
            theirs = theirs._replace(client=theirs.client.base)
        theirs = jax.tree.map(lambda x: x[0], theirs)
        assert largest_gap(ours, theirs) < 1e-5
        secrets |= {x.tobytes() for x in jax.tree.leaves(ours) if x.any()}
    assert bool(secrets) == (name in ("scaffold", "feddp"))
    told = {
        name
        for message in grid.sent
        if "sums" in message.content
        for name in message.content["sums"]
    }
    assert told == SUMS
    assert not secrets & {
        array.numpy().tobytes()
        for message in grid.sent
        for record in message.content.array_records.values()
        for array in record.values()
    }


@pytest.mark.parametrize("lost", ["request", "reply"])
def test_a_client_that_is_lost_is_dropped_and_its_row_goes_back(lost, tmp_path):
    learning = make_learning(everyone())
    app = make_client_app(everyone)
    grid = MemoryGrid(
        app, 3, loses=lambda request: lost if is_training(request, 2, 101) else ""
    )
    state = serve(grid, learning, workdir=str(tmp_path / "run"))
    expected, rows = simulate(
        learning, dropped=lambda number, client: (number, client) == (2, 1)
    )
    assert largest_gap(state, expected) < 1e-5
    kept = read_rows(grid.contexts[101], start(learning)[1], 1)
    assert sorted(kept) == [1, 3]
    last = jax.tree.map(lambda x: x[0], rows.take(np.array([1])))
    assert largest_gap(kept[3], last) < 1e-5
    written = read_metrics(tmp_path / "run")
    assert [row["clients/arrived"] for row in written] == [3, 2, 3]
    assert [row.get("clients/absent") for row in written] == [None, "1", None]
    # Two trees go down, and two up to the server, with NumPy's headers.
    assert written[0]["bytes/down"] == written[0]["bytes/up"] == 4 * 610 * 2 * 3
    assert 0 < written[0]["bytes_flower/down"] - 4 * 610 * 2 * 3 < 5000
    assert largest_gap(restore_state(learning, tmp_path / "run"), state) == 0
    with pytest.raises(WorkdirError, match="name a new folder"):
        serve(grid, learning, workdir=str(tmp_path / "run"))


@pytest.mark.parametrize("name", ["scaffold", "feddp"])
def test_a_node_that_was_killed_goes_on_from_its_folder(name, tmp_path):
    read_config = CONFIGS[name]
    learning = make_learning(read_config())
    app = make_client_app(read_config)
    grid = MemoryGrid(app, 3, **{"rows-dir": str(tmp_path)})
    restarts = iter(range(200, 300))

    def kill_all():
        """Before each round every node is another process."""
        for context in list(grid.contexts.values()):
            del grid.contexts[context.node_id]
            grid.connect(next(restarts), context.node_config)
        return list(grid.contexts)

    grid.get_node_ids = kill_all
    state = serve(grid, learning)
    assert next(restarts) > 210
    assert largest_gap(state, simulated(name)[0]) < 1e-5
    assert len(list(tmp_path.iterdir())) == 3


def test_a_node_that_has_lost_its_row_is_dropped(caplog):
    learning = make_learning(everyone())

    def forget(request):
        if is_training(request, 3, 100):
            grid.contexts[100].state.clear()
        return ""

    grid = MemoryGrid(make_client_app(everyone), 3, forget)
    state = serve(grid, learning)
    assert "Client 0 is dropped from round 3: what this client kept" in caplog.text
    assert "--node-config 'rows-dir" in caplog.text
    expected, _ = simulate(learning, lambda number, c: (number, c) == (3, 0))
    assert largest_gap(state, expected) < 1e-5


def test_the_first_round_waits_for_all_clients(tmp_path):
    read_config = CONFIGS["fedavg"]
    learning = make_learning(read_config())
    grid = MemoryGrid(make_client_app(read_config), 1)
    with pytest.raises(MissingNodesError, match=r"2 of 3 clients .*\[1, 2\]"):
        serve(grid, learning, wait_seconds=0, workdir=str(tmp_path / "run"))
    # The same command can be given again.
    assert not (tmp_path / "run").exists()
    nodes = iter([101, 102])
    seen = grid.get_node_ids

    def one_more():
        """Another node connects at every look."""
        for node in nodes:
            grid.connect(node, {"partition-id": node - 100})
            break
        return seen()

    grid.get_node_ids = one_more
    assert largest_gap(serve(grid, learning), simulated("fedavg")[0]) < 1e-5


def test_a_node_without_a_client_says_what_it_needs(caplog):
    read_config = CONFIGS["fedavg"]
    grid = MemoryGrid(make_client_app(read_config), 3)
    grid.connect(103, {"partition-id": 3})
    grid.connect(104, {})
    del grid.contexts[100]
    with pytest.raises(MissingNodesError, match=r"partition-id must be the number"):
        serve(grid, make_learning(read_config()), wait_seconds=0)
    assert "in [0, 3), got 3" in caplog.text
    assert "in [0, 3), got None" in caplog.text


def test_a_client_that_diverges_ends_the_run():
    def read_config(given=None):
        config = vectors("fedavg")
        config.client.lr = 1e30
        return config

    grid = MemoryGrid(make_client_app(read_config), 3)
    with pytest.raises(TrainingError, match="became non-finite in round 1"):
        serve(grid, make_learning(read_config()))


def test_the_folder_of_a_node_wins_over_that_of_the_run():
    """Whether the run has it among its fields or in what reads them."""
    config, seen = vectors("fedavg"), []
    config.data.dir = "of the run"

    def load(config, client):
        seen.append((client, config.data.dir))
        return load_share(config, client)

    app = make_client_app(lambda given: config, load)
    grid = MemoryGrid(app, 3)
    grid.contexts[101].node_config["data-dir"] = "of the node"
    serve(grid, make_learning(config))
    dirs = {0: "of the run", 1: "of the node", 2: "of the run"}
    assert sorted(seen) == sorted(dirs.items())
    assert config.data.dir == "of the run"


def test_what_a_server_does_not_read_is_refused_and_a_relative_folder():
    config = vectors("fedavg")
    config.update_from_flattened_dict(
        {"logger": "wandb", "hash_every": 2, "compact_training": True}
        | {"client_rows": "disk", "rows_dir": "rows"}
    )
    grid = MemoryGrid(make_client_app(lambda given: config), 3)
    with pytest.raises(SettingsError) as told:
        serve(grid, make_learning(config), workdir="runs/here")
    assert told.value.problems == [
        "logger must be none for a run on Flower, got wandb",
        "hash_every must be 0 for a run on Flower, got 2",
        "compact_training must be False for a run on Flower, got True",
        "rows_dir must be empty for a run on Flower, got rows: the option rows-dir of "
        "a node names its folder",
        "workdir must be empty or an absolute path, got 'runs/here'",
    ]
    assert not grid.sent


def test_a_private_run_is_refused_before_it_begins(tmp_path):
    """Its noise would come from the seed, and every node knows that."""
    config = vectors("fedavg")
    private = {"on_bad_client": "drop", "privacy.clip_norm": 0.5}
    config.update_from_flattened_dict(private | {"privacy.noise_multiplier": 2.0})
    grid = MemoryGrid(make_client_app(lambda given: config), 3)
    workdir = tmp_path / "run"
    with pytest.raises(SettingsError, match=r"clip_norm must be 0 .* got 0\.5") as told:
        serve(grid, make_learning(config), workdir=str(workdir))
    assert len(told.value.problems) == 1
    assert not grid.sent and not workdir.exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: Dataset(d.images[:, :5], d.labels), r"\[count, 60, 1, 1\]"),
        (lambda d: Dataset(d.images[:0], d.labels[:0]), "at least one"),
        (lambda d: Dataset(d.images, d.labels + 9), r"labels must be in \[0, 10\)"),
        (lambda d: Dataset(d.images.astype(float), d.labels), "got float64"),
    ],
)
def test_a_node_refuses_data_that_do_not_fit(change, told):
    """The server hears of it before the first round."""
    read_config = CONFIGS["fedavg"]

    def load(config, client):
        return Examples(change(load_share(config, client).train))

    grid = MemoryGrid(make_client_app(read_config, load), 3)
    with pytest.raises(MissingNodesError, match=told):
        serve(grid, make_learning(read_config()), wait_seconds=0)
