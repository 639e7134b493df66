"""A run is trained once more and compared; workdirs are compared with each other."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_prune.engine.row_errors import RowsError
from fedjax_prune.engine.store import make_store
from fedjax_prune.runs import checkpoint, environment, replay, train
from fedjax_prune.runs.files import WorkdirError
from fedjax_prune.runs.learning import make_learning
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.replay import (
    compare_workdirs,
    compared_clients,
    read_run,
    verify_workdir,
)
from fedjax_prune.runs.saving import CHECKPOINTS
from fedjax_prune.runs.start import restore
from fedjax_prune.runs.verify import report
from tests.buckets import Buckets
from tests.small_runs import pruned_config, tiny_config, undocumented

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run that was prolonged, and hashed less often from then on."""
    workdir = tmp_path_factory.mktemp("original")
    for changes in ({"rounds": 3, "hash_every": 1}, {"rounds": 4, "hash_every": 2}):
        assert train.run(tiny_config(**changes), workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def other_seed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("other")
    assert train.run(tiny_config(rounds=1, seed=1), workdir) == 0
    return workdir


def test_the_newest_checkpoint_is_no_start_of_compacted_rounds(tmp_path, monkeypatch):
    """The run went on after it, with the programs that it had."""
    config = pruned_config(rounds=2, save_every=1, keep=2, compact_training=True)
    assert train.run(config, tmp_path) == 0
    shutil.rmtree(tmp_path / CHECKPOINTS / "2")
    trained, run = [], replay.train
    monkeypatch.setattr(
        replay, "train", lambda *args: trained.append(args[-1]) or run(*args)
    )
    found = verify_workdir(tmp_path)
    assert found.equal
    assert found.checkpoint == "not compared: the newest are of rounds 1 and 2"
    assert trained == [2]


@pytest.fixture
def altered(original, tmp_path):
    """A copy of the run, for changes."""
    return Path(shutil.copytree(original, tmp_path / "altered"))


def contents(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_rows_have_hashes_as_often_as_asked_for(original):
    rows = read_metrics(original)
    hashes = [row.get("hash/state") for row in rows]
    assert [n for n, value in enumerate(hashes, start=1) if value] == [1, 2, 3, 4]
    assert len(set(hashes)) == 4 and all(undocumented(row) == [] for row in rows)


def test_each_start_has_its_environment(original):
    starts = environment.read(original)
    assert [start["finished"] for start in starts] == [0, 3]
    assert [start["fields"]["rounds"] for start in starts] == [3, 4]
    train.run(tiny_config(rounds=4, hash_every=2), original)
    # A finished run that is started again computes nothing.
    assert environment.read(original) == starts


def test_a_replay_is_equal_and_leaves_the_workdir_as_it_is(original):
    """Round 3 was the last of the first start, so it evaluated other clients."""
    before = contents(original)
    found = verify_workdir(original)
    assert report(found) == {
        "result": "equal",
        "rows": "4 rows, rounds 1 to 4, 4 with the hash of the state",
        "checkpoint": "of round 4, compared",
    }
    assert contents(original) == before


class Terminal(io.StringIO):
    """Calls a function when it is shown the end of round 1."""

    def __init__(self, at_round_1):
        super().__init__()
        self.at_round_1 = at_round_1

    def write(self, text):
        if text.startswith("round 1/"):
            self.at_round_1()
        return super().write(text)


def test_a_signal_ends_a_replay(original, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    press_ctrl_c = partial(signal.raise_signal, signal.SIGINT)
    monkeypatch.setattr(sys, "stdout", Terminal(press_ctrl_c))
    with pytest.raises(KeyboardInterrupt):
        verify_workdir(original)
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_is_equal_to_its_copy(original, altered):
    assert compare_workdirs(original, altered).equal


def test_a_changed_value_is_found(original, altered):
    lines = (altered / "metrics.jsonl").read_text().splitlines()
    row = json.loads(lines[2])
    row["train/loss"] = float(np.nextafter(row["train/loss"], 9))
    lines[2] = json.dumps(row)
    (altered / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = compare_workdirs(original, altered)
    (difference,) = found.rows
    assert difference[:2] == ("round 3", "train/loss")
    assert difference.second == repr(row["train/loss"]) != difference.first
    assert compare_workdirs(original, altered, rounds=2).equal


def test_a_changed_entry_of_a_checkpoint_is_found(original, altered):
    """In the server's state and in the row of client 3."""
    learning = make_learning(tiny_config(rounds=4))
    state, rows = restore(learning, altered)
    bias = state.params["fc2"]["bias"]
    state.params["fc2"]["bias"] = bias.at[2].add(1)
    ids = np.array([3], np.int32)
    own = rows.take(ids)
    leaves, tree = jax.tree.flatten(own.personal)
    first_entry = (0,) * leaves[0].ndim
    leaves[0] = leaves[0].at[first_entry].add(1)
    rows.put(ids, own._replace(personal=jax.tree.unflatten(tree, leaves)))
    shutil.rmtree(altered / CHECKPOINTS)
    checkpoint.save(altered / CHECKPOINTS, 4, state, rows=rows, keep=1)
    found = compare_workdirs(original, altered)
    assert not found.equal and found.rows == []
    first, second = found.leaves
    assert first.field == "params['fc2']['bias'][2]"
    assert np.float32(first.second) == np.float32(first.first) + np.float32(1)
    assert second.field.startswith("personal['conv1']")
    assert second.field.endswith(f"[{', '.join(map(str, (3, *first_entry[1:])))}]")
    assert report(found)["first difference"].startswith(
        "checkpoint of round 4, params['fc2']['bias'][2]: "
    )
    found = compare_workdirs(original, altered, rounds=3)
    assert found.equal
    assert found.checkpoint == "not compared: the newest is of round 4, after round 3"


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """A run that has trained two of thirty clients."""
    workdir = tmp_path_factory.mktemp("disk")
    fields = {"cohort_size": 2, "data.num_clients": 30, "data.partitioner": "iid"}
    config = tiny_config(rounds=1, client_rows="disk", **fields)
    assert train.run(config, workdir) == 0
    return workdir


def test_of_rows_on_disk_those_ever_written_are_compared(on_disk, original):
    run = read_run(on_disk)
    assert len(run.seen) == 2
    unseen = next(n for n in range(30) if n not in run.seen)
    ids = compared_clients(run, run, 30)
    np.testing.assert_array_equal(ids, sorted([*run.seen, unseen]))
    everyone = run._replace(seen=np.arange(30))
    np.testing.assert_array_equal(compared_clients(run, everyone, 30), np.arange(30))
    elsewhere = read_run(original)
    for pair in ((run, elsewhere), (elsewhere, run)):
        np.testing.assert_array_equal(compared_clients(*pair, 30), np.arange(30))
    found = verify_workdir(on_disk)
    assert found.equal and found.checkpoint == "of round 1, compared"


@pytest.mark.long
def test_a_run_that_goes_on_and_one_that_is_damaged(on_disk, monkeypatch, tmp_path):
    """Its rows are gone when the replay ends, with or without a newer checkpoint."""

    def lose(workdir, newer):
        for file in (workdir / "rows").iterdir():
            file.unlink()
        if newer:
            (workdir / CHECKPOINTS / "1").rename(workdir / CHECKPOINTS / "2")

    for newer in (True, False):
        workdir = Path(shutil.copytree(on_disk, tmp_path / str(newer)))
        monkeypatch.setattr(sys, "stdout", Terminal(partial(lose, workdir, newer)))
        if newer:
            found = verify_workdir(workdir)
            assert found.equal and found.rounds == [1]
            said = "not compared: the run goes on and has replaced that of round 1"
            assert found.checkpoint == said
        else:
            with pytest.raises(RowsError, match=rf"^{workdir}/rows/.+ cannot be read"):
                verify_workdir(workdir)


@pytest.mark.long
def test_a_replay_has_its_rows_in_its_own_folder(tmp_path):
    """The run began with rows on the host and has them in storage since."""
    url = f"gs://{tmp_path.name}"
    for fields in (
        {"rounds": 1, "client_rows": "host"},
        {"rounds": 2, "client_rows": "disk", "rows_dir": url},
    ):
        assert train.run(tiny_config(**fields), tmp_path / "run") == 0
    before = {path for path in Buckets.store if tmp_path.name in path}
    found = verify_workdir(tmp_path / "run")
    assert found.equal and found.checkpoint == "of round 2, compared"
    assert {path for path in Buckets.store if tmp_path.name in path} == before != set()


@pytest.mark.parametrize("changed", ["seen", "unseen"])
def test_a_changed_row_on_disk_is_found(on_disk, tmp_path, changed):
    """Of one client, or that of all clients who were never trained."""
    altered = Path(shutil.copytree(on_disk, tmp_path / "altered"))
    run = read_run(altered)
    state, rows = run.saved
    ids = compared_clients(run, run, 30)
    taken = jax.tree.map(np.array, rows.take(ids))
    seen = np.isin(ids, run.seen)
    place = np.flatnonzero(seen if changed == "seen" else ~seen)[-1]
    leaf = jax.tree.leaves(taken)[0]
    leaf[place] += 1
    first = jax.tree.map(lambda x: x[~seen][0], taken)
    store = make_store("disk", first, 30, folder=altered / "other")
    store.put(ids[seen], jax.tree.map(lambda x: x[seen], taken))
    shutil.rmtree(altered / CHECKPOINTS)
    checkpoint.save(altered / CHECKPOINTS, 1, state, rows=store, keep=1)
    (difference,) = compare_workdirs(on_disk, altered).leaves
    assert f"[{ids[place]}, " in difference.field


def test_another_seed_and_another_environment_are_named(original, other_seed):
    file = other_seed / environment.FILE
    starts = json.loads(file.read_text())
    starts[0]["versions"]["jax"] = "0.0.1"
    file.write_text(json.dumps(starts))
    command = ["verify", f"--workdir={original}", f"--against={other_seed}"]
    done = subprocess.run(
        [sys.executable, "-m", "fedjax_prune", *command],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "400"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert any(line.endswith(" different") for line in lines)
    (first,) = (line for line in lines if line.startswith("first difference"))
    assert "round 1, train/loss: " in first
    assert f" in {original}, " in first and first.endswith(f" in {other_seed}")
    assert "seed: 0 and 1" in lines
    assert any(" versions.jax: " in line and "'0.0.1'" in line for line in lines)
    assert "not compared: the newest are of rounds 4 and 1" in done.stdout


def test_a_run_that_does_not_follow_from_its_configuration_is_found(altered):
    """A library before this one wrote no environment.json."""
    config = json.loads((altered / "config.json").read_text())
    (altered / "config.json").write_text(json.dumps(config | {"seed": 1}))
    (altered / environment.FILE).unlink()
    found = verify_workdir(altered, rounds=1)
    assert not found.equal and found.rounds == [1] and found.hashed == 0
    assert found.rows[0][:2] == ("round 1", "train/loss")
    assert found.settings == []
    assert found.checkpoint == "not compared: the newest are of rounds 4 and 1"
    assert found.environment[0].first == "nothing"


def test_what_cannot_be_verified_is_named(original, altered, tmp_path):
    with pytest.raises(WorkdirError, match="no run was started here"):
        verify_workdir(tmp_path)
    with pytest.raises(WorkdirError, match="no run was started here"):
        compare_workdirs(original, tmp_path)
    shutil.rmtree(altered / CHECKPOINTS)
    found = compare_workdirs(original, altered)
    assert found.equal and found.checkpoint == "not compared: there is none"
    (altered / "metrics.jsonl").unlink()
    with pytest.raises(WorkdirError, match="altered has no finished round that"):
        verify_workdir(altered)
    (found, *_) = compare_workdirs(original, altered).rows
    assert found == ("round 1", "the row", "there", "missing")
