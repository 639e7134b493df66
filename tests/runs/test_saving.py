"""Checkpoints that are written while the rounds go on."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import jax
import numpy as np
import pytest

from fedjax_prune.runs import checkpoint, saving, state_files, train
from fedjax_prune.runs.checkpoint import CheckpointError, begin_save, restore, rounds
from fedjax_prune.runs.metrics_log import read_metrics
from tests.small_runs import final_state, plain_config


def make_state(value):
    return {"params": jax.numpy.full(1000, value, "float32")}


def test_what_is_saved_may_be_donated_before_it_is_written(tmp_path):
    state = make_state(1.0)
    finish = begin_save(tmp_path, 1, state, keep=1)
    after = jax.jit(lambda x: jax.tree.map(lambda y: 2 * y, x), donate_argnums=0)(state)
    assert rounds(tmp_path) == []
    thread = threading.Thread(target=finish)
    thread.start()
    thread.join()
    assert rounds(tmp_path) == [1]
    np.testing.assert_array_equal(restore(tmp_path, after)["params"], np.ones(1000))


def test_checkpoints_of_multiples_stay(tmp_path):
    for round in range(2, 15, 2):
        checkpoint.save(tmp_path, round, make_state(round), keep=2, keep_every=4)
    assert rounds(tmp_path) == [4, 8, 12, 14]
    with pytest.raises(ValueError, match="keep_every must be at least 0, got -1"):
        checkpoint.save(tmp_path, 16, make_state(1), keep=2, keep_every=-1)


def test_an_old_checkpoint_that_cannot_be_deleted_stays(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, make_state(1), keep=1)
    remove = checkpoint.remove

    def refused(path):
        if path.name == "1":
            raise PermissionError(13, "Permission denied")
        remove(path)

    monkeypatch.setattr(checkpoint, "remove", refused)
    with pytest.warns(
        UserWarning, match=f"old checkpoint {tmp_path}/1 stays: .*denied"
    ):
        checkpoint.save(tmp_path, 2, make_state(2), keep=1)
    assert rounds(tmp_path) == [1, 2]


@pytest.mark.parametrize("harm", ["flipped", "cut", "no index"])
def test_a_save_that_cannot_be_read_does_not_count(tmp_path, monkeypatch, harm):
    """The disk returns other bytes than those that were written."""
    checkpoint.save(tmp_path, 1, make_state(1), keep=2)
    read_back = state_files._read_back

    def after_harm(folder, written):
        name = "_METADATA" if harm == "no index" else "0/0"
        file = folder / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= harm == "flipped"
        file.write_bytes(content[: len(content) if harm == "flipped" else 7])
        read_back(folder, written)

    monkeypatch.setattr(state_files, "_read_back", after_harm)
    said = rf"^The checkpoint {tmp_path}/2 cannot be saved: the disk takes no more "
    with pytest.raises(CheckpointError, match=said):
        checkpoint.save(tmp_path, 2, make_state(2), keep=2)
    assert [f.name for f in tmp_path.iterdir()] == ["1"]


class Output:
    """Does something before it prints the line of a round."""

    def __init__(self, output, round, before):
        self.output, self.round, self.before = output, round, before

    def write(self, text):
        if text.startswith(f"round {self.round}/"):
            self.before()
        return self.output.write(text)

    def __getattr__(self, name):
        return getattr(self.output, name)


def test_rounds_go_on_and_an_error_is_told_at_the_next(tmp_path, monkeypatch):
    """The save of round 4 has not ended when round 5 is done, and fails then."""
    config = plain_config(**{"rounds": 8, "save_every": 4})
    released, saves = threading.Event(), []

    def failing(folder, leaves):
        assert threading.current_thread() is not threading.main_thread()
        assert released.wait(60)
        raise OSError(5, "Input/output error")

    class Pool(ThreadPoolExecutor):
        def submit(self, *args):
            saves.append(super().submit(*args))
            return saves[-1]

    def let_it_fail():
        assert not saves[0].done()
        released.set()
        wait(saves, 60)

    with monkeypatch.context() as patch:
        patch.setattr(state_files, "write", failing)
        patch.setattr(saving, "ThreadPoolExecutor", Pool)
        patch.setattr(sys, "stdout", Output(sys.stdout, 5, let_it_fail))
        said = "/4 cannot be saved: Input/output error.*there is no other"
        with pytest.raises(CheckpointError, match=said):
            train.run(config, tmp_path / "run")
    assert [row["round"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5]
    assert rounds(tmp_path / "run" / "checkpoints") == []

    assert train.run(config, tmp_path / "run") == 0
    assert train.run(config, tmp_path / "unbroken") == 0
    jax.tree.map(
        np.testing.assert_array_equal,
        final_state(config, tmp_path / "unbroken"),
        final_state(config, tmp_path / "run"),
    )
    assert [row["round"] for row in read_metrics(tmp_path / "run")] == list(range(1, 9))


def test_where_a_round_fails_the_save_before_it_still_counts(tmp_path, monkeypatch):
    """The loop ends with an error while a checkpoint is being written."""
    config, write = plain_config(), state_files.write

    def slow(folder, leaves):
        assert stopped.wait(60)
        write(folder, leaves)

    def fail():
        stopped.set()
        raise ZeroDivisionError

    stopped = threading.Event()
    monkeypatch.setattr(state_files, "write", slow)
    monkeypatch.setattr(sys, "stdout", Output(sys.stdout, 3, fail))
    with pytest.raises(ZeroDivisionError):
        train.run(config, tmp_path)
    assert rounds(tmp_path / "checkpoints") == [2]
