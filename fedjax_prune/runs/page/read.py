"""What the workdirs of a page hold, and which of them are seeds of the same thing."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_prune.data.datasets import DATASETS
from fedjax_prune.data.labels import labels_of
from fedjax_prune.runs import environment, record
from fedjax_prune.runs.files import WorkdirError
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.record import Record
from fedjax_prune.runs.sections import written
from fedjax_prune.runs.settings import flatten, gained
from fedjax_prune.runs.workdir import HOUSEKEEPING, read_config

UNCOMPARED = ("seed", *HOUSEKEEPING)
"""Fields that do not make another line of two runs; see `uncompared`."""
_FIRST = ("algorithm.name", "model.name", "data.name")
"""Fields that name a line before others do."""
_MISSING = "-"


class PageRun(NamedTuple):
    """What a workdir holds.

    Attributes:
      folder: the workdir.
      config: dotted name -> value, with the defaults of fields gained since.
      rows: of metrics.jsonl, at least one with a round above 0.
      records: what `report.every` has recorded, in the order of rounds.
      partition: [clients, num_classes] int32, training examples; None if not recorded.
      starts: entries of environment.json, the first start first.
    """

    folder: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    records: list[Record]
    partition: np.ndarray | None
    starts: list[dict[str, Any]]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes in the order of their labels."""
        own = self.config.get("data.classes") or ()
        return labels_of(self.config["data.name"], own)

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The rows without that of the preparation."""
        return [row for row in self.rows if row["round"] > 0]


class Line(NamedTuple):
    """Runs that differ in their seed alone: one line of a picture.

    Attributes:
      name: what tells it from the other lines.
      runs: by seed.
      is_given: whether the name was given, not made of the fields that differ.
    """

    name: str
    runs: list[PageRun]
    is_given: bool = False


def read_runs(workdirs: Sequence[Path]) -> list[PageRun]:
    """Reads workdirs; one without a finished round is refused.

    Raises:
      WorkdirError: naming each workdir that has no run or no finished round.
    """
    runs, found = [], []
    named: dict[Path, Path] = {}
    for folder in workdirs:
        # It may be named twice, also through a link.
        named.setdefault(folder.resolve(), folder)
    for folder in named.values():
        try:
            run = _read(folder)
        except WorkdirError as error:
            found.append(str(error))
            continue
        if not run.rounds:
            found.append(f"{folder} has no finished round.")
        runs.append(run)
    if found:
        raise WorkdirError("\n".join(found))
    return runs


def _read(folder: Path) -> PageRun:
    config = flatten(read_config(folder))
    rows = read_metrics(folder)
    last = rows[-1]["round"] if rows else 0
    return PageRun(
        folder=folder,
        config=config | gained(config),
        rows=rows,
        records=record.read_records(folder, last),
        partition=record.read_partition(folder),
        starts=environment.read(folder),
    )


def as_lines(
    runs: Sequence[PageRun], given: Mapping[Path, str] | None = None
) -> list[Line]:
    """Puts runs together that differ in nothing but `uncompared` fields.

    Args:
      runs: at least one.
      given: workdir of each run -> name of its line; none may be missing. Runs of two
        names are two lines.

    Returns:
      The lines in the order of their first runs. Unless names are given, they are named
      by the fewest differing fields that tell them apart, or by method if there is only
      one.

    Raises:
      WorkdirError: naming runs of a line that have the same seed, which would count as
        two.
    """
    groups: list[tuple[tuple[str, dict[str, Any]], list[PageRun]]] = []
    for run in runs:
        left_out = uncompared(run.config)
        compared = {k: v for k, v in run.config.items() if k not in left_out}
        key = given[run.folder] if given else "", compared
        # Compared, not hashed: 1 and 1.0 are one value of a field.
        alike = next((group for known, group in groups if known == key), None)
        if alike is None:
            groups.append((key, [run]))
        else:
            alike.append(run)
    lines = [sorted(group, key=lambda run: run.config["seed"]) for _, group in groups]
    if found := [
        f"{first.folder} and {second.folder} are runs of one configuration and seed: "
        "name one of them."
        for line in lines
        for first, second in pairwise(line)
        if first.config["seed"] == second.config["seed"]
    ]:
        raise WorkdirError("\n".join(found))
    if given:
        return [Line(given[line[0].folder], line, is_given=True) for line in lines]
    named = names([line[0].config for line in lines])
    return [Line(name, line) for name, line in zip(named, lines, strict=True)]


def uncompared(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of a configuration that do not make another line of two runs.

    `data.dir` is one of them unless it names the data: a folder of the user's own or
    one whose examples come with their clients. Of other sets each folder holds a copy.

    Args:
      config: dotted name -> value.
    """
    info = DATASETS.get(config.get("data.name", ""))
    if info is None or info.own or (info.by_client and not info.generated):
        return UNCOMPARED
    return (*UNCOMPARED, "data.dir")


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The compared fields that are not the same in all configurations.

    A field is compared unless it is `uncompared` in every configuration.

    Args:
      configs: dotted name -> value.

    Returns:
      Field -> its value in each configuration; `-` where it is not a field.
    """
    fields = dict.fromkeys(
        field
        for config in configs
        for field in config
        if field not in uncompared(config)
    )
    found = {}
    for field in sorted(fields, key=lambda field: (field not in _FIRST, field)):
        values = [config.get(field, _MISSING) for config in configs]
        if any(v != values[0] for v in values):
            found[field] = values
    return found


def names(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names configurations by the fewest differing fields that tell them apart.

    A single one is named by its method.
    """
    if len(configs) == 1:
        gates = " with gates" if configs[0].get("model.gated") else ""
        return [f"{configs[0]['algorithm.name']}{gates}"]
    parts: list[list[str]] = [[] for _ in configs]
    for field, values in differences(configs).items():
        told = len({tuple(part) for part in parts})
        if told == len(configs):
            break
        more = [_named(field, value) for value in values]
        pairs = list(zip(parts, more, strict=True))
        if len({(*part, new) for part, new in pairs}) > told:
            parts = [part + [new] * (new != "") for part, new in pairs]
    return [", ".join(part) for part in parts]


def _named(field: str, value: Any) -> str:
    """A field of a name; nothing where the configuration does not have the field."""
    if value == _MISSING:
        return ""
    return written(value) if field in _FIRST else f"{field}={written(value)}"
