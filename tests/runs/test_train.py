"""Whole runs: files, resuming, interruption, errors."""

import io
import json
import signal
import sys

import jax
import numpy as np
import pytest

from configs import base
from fedjax_prune.engine import store
from fedjax_prune.engine.outcome import TrainingError
from fedjax_prune.runs import checkpoint, tables, train, verify
from fedjax_prune.runs.learning import make_learning, own_personal, start
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.settings import SettingsError
from tests.small_runs import build, final_state, plain_config, tiny_config, undocumented
from tests.toys import all_rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    # Its checkpoints are found below a folder whose name reads like a pattern.
    workdir = tmp_path_factory.mktemp("whole") / "runs[1]" / "{x}*"
    config = tiny_config()
    assert train.run(config, workdir) == 0
    return config, workdir


def test_fewer_rounds_than_are_done_are_refused(finished):
    _, workdir = finished
    before = (workdir / "config.json").read_text()
    with pytest.raises(SettingsError, match=r"^rounds must be at least 4, .* got 3$"):
        train.run(tiny_config(rounds=3), workdir)
    assert (workdir / "config.json").read_text() == before


def test_another_default_generator_changes_nothing(finished, tmp_path):
    config, workdir = finished
    with jax.default_prng_impl("rbg"):
        assert train.run(config, tmp_path) == 0
    states = (final_state(config, folder) for folder in (workdir, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_rows_have_the_promised_fields(finished):
    _, workdir = finished
    rows = read_metrics(workdir)
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    always = {
        "seconds",
        "clients",
        "train/loss",
        "train/accuracy",
        "bytes/down",
        "bytes/up",
        "steps/real",
        "steps/executed",
    }
    metrics = ("client_gated", "client_local", "after_local")
    evaluated = {"eval/global_dense/accuracy"} | {
        f"eval/{name}/{key}"
        for name in metrics
        for key in ("mean", "p10", "min", "std")
    }
    for row in rows:
        assert always <= row.keys() and undocumented(row) == [] and has_gates(row)
        assert (evaluated <= row.keys()) == (row["round"] % 2 == 0)
        assert all(not isinstance(value, dict | list) for value in row.values())
        assert row["steps/executed"] >= row["steps/real"] > 0
        assert all(0 <= row[k] <= 1 for k in evaluated & row.keys())
    assert rows[0]["clients"] == 3
    # Whole rows of the population: 2 of 5 clients, bounded by eval.num_clients.
    assert rows[-1]["eval/clients"] == 2
    assert rows[-1]["eval/examples"] == 60


def test_bytes_are_those_of_params_controls_and_statistics(finished):
    """4 (2 P + R) bytes for each of the three clients, in both directions."""
    config, workdir = finished
    state, _ = final_state(config, workdir)
    num_params = sum(x.size for x in jax.tree.leaves(state.params))
    num_statistics = sum(x.size for x in jax.tree.leaves(state.model_state))
    row = read_metrics(workdir)[0]
    sent = 3 * 4 * (2 * num_params + num_statistics)
    assert num_statistics > 0 and row["bytes/down"] == row["bytes/up"] == sent


def test_workdir_holds_config_events_and_checkpoint(finished):
    _, workdir = finished
    written = json.loads((workdir / "config.json").read_text())
    assert written["data"]["num_clients"] == 5
    assert any((workdir / "tensorboard").iterdir())
    assert checkpoint.rounds(workdir / "checkpoints") == [2, 4]
    assert not (workdir / "lock").exists()


class Terminal(io.StringIO):
    """Presses Ctrl-C when it is shown the end of a round."""

    def __init__(self, press_after):
        super().__init__()
        self.press_after = press_after

    def write(self, text):
        if text.startswith(f"round {self.press_after}/"):
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_stopped_and_resumed_run_ends_with_the_same_bits(
    finished, tmp_path, monkeypatch
):
    """Stops while round 2 is running, resumes, stops in round 4, resumes."""
    config, _ = finished
    config = config.copy_and_resolve_references()
    config.rounds = 6
    for press_after, expected in ((1, 2), (3, 4), (None, 6)):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Terminal(press_after))
            code = train.run(config, tmp_path)
        assert code == (train.INTERRUPTED if press_after else 0)
        assert checkpoint.latest(tmp_path / "checkpoints") == expected
        assert len(read_metrics(tmp_path)) == expected
    whole = tmp_path / "whole"
    train.run(config, whole)
    first, second = final_state(config, whole), final_state(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    timing = set(verify.TIMES)
    for first, second in zip(read_metrics(whole), read_metrics(tmp_path), strict=True):
        assert {k: v for k, v in first.items() if k not in timing} == {
            k: v for k, v in second.items() if k not in timing
        }


def test_rows_on_the_host_change_no_bit(finished, tmp_path):
    """Of gates and control variates, in a run that stops after two rounds."""
    config, workdir = finished
    for rounds in (2, config.rounds):
        on_host = tiny_config(rounds=rounds, client_rows="host")
        assert train.run(on_host, tmp_path) == 0
    jax.tree.map(
        np.testing.assert_array_equal,
        final_state(config, workdir),
        final_state(config, tmp_path),
    )
    accuracies = [
        {k: v for k, v in row.items() if k.startswith("eval/")}
        for row in (read_metrics(workdir)[-1], read_metrics(tmp_path)[-1])
    ]
    assert accuracies[0] == accuracies[1] != {}


def test_finished_run_started_again_only_reports(finished, capsys):
    config, workdir = finished
    before = (workdir / "metrics.jsonl").read_text()
    assert train.run(config, workdir) == 0
    assert (workdir / "metrics.jsonl").read_text() == before
    assert "test accuracy" in capsys.readouterr().out


def test_a_finished_run_whose_result_nobody_reads_has_succeeded(finished, monkeypatch):
    def print_table(title, facts):
        if title == "Result":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train.console, "print_table", print_table)
    assert train.run(*finished) == 0


def test_evaluate_workdir_repeats_the_last_evaluation(finished):
    _, workdir = finished
    last, again = read_metrics(workdir)[-1], train.evaluate_workdir(workdir)
    shared = {key for key in again if key.startswith("eval/")}
    assert {"eval/global_dense/accuracy", "eval/client_gated/mean"} <= shared
    for key in shared:
        np.testing.assert_allclose(again[key], last[key], rtol=1e-6)


def test_comparison_reads_what_a_run_has_written(finished):
    _, workdir = finished
    header, _, line, again = tables.comparison(
        {"one": [workdir], "two": [workdir]}
    ).splitlines()
    last = read_metrics(workdir)[-1]
    cells = dict(zip(header.split(" | "), line.split(" | "), strict=True))
    assert cells["accuracy"] == f"{last['eval/client_gated/mean']:.1%}"
    assert cells["without gates"] == f"{last['eval/global_dense/accuracy']:.1%}"
    assert cells["worst client"] == f"{last['eval/client_local/min']:.1%}"
    assert cells["rounds"] == "4"
    assert again.split(" | ")[4] == "+0.0%"


def test_preflight_and_summary_tell_the_numbers(tmp_path, capsys):
    config = tiny_config(rounds=1)
    train.run(config, tmp_path)
    out = capsys.readouterr().out
    for text in ("5, 3 a round", "MACs an image", "round 1/1", "own validation"):
        assert text in out


def test_impossible_split_is_refused_and_leaves_nothing(tmp_path):
    config = tiny_config()
    config.data.min_size = 61
    with pytest.raises(SettingsError, match=r"cannot be split.*min_size 61"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("section", ["client", "server"])
def test_what_a_builder_refuses_is_reported_with_its_section(section):
    with pytest.raises(SettingsError, match=rf"^{section}: lr must be above 0"):
        make_learning(tiny_config(**{f"{section}.lr": -1.0}))


def test_diverging_client_stops_the_run_and_is_named(tmp_path):
    config = tiny_config()
    config.client.lr = 1e20
    with pytest.raises(TrainingError, match=r"gates of client [\d, ]+ became .* 1\."):
        train.run(config, tmp_path)
    assert read_metrics(tmp_path) == []
    assert checkpoint.latest(tmp_path / "checkpoints") is None


@pytest.fixture
def poisoned(monkeypatch):
    """The pixels of some clients become NaN."""

    def poison(clients):
        def load_data(config):
            data = load(config)
            images = data.train.images / np.float32(255)
            for client in clients:
                images[data.population.of(client)] = np.nan
            return data._replace(train=data.train._replace(images=images))

        monkeypatch.setattr(train, "load_data", load_data)

    load = train.load_data
    return poison


def test_clients_that_diverge_are_dropped_and_named(tmp_path, poisoned, capsys):
    """The others go on; a client's row stays its last good one."""
    poisoned([0, 3])
    config = tiny_config(rounds=3, **{"eval.num_clients": 0, "cohort_size": 5})
    with pytest.raises(TrainingError, match=r"client 0, 3 became .* in round 1\."):
        train.run(config, tmp_path / "abort")
    config.on_bad_client = "drop"
    assert train.run(config, tmp_path / "drop") == 0
    assert " 6 messages, as losses, updates or gates were" in capsys.readouterr().out
    rows = read_metrics(tmp_path / "drop")
    for row in rows:
        assert (row["clients/arrived"], row["clients/dropped"]) == (3, "0 3")
        assert np.isfinite(row["train/loss"]) and undocumented(row) == []
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    state, after = final_state(config, tmp_path / "drop")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, after)))
    for control in jax.tree.leaves(after.client):
        assert not control[[0, 3]].any() and control[[1, 2, 4]].any()


