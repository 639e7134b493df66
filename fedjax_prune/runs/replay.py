"""Trains a run once more, or reads another run, and compares the two."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_prune.engine import row_files, row_log
from fedjax_prune.engine.row_errors import RowsError
from fedjax_prune.engine.store import Store
from fedjax_prune.models.costs import tree_bytes
from fedjax_prune.models.precision import product_precision
from fedjax_prune.runs import checkpoint, environment, verify
from fedjax_prune.runs.files import WorkdirError
from fedjax_prune.runs.learning import Learning, make_learning
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.saving import CHECKPOINTS
from fedjax_prune.runs.start import of_newest, restore
from fedjax_prune.runs.train import train
from fedjax_prune.runs.verify import Difference, Findings
from fedjax_prune.runs.workdir import (
    is_changeable,
    open_workdir,
    read_usable_config,
    usable,
)
from fedjax_prune.types import Config, ServerState


class Run(NamedTuple):
    """What a workdir holds.

    Attributes:
      workdir: where it was read.
      name: in the report.
      config: of the newest start.
      rows: round -> row of metrics.jsonl.
      saved: state and rows of the newest checkpoint; None if there is none.
      seen: ids of the clients whose rows it has on disk, ascending int32; None if it
        has those of all clients.
      starts: entries of environment.json.
    """

    workdir: Path
    name: str
    config: Config
    rows: dict[int, dict[str, Any]]
    saved: tuple[ServerState, Store] | None
    seen: np.ndarray | None
    starts: list[dict[str, Any]]

    @property
    def saved_round(self) -> int | None:
        """The round of the newest checkpoint."""
        return int(self.saved[0].round) if self.saved else None

    @property
    def last(self) -> int | None:
        """The last round with a row or a checkpoint; None if there is none."""
        saved = [] if self.saved_round is None else [self.saved_round]
        return max([*self.rows, *saved], default=None)


def verify_workdir(workdir: Path, rounds: int = 0) -> Findings:
    """Trains a run once more in a temporary folder and compares.

    The replay ends and starts again where the run was resumed with other fields, such
    as more rounds, so that it evaluates what the run has evaluated. The newest
    checkpoint is compared if the replay comes to its round, under `compact_training`
    only if it ends there, and if a run that goes on has not replaced it by then. All
    that the replay writes is in the temporary folder.

    Args:
      workdir: of the run; nothing is written there.
      rounds: how many are replayed at most; 0 is all.

    Raises:
      WorkdirError: if no round is finished, or the run is of another version.
      CheckpointError, DataError, RowsError, SettingsError, TrainingError: as
        `train.run`.
      KeyboardInterrupt: if a signal has stopped the replay.
    """
    run = read_run(workdir)
    if run.last is None:
        raise WorkdirError(f"{workdir} has no finished round that could be replayed.")
    last = min(run.last, rounds or run.last)
    leaves = None
    with tempfile.TemporaryDirectory(prefix="fedjax_prune-verify-") as name:
        folder = Path(name)
        for config, until in _stretches(run, workdir, last):
            with product_precision(config.precision):
                with open_workdir(folder):
                    finished = train(make_learning(config), folder, until)
                if finished < until:
                    raise KeyboardInterrupt
            if until == run.saved_round:
                leaves = _checkpoint_differences(run, read_run(folder))
        replay = read_run(folder, "the replay")
    settings = [
        difference
        for difference in verify.settings_differences(run.config, replay.config)
        # The others were changed between the starts of the run.
        if not is_changeable(difference.field)
    ]
    return _findings(run, replay, last=last, leaves=leaves, settings=settings)


def compare_workdirs(first: Path, second: Path, rounds: int = 0) -> Findings:
    """Compares two runs without training.

    The newest checkpoints are compared if they are of the same round.

    Args:
      first: workdir of one run.
      second: workdir of the other.
      rounds: what comes after them is left out; 0 compares all.

    Raises:
      WorkdirError: if there is no run, no finished round, or it is of another version.
      CheckpointError: if all checkpoints of one are damaged, or a run that goes on
        replaces them faster than they are read.
      RowsError: if rows cannot be read.
    """
    runs = one, other = read_run(first), read_run(second)
    if one.last is None and other.last is None:
        raise WorkdirError(f"{first} and {second} have no finished rounds.")
    last = rounds or max(run.last or 0 for run in runs)
    leaves, at = None, one.saved_round
    if at is not None and at == other.saved_round and at <= last:
        leaves = _checkpoint_differences(one, other)
    settings = verify.settings_differences(one.config, other.config)
    return _findings(one, other, last=last, leaves=leaves, settings=settings)


def read_run(workdir: Path, name: str = "") -> Run:
    """Reads a workdir.

    Args:
      workdir: of the run.
      name: of the run in reports; empty is its folder.

    Raises:
      WorkdirError, CheckpointError, RowsError: if a part cannot be used.
    """
    config, saved, seen = read_usable_config(workdir), None, None
    if checkpoint.rounds(workdir / CHECKPOINTS):
        learning = make_learning(config)
        saved, seen = of_newest(workdir, lambda: _read_newest(learning, workdir))
    return Run(
        workdir=workdir,
        name=name or str(workdir),
        config=config,
        rows={row["round"]: row for row in read_metrics(workdir)},
        saved=saved,
        seen=seen,
        starts=environment.read(workdir),
    )


def _read_newest(
    learning: Learning, workdir: Path
) -> tuple[tuple[ServerState, Store], np.ndarray | None]:
    """The newest checkpoint, and the clients whose rows it has on disk."""
    saved = restore(learning, workdir)
    snapshot = workdir / CHECKPOINTS / str(int(saved[0].round)) / "rows"
    if not row_log.is_log(snapshot):
        return saved, None
    return saved, row_log.load(snapshot).index.clients


def compared_clients(first: Run, second: Run, num_clients: int) -> np.ndarray:
    """Whose rows are compared, so that it does not take longer for more clients.

    Args:
      first: with a checkpoint.
      second: the same.
      num_clients: in the population of both.

    Returns:
      Ascending ids, int32: all clients or, if both runs have their rows on disk, those
      with a row and, for all others, the first client without one.
    """
    if first.seen is None or second.seen is None:
        return np.arange(num_clients, dtype=np.int32)
    seen = np.union1d(first.seen, second.seen)
    gaps = np.flatnonzero(seen != np.arange(len(seen)))
    unseen = gaps[0] if len(gaps) else len(seen)
    ids = np.insert(seen, unseen, unseen).astype(np.int32)
    return ids[ids < num_clients]


def _stretches(run: Run, workdir: Path, last: int) -> Iterator[tuple[Config, int]]:
    """The configurations that the rounds were trained with, each up to which round.

    Compacted rounds depend on the starts themselves: each start compiles widths anew.
    So the replay makes no start of its own, at the newest checkpoint, to compare that.
    """
    compact = run.config.compact_training
    starts: list[dict[str, Any]] = run.starts or [{"finished": 0, "fields": {}}]

    def start_of(round: int) -> int:
        """The newest start that began before the round."""
        numbers = range(len(starts))
        return max((n for n in numbers if starts[n]["finished"] < round), default=0)

    stops = {last}
    if run.saved_round is not None and not compact:
        stops.add(run.saved_round)
    for until in sorted(stops | {start["finished"] for start in starts}):
        now, then = start_of(until), start_of(until + 1)
        unlike = now != then and compact
        unlike = unlike or starts[now]["fields"] != starts[then]["fields"]
        if until <= last and (unlike or until in stops):
            yield _with_fields(run.config, starts[now]["fields"], workdir), until


def _with_fields(config: Config, fields: Mapping[str, Any], workdir: Path) -> Config:
    """The configuration of a start, which saves only at its end and logs nowhere."""
    known = {name: value for name, value in fields.items() if is_changeable(name)}
    changed = config.copy_and_resolve_references()
    with changed.ignore_type():
        changed.update_from_flattened_dict(known)
        changed.save_every, changed.keep, changed.keep_every = changed.rounds, 1, 0
        changed.rows_dir = ""
        # The data may have been moved since.
        changed.data.dir = config.data.dir
        changed.report.every, changed.logger = 0, "none"
    return usable(workdir / environment.FILE, changed.to_dict())


def _checkpoint_differences(first: Run, second: Run) -> list[Difference] | None:
    """Compares the newest checkpoints; None if one was replaced meanwhile.

    Rows are read when they are compared, and a run that goes on removes them.
    """
    try:
        return _differences(first, second)
    except (OSError, RowsError):
        runs = first, second
        if all(
            checkpoint.latest(r.workdir / CHECKPOINTS) == r.saved_round for r in runs
        ):
            raise
        return None


def _differences(first: Run, second: Run) -> list[Difference]:
    """Compares the states and the rows of clients of the newest checkpoints."""
    if first.saved is None or second.saved is None:
        return []
    where = f"checkpoint of round {first.saved_round}"
    (one, one_rows), (other, other_rows) = first.saved, second.saved
    found = verify.leaf_differences(where, *jax.device_get((one, other)))
    shapes = one_rows.shapes, other_rows.shapes
    unlike = verify.leaf_differences(where, *shapes)
    leaves = jax.tree.leaves(shapes[0])
    if unlike or not leaves:
        return found + unlike
    num_clients = leaves[0].shape[0]
    count = row_files.rows_at_once(tree_bytes(shapes[0]) // num_clients)
    clients = compared_clients(first, second, num_clients)
    for start in range(0, len(clients), count):
        ids = clients[start : start + count]
        pieces = jax.device_get((one_rows.take(ids), other_rows.take(ids)))
        # One piece is enough to name a client.
        if unlike := verify.leaf_differences(where, *pieces, ids=ids):
            break
    return found + unlike


def _findings(
    first: Run,
    second: Run,
    *,
    last: int,
    leaves: list[Difference] | None,
    settings: list[Difference],
) -> Findings:
    """Compares rows and environments and adds what was found elsewhere."""
    one, other = (
        {number: row for number, row in run.rows.items() if number <= last}
        for run in (first, second)
    )
    return Findings(
        names=(first.name, second.name),
        rounds=sorted(one.keys() | other.keys()),
        hashed=sum(
            "hash/state" in one[n] and "hash/state" in other[n]
            for n in one.keys() & other.keys()
        ),
        rows=verify.row_differences(one, other),
        checkpoint=_checkpoint(first, second, last=last, compared=leaves is not None),
        leaves=leaves or [],
        settings=settings,
        environment=verify.environment_differences(first.starts, second.starts),
    )


def _checkpoint(first: Run, second: Run, *, last: int, compared: bool) -> str:
    """Says which checkpoints were compared, or why none were."""
    one, other = first.saved_round, second.saved_round
    if compared:
        return f"of round {one}, compared"
    if one is None or other is None:
        return "not compared: there is none"
    if one != other:
        return f"not compared: the newest are of rounds {one} and {other}"
    if one > last:
        return f"not compared: the newest is of round {one}, after round {last}"
    return f"not compared: the run goes on and has replaced that of round {one}"
