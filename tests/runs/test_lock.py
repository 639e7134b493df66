"""One process holds a workdir, says who it is, and notices when it has lost it."""

import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from fedjax_prune.runs.lock import require_held
from fedjax_prune.runs.metrics_log import open_metrics
from fedjax_prune.runs.saving import save
from fedjax_prune.runs.workdir import WorkdirError, open_workdir

HOLD = """
import sys
from fedjax_prune.runs.workdir import open_workdir
with open_workdir(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(folder):
    """A process that holds the folder until the end of the block."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        yield other
        other.kill()


def test_a_second_process_is_told_who_holds_the_folder(tmp_path):
    with another_process(tmp_path) as other:
        said = (
            rf"{tmp_path} is in use by process {other.pid} on "
            rf"{re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\d \d\d:\d\d:"
            r"\d\d UTC\.$"
        )
        with pytest.raises(WorkdirError, match=said), open_workdir(tmp_path):
            pass
    # The lock file of a killed process does not count.
    with open_workdir(tmp_path) as folder:
        require_held(folder)
    assert list(tmp_path.iterdir()) == []


def test_the_holder_notices_that_another_process_has_taken_its_folder(tmp_path):
    lock = tmp_path / "lock"
    with open_workdir(tmp_path) as folder, open_metrics(folder, 0) as log:
        lock.unlink()
        with another_process(tmp_path) as other:
            held = lock.read_text()
            said = rf"lost its workdir {tmp_path}: the file {lock} names process "
            with pytest.raises(WorkdirError, match=rf"{said}{other.pid} on .* without"):
                log.write({"round": 1})
            with pytest.raises(WorkdirError, match=rf"{said}{other.pid} on "):
                save((), folder, 1, (), ())  # type: ignore
            assert lock.read_text() == held
        assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    # It does not remove the lock of the other one.
    assert lock.read_text() == held


def test_the_holder_notices_that_its_lock_is_gone(tmp_path):
    with open_workdir(tmp_path) as folder:
        require_held(folder)
        (tmp_path / "lock").unlink()
        with pytest.raises(WorkdirError, match=r"the file .*/lock is gone"):
            require_held(folder)


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_link_in_place_of_the_lock_is_refused(tmp_path, link):
    (tmp_path / "outside").write_text("mine")
    getattr(tmp_path / "lock", link)(tmp_path / "outside")
    with (
        pytest.raises(
            WorkdirError, match=r"lock must be a file of its own.* remove it"
        ),
        open_workdir(tmp_path),
    ):
        pass
    assert (tmp_path / "outside").read_text() == "mine"


def test_a_dangling_link_makes_no_file(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "outside")
    with pytest.raises(WorkdirError, match="is a link"), open_workdir(tmp_path):
        pass
    assert not (tmp_path / "outside").exists()


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "lock")
    with (
        pytest.raises(WorkdirError, match="is a link or no file"),
        open_workdir(tmp_path),
    ):
        pass
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").mkdir()
    with (
        pytest.raises(WorkdirError, match="is a link or no file: remove it"),
        open_workdir(tmp_path),
    ):
        pass


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
