"""What a page says of runs of which something is missing or unusual."""

import json

import numpy as np
import pytest

from fedjax_prune.runs.page import (
    clients,
    curves,
    facts,
    partition,
    selection,
    target,
    troubled,
)
from fedjax_prune.runs.page.panel import PALETTE
from fedjax_prune.runs.page.read import as_lines, read_runs
from fedjax_prune.runs.record import read_records, recorded_rounds
from tests.made_up_runs import config_of, lines_of, write_run


def test_channels_are_those_of_clients_who_trained(tmp_path):
    (line,) = lines_of(tmp_path, config_of(rounds=10, **{"model.gated": True}))
    older, newest = line.runs[0].records
    newest.examples[:] = 0
    assert selection.gated_records([line]) == {line.name: older}
    assert selection.of_clients([line]) is not None
    older.examples[:] = 0
    panels = (selection.evenness, selection.of_clients, selection.never)
    assert [draw([line]) for draw in panels] == [None, None, None]


def test_a_last_evaluation_of_more_clients_is_told_apart(tmp_path):
    config = config_of("scaffold", rounds=10, **{"eval.every": 5, "model.gated": False})
    few = lines_of(tmp_path / "few", config)
    more = lines_of(
        tmp_path / "more", config, **{"eval/clients": lambda n: 20 if n == 10 else 8}
    )
    # A node of Flower did not answer in the first evaluation of all clients.
    whole = config_of(
        "scaffold", rounds=10, cohort_size=20, **{"eval.every": 5, "model.gated": False}
    )
    lost = lines_of(
        tmp_path / "lost", whole, **{"eval/clients": lambda n: 19 if n == 5 else 20}
    )
    for draw in (curves.kinds, facts.results):
        found = [draw(lines) for lines in (few, lost, more)]
        assert ["is of more" in x.words for x in found if x] == [False, False, True]
    # Without gates the test accuracy is that of one model.
    panel = curves.accuracy(more)
    assert panel is not None and "is of more" not in panel.words


def test_one_evaluated_client_is_not_called_the_mean_or_the_worst(tmp_path):
    lines = lines_of(
        tmp_path, config_of(rounds=10), **{"eval/clients": lambda n: 1 if n else 0}
    )
    table = facts.results(lines)
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert (cells["own validation"], cells["worst client"]) == ("", "")
    assert cells["test accuracy"].endswith("%")


def test_each_picture_of_losses_tells_its_clients_apart(tmp_path):
    fields = {"clients/hostile": lambda n: "0 1 2 3 4 5 6 7"}
    configs = [config_of(a, rounds=5) for a in ("fedavg", "scaffold")]
    lines = lines_of(tmp_path, *configs, **fields)
    lines[1].runs[0].records[0].clients[:] = range(8)
    lines[0].runs[0].records[0].clients[:] = range(8)
    panel = troubled.losses(lines)
    assert panel is not None
    spec = panel.spec()
    assert spec["resolve"] == {"scale": {"color": "independent"}}
    scales = [
        picture["layer"][0]["encoding"]["color"]["scale"] for picture in spec["concat"]
    ]
    for scale in scales:
        assert scale["domain"] == ["median client", *(f"client {n}" for n in range(8))]
        assert scale["range"] == ["black", *PALETTE]
    assert spec["description"] == f"{panel.title}. {panel.words}"


def test_a_seed_whose_first_rows_are_lost_has_spent_an_unknown_amount(tmp_path):
    (line,) = lines_of(tmp_path, *(config_of(seed=seed) for seed in (0, 1)))
    del line.runs[0].rows[:10]
    del line.runs[1].rows[3:]
    table = facts.results([line])
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert (cells["MB sent"], cells["TFLOP"]) == ("nan", "nan")


def test_a_run_without_an_evaluation_hides_no_target_of_the_others(tmp_path):
    configs = [
        config_of(a, rounds=20, **{"eval.every": n})
        for a, n in (("fedavg", 5), ("fedprox", 50))
    ]
    lines = lines_of(tmp_path, *configs)
    panel = target.target(lines, 0.999)
    assert panel is not None and "No run reaches 99.9%." in panel.words
    assert "0 of 1 runs reach it" in panel.words


def test_what_is_not_drawn_is_said(tmp_path):
    lines = lines_of(tmp_path, config_of(rounds=5))
    panel = partition.partition(lines)
    assert panel is not None
    assert f"more than {partition.MOST_PARTITIONS} partitions" in panel.words
    panel = clients.distribution(lines)
    assert panel is not None and "half of the dots" in panel.words


def test_a_record_without_all_its_fields_is_named(tmp_path):
    folder = write_run(tmp_path / "run", config_of(rounds=5))
    (number,) = recorded_rounds(folder, 5)
    (record,) = read_records(folder, 5)
    assert record.round == number == 5
    file = folder / "report" / "round-5.npz"
    arrays = dict(np.load(file))
    del arrays["churn_since"]
    np.savez(file, **arrays)
    with pytest.warns(UserWarning, match=r"round-5\.npz is no whole record: churn_"):
        assert read_records(folder, 5) == []


def test_an_accuracy_that_is_not_a_number_reaches_no_target(tmp_path):
    folder = write_run(tmp_path / "run", config_of(rounds=10))
    file = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row |= {"eval/headline": None} if "eval/headline" in row else {}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert target.target(as_lines(read_runs([folder]))) is None
