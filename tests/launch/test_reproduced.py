"""A table from its command to its page: stopped, gone on with and finished."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedjax_prune.runs.interrupt import INTERRUPTED

ROOT = Path(__file__).parents[2]


FLAGS = (
    "--table=gates",
    "--blocks=10_fedavg,10_averaged_gates",
    "--seeds=0",
    "--config.rounds=5",
    "--config.eval.every=1",
)


def reproduce(workdir, *more):
    command = [sys.executable, "-m", "launch.reproduce", f"--workdir={workdir}"]
    return subprocess.Popen(
        [*command, *FLAGS, *more],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.long
def test_a_table_that_was_stopped_goes_on_and_is_drawn(tmp_path):
    process = reproduce(tmp_path, "--minutes=600")
    assert process.stdout is not None
    seen = ""
    while ": finished after" not in seen:
        seen += (line := process.stdout.readline())
        assert line, process.communicate()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED
    assert "after 600 minutes runs stop, and can go on" in seen
    assert "FedDP, gates averaged (1 of 1 seeds)." in out
    # The table's own seeds are more.
    folder = tmp_path / "gates_cpu" / "seeds=0"
    table = folder / "table.md"
    assert "| FedDP, gates averaged" not in table.read_text()
    process = reproduce(tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0, err
    text = table.read_text()
    assert text.strip() in out and "Not finished" not in text
    lines = [line for line in text.splitlines() if " | 5 | 1 | " in line]
    names = [line.split(" | ")[0] for line in lines]
    assert names == [
        "| FedAvg",
        "| FedAvg with gates",
        "| FedAvg with gates, never learning",
        "| FedAvg, narrow",
        "| SCAFFOLD",
        "| FedDP",
        "| FedDP, gates averaged",
    ]
    assert (folder / "10_fedavg" / "index.html").exists()
    process = reproduce(tmp_path)
    out, _ = process.communicate()
    assert process.returncode == 0 and ": finished after" not in out
    assert table.read_text() == text
