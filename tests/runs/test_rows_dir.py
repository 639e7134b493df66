"""Runs whose rows are in a folder or in object storage outside of the workdir."""

import importlib.util
import logging
import os
import shutil
import socket

import fsspec
import jax
import numpy as np
import pytest

from fedjax_prune.engine.row_errors import RowsError
from fedjax_prune.engine.store import make_store
from fedjax_prune.runs import checkpoint, row_place, train
from fedjax_prune.runs.saving import CHECKPOINTS
from fedjax_prune.runs.settings import problems
from fedjax_prune.runs.workdir import read_usable_config
from tests.buckets import Buckets
from tests.mixed_rows import first_row
from tests.processes import Together, one_process, run_together
from tests.small_runs import final_state, tiny_config

ON_DISK = {"client_rows": "disk"}


def run(workdir, **changes):
    config = tiny_config(**changes)
    assert train.run(config, workdir) == 0
    return final_state(config, workdir)


@pytest.fixture(scope="module")
def on_device(tmp_path_factory):
    """A run with rows on the devices, which is not resumed."""
    return run(tmp_path_factory.mktemp("device"))


@pytest.mark.long
def test_rows_move_between_folders_and_the_workdir(on_device, tmp_path):
    """The run stops after each round; two runs share `rows_dir`."""
    storage, url = fsspec.filesystem("gs"), f"gs://{tmp_path.name}"
    run(tmp_path / "another run", rounds=1, rows_dir=url, **ON_DISK)
    (other,) = storage.ls(url, detail=False)
    its_files = storage.find(other)
    assert other.rpartition("/")[2].startswith("another_run-")
    workdir = tmp_path / "run"
    for rounds, rows_dir in enumerate((url, str(tmp_path / "far"), "", url), 1):
        fields = {"rounds": rounds, "save_every": 1, "rows_dir": rows_dir, **ON_DISK}
        state = run(workdir, **fields)
        assert (workdir / "rows").exists() == (rounds >= 3)
        if rounds == 1:
            name, _ = (workdir / "rows_name").read_text().split()
    jax.tree.map(np.testing.assert_array_equal, on_device, state)
    assert [folder.name for folder in (tmp_path / "far").iterdir()] == [name]
    assert len(storage.ls(url)) == 2 and storage.find(other) == its_files
    # The rows are found where the index says, wherever the workdir is.
    moved = workdir.rename(tmp_path / "moved")
    assert train.evaluate_workdir(moved)["round"] == 4
    jax.tree.map(
        np.testing.assert_array_equal, on_device, final_state(tiny_config(), moved)
    )


@pytest.mark.long
def test_a_copy_of_a_workdir_has_rows_of_its_own(tmp_path):
    """Both go on, one after the other, and keep one checkpoint each."""
    fields = {"rows_dir": f"gs://{tmp_path.name}", "save_every": 1, "keep": 1}
    runs = tmp_path / "run", tmp_path / "copy"
    run(runs[0], rounds=1, **fields, **ON_DISK)
    shutil.copytree(*runs)
    of_copy, of_run = (
        run(workdir, rounds=2, **fields, **ON_DISK) for workdir in reversed(runs)
    )
    jax.tree.map(np.testing.assert_array_equal, of_copy, of_run)
    for workdir in runs:
        assert train.evaluate_workdir(workdir)["round"] == 2


def test_the_name_of_rows_is_that_of_one_workdir(tmp_path):
    def name(workdir):
        return row_place.rows_folder(config, tmp_path / workdir)

    config = tiny_config(rows_dir="gs://bucket/rows", **ON_DISK)
    (tmp_path / "run").mkdir()
    first = name("run")
    assert first.startswith("gs://bucket/rows/run-") and name("run") == first
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert name("copy") != first == name("run")
    assert name("copy") == name("copy")
    # A copy made of links has the same file, until one of both is started.
    shutil.copytree(tmp_path / "run", tmp_path / "linked", copy_function=os.link)
    assert name("run") != first != name("run")
    assert name("linked") == first == name("linked")
    (tmp_path / "linked").rename(tmp_path / "moved")
    assert name("moved") == first
    # A start was killed when it wrote the name.
    (tmp_path / "moved" / "rows_name").write_text("run-1")
    assert name("moved") not in (first, "gs://bucket/rows/run-1")


def test_rows_outside_of_a_workdir_that_is_moved(tmp_path):
    """To another depth."""
    fields = {"rows_dir": str(tmp_path / "far"), **ON_DISK}
    state = run(tmp_path / "run", rounds=1, **fields)
    (tmp_path / "a" / "b").mkdir(parents=True)
    moved = (tmp_path / "run").rename(tmp_path / "a" / "b" / "run")
    jax.tree.map(
        np.testing.assert_array_equal, state, final_state(tiny_config(), moved)
    )
    run(moved, rounds=2, **fields)
    assert len([*(tmp_path / "far").iterdir()]) == 1


def test_storage_that_does_not_answer_is_no_damage(monkeypatch, tmp_path):
    fields = {"rows_dir": f"gs://{tmp_path.name}", "save_every": 1, **ON_DISK}
    workdir = tmp_path / "run"
    run(workdir, rounds=2, **fields)
    monkeypatch.setattr(Buckets, "refusal", TimeoutError("too\nslow"))
    said = rf"^gs://{tmp_path.name}/run-.+ cannot be used: too slow\.$"
    with pytest.raises(RowsError, match=said):
        train.evaluate_workdir(workdir)
    # Also where a run would save the round that is there.
    with pytest.raises(RowsError, match=said):
        checkpoint.begin_save(
            workdir / CHECKPOINTS, 2, {}, rows=opened(workdir), keep=1
        )
    assert checkpoint.rounds(workdir / CHECKPOINTS) == [1, 2]
    assert not list((workdir / CHECKPOINTS).glob("*.damaged"))
    monkeypatch.undo()
    assert train.evaluate_workdir(workdir)["round"] == 2


