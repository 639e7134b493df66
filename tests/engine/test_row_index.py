"""The index of rows on disk, by hand."""

import numpy as np

from fedjax_prune.engine.row_index import NO_ROWS, LogFile


def test_an_index_by_hand():
    index = NO_ROWS.extended([(np.array([2, 5, 9]), LogFile("a", 3, 0))])
    index = index.extended([(np.array([1, 5]), LogFile("b", 2, 0))])
    assert index.clients.tolist() == [1, 2, 5, 9]
    assert [index.logs[n].name for n in index.files] == ["b", "a", "b", "a"]
    assert index.places.tolist() == [0, 0, 1, 2]
    assert index.find(np.array([9, 3, 10, 0, 5])).tolist() == [3, -1, -1, -1, 2]
    index = index.extended([(np.array([2, 9]), LogFile("c", 2, 0))])
    assert index.names == {"b", "c"}
    assert [index.logs[n].name for n in index.files] == ["b", "c", "b", "c"]
    assert {x.dtype for x in index[:3]} == {np.dtype("int32")}


def test_a_large_sparse_file_does_not_keep_small_ones_from_being_written_anew():
    """Of 100 rows 20 are left, which is too many for a cohort of two; of 8 rows one."""
    large, small = np.arange(100), np.arange(200, 208)
    index = NO_ROWS.extended([(large, LogFile("large", 100, 0))])
    index = index.extended([(small, LogFile("small", 8, 0))])
    newer = np.concatenate([large[:80], small[:7]])
    index = index.extended([(newer, LogFile("newer", 87, 0))])
    assert index.sparse(np.array([300, 301])).tolist() == [207]
    assert index.sparse(np.arange(300, 321)).tolist() == [*range(80, 100), 207]
