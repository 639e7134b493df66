"""Folders of rows on a disk and in object storage: the same files and errors."""

import contextlib
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_prune.engine import row_log
from fedjax_prune.engine.row_errors import RowsError, StorageError
from fedjax_prune.engine.row_folder import Ranges, open_folder
from fedjax_prune.engine.rows_on_disk import DiskStore
from tests.buckets import Buckets
from tests.mixed_rows import first_row


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    """A folder that does not exist yet."""
    if request.param == "disk":
        return open_folder(tmp_path / "a" / "rows")
    return open_folder(f"gs://{tmp_path.name}/rows")


def pieces(data, size=3):
    return [memoryview(data[n : n + size]) for n in range(0, len(data), size)]


def read(folder, num_bytes, wanted):
    """Reads parts of files into the rows 0, 1, ..."""
    into = np.zeros((sum(map(len, wanted.values())), num_bytes), np.uint8)
    rows = iter(np.arange(len(into)))
    folder.read(
        [
            Ranges(name, np.array(starts), np.array([next(rows) for _ in starts]))
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
    folder.write("c", pieces(bytes(1)))
    folder.remove(["a", "c"])
    folder.remove(iter(["a"]))
    folder.remove([])
    assert folder.sizes() == {"b": 4}


def test_what_is_cut_or_missing_is_named(folder):
    folder.write("a", pieces(bytes(10)))
    with pytest.raises(OSError, match="rows/a is cut"):
        read(folder, 4, {"a": [8]})
    with pytest.raises(FileNotFoundError, match="rows"):
        read(folder, 4, {"missing": [0]})
    with pytest.raises(FileNotFoundError, match="rows"):
        next(folder.read_file("missing", 4))


def test_a_row_may_be_read_in_parts(monkeypatch, tmp_path):
    """As Linux does above 2 GiB, and some network file systems below."""
    folder = open_folder(tmp_path / "rows")
    folder.write("a", pieces(bytes(range(20))))
    opened = Path.open

    @contextlib.contextmanager
    def in_parts(path, mode, buffering):
        with opened(path, mode, buffering=buffering) as stream:
            whole = stream.readinto
            yield types.SimpleNamespace(
                seek=stream.seek, readinto=lambda view: whole(view[:3])
            )

    monkeypatch.setattr(Path, "open", in_parts)
    assert read(folder, 8, {"a": [0, 10]}) == [[*range(8)], [*range(10, 18)]]
    with pytest.raises(OSError, match="rows/a is cut"):
        read(folder, 8, {"a": [15]})


def test_a_write_that_fails_leaves_no_file(folder):
    def fails():
        yield memoryview(b"12")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device") as error:
        folder.write("a", fails())
    # It is that of the piece: no other place is named.
    assert error.value.errno == 28 and error.value.filename is None
    assert folder.sizes() == {}


def test_an_error_that_storage_returns_is_raised(monkeypatch, tmp_path):
    """fsspec 2025.2 returns those of ranges, whatever it is asked for."""

    def cat_ranges(self, paths, starts, ends, on_error):
        return [b"12", TimeoutError("too\nslow"), FileNotFoundError(paths[1])]

    folder = open_folder(f"gs://{tmp_path.name}/rows")
    folder.write("a", pieces(bytes(10)))
    monkeypatch.setattr(Buckets, "cat_ranges", cat_ranges)
    with pytest.raises(StorageError, match=r"/rows cannot be used: too slow\.$"):
        read(folder, 2, {"a": [0, 4, 8]})


def test_storage_that_refuses_is_one_line(monkeypatch, tmp_path):
    folder = open_folder(f"gs://{tmp_path.name}/rows")
    folder.write("a", pieces(bytes(10)))
    monkeypatch.setattr(Buckets, "refusal", PermissionError("no\nright."))
    for use in (
        folder.sizes,
        lambda: read(folder, 2, {"a": [0]}),
        lambda: folder.write("b", pieces(bytes(1))),
        lambda: next(folder.read_file("a", 1)),
    ):
        said = rf"^gs://{tmp_path.name}/rows(/.)? cannot be used: no right\.$"
        with pytest.raises(StorageError, match=said):
            use()
    assert issubclass(StorageError, RowsError)


def test_folders_are_equal_if_their_files_are_the_same(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    here = open_folder(tmp_path / "rows")
    assert here == open_folder(f"{tmp_path}/link/../{tmp_path.name}/rows")
    assert here == open_folder(here.saved_as(tmp_path / "x" / "y"), tmp_path / "x/y")
    there = open_folder("gs://a/rows")
    assert there == open_folder("gs://a/rows/") != open_folder("gs://b/rows")
    assert there == open_folder(there.saved_as(tmp_path), tmp_path) != here
    assert len({here, there, open_folder("gs://a/rows")}) == 2


def test_a_path_is_relative_only_within_what_is_moved_as_a_whole(tmp_path):
    run = tmp_path / "run"
    inside = open_folder(run / "rows", moves_with=run)
    assert inside.saved_as(run / "checkpoints" / "1") == "../../rows"
    assert inside.saved_as(tmp_path / "x") == f"{run}/rows"
    outside = open_folder(tmp_path / "rows", moves_with=run)
    assert outside.saved_as(run / "checkpoints" / "1") == f"{tmp_path}/rows"
    assert open_folder(run / "rows").saved_as(run / "1") == f"{run}/rows"


@pytest.mark.parametrize(
    "where",
    [
        "tape://a",
        "sftp://host/a",
        "memory://a",
        "file:///a",
        "gs:/a",
        "gs://",
        "GS://a",
        "simplecache::gs://a/b",
        "s3:///a",
    ],
)
def test_other_storage_is_refused(where):
    said = rf"^A folder of rows must be a path, or an address gs://.+, got '{where}'\.$"
    with pytest.raises(ValueError, match=said):
        open_folder(where)


def test_storage_that_this_python_cannot_reach_is_named(monkeypatch):
    def fail(protocol):
        raise ImportError(f"Install {protocol}fs to access it")

    monkeypatch.setattr("fsspec.get_filesystem_class", fail)
    with pytest.raises(
        StorageError, match=r"Install s3fs to access it: pip .*\[cloud\]' brings"
    ):
        open_folder("s3://a/b")


def test_rows_that_are_gone_are_named(tmp_path):
    url = f"gs://{tmp_path.name}/gone"
    store = DiskStore(first_row(), 3, folder=url)
    row = {"gate": np.ones((1, 2), np.float32)}
    rows = store.take(np.array([0]))._replace(personal=row)
    store.put(np.array([1]), rows)
    store.snapshot(tmp_path / "snapshot")
    open_folder(url).remove(["1-1.rows"])
    with pytest.raises(RowsError, match=rf"^{url} cannot be read: .*1-1\.rows\.$"):
        store.take(np.array([1]))
    with pytest.raises(OSError, match=r"1-1\.rows is missing"):
        store.restore(tmp_path / "snapshot")
    with pytest.raises(OSError, match=r"1-1\.rows is missing"):
        row_log.check(tmp_path / "snapshot")


def test_a_store_whose_storage_refuses_raises_one_line(monkeypatch, tmp_path):
    """Also where files are listed and removed."""
    store = DiskStore(first_row(), 3, folder=f"gs://{tmp_path.name}/refused")
    rows = jax.tree.map(lambda x: x[:1], store.take(np.array([1])))
    store.put(np.array([1]), rows)
    store.snapshot(tmp_path / "snapshot")
    monkeypatch.setattr(Buckets, "refusal", TimeoutError("too slow"))
    for use in (
        lambda: store.keep([tmp_path / "snapshot"]),
        lambda: store.restore(tmp_path / "snapshot"),
        lambda: store.take(np.array([1])),
        lambda: row_log.check(tmp_path / "snapshot"),
    ):
        with pytest.raises(StorageError, match=r"cannot be used: too slow\.$"):
            use()
    said = "^The rows of a round cannot be written in gs://.+: too slow. The last ch"
    store.put(np.array([1]), rows)
    with pytest.raises(RowsError, match=said):
        store.take(np.array([1]))
