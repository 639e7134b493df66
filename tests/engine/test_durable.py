"""Files that are written are on the disk, and so are their names."""

import errno
import os
from pathlib import Path

import pytest

from fedjax_prune.engine.durable import sync_folder
from fedjax_prune.engine.row_folder import open_folder


@pytest.fixture
def synced(monkeypatch):
    """The paths that were waited for, in order."""
    paths, fsync = [], os.fsync

    def record(descriptor):
        paths.append(Path(f"/proc/self/fd/{descriptor}").resolve())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return paths


def test_a_file_of_rows_is_waited_for_and_then_its_name(synced, tmp_path):
    rows = tmp_path / "rows"
    folder = open_folder(rows)
    folder.write("0-1.rows", [memoryview(b"one")])
    assert synced == [rows / ".0-1.rows.new", rows, tmp_path]
    synced.clear()
    folder.write("1-2.rows", [memoryview(b"two")])
    assert synced == [rows / ".1-2.rows.new", rows]


def test_a_file_system_that_cannot_wait_for_folders_is_no_fault(monkeypatch, tmp_path):
    def refuse(code):
        def fsync(descriptor):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fsync)

    refuse(errno.EINVAL)
    sync_folder(tmp_path)
    refuse(errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        sync_folder(tmp_path)
