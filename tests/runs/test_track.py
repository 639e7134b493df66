"""Loggers beside metrics.jsonl, each a fake module at the boundary.

`test_track_installed.py` logs to the real ones.
"""

import sys
import types

import pytest

from fedjax_prune.runs import track
from fedjax_prune.runs.sections import LOGGERS
from fedjax_prune.runs.settings import SettingsError
from tests.small_runs import tiny_config

ROWS = [
    {"round": 1, "train/loss": 0.5, "clients/dropped": "3", "steps/real": 7},
    {"round": 2, "train/loss": None},
]


class Inner:
    """A log that keeps its rows."""

    def __init__(self):
        self.rows = []

    def write(self, row):
        self.rows.append(row)


def fake(monkeypatch, name, calls, **functions):
    """Puts a module into the place of a logger; its functions note their calls."""
    module = types.ModuleType(name)

    def noting(function, result):
        def call(*args, **kwargs):
            calls.append((function, args, kwargs))
            return result

        return call

    for function, result in functions.items():
        setattr(module, function, noting(function, result))
    monkeypatch.setitem(sys.modules, name, module)
    return module


def write(name, folder, finished=1, **changes):
    inner = Inner()
    config = tiny_config(logger=name, **changes)
    with track.tracked(inner, config, folder, finished) as log:
        for row in ROWS:
            log.write(row)
    assert inner.rows == ROWS


def test_none_of_them_is_imported_otherwise(tmp_path):
    write("none", tmp_path)
    assert not {"wandb", "mlflow", "trackio"} & set(sys.modules)


def test_every_name_of_the_field_can_be_opened():
    assert set(track._OPEN) == set(LOGGERS) - {"none"}


def test_numbers_go_to_trackio_under_the_same_name_again(tmp_path, monkeypatch):
    calls = []
    fake(monkeypatch, "trackio", calls, init=None, log=None, finish=None)
    write("trackio", tmp_path)
    write("trackio", tmp_path)
    init, first, second, finish = calls[:4]
    assert init[2]["project"] == "fedjax_prune" and init[2]["resume"] == "allow"
    assert init[2]["config"]["client.lr"] == tiny_config().client.lr
    assert first == ("log", ({"train/loss": 0.5, "steps/real": 7},), {"step": 1})
    assert second == ("log", ({},), {"step": 2}) and finish[0] == "finish"
    assert calls[4] == init


def test_numbers_go_to_wandb(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda numbers, step: calls.append((numbers, step)),
        finish=lambda: calls.append("finish"),
    )
    fake(monkeypatch, "wandb", calls, init=run)
    write("wandb", tmp_path)
    assert calls[0][2]["dir"] == str(tmp_path)
    assert calls[1:] == [({"train/loss": 0.5, "steps/real": 7}, 1), ({}, 2), "finish"]


def test_mlflow_goes_on_in_the_run_of_the_same_folder(tmp_path, monkeypatch):
    calls = []
    known = types.SimpleNamespace(info=types.SimpleNamespace(run_id="r7"))
    functions = dict.fromkeys(
        ("set_experiment", "start_run", "log_params", "log_metrics", "end_run")
    )
    fake(monkeypatch, "mlflow", calls, search_runs=[], **functions)
    write("mlflow", tmp_path)
    params = [args[0] for name, args, _ in calls if name == "log_params"]
    assert all(len(some) <= 100 for some in params)
    assert sum(map(len, params)) > 50
    again = []
    fake(monkeypatch, "mlflow", again, search_runs=[known], **functions)
    write("mlflow", tmp_path)
    assert ("start_run", (), {"run_id": "r7"}) in again
    assert not any(name == "log_params" for name, _, _ in again)
    assert again[-1][0] == "end_run"


def test_long_fields_are_cut_for_mlflow(tmp_path, monkeypatch):
    calls = []
    functions = dict.fromkeys(
        ("set_experiment", "start_run", "log_params", "log_metrics", "end_run")
    )
    fake(monkeypatch, "mlflow", calls, search_runs=[], **functions)
    classes = tuple(f"class_{number}" for number in range(1000))
    write("mlflow", tmp_path, **{"data.classes": classes})
    values = {}
    for name, args, _ in calls:
        if name == "log_params":
            values |= args[0]
    assert values["data.name"] == "digits" and values["client.lr"] == "0.1"
    shown = values["data.classes"]
    assert len(shown) == 6000 and shown.startswith("['class_0', 'class_1', ")
    assert shown.endswith("...") and shown[:-3] == str(list(classes))[:5997]


def test_a_logger_that_fails_is_told_once_and_ends_no_run(tmp_path, monkeypatch):
    calls = []
    module = fake(monkeypatch, "trackio", calls, init=None, finish=None)

    def log(numbers, step):
        raise ConnectionError("no network")

    module.log = log
    words = "logger trackio has failed, and the run goes on without it: ConnectionError"
    with pytest.warns(UserWarning, match=words) as told:
        write("trackio", tmp_path)
    assert len(told) == 1
    del module.init
    with pytest.warns(UserWarning, match="AttributeError"):
        write("trackio", tmp_path)


def test_a_logger_that_is_not_installed_is_a_mistake(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    track.require_installed("none")
    with pytest.raises(SettingsError, match="pip install 'fedjax_prune\\[track\\]'"):
        track.require_installed("mlflow")
