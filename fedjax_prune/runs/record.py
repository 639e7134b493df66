"""What a run records for its page beside metrics.jsonl, a file each `report.every`.

`report/` of the workdir holds `partition.npz`, who has which classes, and
`round-N.npz`. Of other rounds in which a client diverged, was clipped or attacked there
is a file, too, which holds the losses alone: about 1.4 kB for a cohort of 10 clients
and 2.2 kB for one of 100. A file that is damaged is left out with a warning: no run
needs it.
"""

import os
import re
import sys
import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_prune.runs.files import WorkdirError, read_arrays, unwritable

REPORT = "report"
"""Folder of records and of the page in a workdir."""
CLASS_EXAMPLES = 8
"""Test examples of each class whose channels are counted: the first ones."""
CLASS_CLIENTS = 2
"""Clients of the cohort with whose gates they are counted: the first ones."""
MOST_TROUBLED = 500
"""Rounds of a run whose losses alone are recorded: the first ones with troubles."""
MOST_CLIENTS = 1000
"""Clients of a partition that are recorded: the first ones."""
_PARTITION = "partition.npz"
_ROUND = re.compile(r"round-(\d+)\.npz")


class Record(NamedTuple):
    """What is known of one round. Shares are float16, of which 0 is exactly 0.

    Attributes:
      round: finished rounds.
      clients: [cohort_size] int32, ids, ascending.
      loss: [cohort_size] float32, mean over a client's local steps; may be NaN.
      examples: [cohort_size] float32, training examples of all local steps.
      arrived: [cohort_size] bool, whether the server has used what the client sent.
      selected: layer -> [cohort_size, channels], share of a client's examples that
        keep the channel; {} without gates.
      classes: layer -> [num_classes, channels], the same of the test examples of a
        class; NaN for a class without examples; {} if it is not recorded.
      churn: array -> share of its mask's entries that differ from those after round
        `churn_since`; {} without masks.
      churn_since: round of the record before; in the first record of a start the round
        after which the run has started, which a resumed run need not have recorded.
      evaluated: [num_evaluated] int32, ids of the clients that were evaluated.
      accuracies: `client_gated` and `client_local`, [num_evaluated] in [0, 1], as in
        metrics.jsonl; {} if the round was not evaluated.
    """

    round: int
    clients: np.ndarray
    loss: np.ndarray
    examples: np.ndarray
    arrived: np.ndarray
    selected: Mapping[str, np.ndarray]
    classes: Mapping[str, np.ndarray]
    churn: Mapping[str, np.ndarray]
    churn_since: int
    evaluated: np.ndarray
    accuracies: Mapping[str, np.ndarray]


_GROUPS = ("selected", "classes", "churn", "accuracies")


def make_record(
    number: int,
    ids: np.ndarray,
    sums: Mapping[str, np.ndarray],
    recorded: Mapping[str, Mapping[str, np.ndarray]],
    evaluated: np.ndarray,
    accuracies: Mapping[str, np.ndarray],
    *,
    churn_since: int,
) -> Record:
    """Makes the record of a round.

    Args:
      number: finished rounds.
      ids: [cohort_size] int32, of the cohort, ascending.
      sums: of the round, on the host, leaves [cohort_size, ...] in this order.
      recorded: `churn` and `classes`, on the host, as `Recorder` gives them.
      evaluated: [num_evaluated] int32, ids.
      accuracies: of the evaluation; {} if there was none.
      churn_since: the round with which `churn` compares.
    """
    count = np.asarray(sums["count"], np.float32)
    each = np.maximum(count, 1)
    selected = {
        name.removeprefix("selected/"): (x / each[:, None]).astype(np.float16)
        for name, x in sums.items()
        if name.startswith("selected/")
    }
    return Record(
        round=number,
        clients=ids,
        loss=(np.asarray(sums["loss"]) / each).astype(np.float32),
        examples=count,
        arrived=np.asarray(sums["arrived"]) > 0,
        selected=selected,
        classes=recorded.get("classes", {}),
        churn=recorded.get("churn", {}),
        churn_since=churn_since,
        evaluated=evaluated if accuracies else evaluated[:0],
        accuracies={
            name: np.asarray(x, np.float32)
            for name, x in accuracies.items()
            if name.startswith("client_")
        },
    )


