"""The runs of a sweep: each combination of settings and of values of fields."""

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

from fedjax_prune.runs.sections import written
from fedjax_prune.runs.settings import SettingsError, flatten
from fedjax_prune.types import Config

from .flags import load_config, overridden

MOST_RUNS = 10_000
"""Runs of a grid; all of them are checked before the first one starts."""
_LONGEST = 120
"""Characters of a folder's name; file systems allow 255 bytes."""
_BRING = ("algorithm.name", "model.name")
"""Fields that bring other fields."""
_SEED = "seed"
"""The field over whose values the table takes means."""


class Axis(NamedTuple):
    """A field and the values that it takes.

    Attributes:
      field: with its section, `client.lr`.
      texts: its values as they are written on the command line.
    """

    field: str
    texts: tuple[str, ...]


class Run(NamedTuple):
    """A run of a grid.

    Attributes:
      path: of its configuration, with the string after it.
      overrides: what it changes in it, as arguments.
      config: the result, checked.
      group: folder of the run without its seed: what the table takes means over.
      folder: of the run, below that of the sweep.
      launcher: what trains it, a module and its verb.
    """

    path: str
    overrides: tuple[str, ...]
    config: Config
    group: str
    folder: str
    launcher: tuple[str, ...] = ("fedjax_prune", "train")


def read_axes(texts: Sequence[str], found: list[str]) -> list[Axis]:
    """Reads axes; the one of the seed comes last.

    Args:
      texts: `FIELD=VALUE,VALUE`. If a text has a semicolon, semicolons separate its
        values, and a value may then have commas.
      found: gets the mistakes.
    """
    axes = []
    for text in texts:
        field, _, values = text.partition("=")
        separator = ";" if ";" in values else ","
        split = tuple(v.strip() for v in values.split(separator))
        # One value with commas is written with a semicolon at its end.
        split = split[:-1] if separator == ";" and split[-1] == "" else split
        if not field or not all(split):
            found.append(f"--axis must be FIELD=VALUE,VALUE,... got {text!r}")
        else:
            axes.append(Axis(field.strip(), split))
    for field, count in Counter(axis.field for axis in axes).items():
        if count > 1:
            found.append(f"--axis must name each field once, got {field} {count} times")
    return sorted(axes, key=lambda axis: axis.field == _SEED)


def make_grid(
    path: str | None,
    settings: Sequence[str],
    axes: Sequence[str],
    overrides: Sequence[str],
    found: Sequence[str] = (),
) -> list[Run]:
    """Makes and checks all runs of a sweep.

    Args:
      path: of a configuration, as `load_config` takes it.
      settings: strings for the configuration; none keeps what `path` has.
      axes: as `read_axes` takes them.
      overrides: arguments for all runs, `--config.field=value`.
      found: mistakes that the caller knows of, reported with the others.

    Returns:
      The runs, the values of the last axis changing fastest.

    Raises:
      SettingsError: with every mistake in every run, each once.
    """
    found = list(found)
    read = read_axes(axes, found)
    both = overridden(overrides) & {axis.field for axis in read}
    found += [
        f"{name} is set by --axis and by --config.{name}" for name in sorted(both)
    ]
    count = math.prod([len(settings) or 1, *(len(axis.texts) for axis in read)])
    if count > MOST_RUNS:
        # Without the axes, so that the other mistakes are still found.
        found.append(f"the grid must have at most {MOST_RUNS:,} runs, got {count:,}")
        read = []
    runs, places = [], []
    mistakes: dict[str, list[str]] = {}
    for setting, *texts in itertools.product(
        settings or [""], *(axis.texts for axis in read)
    ):
        fields = [axis.field for axis in read]
        changes = [f"--config.{f}={t}" for f, t in zip(fields, texts, strict=True)]
        full = f"{path or ''}:{setting}" if setting else (path or "")
        brings = [f"{f}={t}" for f, t in zip(fields, texts, strict=True) if f in _BRING]
        places.append(", ".join([setting] * bool(setting) + brings))
        try:
            config = load_config(full, [*overrides, *changes])
        except SettingsError as error:
            for mistake in error.problems:
                mistakes.setdefault(mistake, []).append(places[-1])
            continue
        runs.append(_make_run(full, setting, changes, config, fields))
    found += told(mistakes, places)
    for folder, count in Counter(run.folder for run in runs).items():
        if count > 1:
            found.append(f"values and settings must differ, got {folder} {count} times")
    if found:
        raise SettingsError(list(dict.fromkeys(found)))
    return runs


def told(mistakes: Mapping[str, Sequence[str]], places: Sequence[str]) -> list[str]:
    """Mistakes; one that is not made everywhere is told with the first place.

    Args:
      mistakes: each with the places where it is made.
      places: all of them.
    """
    return [
        mistake if set(places) <= set(made) else f"{mistake} (with {made[0]})"
        for mistake, made in mistakes.items()
    ]


def read_shard(text: str, found: list[str]) -> tuple[int, int]:
    """Reads `i/n`: the i-th of n parts, counted from 1.

    Args:
      text: empty for all runs.
      found: gets the mistake.

    Returns:
      (i, n), or (1, 1) if the text is wrong.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text or "1/1", re.ASCII)
    i, n = (int(match[1]), int(match[2])) if match else (0, 0)
    if 1 <= i <= n:
        return i, n
    found.append(f"--shard must be i/n with i in [1, n], got {text!r}")
    return 1, 1


def of_shard(runs: Sequence[Run], shard: tuple[int, int]) -> list[Run]:
    """The runs of one of n parts, which are disjoint and together all runs."""
    i, n = shard
    return list(runs[i - 1 :: n])


def _make_run(
    path: str, setting: str, changes: list[str], config: Config, fields: list[str]
) -> Run:
    values = flatten(config)
    names = [safe_name(setting)] if setting else []
    names += [safe_name(f"{field}={written(values[field])}") for field in fields]
    folder = "/".join(names)
    if fields and fields[-1] == _SEED:
        names.pop()
    return Run(path, tuple(changes), config, "/".join(names), folder)


def safe_name(name: str) -> str:
    """A folder's name: other characters as %XX, and a hash if it is too long."""
    safe = quote(name, safe="=,+:")
    if not safe.strip("."):
        safe = safe.replace(".", "%2E")
    if len(safe) <= _LONGEST:
        return safe
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{safe[: _LONGEST - 13]}-{digest}"
