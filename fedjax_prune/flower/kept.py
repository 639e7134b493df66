"""What a node keeps between its rounds: its row, in the state of its context.

The reply of a node may be lost, and then the server goes on without it. The row must
then be that of the last reply that has arrived, or control variates would no longer add
up. So a node keeps two rows, the one before its last training and the one after it, and
the server says with the next message which of its replies was the last to arrive.

Flower keeps the state of a context in the memory of the SuperNode. If the node's
configuration has `rows-dir`, both rows are also written to a file in that folder, from
which a SuperNode that was started again, or another one of the client, goes on. There
is a file for each run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flwr.app import Array, ArrayRecord, ConfigRecord, Context

from fedjax_prune.flower.trees import from_record, to_record
from fedjax_prune.runs.files import WorkdirError, read_arrays, replace_arrays
from fedjax_prune.types import ClientState

NOTHING = -1
"""Stands for a round where nothing has been trained."""

ROWS_DIR = "rows-dir"

_RECORD, _ROUNDS = "rows-{}", "rows"

Rows = Mapping[int, ClientState]
"""Number of a round -> the row after it; NOTHING -> the first row."""


class LostRowError(RuntimeError):
    """A node does not have the row that the server counts on."""


def row_after(rows: Rows, number: int, first: ClientState) -> ClientState:
    """Takes the row of a round.

    Args:
      rows: that the node keeps.
      number: the last round whose reply has arrived.
      first: the row before anything was trained.

    Raises:
      LostRowError: if the node does not have it.

    Examples:
      >>> row_after({}, 3, ClientState({}, {"h": np.zeros(2)}))
      Traceback (most recent call last):
      fedjax_prune.flower.kept.LostRowError: what this client kept of round 3 is lost: \
a SuperNode that may be started again needs a folder, --node-config 'rows-dir="DIR"'.
    """
    if not jax.tree.leaves(first):
        return first
    if number not in rows:
        raise LostRowError(
            f"what this client kept of round {number} is lost: a SuperNode that may be "
            f"started again needs a folder, --node-config '{ROWS_DIR}=\"DIR\"'."
        )
    return rows[number]


def read_rows(context: Context, first: ClientState, client_id: int) -> Rows:
    """Reads the rows that the node keeps for this run.

    Args:
      context: of the node; what other runs of its series have left does not count.
      first: the row before anything was trained.
      client_id: of the node.

    Raises:
      ValueError: if a row is of another configuration.
      WorkdirError: if the file in `rows-dir` cannot be read.
    """
    # Another SuperNode of this client may have written it after our last round.
    records = _load(_file(context, client_id))
    state = context.state
    rounds = state.config_records.get(_ROUNDS, {})
    if rounds.get("run") == str(context.run_id):
        numbers = [int(str(number)) for number in str(rounds["rounds"]).split()]
        records |= {n: state.array_records[_RECORD.format(n)] for n in numbers}
    return {n: from_record(record, first) for n, record in records.items()} or {
        NOTHING: first
    }


def write_rows(context: Context, rows: Rows, client_id: int) -> None:
    """Replaces the rows that the node keeps.

    Args:
      context: of the node.
      rows: to be kept.
      client_id: of the node.

    Raises:
      WorkdirError: if the file in `rows-dir` cannot be written.
    """
    state = context.state
    for name in [n for n in state if n.startswith(_RECORD.format(""))]:
        del state[name]
    records = {number: to_record(row) for number, row in rows.items()}
    for number, record in records.items():
        state[_RECORD.format(number)] = record
    numbers = " ".join(str(number) for number in rows)
    state[_ROUNDS] = ConfigRecord({"run": str(context.run_id), "rounds": numbers})
    file = _file(context, client_id)
    if file is not None and any(records.values()):
        arrays: dict[str, Any] = {
            f"{number} {name}": array.numpy()
            for number, record in records.items()
            for name, array in record.items()
        }
        replace_arrays(file, arrays)


def _file(context: Context, client_id: int) -> Path | None:
    folder = str(context.node_config.get(ROWS_DIR, ""))
    if not folder:
        return None
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkdirError(f"{ROWS_DIR} {path} cannot be made: {error}.") from error
    return path / f"run-{context.run_id}-client-{client_id}.npz"


def _load(file: Path | None) -> dict[int, ArrayRecord]:
    """Reads the rows of a file; there are none if there is no file."""
    if file is None or not file.exists():
        return {}
    found: dict[int, dict[str, Any]] = {}
    for key, array in read_arrays(file).items():
        number, _, name = key.partition(" ")
        found.setdefault(int(number), {})[name] = Array(array)
    return {number: ArrayRecord(arrays) for number, arrays in found.items()}
