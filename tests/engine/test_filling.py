"""Rows that move from one kind of store to another."""

import shutil

import jax
import numpy as np
import pytest

from fedjax_prune.engine import row_files
from fedjax_prune.engine.devices import make_placement
from fedjax_prune.engine.placing import put_split
from fedjax_prune.engine.store import make_store
from tests.mixed_rows import first_row, some_rows
from tests.toys import all_rows, assert_same_bits


@pytest.mark.parametrize("num_devices", [1, 4])
@pytest.mark.parametrize("to", ["device", "host", "disk"])
@pytest.mark.parametrize("of", ["device", "host", "disk"])
@pytest.mark.parametrize("piece_bytes", [1, 60, 2**26])
def test_rows_move_between_all_kinds(
    of, to, num_devices, piece_bytes, tmp_path, monkeypatch
):
    """Also the first rows of clients never seen, and parameters of their own."""
    monkeypatch.setattr(row_files, "PIECE_BYTES", piece_bytes)

    def draw(client_id):
        key = jax.random.fold_in(jax.random.key(1), client_id)
        return {"gate": jax.random.normal(key, (2,))}

    placement = make_placement(num_devices)
    rows = put_split(placement, some_rows(np.random.default_rng(0), 8))
    ids = np.array([3, 39, 0, 5, 40, 41, 8, 9], np.int32)
    for own in (None, draw):
        folder = tmp_path / f"{own is None}"
        first, second = (
            make_store(kind, first_row(), 40, placement, own, folder=folder / name)
            for kind, name in ((of, "first"), (to, "second"))
        )
        first.put(ids, rows)
        first.snapshot(folder / "snapshot")
        replaced = jax.tree.leaves(getattr(second, "_rows", ()))
        second.restore(folder / "snapshot")
        expected = all_rows(first, placement)
        assert_same_bits(all_rows(second, placement), expected)
        assert expected.client["count"][[0, 1]].tolist() == [rows.client["count"][2], 7]
        if to == "device":
            assert all(leaf.is_deleted() for leaf in replaced)
        # What was moved does not need the files of the other store.
        if of == "disk":
            shutil.rmtree(folder / "first")
        assert_same_bits(all_rows(second, placement), expected)


@pytest.mark.parametrize("kind", ["host", "disk"])
def test_nothing_personal_is_not_waited_for(kind, tmp_path):
    """The evaluation of a run without gates does not wait for the round's rows."""
    row = first_row()._replace(personal={"gates": {}})
    store = make_store(kind, row, 9, folder=tmp_path / "rows")

    class Late:
        """A leaf that the devices still compute."""

        def __array__(self, dtype=None, copy=None):
            raise AssertionError("somebody waits for it")

    store.put(np.array([1, 2]), jax.tree.map(lambda _: Late(), row))
    assert store.personal(np.array([1, 2])) == {"gates": {}}


def test_first_parameters_are_compiled_before_somebody_is_new(tmp_path):
    """As after a restart, whose first cohort was trained before."""
    traced = []

    def draw(client_id):
        traced.append(client_id)
        key = jax.random.fold_in(jax.random.key(1), client_id)
        return {"gate": jax.random.normal(key, (2,))}

    store = make_store("disk", first_row(), 9, own_personal=draw, folder=tmp_path)
    ids = np.array([1, 2], np.int32)
    store.put(ids, some_rows(np.random.default_rng(0), 2))
    store.take(ids)
    assert len(traced) == 1
    found = store.take(np.array([2, 3], np.int32)).personal["gate"][1]
    assert len(traced) == 1
    assert_same_bits(found, draw(3)["gate"])
