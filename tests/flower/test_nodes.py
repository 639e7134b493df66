"""Nodes that are silent, that share a client or that send what is not usable."""

import itertools
import time

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Message, RecordDict

from fedjax_prune.engine.outcome import TrainingError
from fedjax_prune.flower import nodes
from fedjax_prune.flower.client import make_client_app
from fedjax_prune.flower.examples import named_classes
from fedjax_prune.flower.nodes import MissingNodesError, Nodes
from fedjax_prune.flower.server import serve
from fedjax_prune.runs.learning import make_learning
from fedjax_prune.runs.metrics_log import read_metrics
from tests.flower_grid import (
    MemoryGrid,
    is_training,
    largest_gap,
    simulate,
    vectors,
)


def config_of(**changes):
    """All three clients take part in every round."""
    config = vectors("fedavg")
    config.update_from_flattened_dict({"cohort_size": 3, "save_every": 3} | changes)
    return config


def grid_of(config, loses=lambda request: ""):
    return MemoryGrid(make_client_app(lambda given: config), 3, loses)


def receivers(grid, kind):
    """The nodes that requests of a kind went to."""
    return [
        m.metadata.dst_node_id
        for m in grid.sent
        if m.metadata.message_type == kind and m.metadata.dst_node_id in range(100, 110)
    ]


@pytest.mark.long
def test_a_silent_node_is_asked_once_and_holds_up_nobody(tmp_path):
    config = config_of()

    def loses(request):
        if is_training(request, 1, 102):
            del grid.contexts[101]
        return "both" if request.metadata.dst_node_id == 103 else ""

    grid = grid_of(config, loses)
    grid.connect(103, {"partition-id": 1})
    learning, began = make_learning(config), time.monotonic()
    state = serve(grid, learning, workdir=str(tmp_path / "run"), round_seconds=1)
    assert time.monotonic() - began < 100
    assert receivers(grid, "query").count(103) == 1
    expected, _ = simulate(learning, lambda number, c: number > 1 and c == 1)
    assert largest_gap(state, expected) < 1e-5
    rows = read_metrics(tmp_path / "run")
    assert [row["clients/arrived"] for row in rows] == [3, 2, 2]
    # The lost client could be the one that the silent node has.
    assert [row["seconds"] >= 1 for row in rows[1:]] == [True, True]


def test_a_node_that_answers_late_gets_the_request_of_the_round():
    """It was started again when the round had begun."""
    config, held = config_of(), []

    def loses(request):
        if is_training(request, 1, 102):
            grid.connect(103, grid.contexts.pop(101).node_config)
        return ""

    grid = grid_of(config, loses)
    pull = grid.pull_messages

    def late(ids):
        """Nothing arrives at the first look after the new node was asked."""
        if 103 in receivers(grid, "query") and len(held) < 2:
            held.append(ids)
            return []
        return pull(ids)

    grid.pull_messages = late
    learning = make_learning(config)
    assert largest_gap(serve(grid, learning), simulate(learning)[0]) < 1e-5
    assert len(held) == 2
    assert receivers(grid, "train") == [100, 101, 102, 100, 102, 103, 100, 103, 102]


def test_a_killed_node_that_still_counts_as_connected_is_replaced():
    """The SuperLink takes a while to notice that a node is gone."""
    config = config_of()

    def loses(request):
        if is_training(request, 2, 101):
            grid.connect(103, grid.contexts[101].node_config)
        is_dead = 103 in grid.contexts and request.metadata.dst_node_id == 101
        return "both" if is_dead else ""

    grid = grid_of(config, loses)
    learning = make_learning(config)
    assert largest_gap(serve(grid, learning), simulate(learning)[0]) < 1e-5
    assert receivers(grid, "train")[3:] == [100, 101, 102, 103, 100, 103, 102]