def write_record(workdir: Path, record: Record) -> None:
    """Writes or replaces the record of a round.

    Raises:
      WorkdirError: if it cannot be written.
    """
    arrays: dict[str, Any] = {}
    for field, value in record._asdict().items():
        if field in _GROUPS:
            arrays |= {f"{field}/{name}": x for name, x in value.items()}
        else:
            arrays[field] = value
    _write(_file(workdir, record.round), arrays)


def read_records(workdir: Path, last: int) -> list[Record]:
    """The records of a run in the order of rounds.

    Args:
      workdir: of the run.
      last: records of later rounds, which a killed run leaves, are not read.
    """
    numbers = recorded_rounds(workdir, last)
    records = [_record(_file(workdir, number)) for number in numbers]
    return [record for record in records if record is not None]


def recorded_rounds(workdir: Path, last: int) -> list[int]:
    """The rounds up to `last` that have a record, in order."""
    found = []
    for file in (workdir / REPORT).glob("round-*.npz"):
        matched = _ROUND.fullmatch(file.name)
        if matched and int(matched[1]) <= last:
            found.append(int(matched[1]))
    return sorted(found)


def remove_records(workdir: Path, last: int) -> None:
    """Removes records of rounds after `last`, which a killed run has left.

    Raises:
      WorkdirError: if one cannot be removed.
    """
    for number in recorded_rounds(workdir, sys.maxsize):
        file = _file(workdir, number)
        try:
            if number > last:
                file.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(file, error) from error


def write_partition(workdir: Path, counts: np.ndarray) -> None:
    """Writes who holds what.

    Args:
      workdir: of the run.
      counts: [num_clients, num_classes] int, training examples.

    Raises:
      WorkdirError: if it cannot be written.
    """
    _write(workdir / REPORT / _PARTITION, {"counts": counts})


def read_partition(workdir: Path) -> np.ndarray | None:
    """What `write_partition` has written; None if there is nothing."""
    file = workdir / REPORT / _PARTITION
    arrays = _read(file) if file.exists() else {}
    return arrays.get("counts")


def _file(workdir: Path, number: int) -> Path:
    return workdir / REPORT / f"round-{number}.npz"


def _write(file: Path, arrays: Mapping[str, Any]) -> None:
    stream = BytesIO()
    np.savez_compressed(stream, **arrays)
    data, temporary = stream.getvalue(), file.with_name(f".{file.name}.new")
    try:
        file.parent.mkdir(exist_ok=True)
        # A record may be lost with the machine, so the disk is not waited for.
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as new:
            new.write(data)
        os.replace(temporary, file)
    except OSError as error:
        raise unwritable(file, error, len(data)) from error


def _read(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a file; {} with a warning if it is damaged."""
    try:
        return read_arrays(file)
    except WorkdirError as error:
        warnings.warn(str(error), stacklevel=2)
        return {}


def _record(file: Path) -> Record | None:
    """The record of a file; None with a warning if it is damaged."""
    arrays = _read(file)
    if not arrays:
        return None
    fields: dict[str, Any] = {name: {} for name in _GROUPS}
    for name, array in arrays.items():
        group, _, rest = name.partition("/")
        if rest and group in fields:
            fields[group][rest] = array
        else:
            fields[name] = array
    if found := set(fields) ^ set(Record._fields):
        words = ", ".join(sorted(found))
        warnings.warn(f"{file} is no whole record: {words}.", stacklevel=2)
        return None
    for name in ("round", "churn_since"):
        fields[name] = int(fields[name])
    return Record(**fields)
