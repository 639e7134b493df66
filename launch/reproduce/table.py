"""What a table of results is made of, and the runs that it needs."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fedjax_prune.runs.settings import SettingsError, flatten
from fedjax_prune.runs.tables import comparison
from fedjax_prune.runs.workdir import is_changeable

from ..flags import load_config, not_arguments, overridden
from ..grid import Run, make_grid, told

Make = Callable[[Mapping[str, Sequence[Path]], Mapping[str, str], float], str]
"""(name -> workdirs of its seeds, name -> what is published, the last round that is
shown) -> a table in Markdown."""


class Measured(NamedTuple):
    """A table that needs no runs.

    Attributes:
      text: in Markdown.
      failed: names of its parts that could not be measured; the next call tries them
        again.
    """

    text: str
    failed: tuple[str, ...] = ()


Measure = Callable[[Path, float], Measured | None]
"""(folder for what it keeps, seconds that it may take) -> a table, or None if the time
was too short."""


def of_runs(make: Callable[[Mapping[str, Sequence[Path]]], str]) -> Make:
    """A table of the runs alone: nothing published, whatever the last round."""
    return lambda runs, published, most_rounds: make(runs)


class Line(NamedTuple):
    """A row: runs that differ in their seed alone.

    Attributes:
      name: in the table.
      config: a name or path of a configuration and the string after it.
      changes: fields that differ from it, `field=value`.
      published: what others have published for it.
      launcher: the module in this package that trains its runs; empty for `train`.
    """

    name: str
    config: str
    changes: tuple[str, ...] = ()
    published: str = ""
    launcher: str = ""


class Block(NamedTuple):
    """Lines of a table that are shown together.

    Attributes:
      name: for --blocks, and of its files.
      title: above it.
      lines: the others are compared with the first; none for a table that needs no
        runs.
      make: the table.
      measure: how a table that needs no runs is measured, for minutes, before the runs
        start; it is kept. None for other tables.
      of_checkpoints: whether `make` measures what its runs have saved, which takes
        minutes. It does not after a stop, and there is no page of these runs.
    """

    name: str
    title: str
    lines: tuple[Line, ...]
    make: Make = comparison
    measure: Measure | None = None
    of_checkpoints: bool = False


class Beside(NamedTuple):
    """Another library that is trained after the runs of a table; all are timed.

    Attributes:
      train: (lines, workdir, seconds) -> exit code, as of `train_all`.
      fields: dotted names that overrides may set, because the other library gets them
        too or because they change no result.
    """

    train: "Callable[[Sequence[LineRuns], Path, float], int]"
    fields: frozenset[str]


class Table(NamedTuple):
    """A question and the blocks that answer it.

    Attributes:
      question: in a sentence.
      blocks: lines may be in several of them; their runs are trained once.
      seeds: of every line, unless others are asked for.
      differs: how its runs differ from what others have published.
      share_time: whether runs have equal parts of --minutes, because few can end in it,
        and whether those that have not ended are shown.
      beside: another library, for which --jobs must be 1, too.
    """

    question: str
    blocks: tuple[Block, ...]
    seeds: tuple[int, ...]
    differs: str = ""
    share_time: bool = False
    beside: Beside | None = None


def only(table: Table, names: Sequence[str]) -> Table:
    """A table with the blocks of these names alone, or with all if there are none."""
    blocks = (block for block in table.blocks if not names or block.name in names)
    return table._replace(blocks=tuple(blocks))


class LineRuns(NamedTuple):
    """A line and its runs, one for each seed."""

    line: Line
    runs: tuple[Run, ...]


def lines_of(
    table: Table, seeds: Sequence[int], overrides: Sequence[str]
) -> list[LineRuns]:
    """The lines of a table, each once, with their runs.

    Args:
      table: its lines may be in several blocks.
      seeds: of each line.
      overrides: arguments for all runs, `--config.field=value`.

    Raises:
      SettingsError: with every mistake in a line's runs, or every override of a field
        that lines set or that the other library does not get, or with all overrides if
        there are no lines.
    """
    lines = dict.fromkeys(line for block in table.blocks for line in block.lines)
    own = _set_by(lines)
    given = overridden(overrides)
    mistakes = [
        f"--config.{field} must not be given: lines set it"
        for field in sorted(given & own)
    ]
    if not lines:
        for argument in overrides:
            mistakes += (
                [f"{argument} must not be given: nothing is trained for these blocks"]
                if overridden([argument])
                else not_arguments([argument])
            )
    if table.beside:
        refused = [
            f"--config.{field} must not be given: the other library does not get it"
            for field in sorted(given - own - table.beside.fields)
        ]
        if refused:
            known = ", ".join(sorted(table.beside.fields - own))
            mistakes += [*refused, f"fields that may be given: {known}"]
    if mistakes:
        raise SettingsError(mistakes)
    axis = f"seed={','.join(map(str, seeds))}"
    found, wrong = [], {}
    for line in lines:
        path, _, setting = line.config.partition(":")
        changes = [f"{change};" for change in line.changes]
        settings = [setting] if setting else []
        try:
            runs = make_grid(path, settings, [*changes, axis], overrides)
        except SettingsError as error:
            for mistake in error.problems:
                wrong.setdefault(mistake, []).append(line.name)
            continue
        found.append(LineRuns(line, tuple(_placed(run, path, line) for run in runs)))
    if wrong:
        raise SettingsError(told(wrong, [line.name for line in lines]))
    return found


def _placed(run: Run, path: str, line: Line) -> Run:
    """A run with its folder among those of all tables, and what trains it.

    Tables share runs, so folders are named by what is trained.
    """
    above = path
    if line.launcher:
        above = f"{path}/{line.launcher}"
        run = run._replace(launcher=(f"{__package__}.{line.launcher}",))
    return run._replace(group=f"{above}/{run.group}", folder=f"{above}/{run.folder}")


def _set_by(lines: Collection[Line]) -> set[str]:
    """The fields that lines set: those that they change, and in which they differ.

    How long runs are and what is evaluated may be changed for all lines, unless one of
    them changes it.
    """
    configs = [flatten(load_config(line.config, [])) for line in lines]
    common = set(configs[0]).intersection(*configs) if configs else set()
    differ = {f for f in common if any(c[f] != configs[0][f] for c in configs)}
    changed = {change.partition("=")[0] for line in lines for change in line.changes}
    return {"seed"} | changed | {f for f in differ if not is_changeable(f)}


def by_seed(lines: Sequence[LineRuns]) -> list[Run]:
    """All runs, each once, first those of the first seed of all lines."""
    found: dict[str, Run] = {}
    for runs in zip(*(each.runs for each in lines), strict=True):
        found |= {run.folder: run for run in runs}
    return list(found.values())
