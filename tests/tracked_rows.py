"""Logs rows to a logger that is installed, and prints what it then has as JSON.

`python -m tests.tracked_rows LOGGER FOLDER ROUND` is one start of a run: it logs the
rows of ROUNDS from ROUND on. A process of its own keeps the threads, the warnings and
the modules of the loggers out of the tests.
"""

import json
import sqlite3
import struct
import sys
from pathlib import Path

from fedjax_prune.runs import track
from tests.small_runs import tiny_config

ROUNDS = {
    1: {"round": 1, "train/loss": 0.5, "clients/dropped": "3", "steps/real": 7},
    2: {"round": 2, "train/loss": 0.25, "eval/headline": None},
}
CLASSES = tuple(f"class_{number}" for number in range(1000))
_BLOCK, _HEADER = 32768, 7


class Inner:
    """A log that keeps its rows."""

    def __init__(self):
        self.rows = []

    def write(self, row):
        self.rows.append(row)


def log(name: str, folder: Path, number: int) -> None:
    """Logs the row of a round."""
    config = tiny_config(logger=name, **{"data.classes": CLASSES})
    inner = Inner()
    with track.tracked(inner, config, folder, number) as tracked:
        tracked.write(ROUNDS[number])
    assert inner.rows == [ROUNDS[number]]


def mlflow_runs(folder: Path) -> list:
    """(fields, rows) of each run in the store that MLflow is told of."""
    del folder
    import mlflow  # pyright: ignore[reportMissingImports]

    client, found = mlflow.MlflowClient(), []
    for run in mlflow.search_runs(search_all_experiments=True, output_format="list"):
        rows = {}
        for name in run.data.metrics:
            for metric in client.get_metric_history(run.info.run_id, name):
                rows.setdefault(metric.step, {})[name] = metric.value
        assert run.info.status == "FINISHED"
        found.append((run.data.params, rows))
    return found


def trackio_runs(folder: Path) -> list:
    """(fields, rows) of each run in the database below the folder."""
    (file,) = folder.rglob("fedjax_prune.db")
    with sqlite3.connect(file) as database:
        configs = database.execute("SELECT run_name, config FROM configs").fetchall()
        logged = database.execute("SELECT run_name, step, metrics FROM metrics")
        rows = [(run, step, json.loads(numbers)) for run, step, numbers in logged]
    return [
        (json.loads(config), {step: row for run, step, row in rows if run == name})
        for name, config in configs
    ]


def wandb_runs(folder: Path) -> list:
    """(fields, rows) of each run, of the files that it writes offline."""
    from wandb.proto import (  # pyright: ignore[reportMissingImports]
        wandb_internal_pb2,
    )

    runs = {}
    for file in sorted(folder.rglob("*.wandb")):
        fields, rows = runs.setdefault(file.stem, ({}, {}))
        for stored in _records(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(stored)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                for item in record.run.config.update:
                    fields[_key(item)] = json.loads(item.value_json)
            elif kind == "history":
                row = {_key(x): json.loads(x.value_json) for x in record.history.item}
                shown = {name: x for name, x in row.items() if name[0] != "_"}
                rows[row["_step"]] = shown
    return list(runs.values())


def _key(item) -> str:
    return item.key or ".".join(item.nested_key)


def _records(content: bytes):
    """The records of a file in LevelDB's log format, after its own header."""
    place, parts = _HEADER, b""
    while place + _HEADER <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        place += _HEADER
        parts += content[place : place + length]
        place += length
        # 1 is a whole record, 4 the last part of one.
        if kind in (1, 4):
            yield parts
            parts = b""


READ = {"mlflow": mlflow_runs, "trackio": trackio_runs, "wandb": wandb_runs}


if __name__ == "__main__":
    logger, home, started = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    log(logger, home / "run", started)
    print(json.dumps(READ[logger](home)))