def test_two_nodes_of_a_client_are_named_and_replace_each_other(caplog):
    config = config_of()
    grid = grid_of(config)
    grid.connect(103, {"partition-id": 1})
    seen = grid.get_node_ids

    def until_the_third_round():
        if receivers(grid, "train").count(103) == 2:
            grid.contexts.pop(103, None)
        return seen()

    grid.get_node_ids = until_the_third_round
    learning = make_learning(config)
    assert largest_gap(serve(grid, learning), simulate(learning)[0]) < 1e-5
    assert caplog.text.count("Client 1 has two nodes, 101 and 103: 103, the newer") == 1
    trained = receivers(grid, "train")
    assert (trained.count(103), trained.count(101)) == (2, 1)


def test_a_node_that_comes_back_as_another_client_is_asked_again():
    """With authentication a SuperNode keeps its id when it is started again."""
    config = config_of()
    grid = grid_of(config)
    grid.contexts[101].node_config["partition-id"] = 0
    seen, looks = grid.get_node_ids, itertools.count()

    def restarted():
        look = next(looks)
        if look == 2:
            grid.contexts[101].node_config["partition-id"] = 1
        return [node for node in seen() if look != 1 or node != 101]

    grid.get_node_ids = restarted
    learning = make_learning(config)
    assert largest_gap(serve(grid, learning), simulate(learning)[0]) < 1e-5
    assert receivers(grid, "train") == [100, 101, 102] * 3


def test_an_old_answer_of_a_node_that_is_gone_ends_no_run(monkeypatch):
    """Nodes that are slow to start are asked twice, and answer twice."""
    monkeypatch.setattr(nodes, "_ASKING", 0.0)
    config = config_of()
    grid = grid_of(config)
    answers, waiting = grid.pull_messages, Nodes(grid, 3, named_classes(config), 0)
    grid.pull_messages = lambda ids: []
    with pytest.raises(MissingNodesError):
        waiting.wait(0)
    grid.pull_messages = lambda ids: answers(sorted(ids, key=int)[:3])
    waiting.wait(0)
    grid.contexts.clear()
    for _ in range(2):
        with pytest.raises(MissingNodesError, match="3 of 3 clients have no node"):
            waiting.wait(0)
    assert receivers(grid, "query") == [100, 101, 102] * 2


def test_a_client_that_comes_back_with_other_examples_is_told(caplog):
    """Its older node still counts as connected, but the newer one is used."""
    config = config_of()
    grid = grid_of(config)
    found = Nodes(grid, 3, named_classes(config), 0)
    found.wait(0)
    now = int(found.sizes[1])
    found._known[101] = found._known[101]._replace(num_examples=10_000)
    found.sizes[1] = 10_000
    grid.connect(103, {"partition-id": 1})
    for _ in range(3):
        found.wait(0)
    assert found.sizes[1] == now
    told = f"Client 1 has {now} examples in place of 10000"
    assert caplog.text.count(told) == caplog.text.count("in place of") == 1


def test_a_node_refuses_requests_for_another_client(caplog):
    """It was started again between two looks of the server."""
    config = config_of()

    def loses(request):
        if request.metadata.dst_node_id == 101:
            is_second = is_training(request, 2, 101)
            grid.contexts[101].node_config["partition-id"] = 2 if is_second else 1
        return ""

    grid = grid_of(config, loses)
    learning = make_learning(config)
    expected, _ = simulate(learning, lambda number, c: (number, c) == (2, 1))
    assert largest_gap(serve(grid, learning), expected) < 1e-5
    assert (
        "Client 1 is dropped from round 2: the request is for client 1, but "
        "partition-id of its node is now 2."
    ) in caplog.text


@pytest.mark.parametrize(("seconds", "ttl"), [(5, 65), (0, 12 * 3600)])
def test_requests_do_not_outlive_their_round(seconds, ttl):
    config = config_of()
    grid = grid_of(config)
    serve(grid, make_learning(config), round_seconds=seconds)
    found = {
        message.metadata.ttl
        for message in grid.sent
        if message.metadata.message_type in ("train", "evaluate")
        and message.metadata.dst_node_id in grid.contexts
    }
    assert found == {ttl}


