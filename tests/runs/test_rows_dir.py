"""Runs whose rows are in a folder or in object storage outside of the workdir."""

import importlib.util
import logging
import socket

import fsspec
import jax
import numpy as np
import pytest

from fedjax_prune.engine.rows_on_disk import RowsError
from fedjax_prune.runs import train
from fedjax_prune.runs.settings import problems
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


def test_rows_move_between_folders_and_the_workdir(on_device, tmp_path):
    """The run stops after each round; two runs share `rows_dir`."""
    storage, url = fsspec.filesystem("memory"), f"memory://{tmp_path.name}"
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
            name = (workdir / "rows_name").read_text()
    jax.tree.map(np.testing.assert_array_equal, on_device, state)
    assert [folder.name for folder in (tmp_path / "far").iterdir()] == [name]
    assert len(storage.ls(url)) == 2 and storage.find(other) == its_files
    # The rows are found where the index says, wherever the workdir is.
    moved = workdir.rename(tmp_path / "moved")
    assert train.evaluate_workdir(moved)["round"] == 4
    jax.tree.map(
        np.testing.assert_array_equal, on_device, final_state(tiny_config(), moved)
    )


def test_storage_that_cannot_be_used_is_told_before_the_first_round(tmp_path):
    (tmp_path / "file").touch()
    for rows_dir, reason in (
        (str(tmp_path / "file"), "File exists"),
        ("tape://bucket", "Protocol not known: tape"),
    ):
        config = tiny_config(rows_dir=rows_dir, **ON_DISK)
        said = rf"^Rows cannot be kept in {rows_dir}: {reason}\.$"
        with pytest.raises(RowsError, match=said):
            train.run(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_folder_without_rows_on_disk_is_a_mistake():
    config = tiny_config(rows_dir="rows")
    assert problems(config.to_dict()) == [
        "rows_dir must be empty with client_rows device, got 'rows': only disk has "
        "files"
    ]


NEEDS_S3 = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("s3fs", "moto", "flask"))),
    reason="the extras cloud and cloud_test are not installed",
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
    for number in range(2):
        (line,) = together.said("err", number).splitlines()
        reason = "s3://missing/rows: The specified bucket does not exist."
        assert line == f"error: Rows cannot be kept in {reason}"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    together = Together(2, "feddp", tmp_path / "other", *flags)
    assert together.end() == [1, 1]
    for number in range(2):
        (line,) = together.said("err", number).splitlines()
        assert line.endswith(": Unable to locate credentials.")
