"""The suite `inference`: its forms and what is made of their times."""

import numpy as np
import pytest

from fedjax_prune.models import CNN
from launch.benchmark import forms, inference

HEADER = ["network", "batch", "form", "MACs", "median", "ms", "p95", "ms", "speed"]


def test_forms_give_the_logits_of_the_network_that_they_are(monkeypatch, tmp_path):
    monkeypatch.setitem(forms.MODELS, "cnn", CNN)
    setup = forms.set_up("cnn", tmp_path)
    made = {name: make(setup) for name, make in forms.FORMS.items()}
    assert list(made) == ["dense", "masked", "gathered", "compacted"]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    logits = {name: form.call(images) for name, form in made.items()}
    assert all(x.shape == (2, 10) for x in logits.values())
    scale = np.abs(logits["masked"]).max()
    np.testing.assert_allclose(
        logits["gathered"], logits["masked"], atol=1e-5 * scale, rtol=0
    )
    assert np.abs(logits["masked"] - logits["dense"]).max() > 0.01 * scale
    dense = made["dense"].macs
    assert 0.45 * dense < made["gathered"].macs < 0.55 * dense
    assert dense < made["masked"].macs
    assert 0.3 * dense < made["compacted"].macs <= 0.5 * dense


def test_rows_compare_with_the_dense_form(monkeypatch, capsys):
    monkeypatch.setattr(inference, "CALLS", {1: 3, 8: 2})
    turns, now = [], [0.0]
    monkeypatch.setattr(inference.time, "perf_counter", lambda: now[0])

    def form(name, seconds, logit, macs):
        def call(images):
            turns.append((name, len(images)))
            now[0] += seconds
            return np.full((len(images), 2), logit)

        return forms.Form(call, macs)

    made = {
        "dense": form("dense", 0.02, 1.0, 100),
        "masked": form("masked", 0.02, 2.0, 110),
        "gathered": form("gathered", 0.005, 2.5, 60),
    }
    rows = inference.measure("net", made, rounds=2)
    # One call compiles; a round has one more than those that count.
    assert turns[:3] == [(name, 1) for name in made]
    assert turns[3:15] == [(name, 1) for name in made for _ in range(4)]
    assert len(turns) == 3 + 2 * 12 + 3 + 2 * 9
    assert [(row.batch_size, row.form) for row in rows] == [
        (size, name) for size in (1, 8) for name in made
    ]
    assert [row.macs for row in rows[:3]] == [1, 1.1, 0.6]
    assert [row.difference for row in rows[:3]] == [None, None, 0.25]
    for row in rows:
        wanted = 5 if row.form == "gathered" else 20
        np.testing.assert_allclose([row.median, row.p95], wanted)
        np.testing.assert_allclose(row.speed, 20 / wanted)
    inference.print_rows(rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == HEADER
    assert lines[3].split()[:4] == ["net", "1", "gathered", "0.60"]


@pytest.mark.parametrize("difference", [2e-4, float("nan")])
def test_wrong_logits_are_told(difference, capsys):
    row = inference.Row(
        network="net",
        batch_size=8,
        form="gathered",
        macs=0.5,
        median=1.0,
        p95=1.0,
        speed=1.0,
        difference=difference,
    )
    rows = [row, row._replace(form="compacted", difference=None)]
    rows.append(row._replace(form="dense, onnxruntime", difference=1e-6))
    (line,) = inference.wrong_logits([row._asdict() for row in rows])
    assert line.startswith("net, gathered, batch 8: logits differ from those of masked")
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.long
def test_the_suite_runs_to_its_end():
    found = inference.run_inference(threads=2, rounds=1)
    names = {row["form"] for row in found["rows"]}
    assert names >= set(forms.FORMS)
    assert [len(each) for each in found["accuracies"].values()] == [10, 10]
    for row in found["rows"]:
        assert row["difference"] is None or row["difference"] < 1e-5
    assert found["failed"] == []
