"""Loggers that are installed, without a network: what they have after two starts."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedjax_prune.runs import track
from fedjax_prune.runs.workdir import plain_fields
from tests import tracked_rows
from tests.small_runs import tiny_config

ROOT = Path(__file__).parents[2]
OTHERS = ("WANDB", "MLFLOW", "TRACKIO", "HF_", "XDG_")

pytestmark = pytest.mark.long


def start(name, home, number):
    """One start of a run, in a process with a home of its own."""
    env = {k: x for k, x in os.environ.items() if not k.startswith(OTHERS)} | {
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",
        "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Values that are too long are errors, as in servers that do not cut them.
        "MLFLOW_TRUNCATE_LONG_VALUES": "false",
        "TRACKIO_DIR": str(home / "trackio"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.tracked_rows", name, home, str(number)],
        cwd=home,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "has failed" not in done.stderr, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", tracked_rows.READ)
def test_two_starts_are_one_run_with_all_numbers(name, tmp_path):
    try:
        # MLflow's store needs the whole package, not `mlflow-skinny`.
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed: {track.PIP}")
    (tmp_path / "run").mkdir()
    start(name, tmp_path, 1)
    [(fields, rows)] = start(name, tmp_path, 2)
    slash = "." if name == "mlflow" else "/"
    assert rows == {
        "1": {f"train{slash}loss": 0.5, f"steps{slash}real": 7},
        "2": {f"train{slash}loss": 0.25},
    }
    config = tiny_config(logger=name, **{"data.classes": tracked_rows.CLASSES})
    expected = plain_fields(config)
    assert set(expected) <= set(fields)
    long = fields.pop("data.classes")
    if name == "mlflow":
        expected = {field: str(value) for field, value in expected.items()}
        assert len(long) == track.PARAM_LENGTH
    else:
        assert long == list(tracked_rows.CLASSES)
    assert {x: fields[x] for x in expected if x != "data.classes"} == {
        x: value for x, value in expected.items() if x != "data.classes"
    }
