"""Rows on disk: equal to rows on the host, whatever happens in between."""

import errno
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_prune.engine import row_log
from fedjax_prune.engine.rows_on_disk import DiskStore, RowsError
from fedjax_prune.engine.store import make_store
from fedjax_prune.types import ClientState
from tests.buckets import Buckets
from tests.mixed_rows import first_row, some_rows
from tests.toys import all_rows, assert_same_bits

NUM_CLIENTS = 40


def on_disk(folder, row=None, **fields):
    return make_store("disk", row or first_row(), NUM_CLIENTS, folder=folder, **fields)


def files(folder):
    return {f.name: f.stat().st_size for f in folder.iterdir()}


def put(store, ids, seed=0):
    """Puts rows of these clients; returns them."""
    rows = some_rows(np.random.default_rng(seed), len(ids))
    store.put(np.array(ids, np.int32), jax.device_put(rows))
    return rows


@pytest.mark.parametrize("where", ["rows", f"{Buckets.protocol}://rows"])
@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_gives_the_rows_of_a_store_on_the_host(seed, where, tmp_path):
    """Cohorts with nobody in some places, snapshots, and restored ones of both.

    In a folder, and in storage of objects that fsspec keeps in memory.
    """
    rng = np.random.default_rng(seed)
    where = f"{where}/{seed}" if "://" in where else tmp_path / where
    disk, host = on_disk(where), make_store("host", first_row(), 40)
    snapshots = []
    for step in range(60):
        ids = rng.permutation(NUM_CLIENTS + 5)[:8].astype(np.int32) - 2
        action = rng.choice(["put", "put", "put", "take", "personal", "save", "load"])
        if action == "put":
            rows = some_rows(rng, 8)
            for store in (disk, host):
                store.put(ids, jax.device_put(rows))
        elif action == "take":
            # Those of nobody have no meaning.
            ids = ids[(ids >= 0) & (ids < NUM_CLIENTS)]
            assert_same_bits(disk.take(ids), host.take(ids))
        elif action == "personal":
            ids = np.clip(ids, 0, NUM_CLIENTS - 1)
            assert_same_bits(disk.personal(ids), host.personal(ids))
        elif action == "save":
            folders = [tmp_path / f"{kind}{step}" for kind in ("disk", "host")]
            disk.snapshot(folders[0])
            host.snapshot(folders[1])
            snapshots = [*snapshots, folders][-2:]
            disk.keep([folder for folder, _ in snapshots])
        elif snapshots:
            of_disk, of_host = snapshots[rng.integers(len(snapshots))]
            if rng.random() < 0.5:  # a new process
                disk = on_disk(where)
            disk.restore(of_disk)
            host.restore(of_host)
    assert_same_bits(all_rows(disk), all_rows(host))
    for of_disk, of_host in snapshots:
        disk.restore(of_disk)
        host.restore(of_host)
        assert_same_bits(all_rows(disk), all_rows(host))


def test_only_rows_ever_put_take_space(tmp_path):
    """A million clients with rows of 4 kB, five of whom are trained."""
    row = ClientState({}, {"control": np.zeros(1000, np.float32)})
    store = make_store("disk", row, 10**6, folder=tmp_path / "rows")
    assert not (tmp_path / "rows").exists()
    ids = np.array([3, 999_999, 10, 500_000, 7, 10**6], np.int32)
    rows = {"control": np.arange(6000, dtype=np.float32).reshape(6, 1000)}
    store.put(ids, ClientState({}, rows))
    store.snapshot(tmp_path / "snapshot")
    assert files(tmp_path / "rows") == {"1-1.rows": 5 * 4000}
    size = sum(files(tmp_path / "snapshot").values())
    assert 0.8 * store.snapshot_bytes < size < store.snapshot_bytes < 8000
    other = make_store("disk", row, 10**6, folder=tmp_path / "rows")
    other.restore(tmp_path / "snapshot")
    again = other.take(np.array([10, 11, 999_999], np.int32)).client["control"]
    np.testing.assert_array_equal(
        again, [rows["control"][2], [0] * 1000, rows["control"][1]]
    )


def test_files_without_rows_are_removed_unless_a_snapshot_names_them(tmp_path):
    folder = tmp_path / "rows"
    store = on_disk(folder)
    put(store, [1, 2])
    put(store, [1, 2], seed=1)
    store.take(np.array([1]))
    assert set(files(folder)) == {"1-2.rows"}
    store.snapshot(tmp_path / "a")
    put(store, [2, 1], seed=2)
    store.snapshot(tmp_path / "b")
    assert set(files(folder)) == {"1-2.rows", "1-3.rows"}
    put(store, [1, 2], seed=3)
    (folder / ".1-9.rows.new").touch()
    (folder / "foreign").touch()
    store.keep([tmp_path / "b", tmp_path / "nowhere"])
    assert set(files(folder)) == {"1-3.rows", "1-4.rows", "foreign"}


