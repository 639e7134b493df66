"""What a node keeps, and trees as records."""

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from fedjax_prune.flower.kept import (
    NOTHING,
    LostRowError,
    read_rows,
    row_after,
    write_rows,
)
from fedjax_prune.flower.trees import from_record, to_record
from fedjax_prune.runs.workdir import WorkdirError
from fedjax_prune.types import ClientState
from tests.toys import assert_same_bits

FIRST = ClientState(
    personal={"gate": {"bias": np.zeros(3, np.float32)}},
    client={"h": np.zeros((2, 2)), "votes": np.zeros(2, bool), "n": np.int32(0)},
)
TRAINED = ClientState(
    personal={"gate": {"bias": np.arange(3, dtype=np.float32)}},
    client={"h": np.eye(2), "votes": np.array([True, False]), "n": np.int32(7)},
)


def context_of(run, folder=None):
    config = {"partition-id": 4} | ({"rows-dir": str(folder)} if folder else {})
    return Context(run, 1, config, RecordDict(), {})


@pytest.mark.parametrize("restarted", [False, True])
def test_rows_come_back_bit_by_bit(restarted, tmp_path):
    context = context_of(2**64 - 1, tmp_path)
    assert read_rows(context, FIRST, 4) == {NOTHING: FIRST}
    write_rows(context, {NOTHING: FIRST, 1: FIRST}, 4)
    write_rows(context, {1: FIRST, 12: TRAINED}, 4)
    if restarted:
        context = context_of(2**64 - 1, tmp_path)
    rows = read_rows(context, FIRST, 4)
    assert sorted(rows) == [1, 12]
    assert_same_bits(rows[12], TRAINED)
    assert_same_bits(row_after(rows, 1, FIRST), FIRST)


def test_rows_of_two_nodes_of_a_client_in_one_folder(tmp_path):
    """The first one goes on from what the second has trained."""
    first, second = context_of(5, tmp_path), context_of(5, tmp_path)
    write_rows(first, {1: FIRST, 2: FIRST}, 4)
    write_rows(second, {2: FIRST, 3: TRAINED}, 4)
    rows = read_rows(first, FIRST, 4)
    assert sorted(rows) == [1, 2, 3]
    assert_same_bits(row_after(rows, 3, FIRST), TRAINED)


def test_rows_of_another_run_or_client_do_not_count(tmp_path):
    context = context_of(5, tmp_path)
    write_rows(context, {3: TRAINED}, 4)
    # A series of runs shares the state of a node.
    other = context_of(6, tmp_path)
    other.state = context.state
    assert read_rows(other, FIRST, 4) == {NOTHING: FIRST}
    assert read_rows(context_of(5, tmp_path), FIRST, 3) == {NOTHING: FIRST}
    with pytest.raises(LostRowError, match="round 3 is lost"):
        row_after(read_rows(context_of(5), FIRST, 4), 3, FIRST)


def test_a_client_that_keeps_nothing_loses_nothing(tmp_path):
    nothing, context = ClientState({}, {}), context_of(5, tmp_path)
    write_rows(context, {3: nothing}, 4)
    assert row_after({}, 8, nothing) == nothing
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_told(tmp_path):
    write_rows(context_of(5, tmp_path), {3: TRAINED}, 4)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(WorkdirError, match=f"{file} cannot be read"):
        read_rows(context_of(5, tmp_path), FIRST, 4)


def test_a_tree_that_does_not_fit_is_refused():
    record = to_record(TRAINED)
    other = TRAINED._replace(personal={})
    with pytest.raises(ValueError, match="nobody expects"):
        from_record(record, other)
    with pytest.raises(ValueError, match=r"lacks \.personal\['gate'\]\['bias'\]"):
        from_record(to_record(other), TRAINED)
    assert from_record(to_record(other), TRAINED, fill=True).personal["gate"][
        "bias"
    ].tolist() == [0, 0, 0]
    wrong = FIRST._replace(client=FIRST.client | {"h": np.zeros(3)})
    with pytest.raises(ValueError, match=r"float64\[3\], got float64\[2, 2\]"):
        from_record(record, wrong)
