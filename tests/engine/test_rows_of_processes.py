"""Rows on disk that several processes share: written in parts, one index."""

import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_prune.engine import row_log
from fedjax_prune.engine.row_index import NO_ROWS
from fedjax_prune.engine.row_parts import after_parts, share_out
from fedjax_prune.engine.store import make_store
from tests.mixed_rows import first_row
from tests.rows_of_processes import NUM_CLIENTS, start_rows
from tests.toys import all_rows, assert_same_bits

ROOT = Path(__file__).parents[2]


def shared_out(index, name, ids, owners, count=2):
    ids = np.array(ids)
    real = (ids >= 0) & (ids < NUM_CLIENTS)
    return share_out(
        index, name, ids, real, owners=np.array(owners), num_processes=count
    )


def test_parts_by_hand():
    """Client 7 is named twice: the last row counts, and process 1 has it."""
    parts = shared_out(NO_ROWS, "1-1", [7, 40, 3, -1, 9, 7], owners=[0, 0, 0, 1, 1, 1])
    assert [part.name for part in parts] == ["1-1-0.rows", "1-1-1.rows"]
    assert [part.clients.tolist() for part in parts] == [[3], [7, 9]]
    assert [part.places.tolist() for part in parts] == [[2], [5, 4]]
    assert [part.carried.tolist() for part in parts] == [[], []]
    index = after_parts(NO_ROWS, parts)
    assert index.clients.tolist() == [3, 7, 9]
    assert [index.logs[n].name for n in index.files] == [
        "1-1-0.rows",
        "1-1-1.rows",
        "1-1-1.rows",
    ]
    assert index.places.tolist() == [0, 0, 1]
    with_sums = index.with_checksums([{"1-1-0.rows": 5}, {"1-1-1.rows": 6}])
    assert [tuple(log) for log in with_sums.logs] == [
        ("1-1-0.rows", 1, 5),
        ("1-1-1.rows", 2, 6),
    ]


def test_a_process_without_rows_writes_no_file():
    parts = shared_out(NO_ROWS, "1-1", [2, 40], owners=[0, 1])
    assert [part.num_rows for part in parts] == [1, 0]
    assert after_parts(NO_ROWS, parts).names == {"1-1-0.rows"}
    _, nobody = shared_out(NO_ROWS, "1-1", [2], owners=[0])
    assert nobody.num_rows == 0
    (alone,) = shared_out(NO_ROWS, "1-1", [2, 40], owners=[0, 0], count=1)
    assert alone.name == "1-1.rows"


def test_rows_of_sparse_files_are_dealt_to_all():
    """Of 10 rows, 2 are left: each of two processes writes one once more."""
    index = after_parts(NO_ROWS, shared_out(NO_ROWS, "1-1", range(10), [0] * 10))
    parts = shared_out(index, "1-2", range(8), owners=[0] * 4 + [1] * 4)
    assert [part.carried.tolist() for part in parts] == [[8], [9]]
    after = after_parts(index, parts)
    assert after.names == {"1-2-0.rows", "1-2-1.rows"}
    assert after.find(np.arange(10)).tolist() == [*range(10)]
    assert after.places.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 4]


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 6))]
)
def test_any_sequence_of_two_processes(seed, tmp_path):
    """They begin with rows of a store on the host, and one process goes on."""
    host = make_store("host", first_row(), NUM_CLIENTS)
    ids = np.arange(NUM_CLIENTS, dtype=np.int32)
    host.put(ids, jax.device_put(start_rows(seed)))
    host.snapshot(tmp_path / "start")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.rows_of_processes", str(port)]
    both = [
        subprocess.Popen(
            [*command, str(number), str(seed), tmp_path],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0]
    for kind in ("device", "host", "disk"):
        failed = f"{kind}: ProcessError: process 1 of 2 has failed: no such device"
        assert failed in said[0] and f"{kind}: OSError: no such device" in said[1]
    reason = f"The rows of a round cannot be written in {tmp_path}/rows: File too large"
    assert f"ProcessError: process 1 of 2 has failed: {reason}" in said[0]
    assert f"RowsError: {reason}" in said[1]
    name = re.escape(f"{tmp_path}/process0/far/rows/run-")
    (places,) = {tuple(re.findall(rf"^{name}.+$", text, re.M)) for text in said}
    assert len(places) == 1
    reason = (
        "rows_dir must be a folder that all processes share: what the first process"
    )
    reason += " has written into gs://bucket/rows is not seen here."
    assert f"ProcessError: process 1 of 2 has failed: {reason}" in said[0]
    assert f"RowsError: {reason}" in said[1]
    assert [text.splitlines()[-1] for text in said] == ["left:", "left:"]
    wanted = [pickle.loads((tmp_path / f"{n}.pickle").read_bytes()) for n in range(2)]
    assert_same_bits(wanted[0], wanted[1])
    row_log.check(tmp_path / "end")
    # Files of both processes, and none of others.
    names = row_log.load(tmp_path / "end").index.names
    assert {name[-7:] for name in names} == {"-0.rows", "-1.rows"}
    alone = make_store("disk", first_row(), NUM_CLIENTS, folder=tmp_path / "rows")
    alone.restore(tmp_path / "end")
    assert_same_bits(all_rows(alone), wanted[0])
    alone.keep([tmp_path / "end"])
    assert {file.name for file in (tmp_path / "rows").iterdir()} == names
