"""The lock, the agreed configuration and the log of metrics."""

import errno
import fcntl
import json
import math
import os
import pwd
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.workdir import (
    WorkdirError,
    agree_config,
    local_folder,
    open_metrics,
    open_workdir,
    read_config,
    read_metrics,
)

HOLD = """
import sys
from fedjax_prune.runs.workdir import open_workdir
with open_workdir(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_folder_is_made_and_the_lock_goes_with_the_block(tmp_path):
    with open_workdir(tmp_path / "a" / "b") as folder:
        assert (folder / "lock").read_text() == f"{os.getpid()}\n"
        (folder / "kept").touch()
    assert [f.name for f in folder.iterdir()] == ["kept"]


def test_a_failed_run_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), open_workdir(tmp_path / "a" / "b"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_stays(tmp_path):
    with open_workdir(tmp_path):
        pass
    assert tmp_path.is_dir()


def test_a_second_process_is_told_who_holds_the_folder(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with (
            pytest.raises(WorkdirError, match=f"in use by the process {other.pid}"),
            open_workdir(tmp_path),
        ):
            pass
        other.kill()
    # The lock file of a killed process does not count.
    with open_workdir(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_path_that_cannot_be_written(tmp_path, path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(WorkdirError, match=r"file.* cannot be written: "),
        open_workdir(tmp_path / path),
    ):
        pass
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.warns(UserWarning, match=f"file system of {tmp_path} has no locks"),
        open_workdir(tmp_path) as folder,
    ):
        (folder / "kept").touch()
    assert [f.name for f in tmp_path.iterdir()] == ["kept"]


def test_another_failure_of_the_lock_is_reported(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(WorkdirError, match="cannot be written: Input/output error"),
        open_workdir(tmp_path / "new"),
    ):
        pass


WITHOUT_FCNTL = """
import sys
sys.modules["fcntl"] = None
from fedjax_prune.runs.workdir import open_workdir
try:
    with open_workdir(sys.argv[1]):
        pass
except Exception as error:
    print(type(error).__name__, error)
"""


def test_windows_is_refused_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FCNTL, str(tmp_path / "new")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        "WorkdirError This system has no POSIX file locks: runs need Linux or macOS, "
        "or the Windows Subsystem for Linux (WSL).\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_home_directory_has_a_short_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_folder("~/runs") == tmp_path / "runs"
    with open_workdir("~/runs") as folder:
        assert folder == tmp_path / "runs"
    monkeypatch.chdir(tmp_path)
    assert local_folder("runs[1]") == tmp_path / "runs[1]"


def test_a_user_without_a_home_directory(monkeypatch):
    def getpwuid(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    with pytest.raises(WorkdirError, match=r"~/runs cannot be found: .* no home"):
        local_folder("~/runs")


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://b/r", Path("gs://b/r")])
def test_object_storage_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(WorkdirError, match=r"[gs][s3]:/.* is not a folder of this mach"),
        open_workdir(path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_config_is_written_and_read(tmp_path):
    config = base.get_config()
    agree_config(tmp_path, config)
    agree_config(tmp_path, config)
    assert read_config(tmp_path) == config.to_dict()
    assert [f.name for f in tmp_path.iterdir()] == ["config.json"]


def test_some_fields_may_change_on_resuming(tmp_path):
    config = base.get_config()
    agree_config(tmp_path, config)
    config.rounds, config.save_every, config.keep, config.eval.every = 7, 3, 9, 2
    agree_config(tmp_path, config)
    assert read_config(tmp_path) == config.to_dict()


def test_all_other_changes_are_refused_and_named(tmp_path):
    agree_config(tmp_path, base.get_config())
    before = (tmp_path / "config.json").read_bytes()
    config = base.get_config("fedprox")
    config.seed, config.client.lr, config.rounds = 1, 0.2, 7
    with pytest.raises(SettingsError) as error:
        agree_config(tmp_path, config)
    *lines, advice = error.value.problems
    named = [line.split()[0] for line in lines]
    assert named == [
        "algorithm.control_divisor",
        "algorithm.control_init",
        "algorithm.control_weights",
        "algorithm.mu",
        "algorithm.name",
        "client.lr",
        "seed",
    ]
    run = f"the run in {tmp_path} was started with"
    assert lines[3] == f"algorithm.mu is 0.01, but {run} 'not set'"
    assert lines[5] == f"client.lr is 0.2, but {run} 0.1"
    assert "another workdir" in advice
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_workdir_without_a_run(tmp_path):
    with pytest.raises(WorkdirError, match="no run was started here"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WorkdirError, match="cannot be read"):
        read_config(tmp_path)


def test_rows_are_flat_json_and_come_back(tmp_path):
    row = {"round": 1, "train/loss": np.float32(0.5), "clients": "1 2", "bytes": 2**40}
    with open_metrics(tmp_path, 0) as log:
        log.write(row)
        assert len(read_metrics(tmp_path)) == 1  # readable while the run goes on
        log.write({"round": np.int64(2), "train/loss": jnp.float32(jnp.nan)})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == row
    assert lines[1] == '{"round": 2, "train/loss": null}'
    rows = read_metrics(tmp_path)
    assert rows[0] == row and math.isnan(rows[1]["train/loss"])


def test_resuming_cuts_later_rows_and_a_torn_line(tmp_path):
    with open_metrics(tmp_path, 0) as log:
        for round in (1, 2, 3):
            log.write({"round": round, "x": round / 2})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "x"')
    assert [row["round"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    with open_metrics(tmp_path, 2) as log:
        log.write({"round": 3, "x": 9.0})
    assert read_metrics(tmp_path) == [
        {"round": 1, "x": 0.5},
        {"round": 2, "x": 1.0},
        {"round": 3, "x": 9.0},
    ]


@pytest.mark.parametrize("foreign", [b"3", b"[]", b'{"a": 1}', b"\xff", b"null"])
def test_what_follows_a_line_that_is_no_row_is_cut(foreign, tmp_path):
    rows = b'{"round": 1}\n' + foreign + b'\n{"round": 2}\n'
    (tmp_path / "metrics.jsonl").write_bytes(rows)
    assert read_metrics(tmp_path) == [{"round": 1}]
    with open_metrics(tmp_path, 5):
        pass
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"round": 1}\n'


def test_scalars_go_to_tensorboard(tmp_path):
    with open_metrics(tmp_path, 0) as log:
        log.write({"round": 1, "train/loss": 0.5, "names": "x"})
    (file,) = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    assert b"train/loss" in content and b"names" not in content