def test_what_cannot_be_read_or_removed_now_is_kept(tmp_path, monkeypatch):
    folder = tmp_path / "rows"
    store = on_disk(folder)
    put(store, [1, 2])
    store.snapshot(tmp_path / "a")
    put(store, [1, 2], seed=1)
    load, remove = row_log.load, row_log.remove_others

    def fail(*args):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(row_log, "load", fail)
    with pytest.warns(UserWarning, match="no checkpoint needs stay .* Too many open"):
        store.keep([tmp_path / "a"])
    put(store, [1, 2], seed=2)
    store.take(np.array([1]))
    assert set(files(folder)) == {"1-1.rows", "1-3.rows"}
    monkeypatch.setattr(row_log, "load", load)
    monkeypatch.setattr(row_log, "remove_others", fail)
    with pytest.warns(UserWarning, match="no checkpoint needs stay .* Too many open"):
        store.keep([])
    monkeypatch.setattr(row_log, "remove_others", remove)
    store.keep([])
    assert set(files(folder)) == {"1-3.rows"}


@pytest.mark.parametrize("way", ["through a parent", "through a link"])
def test_another_name_of_the_folder_is_the_same_folder(way, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    base = tmp_path / ("a/.." if way == "through a parent" else "link")
    store = on_disk(base / "rows")
    put(store, [1, 2])
    store.snapshot(base / "one")
    put(store, [1, 2], seed=1)
    store.snapshot(base / "two")
    store.keep([tmp_path / "one", base / "two"])
    assert set(files(tmp_path / "rows")) == {"1-1.rows", "1-2.rows"}
    again = on_disk(base / "rows")
    again.restore(tmp_path / "two")
    assert set(files(tmp_path / "rows")) == {"1-1.rows", "1-2.rows"}
    assert_same_bits(all_rows(again), all_rows(store))


def test_sparse_files_are_written_once_more(tmp_path):
    """Of 8 rows, 2 are left, then 1: fewer than a quarter."""
    folder = tmp_path / "rows"
    store, first = on_disk(folder), np.arange(8)
    rows = put(store, first)
    put(store, range(6), seed=1)
    store.take(np.array([0]))
    assert set(files(folder)) == {"1-1.rows", "1-2.rows"}
    put(store, [6], seed=2)
    taken = store.take(np.array([6, 7]))
    sizes = files(folder)
    assert sizes["1-3.rows"] * 3 == sizes["1-2.rows"] and len(sizes) == 2
    np.testing.assert_array_equal(taken.client["count"][1], rows.client["count"][7])


def test_space_stays_bounded(tmp_path):
    """Without snapshots, at most four times the rows of all, and one cohort."""
    folder, rng = tmp_path / "rows", np.random.default_rng(0)
    store = on_disk(folder)
    row_bytes = len(row_log.to_bytes(jax.tree.map(lambda x: x[None], first_row()))[0])
    for seed in range(200):
        put(store, rng.permutation(NUM_CLIENTS)[:5], seed)
    store.take(np.arange(NUM_CLIENTS))
    assert sum(files(folder).values()) <= row_bytes * (4 * NUM_CLIENTS + 5)


def test_a_restored_store_never_writes_a_name_that_an_index_may_hold(tmp_path):
    folder = tmp_path / "rows"
    store = on_disk(folder)
    put(store, [1, 2])
    store.snapshot(tmp_path / "a")
    put(store, [3])  # after the snapshot, as a killed run
    before = all_rows(store)
    store.restore(tmp_path / "a")
    assert all_rows(store).client["count"][3] == 7
    put(store, [4], seed=1)
    store.take(np.array([4]))  # waits for the file
    other = on_disk(folder)
    other.restore(tmp_path / "a")
    put(other, [3], seed=2)
    other.snapshot(tmp_path / "b")
    assert set(files(folder)) == {"1-1.rows", "1-2.rows", "2-3.rows", "3-1.rows"}
    after = all_rows(other)
    for client in (1, 2):
        a, b = (x.client["count"][client] for x in (before, after))
        assert a == b
    assert after.client["count"][4] == 7


KILLED = """
    import os, sys
    import jax, numpy as np
    from pathlib import Path
    from fedjax_prune.engine.store import make_store
    from tests.mixed_rows import first_row, some_rows

    def put(ids, seed):
        rows = some_rows(np.random.default_rng(seed), len(ids))
        store.put(np.array(ids, np.int32), jax.device_put(rows))
    store = make_store("disk", first_row(), 40, folder=Path(sys.argv[1]) / "rows")
    put([1, 2], seed=0)
    store.snapshot(Path(sys.argv[1]) / "a")
    if sys.argv[2] == "before":
        Path.rename = lambda self, to: os.kill(os.getpid(), 9)
    put([1, 3], seed=1)
    store.take(np.array([1]))
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_around_the_renaming(when, tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), tmp_path, when]
    root = Path(__file__).parents[2]
    code = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": "."})
    assert code.returncode == -9
    folder = tmp_path / "rows"
    left = {"before": ".1-2.rows.new", "after": "1-2.rows"}[when]
    assert set(files(folder)) == {"1-1.rows", left}
    store = on_disk(folder)
    store.restore(tmp_path / "a")
    rows = some_rows(np.random.default_rng(0), 2)
    assert_same_bits(store.take(np.array([1, 2])), jax.device_put(rows))
    assert store.take(np.array([3])).client["count"].tolist() == [7]
    put(store, [3])
    store.keep([tmp_path / "a"])
    assert set(files(folder)) == {"1-1.rows", "2-1.rows"}


DAMAGES = {
    "missing": (lambda f: f.unlink(), "1-1.rows"),
    "cut": (lambda f: f.write_bytes(f.read_bytes()[:-1]), "1-1.rows is cut"),
    "empty": (lambda f: f.write_bytes(b""), "1-1.rows is cut"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_found_when_rows_are_restored(name, tmp_path):
    damage, said = DAMAGES[name]
    store = on_disk(tmp_path / "rows")
    put(store, [1, 2])
    store.snapshot(tmp_path / "a")
    damage(tmp_path / "rows" / "1-1.rows")
    for kind in ("disk", "host", "device"):
        other = make_store(kind, first_row(), 40, folder=tmp_path / "rows")
        with pytest.raises(OSError, match=said):
            other.restore(tmp_path / "a")
        assert set(np.asarray(all_rows(other).client["count"])) == {7}
    with pytest.raises(RowsError, match=rf"{tmp_path}/rows.* cannot be read: .+\.$"):
        store.take(np.array([1, 2]))


def test_a_changed_byte_is_found_by_a_check(tmp_path):
    store = on_disk(tmp_path / "rows")
    put(store, [1, 2])
    store.snapshot(tmp_path / "a")
    row_log.check(tmp_path / "a")
    file = tmp_path / "rows" / "1-1.rows"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"1-1\.rows is not what was written"):
        row_log.check(tmp_path / "a")
    index = tmp_path / "a" / "index.npz"
    index.write_bytes(index.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"index\.npz is damaged"):
        row_log.check(tmp_path / "a")


def test_other_rows_are_refused(tmp_path):
    store = on_disk(tmp_path / "rows")
    store.snapshot(tmp_path / "a")
    with pytest.raises(FileExistsError):
        store.snapshot(tmp_path / "a")
    for kind in ("disk", "host", "device"):
        fewer = make_store(kind, first_row(), 39, folder=tmp_path / "rows")
        with pytest.raises(
            ValueError, match="must hold 39 rows of 17 bytes, got 40 of"
        ):
            fewer.restore(tmp_path / "a")


def test_what_cannot_be_written_is_told_at_the_next_use(tmp_path):
    """A file where the folder should be."""
    (tmp_path / "rows").touch()
    store = on_disk(tmp_path / "rows")
    put(store, [1, 2])
    said = rf"rows of a round cannot be written in {tmp_path}/rows: File exists\. "
    with pytest.raises(RowsError, match=said):
        store.take(np.array([1]))
    with pytest.raises(RowsError, match=said):
        store.snapshot(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(RowsError, match=said):
        put(store, [1, 2])


def test_rows_that_nobody_waits_for_are_written_while_others_are_read(tmp_path):
    """Reading does not wait for a round of other clients."""
    store = on_disk(tmp_path / "rows")
    put(store, [1, 2])
    store.take(np.array([1]))

    class Late:
        """A leaf that the devices still compute."""

        def __init__(self, leaf):
            self.leaf = leaf

        def __array__(self, dtype=None, copy=None):
            assert computed.wait(60)
            return self.leaf

    computed = threading.Event()
    rows = some_rows(np.random.default_rng(1), 2)
    store.put(np.array([3, 4]), jax.tree.map(Late, rows))
    assert store.take(np.array([5, 6])).client["count"].tolist() == [7, 7]
    computed.set()
    assert_same_bits(store.take(np.array([3, 4])), jax.device_put(rows))


def test_a_folder_is_needed():
    with pytest.raises(ValueError, match="folder must be given for rows on disk"):
        make_store("disk", first_row(), 3)
    assert isinstance(make_store("disk", first_row(), 3, folder="never"), DiskStore)
