"""A disk that takes no more: one line, the good checkpoint stays, the run goes on.

A limit on the size of files stands for the full disk, since the system then refuses to
write, too; so does a lower number of free bytes.
"""

import io
import logging
import re
import resource
import shutil
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from fedjax_prune.engine.store import make_store
from fedjax_prune.runs import train
from fedjax_prune.runs.checkpoint import CheckpointError, restore, rounds, save
from fedjax_prune.runs.metrics_log import open_metrics, read_metrics, restore_metrics
from fedjax_prune.runs.workdir import WorkdirError, open_workdir, write_config
from fedjax_prune.types import ClientState
from tests.small_runs import final_state, plain_config, tiny_config

REASON = "File too large"


@contextmanager
def largest_file(num_bytes):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def make_state(round, size):
    noise = np.random.default_rng(round).normal(size=size).astype("float32")
    return {"params": noise}


def make_rows(size):
    row = ClientState({}, {"control": np.ones(size, np.float32)})
    return make_store("host", row, 4)


@pytest.mark.parametrize(
    ("state_size", "row_size"),
    [(50_000, 1), (10, 50_000)],
)
def test_a_checkpoint_that_finds_no_room(tmp_path, caplog, state_size, row_size):
    states = [make_state(round, state_size) for round in (1, 2)]
    rows = make_rows(row_size)
    save(tmp_path, 1, states[0], rows=rows, keep=1)
    needed = 4 * state_size + 16 * row_size
    said = (
        rf"^The checkpoint {tmp_path}/2 cannot be saved: {REASON}\. It takes about "
        rf"{needed:,} bytes, and [\d,]+ bytes are free; that of round 1 stays\. The "
        r"same command goes on when it can be saved\.$"
    )
    with (
        caplog.at_level(logging.ERROR),
        largest_file(100_000),
        pytest.raises(CheckpointError, match=said),
    ):
        save(tmp_path, 2, states[1], rows=rows, keep=1)
    assert caplog.records == []
    assert [f.name for f in tmp_path.iterdir()] == ["1"]
    np.testing.assert_equal(restore(tmp_path, states[0], rows), states[0])
    save(tmp_path, 2, states[1], rows=rows, keep=1)
    np.testing.assert_equal(restore(tmp_path, states[0], rows), states[1])
    assert rounds(tmp_path) == [2]


def test_a_first_checkpoint_that_finds_no_room(tmp_path):
    with (
        largest_file(1000),
        pytest.raises(CheckpointError, match="free; there is no other"),
    ):
        save(tmp_path, 1, make_state(1, 50_000), keep=1)
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_finds_no_room(tmp_path):
    config = plain_config()
    write_config(tmp_path, config)
    before = (tmp_path / "config.json").read_bytes()
    config.rounds = 7
    said = rf"{tmp_path}/config.json cannot be written: {REASON}\. It takes [\d,]+ byt"
    with largest_file(100), pytest.raises(WorkdirError, match=said):
        write_config(tmp_path, config)
    assert [f.name for f in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_workdir_that_finds_no_room_for_its_lock(tmp_path):
    said = rf"The workdir {tmp_path}/run cannot be written: {REASON}"
    with (
        largest_file(0),
        pytest.raises(WorkdirError, match=said),
        open_workdir(tmp_path / "run"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_rows_that_find_no_room(tmp_path):
    said = rf"{tmp_path}/metrics.jsonl cannot be written: {REASON}\. It takes"
    with open_workdir(tmp_path) as folder:
        with open_metrics(folder, 0) as log:
            log.write({"round": 1})
            with largest_file(20), pytest.raises(WorkdirError, match=said):
                log.write({"round": 2})
        # What was written of the row is a torn line.
        assert [row["round"] for row in read_metrics(folder)] == [1]
        content = (folder / "metrics.jsonl").read_bytes()
        assert content == b'{"round": 1}\n{"round'
        with largest_file(10), pytest.raises(WorkdirError, match=said):
            restore_metrics(folder, 1, first=1, save_every=1)
        assert (folder / "metrics.jsonl").read_bytes() == content
        restore_metrics(folder, 1, first=1, save_every=1)
        with open_metrics(folder, 1) as log:
            log.write({"round": 2})
        assert [row["round"] for row in read_metrics(folder)] == [1, 2]


class Filling(io.StringIO):
    """Fills the disk when it is shown the end of a round."""

    def __init__(self, after, patch):
        super().__init__()
        self.after, self.patch = after, patch

    def write(self, text):
        if text.startswith(f"round {self.after}/"):
            leave(self.patch, free=1000)
        return super().write(text)


def leave(patch, free):
    patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    assert train.run(plain_config(), workdir) == 0
    return workdir


def test_a_run_goes_on_when_there_is_room(unbroken, tmp_path, monkeypatch):
    """The disk is full from round 3 on, so that round 4 cannot be saved."""
    config, run = plain_config(), tmp_path / "run"
    said = "/4 cannot be saved: No space left on device.* that of round 2 stays"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Filling(3, patch))
        with pytest.raises(CheckpointError, match=said):
            train.run(config, run)
    assert rounds(run / "checkpoints") == [2]
    assert train.run(config, run) == 0
    jax.tree.map(
        np.testing.assert_array_equal,
        final_state(config, unbroken),
        final_state(config, run),
    )
    assert [row["round"] for row in read_metrics(run)] == [1, 2, 3, 4]


def test_what_could_not_be_saved_is_not_begun(tmp_path, monkeypatch, capsys):
    leave(monkeypatch, free=12_345)
    said = (
        rf"could not be saved in {re.escape(str(tmp_path))}/run/checkpoints\. It takes "
        r"about [\d,]+ bytes, and 12,345 bytes are free: make room, or name a workdir "
        r"on another disk\.$"
    )
    with pytest.raises(CheckpointError, match=said):
        train.run(tiny_config(), tmp_path / "run")
    assert "round 1/4" not in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_finished_run_needs_no_room(unbroken, monkeypatch):
    leave(monkeypatch, free=0)
    assert train.run(plain_config(), unbroken) == 0
