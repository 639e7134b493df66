"""One of two processes that share a store of rows on disk, with any sequence of calls.

python -m tests.rows_of_processes PORT NUMBER SEED FOLDER: it begins with the rows in
FOLDER/start, leaves its last ones in FOLDER/end and prints the error of the end, when
process 1 has no room for its rows. Then it says which places of rows are refused.
"""

import os
import pickle
import resource
import sys
from pathlib import Path

import jax
import numpy as np

from fedjax_prune.engine import row_files, row_log
from fedjax_prune.engine.devices import make_placement
from fedjax_prune.engine.placing import connect, put_split
from fedjax_prune.engine.processes import ProcessError
from fedjax_prune.engine.row_errors import RowsError
from fedjax_prune.engine.store import make_store
from fedjax_prune.runs import row_place
from tests.buckets import Buckets
from tests.mixed_rows import first_row, some_rows
from tests.small_runs import tiny_config
from tests.toys import assert_same_bits

NUM_CLIENTS, PLACES, STEPS, ROW_BYTES = 40, 12, 80, 17


def copy(rows):
    return jax.tree.map(np.copy, rows)


def with_rows(wanted, ids, rows):
    """The rows of all clients, after those of some were replaced."""

    def replace(x, new):
        x = x.copy()
        x[ids[real]] = new[real]
        return x

    real = (ids >= 0) & (ids < NUM_CLIENTS)
    return jax.tree.map(replace, wanted, rows)


def assert_own_rows(taken, wanted, ids):
    """Compares what this process has of a cohort, except for the rows of nobody."""

    def compare(leaf, rows):
        assert leaf.shape == (len(ids), *rows.shape[1:])
        for shard in leaf.addressable_shards:
            some = ids[shard.index[0]]
            real = (some >= 0) & (some < NUM_CLIENTS)
            assert_same_bits(np.asarray(shard.data)[real], rows[some[real]])

    jax.tree.map(compare, taken, wanted)


def start_rows(seed):
    """The rows of all clients in FOLDER/start."""
    return some_rows(np.random.default_rng(seed + 1000), NUM_CLIENTS)


def any_sequence(seed, folder):
    """Returns the store and the rows that it should hold."""
    placement, rng = make_placement(4), np.random.default_rng(seed)
    connect(placement)

    def new_store():
        return make_store(
            "disk", first_row(), NUM_CLIENTS, placement, folder=folder / "rows"
        )

    store, wanted, snapshots = new_store(), start_rows(seed), []
    store.restore(folder / "start")
    for step in range(STEPS):
        ids = rng.permutation(NUM_CLIENTS + 8)[:PLACES].astype(np.int32) - 2
        action = rng.choice(["put", "put", "put", "take", "personal", "save", "load"])
        if action == "put":
            rows = some_rows(rng, PLACES)
            store.put(ids, put_split(placement, rows))
            wanted = with_rows(wanted, ids, rows)
        elif action == "take":
            assert_own_rows(store.take(ids), wanted, ids)
        elif action == "personal":
            ids = np.clip(ids, 0, NUM_CLIENTS - 1)
            personal = jax.tree.map(np.asarray, store.personal(ids))
            expected = jax.tree.map(lambda x, at=ids: x[at], wanted.personal)
            assert_same_bits(personal, expected)
        elif action == "save":
            store.snapshot(folder / f"{step}")
            snapshots = [*snapshots, (folder / f"{step}", copy(wanted))][-2:]
            store.keep([snapshot for snapshot, _ in snapshots])
        elif snapshots:
            snapshot, saved = snapshots[rng.integers(len(snapshots))]
            if rng.random() < 0.5:
                store = new_store()
            store.restore(snapshot)
            wanted = copy(saved)
    everybody = np.arange(NUM_CLIENTS, dtype=np.int32)
    assert_own_rows(store.take(everybody), wanted, everybody)
    for snapshot, saved in snapshots:
        store.restore(snapshot)
        assert_own_rows(store.take(everybody), saved, everybody)
    return store, saved


def without_reading(folder, number):
    """Process 1 cannot read the rows of a snapshot, which stores of all kinds load."""

    def refuse(*args):
        raise OSError("no such device")

    placement, read = make_placement(4), row_log.read
    for kind in ("device", "host", "disk"):
        rows = folder / "other rows"
        store = make_store(kind, first_row(), NUM_CLIENTS, placement, folder=rows)
        row_log.read = refuse if number == 1 else read
        try:
            store.restore(folder / "end")
        except (OSError, ProcessError) as error:
            print(f"{kind}: {type(error).__name__}: {error}")
        row_log.read = read


def without_room(store, number):
    """A limit on the size of files stands for a full disk, in process 1."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if number == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    placement, ids = make_placement(4), np.arange(PLACES, dtype=np.int32)
    rows = some_rows(np.random.default_rng(0), PLACES)
    store.put(ids, put_split(placement, rows))
    try:
        store.take(ids)
    except (RowsError, ProcessError) as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        print(f"{type(error).__name__}: {error}")


def places(folder, number):
    """Two processes in two folders, and storage that each has for itself."""
    workdir, here = folder / "run", folder / f"process{number}"
    workdir.mkdir(exist_ok=True)
    here.mkdir()
    os.chdir(here)
    row_place.require_usable("far/rows")
    print(row_place.rows_folder(tiny_config(rows_dir="far/rows"), workdir))
    try:
        row_place.require_usable("gs://bucket/rows")
    except (RowsError, ProcessError) as error:
        print(f"{type(error).__name__}: {error}")
    print("left:", *Buckets.store, *(p for p in here.rglob("*") if p.is_file()))


def main(port, number, seed, folder):
    # Of other stores, three rows are read at once, and one is left at the end.
    row_files.PIECE_BYTES = 3 * ROW_BYTES
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number))
    store, wanted = any_sequence(int(seed), Path(folder))
    store.snapshot(Path(folder) / "end")
    with (Path(folder) / f"{number}.pickle").open("wb") as stream:
        pickle.dump(wanted, stream)
    without_reading(Path(folder), int(number))
    without_room(store, int(number))
    places(Path(folder), int(number))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
