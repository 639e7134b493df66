"""Stores of rows: cohorts come and go, snapshots are the same wherever rows live."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.engine import row_files
from fedjax_prune.engine.devices import make_placement
from fedjax_prune.engine.placing import put_split
from fedjax_prune.engine.rows_on_disk import DiskStore
from fedjax_prune.engine.store import STORES, DeviceStore, HostStore, make_store
from fedjax_prune.types import ClientState
from tests.toys import all_rows, assert_same_bits

KINDS = ("device", "host")
"""Those whose snapshots hold all rows; test_rows_on_disk.py is about the other."""
HOMES = list(itertools.product(KINDS, (1, 2, 4, 8)))
"""Neither two nor four nor eight devices divide seven clients."""


def make_rows(num_clients=7):
    """Rows of every dtype, with special values."""
    rng = np.random.default_rng(0)
    special = rng.normal(size=(num_clients, 2, 3)).astype(np.float32)
    special[1, 0] = [-0.0, np.nan, np.inf]
    client = {
        "count": np.arange(num_clients, dtype=np.int32),
        "flag": np.arange(num_clients) % 2 == 0,
    }
    # JAX 0.11.2 itself crashes on arrays without entries that are split over devices.
    if jax.__version__ != "0.11.2":
        client["none"] = np.zeros((num_clients, 0), np.float32)
    return ClientState(
        {"gate": special, "half": special[:, 1].astype(jnp.bfloat16)}, client
    )


def first_row(rows):
    return jax.tree.map(lambda x: np.zeros_like(x[0]), rows)


def filled(kind, rows, num_devices=1):
    """A store and where it is, after all clients have been given their rows."""
    placement = make_placement(num_devices)
    num_clients = len(jax.tree.leaves(rows)[0])
    store = make_store(kind, first_row(rows), num_clients, placement)
    ids = np.arange(num_clients + -num_clients % placement.num_blocks)
    places = np.minimum(ids, num_clients - 1)
    new = put_split(placement, jax.tree.map(lambda x: x[places], rows))
    store.put(ids.astype(np.int32), new)
    return store, placement


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(("kind", "num_devices"), HOMES)
def test_rows_come_and_go(kind, num_devices):
    rows = {
        "x": np.arange(21, dtype=np.float32).reshape(7, 3),
        "n": np.arange(7, dtype=np.int32),
        "b": np.arange(7) % 2 == 0,
    }
    ids = np.array([4, 7, 0, 6, 7, -1, 2, 7], np.int32)  # 7 and -1 are nobody
    real = (ids >= 0) & (ids < 7)
    changed = jax.jit(
        lambda x: {"x": 2 * x["x"] + 1, "n": 2 * x["n"] + 1, "b": ~x["b"]}
    )
    store, placement = filled(kind, rows, num_devices)
    taken = store.take(ids)
    store.put(ids, changed(taken))
    again = jax.device_get(store.take(ids))
    after = all_rows(store, placement)
    expected = jax.tree.map(np.copy, rows)
    for name, before in rows.items():
        new = changed(rows)[name]
        expected[name][ids[real]] = new[ids[real]]
        np.testing.assert_array_equal(taken[name][real], before[ids[real]])
        np.testing.assert_array_equal(after[name], expected[name])
        np.testing.assert_array_equal(again[name][real], expected[name][ids[real]])


@pytest.mark.parametrize("kind", ["host", "disk"])
def test_what_was_put_may_be_changed_afterwards(kind, tmp_path):
    """Rows and ids are copied, because both stores write them later."""
    row, ids = ClientState({}, {"x": np.zeros(1)}), np.array([0, 1])
    store = make_store(kind, row, 3, folder=tmp_path if kind == "disk" else None)
    rows = ClientState({}, {"x": np.ones((2, 1))})
    store.put(ids, rows)
    rows.client["x"][:], ids[:] = 7, 2
    taken = store.take(np.arange(3)).client["x"]
    np.testing.assert_array_equal(taken, [[1], [1], [0]])


@pytest.mark.parametrize(("kind", "num_devices"), HOMES)
def test_the_first_row_is_everybodys(kind, num_devices):
    row = jax.tree.map(lambda x: x[1], make_rows())
    store = make_store(kind, row, 7, make_placement(num_devices))
    expected = jax.tree.map(lambda x: np.stack([x] * 7), row)
    ids = np.array([0, 3, 6], np.int32)
    personal = jax.tree.map(lambda x: x[ids], expected.personal)
    jax.tree.map(np.testing.assert_array_equal, store.personal(ids), personal)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), expected)
    assert store.shapes == shapes


@pytest.mark.parametrize(("kind", "num_devices"), HOMES)
@pytest.mark.parametrize("piece_bytes", [1, 60, 2**26])
def test_a_snapshot_is_the_same_wherever_rows_live(
    kind, num_devices, piece_bytes, tmp_path, monkeypatch
):
    """In pieces of one row, of two or three rows, and of all."""
    monkeypatch.setattr(row_files, "PIECE_BYTES", piece_bytes)
    rows = make_rows()
    store, _ = filled(kind, rows, num_devices)
    store.snapshot(tmp_path / "rows")
    for n, leaf in enumerate(jax.tree.leaves(rows)):
        saved = np.load(tmp_path / "rows" / f"{n}.npy")
        assert (saved.shape, saved.tobytes()) == (leaf.shape, leaf.tobytes())
    assert len(contents(tmp_path / "rows")) == len(jax.tree.leaves(rows))


@pytest.mark.parametrize(("kind", "num_devices"), HOMES)
@pytest.mark.parametrize("piece_bytes", [1, 60, 2**26])
def test_a_snapshot_of_four_devices_is_restored_anywhere(
    kind, num_devices, piece_bytes, tmp_path, monkeypatch
):
    monkeypatch.setattr(row_files, "PIECE_BYTES", piece_bytes)
    rows = make_rows()
    filled("device", rows, 4)[0].snapshot(tmp_path / "four")
    placement = make_placement(num_devices)
    store = make_store(kind, first_row(rows), 7, placement)
    store.restore(tmp_path / "four")
    store.snapshot(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "four")
    # What is restored can be changed, and does not need the files.
    ids = np.arange(8, dtype=np.int32)
    store.put(ids, store.take(ids))
    for folder in ("four", "again"):
        for file in (tmp_path / folder).iterdir():
            file.unlink()
    jax.tree.map(np.testing.assert_array_equal, all_rows(store, placement), rows)


def test_restoring_drops_the_rows_that_were_arriving(tmp_path):
    rows = make_rows()
    filled("device", rows)[0].snapshot(tmp_path / "rows")
    store, _ = filled("host", jax.tree.map(np.zeros_like, rows))
    store.restore(tmp_path / "rows")
    assert_same_bits(all_rows(store), rows)


def test_rows_on_the_host_take_no_memory_before_some_are_put():
    """Ten thousand clients whose rows would take 40 GB."""
    row = ClientState({"x": np.zeros(10**6, np.float32)}, {})
    store = make_store("host", row, 10_000)
    ids = np.array([0, 9_999], np.int32)
    assert store.take(ids).personal["x"].shape == (2, 10**6)


@pytest.fixture
def copied(monkeypatch):
    """Bytes of each array that is read from a device, made for a file, or sent."""
    sizes = []

    def noted(function):
        def call(arrays, *rest, **fields):
            sizes.extend(x.nbytes for x in jax.tree.leaves(arrays))
            return function(arrays, *rest, **fields)

        return call

    def noted_if_read(function):
        def call(array, *rest, **fields):
            if isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer):
                sizes.append(array.nbytes)
            return function(array, *rest, **fields)

        return call

    for name in ("asarray", "array"):
        monkeypatch.setattr(np, name, noted_if_read(getattr(np, name)))
    monkeypatch.setattr(np, "ascontiguousarray", noted(np.ascontiguousarray))
    for name in ("device_get", "device_put"):
        monkeypatch.setattr(jax, name, noted(getattr(jax, name)))
    return sizes


@pytest.mark.parametrize("num_devices", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_larger_than_a_piece_is_copied(
    kind, num_devices, tmp_path, monkeypatch, copied
):
    """A leaf of 101 * 40 bytes in pieces of at most 400, or of one row."""
    rows = ClientState({}, np.arange(1010, dtype=np.float32).reshape(101, 10))
    store, placement = filled(kind, rows, num_devices)
    other = make_store(kind, first_row(rows), 101, placement)
    # Rows that are still arriving are read as one cohort.
    store.take(np.zeros(4, np.int32))
    for piece_bytes, most in ((400, 400), (39, 40)):
        monkeypatch.setattr(row_files, "PIECE_BYTES", piece_bytes)
        copied.clear()
        store.snapshot(tmp_path / str(piece_bytes))
        assert max(copied) == most
        other.restore(tmp_path / str(piece_bytes))
        assert max(copied) == most
    assert_same_bits(all_rows(other, placement), rows)


@pytest.mark.parametrize(("kind", "num_devices"), HOMES)
@pytest.mark.parametrize("piece_bytes", [1, 100, 2**26])
def test_personal_parameters_of_their_own(
    kind, num_devices, piece_bytes, monkeypatch, copied
):
    """They are drawn and put in pieces; other entries are equal for all clients."""
    monkeypatch.setattr(row_files, "PIECE_BYTES", piece_bytes)

    def draw(client_id):
        key = jax.random.fold_in(jax.random.key(1), client_id)
        return {"gate": jax.random.normal(key, (4,))}

    placement = make_placement(num_devices)
    row = ClientState({"gate": np.zeros(4, np.float32)}, {"c": np.float32(0.5)})
    copied.clear()
    store = make_store(kind, row, 13, placement, draw)
    store.take(np.zeros(placement.num_blocks, np.int32))
    # A row has 20 bytes, and each device is sent at least one.
    assert max(copied) <= max(piece_bytes, 4 * 13 if num_devices == 1 else 20 * 8)
    drawn = [jax.jit(draw)(jnp.int32(n))["gate"] for n in range(13)]
    expected = ClientState({"gate": np.stack(drawn)}, {"c": np.full(13, 0.5, "f4")})
    assert_same_bits(all_rows(store, placement), expected)


def test_rows_without_leaves(tmp_path):
    """Of an algorithm whose clients keep nothing."""
    for kind in STORES:
        store = make_store(kind, ClientState({}, {}), 3, folder=tmp_path / "rows")
        store.put(np.zeros(1, np.int32), store.take(np.zeros(1, np.int32)))
        store.snapshot(tmp_path / kind)
        store.restore(tmp_path / kind)
    for of, to in itertools.product(STORES, STORES):
        store = make_store(to, ClientState({}, {}), 3, folder=tmp_path / "rows")
        store.restore(tmp_path / of)
    assert contents(tmp_path / "device") == contents(tmp_path / "host") == {}
    assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_do_not_fit_are_refused(kind, tmp_path):
    rows = make_rows()
    store, _ = filled(kind, rows)
    store.snapshot(tmp_path / "rows")
    with pytest.raises(FileExistsError):
        store.snapshot(tmp_path / "rows")
    other = make_store(kind, first_row(rows), 8)
    with pytest.raises(
        ValueError, match=r"0.npy must hold float32\[8, 2, 3\], got float32\[7, 2, 3\]"
    ):
        other.restore(tmp_path / "rows")
    (tmp_path / "rows" / "4.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"4\.npy"):
        store.restore(tmp_path / "rows")
    assert_same_bits(all_rows(store), rows)


def test_what_cannot_be_made():
    row = ClientState({}, {})
    with pytest.raises(ValueError, match="one of device, host, disk, got 'tape'"):
        make_store("tape", row, 3)
    with pytest.raises(ValueError, match="num_clients must be at least 1, got 0"):
        make_store("host", row, 0)
    kinds = [make_store(kind, row, 3, folder="unused") for kind in STORES]
    assert [*map(type, kinds)] == [DeviceStore, HostStore, DiskStore]