def test_a_round_whose_clients_all_diverge_is_empty(tmp_path, poisoned):
    poisoned(range(5))
    config = plain_config(rounds=1, on_bad_client="drop")
    assert train.run(config, tmp_path) == 0
    (row,) = read_metrics(tmp_path)
    assert row["clients/arrived"] == 0 and len(row["clients/dropped"].split()) == 3
    assert np.isnan(row["train/loss"])


@pytest.mark.parametrize(
    "method",
    [
        *(pytest.param(m, marks=pytest.mark.long) for m in ("fedavg", "fedprox")),
        "fednova",
    ],
)
def test_other_methods_run_with_gates(tmp_path, method):
    config = tiny_config(rounds=1)
    config.algorithm = base.algorithm(method)
    assert train.run(config, tmp_path) == 0
    (row,) = read_metrics(tmp_path)
    assert np.isfinite(row["train/loss"]) and has_gates(row)


def has_gates(row):
    return any(key.startswith("gates/") for key in row)


def test_keep_ratio_one_is_the_ungated_run_bit_for_bit(tmp_path):
    plain, all_kept = tiny_config(rounds=2), tiny_config(rounds=2)
    plain.model.gated = False
    all_kept.model.keep_ratio = 1.0
    all_kept.report.every = 1
    train.run(plain, tmp_path / "plain")
    train.run(all_kept, tmp_path / "all")
    first = final_state(plain, tmp_path / "plain")
    second = final_state(all_kept, tmp_path / "all")
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert not any(map(has_gates, read_metrics(tmp_path / "plain")))


