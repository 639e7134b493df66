"""Groups of explorers that are done are kept, or explored again."""

import shutil
import signal

import jax
import numpy as np
import pytest

from fedjax_prune.engine import devices
from fedjax_prune.engine.row_errors import StorageError
from fedjax_prune.runs import checkpoint, train, verify
from fedjax_prune.runs import prepare as preparing
from fedjax_prune.runs.interrupt import Stop
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.start import restore_or_start
from fedjax_prune.runs.workdir import open_workdir
from tests.small_runs import PRUNED_FIELDS, build, pruned_config
from tests.toys import all_rows


def prepared_with(config, folder, *, stopped=False):
    """The state after the preparation, or None, and the rows of all clients."""
    built, stop = build(config), Stop()
    where = devices.make_placement(1)
    if stopped:
        stop.set()
    with open_workdir(folder):
        state, rows, _ = restore_or_start(built, folder, where)
        state = preparing.prepare(built, folder, where, state, rows, stop=stop)
    return state, all_rows(rows)


def test_groups_of_explorers_that_are_done_are_kept(tmp_path, monkeypatch):
    """Five explorers in groups of two, two and one; it stops after each group."""
    monkeypatch.setattr(devices, "ALONE", 2)
    fields = PRUNED_FIELDS | {"mask_schedule": "agreement"}
    config = pruned_config(fields=fields, devices=1)
    whole = prepared_with(config, tmp_path / "whole")
    stopped = tmp_path / "stopped"
    taken = []
    assert not preparing.has_prepared(stopped)
    for done in (1, 2):
        assert prepared_with(config, stopped, stopped=True)[0] is None
        assert preparing.has_prepared(stopped)
        with np.load(stopped / f"preparation/sums-of-{done}-groups.npz") as sums:
            taken.append(float(sums["seconds"]) - sum(taken))
        assert checkpoint.rounds(stopped / "preparation") == [done]
        assert checkpoint.latest(stopped / "checkpoints") is None
        assert read_metrics(stopped) == []
    jax.tree.map(np.testing.assert_array_equal, whole, prepared_with(config, stopped))
    assert not (stopped / "preparation").exists()
    one, other = (read_metrics(tmp_path / name)[0] for name in ("whole", "stopped"))
    assert min(taken) > 0 and other["seconds"] > sum(taken)
    times = dict.fromkeys(verify.TIMES, 0)
    assert one | times == other | times


def test_groups_of_a_damaged_save_are_explored_again(tmp_path, monkeypatch):
    """The second save is damaged, but the first was not removed yet: it is used."""
    monkeypatch.setattr(devices, "ALONE", 2)
    config = pruned_config(devices=1, rounds=1)
    whole = prepared_with(config, tmp_path / "whole")
    stopped, kept = tmp_path / "stopped", tmp_path / "stopped" / "preparation"
    assert prepared_with(config, stopped, stopped=True)[0] is None
    shutil.copytree(kept / "1", tmp_path / "1")
    assert prepared_with(config, stopped, stopped=True)[0] is None
    shutil.copytree(tmp_path / "1", kept / "1")
    (kept / "2" / "manifest.json").unlink()
    with pytest.warns(UserWarning, match=r"1 is used"):
        again = prepared_with(config, stopped)
    jax.tree.map(np.testing.assert_array_equal, whole, again)


# Stops of a run and stops between groups are tested above, each on its own.
@pytest.mark.long
def test_a_run_that_stops_between_groups_says_how_it_goes_on(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(devices, "ALONE", 2)
    prepare = train.prepare

    def interrupted(*args, stop):
        signal.raise_signal(signal.SIGINT)
        return prepare(*args, stop=stop)

    monkeypatch.setattr(train, "prepare", interrupted)
    assert train.run(pruned_config(devices=1), tmp_path) == train.INTERRUPTED
    assert checkpoint.rounds(tmp_path / "preparation") == [1]
    assert "the same command goes on" in capsys.readouterr().out


@pytest.mark.parametrize(
    "cause", ["other groups", "damage", "damaged rows", "damaged sums"]
)
def test_groups_that_cannot_be_used_are_explored_again(cause, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "ALONE", 2)
    config = pruned_config(devices=1, rounds=1)
    assert prepared_with(config, tmp_path, stopped=True)[0] is None
    kept = tmp_path / "preparation"
    if cause == "other groups":
        monkeypatch.setattr(devices, "ALONE", 3)
    elif cause == "damage":
        (kept / "1" / "manifest.json").unlink()
    elif cause == "damaged rows":
        (leaf, *_) = sorted((kept / "1" / "rows").iterdir())
        leaf.write_bytes(leaf.read_bytes()[:-1])
    else:
        sums = kept / "sums-of-1-groups.npz"
        sums.write_bytes(sums.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="The preparation begins anew"):
        assert prepared_with(config, tmp_path, stopped=True)[0] is None
    state, _ = prepared_with(config, tmp_path)
    assert state is not None and not kept.exists()


def test_rows_of_groups_that_cannot_be_read_end_the_run(tmp_path, monkeypatch):
    """Some of them may be replaced already. The next start explores again."""
    monkeypatch.setattr(devices, "ALONE", 2)
    config, restore = pruned_config(devices=1, rounds=1), checkpoint.restore
    whole = prepared_with(config, tmp_path / "whole")
    stopped = tmp_path / "stopped"
    assert prepared_with(config, stopped, stopped=True)[0] is None

    def half_read(folder, shapes, rows=None, **fields):
        if rows is not None:
            raise checkpoint.CheckpointError("A row is lost.")
        return restore(folder, shapes, **fields)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "restore", half_read)
        message = r"A row is lost\. The same command begins the preparation anew"
        with pytest.raises(checkpoint.CheckpointError, match=message):
            prepared_with(config, stopped)
    again = prepared_with(config, stopped)
    jax.tree.map(np.testing.assert_array_equal, whole, again)


def test_storage_that_does_not_answer_keeps_the_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "ALONE", 2)
    config = pruned_config(devices=1, rounds=1)
    assert prepared_with(config, tmp_path, stopped=True)[0] is None

    def too_slow(*args, **fields):
        raise StorageError("gs://rows", "too slow")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "restore", too_slow)
        with pytest.raises(StorageError, match="too slow"):
            prepared_with(config, tmp_path)
    assert checkpoint.rounds(tmp_path / "preparation") == [1]
