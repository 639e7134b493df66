"""Folders of rows on a disk and in object storage: the same files and errors."""

import numpy as np
import pytest

from fedjax_prune.engine import row_log
from fedjax_prune.engine.row_folder import Wanted, open_folder, require_usable
from fedjax_prune.engine.rows_on_disk import DiskStore, RowsError
from tests.mixed_rows import first_row


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path):
    """A folder that does not exist yet."""
    if request.param == "disk":
        return open_folder(tmp_path / "a" / "rows")
    return open_folder(f"memory://{tmp_path.name}/rows")


def pieces(data, size=3):
    return [memoryview(data[n : n + size]) for n in range(0, len(data), size)]


def read(folder, num_bytes, wanted):
    """Reads parts of files into the rows 0, 1, ..."""
    into = np.zeros((sum(map(len, wanted.values())), num_bytes), np.uint8)
    rows = iter(np.arange(len(into)))
    folder.read(
        [
            Wanted(name, np.array(starts), np.array([next(rows) for _ in starts]))
            for name, starts in wanted.items()
        ],
        into,
    )
    return into.tolist()


def test_files_are_written_read_in_ranges_and_removed(folder):
    assert folder.sizes() == {}
    folder.write("a", pieces(bytes(range(10))))
    folder.write("b", pieces(bytes(range(100, 104))))
    assert folder.sizes() == {"a": 10, "b": 4}
    # Neighbours in another order, a gap, and two files.
    assert read(folder, 2, {"a": [4, 2, 8], "b": [1]}) == [
        [4, 5],
        [2, 3],
        [8, 9],
        [101, 102],
    ]
    assert [*folder.read_file("a", 4)] == [
        bytes(range(4)),
        bytes(range(4, 8)),
        bytes([8, 9]),
    ]
    folder.remove("a")
    folder.remove("a")
    assert folder.sizes() == {"b": 4}


def test_what_is_cut_or_missing_is_named(folder):
    folder.write("a", pieces(bytes(10)))
    with pytest.raises(OSError, match="rows/a is cut"):
        read(folder, 4, {"a": [8]})
    with pytest.raises(OSError, match="rows"):
        read(folder, 4, {"missing": [0]})


def test_a_write_that_fails_leaves_no_file(folder):
    def fails():
        yield memoryview(b"12")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device"):
        folder.write("a", fails())
    assert folder.sizes() == {}


def test_a_usable_folder_is_left_as_it_was(folder):
    folder.write("1-1.rows", pieces(bytes(10)))
    require_usable(folder)
    assert folder.sizes() == {"1-1.rows": 10}


def test_folders_are_equal_if_their_files_are_the_same(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    here = open_folder(tmp_path / "rows")
    assert here == open_folder(f"{tmp_path}/link/../{tmp_path.name}/rows")
    assert here == open_folder(f"file://{tmp_path}/rows")
    assert here == open_folder(here.saved_as(tmp_path / "x" / "y"), tmp_path / "x/y")
    there = open_folder("memory://a/rows")
    assert there == open_folder("memory://a/rows/") != open_folder("memory://b/rows")
    assert there == open_folder(there.saved_as(tmp_path), tmp_path) != here
    assert len({here, there, open_folder("memory://a/rows")}) == 2


def test_storage_that_nobody_knows_is_named():
    with pytest.raises(OSError, match="Protocol not known: tape") as error:
        open_folder("tape://a/b")
    assert error.value.filename == "tape://a/b"


def test_rows_that_are_gone_are_named(tmp_path):
    url = f"memory://{tmp_path.name}/gone"
    store = DiskStore(first_row(), 3, folder=url)
    row = {"gate": np.ones((1, 2), np.float32)}
    rows = store.take(np.array([0]))._replace(personal=row)
    store.put(np.array([1]), rows)
    store.snapshot(tmp_path / "snapshot")
    open_folder(url).remove("1-1.rows")
    with pytest.raises(RowsError, match=rf"^{url} cannot be read: .*1-1\.rows\.$"):
        store.take(np.array([1]))
    with pytest.raises(OSError, match=r"1-1\.rows is missing"):
        store.restore(tmp_path / "snapshot")
    with pytest.raises(OSError, match=r"1-1\.rows is missing"):
        row_log.check(tmp_path / "snapshot")
