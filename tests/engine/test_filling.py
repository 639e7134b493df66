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
        second.restore(folder / "snapshot")
        expected = all_rows(first, placement)
        assert_same_bits(all_rows(second, placement), expected)
        assert expected.client["count"][[0, 1]].tolist() == [rows.client["count"][2], 7]
        # What was moved does not need the files of the other store.
        if of == "disk":
            shutil.rmtree(folder / "first")
        assert_same_bits(all_rows(second, placement), expected)