@pytest.mark.parametrize(
    "told",
    [{"id": 3}, {"id": [1]}, {"num-examples": 0}, {"classes": "cat, dog"}, None],
)
def test_a_node_that_is_no_client_of_the_run_is_left_out(told, caplog):
    config = config_of()
    app = make_client_app(lambda given: config)

    def answer(request, context):
        reply = app(request, context)
        if context.node_id == 103:
            client = {"id": 1, "num-examples": 5, "classes": ""} | (told or {})
            records = {} if told is None else {"client": ConfigRecord(client)}
            reply = Message(RecordDict(records), reply_to=request)
        return reply

    grid = MemoryGrid(answer, 3)
    grid.connect(103, {"partition-id": 1})
    serve(grid, make_learning(config))
    assert "Node 103 does not say which client it is: it is no client" in caplog.text
    assert receivers(grid, "train") == [100, 101, 102] * 3


def wrong(content, ending, value):
    """Replaces an array of a reply."""
    record = content["message"]
    name = next(name for name in record if name.endswith(ending))
    record[name] = Array(np.full_like(record[name].numpy(), value))


CHANGES = {
    "nan": lambda content: wrong(content, "['bias']", np.nan),
    "infinite": lambda content: wrong(content, "['bias']", -np.inf),
    "sum": lambda content: content["sums"].update(
        {"['count']": Array(np.array(np.nan, np.float32))}
    ),
}


def grid_with_wrong_replies(config, change):
    """The second client sends them in the second round."""
    app = make_client_app(lambda given: config)

    def answer(request, context):
        reply = app(request, context)
        if is_training(request, 2, 101):
            change(reply.content)
        return reply

    return MemoryGrid(answer, 3)


@pytest.mark.parametrize("change", CHANGES)
def test_a_reply_that_is_not_finite_is_dropped(change, tmp_path):
    config = config_of(on_bad_client="drop")
    learning = make_learning(config)
    grid = grid_with_wrong_replies(config, CHANGES[change])
    state = serve(grid, learning, workdir=str(tmp_path / "run"))
    expected, _ = simulate(learning, lambda number, c: (number, c) == (2, 1))
    assert largest_gap(state, expected) < 1e-5
    rows = read_metrics(tmp_path / "run")
    assert [row.get("clients/dropped") for row in rows] == [None, "1", None]


UNREADABLE = {
    "the weight of ['delta'] must be at least 0, got -1": lambda content: wrong(
        content, ".weight", -1
    ),
    "the answer lacks 'sums'": lambda content: content.pop("sums"),
}


@pytest.mark.parametrize("told", UNREADABLE)
def test_a_reply_that_cannot_be_read_is_dropped(told, caplog):
    config = config_of()
    learning = make_learning(config)
    state = serve(grid_with_wrong_replies(config, UNREADABLE[told]), learning)
    expected, _ = simulate(learning, lambda number, c: (number, c) == (2, 1))
    assert largest_gap(state, expected) < 1e-5
    assert f"Client 1 is dropped from round 2: {told}" in caplog.text


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({}, "the answer lacks 'correct'"),
        ({"correct": 3, "count": 2}, "correct must be in [0, 2], got 3"),
    ],
)
def test_an_evaluation_that_says_nothing_is_left_out(counts, told, caplog):
    config = config_of()
    app = make_client_app(lambda given: config)

    def answer(request, context):
        reply = app(request, context)
        data = request.metadata
        if (data.message_type, data.dst_node_id) == ("evaluate", 101):
            reply.content["counts"] = ConfigRecord(counts)
        return reply

    serve(MemoryGrid(answer, 3), make_learning(config))
    assert f"Client 1 is not evaluated after round 3: {told}" in caplog.text


def test_a_reply_that_is_not_finite_ends_a_run_and_names_the_client():
    config = config_of()
    grid = grid_with_wrong_replies(config, CHANGES["nan"])
    with pytest.raises(TrainingError, match="client 1 became non-finite in round 2"):
        serve(grid, make_learning(config))