def opened(workdir):
    """A store in the folder of a run."""
    where = row_place.rows_folder(read_usable_config(workdir), workdir)
    return make_store("disk", first_row(), 3, folder=where)


@pytest.mark.long
def test_a_finished_run_writes_no_rows(tmp_path):
    """It is only reported: it is a copy, which has no rows of its own."""
    fields = {"rows_dir": str(tmp_path / "far"), "rounds": 1, **ON_DISK}
    run(tmp_path / "run", **fields)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    before = contents(tmp_path / "far")
    run(tmp_path / "copy", **fields)
    assert contents(tmp_path / "far") == before


def test_reading_writes_nothing_though_the_newest_index_is_damaged(tmp_path):
    fields = {"rows_dir": str(tmp_path / "far"), "save_every": 1, **ON_DISK}
    run(tmp_path / "run", rounds=2, **fields)
    copy = shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (copy / "rows_name").unlink()
    (copy / CHECKPOINTS / "2" / "rows" / "index.npz").write_bytes(b"PK")
    before = contents(tmp_path)
    with pytest.warns(UserWarning, match="2 is damaged"):
        assert train.evaluate_workdir(copy)["round"] == 1
    assert contents(tmp_path) == before


def contents(folder):
    """Files with their times; locks are left out."""
    files = [folder, *folder.rglob("*")]
    return {p: p.stat().st_mtime_ns for p in files if p.name != "lock"}


def test_nothing_stays_of_a_folder_that_cannot_be_used(monkeypatch, tmp_path):
    """It is written, but cannot be listed."""

    def fail(self, path, detail=True, **kwargs):
        raise PermissionError("no right to list")

    monkeypatch.setattr(Buckets, "ls", fail)
    url = f"gs://{tmp_path.name}"
    said = rf"^Rows cannot be kept in {url}: no right to list\.$"
    with pytest.raises(RowsError, match=said):
        row_place.require_usable(url)
    assert not [path for path in Buckets.store if tmp_path.name in path]
    monkeypatch.undo()
    row_place.require_usable(url)
    assert not [path for path in Buckets.store if tmp_path.name in path]


def test_storage_that_cannot_be_used_is_told_before_the_first_round(
    monkeypatch, tmp_path
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(Buckets, "refusal", PermissionError("no right."))
    for rows_dir, reason in (
        (str(tmp_path / "file"), "File exists"),
        ("gs://bucket/rows", "no right"),
    ):
        config = tiny_config(rows_dir=rows_dir, **ON_DISK)
        said = rf"^Rows cannot be kept in {rows_dir}: {reason}\.$"
        with pytest.raises(RowsError, match=said):
            train.run(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rows_dir", ["memory://a", "file:///a", "gs:/a", "ftp://a/b"])
def test_other_storage_is_a_mistake(rows_dir):
    """It may show a file that is not complete."""
    config = tiny_config(rows_dir=rows_dir, **ON_DISK)
    assert problems(config.to_dict()) == [
        "rows_dir must be a path, or an address gs://BUCKET/... or s3://BUCKET/..., "
        f"got {rows_dir!r}"
    ]


def test_a_folder_without_rows_on_disk_is_a_mistake():
    config = tiny_config(rows_dir="rows")
    assert problems(config.to_dict()) == [
        "rows_dir must be empty with client_rows device, got 'rows': only disk has "
        "files"
    ]


NEEDS_S3 = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("s3fs", "moto", "flask"))),
    reason="the extras cloud and emulator are not installed",
)


@pytest.fixture(scope="module")
def bucket():
    """The address of a bucket in an S3 of this machine."""
    from moto.server import ThreadedMotoServer

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "key")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    server.stop()


@NEEDS_S3
@pytest.mark.long
def test_rows_in_a_bucket_of_two_processes_and_of_one(bucket, on_device, tmp_path):
    """FedDP with four devices; the last rounds are of one process."""
    flags = [f"--config.rows_dir={bucket}/rows", "--config.client_rows=disk"]
    workdir = tmp_path / "run"
    run_together(2, "feddp", workdir, *flags, "--config.rounds=2")
    found = fsspec.filesystem("s3").find(bucket)
    names = {path.rpartition("/")[2] for path in found}
    assert {name[-7:] for name in names} == {"-0.rows", "-1.rows"}
    fields = {"rows_dir": f"{bucket}/rows", **ON_DISK}
    config, alone = one_process("feddp", **fields), one_process("feddp")
    assert train.run(config, workdir) == 0
    assert train.run(alone, tmp_path / "alone") == 0
    jax.tree.map(
        np.testing.assert_array_equal,
        final_state(config, workdir),
        final_state(alone, tmp_path / "alone"),
    )


@NEEDS_S3
@pytest.mark.long
def test_a_bucket_that_cannot_be_used_is_one_line(bucket, monkeypatch, tmp_path):
    flags = ["--config.client_rows=disk", "--config.rows_dir=s3://missing/rows"]
    together = Together(2, "feddp", tmp_path / "run", *flags)
    assert together.end() == [1, 1]
    said = "Rows cannot be kept in s3://missing/rows: The specified bucket does not"
    for number, source in enumerate(("", "process 0 of 2 has failed: ")):
        (line,) = together.said("err", number).splitlines()
        assert line == f"error: {source}{said} exist."
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    together = Together(2, "feddp", tmp_path / "other", *flags)
    assert together.end() == [1, 1]
    for number in range(2):
        (line,) = together.said("err", number).splitlines()
        assert line.endswith(": Unable to locate credentials.")