def test_holdout_and_per_client_gates(tmp_path):
    config = tiny_config(rounds=1)
    config.data.local_val = "holdout"
    config.model.gate_init = "per_client"
    experiment = build(config)
    assert experiment.data.population.sizes.sum() < 300
    _, row = start(experiment.learning)
    draw = own_personal(experiment.learning)
    rows = [
        all_rows(store.make_store(kind, row, 5, own_personal=draw, folder="unused"))
        for kind in store.STORES
    ]
    for other in rows[1:]:
        jax.tree.map(np.testing.assert_array_equal, rows[0], other)
    kernel = jax.tree.leaves(rows[0].personal)[-1]
    assert len(kernel) == 5 and len(np.unique(kernel.reshape(5, -1), axis=0)) == 5
    assert train.run(config, tmp_path) == 0
    (row,) = read_metrics(tmp_path)
    assert 0 <= row["eval/client_local/mean"] <= 1


def test_another_cohort_and_evaluation_do_not_recompile(finished, tmp_path):
    """A run compiles its round before the first and calls that program alone.

    What a process compiles only once was compiled for the finished run.
    """
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event)
    )

    def compilations(rounds, folder):
        compiled.clear()
        assert train.run(tiny_config(rounds=rounds), tmp_path / folder) == 0
        return sum(event.endswith("backend_compile_duration") for event in compiled)

    try:
        few, many = compilations(1, "few"), compilations(8, "many")
    finally:
        jax.monitoring.clear_event_listeners()
    assert few == many > 0
    rows = read_metrics(tmp_path / "many")
    assert [("seconds/compile" in row) for row in rows] == [True, *[False] * 7]
