"""Measures what needs no runs, writes a table of results, and draws its pages."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_prune.data.datasets import DataError
from fedjax_prune.engine.rows_on_disk import RowsError
from fedjax_prune.runs import console
from fedjax_prune.runs.checkpoint import CheckpointError
from fedjax_prune.runs.files import replace
from fedjax_prune.runs.interrupt import INTERRUPTED
from fedjax_prune.runs.metrics import ACCURACY
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.page.panel import PIP, is_installed
from fedjax_prune.runs.page.write import write_report
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.tables import changes_at_the_end
from fedjax_prune.runs.workdir import WorkdirError

from ..benchmark.process import WorkerError
from ..grid import Run, safe_name
from ..train_grid import error_of, is_finished, unfinished
from .table import Block, LineRuns, Table

_FILE = "table.md"
"""Name of the tables in their folder."""

_UNREADABLE = (CheckpointError, DataError, RowsError, SettingsError, WorkdirError)


class Written(NamedTuple):
    """Tables of results.

    Attributes:
      text: of the tables, in Markdown.
      file: in which they are.
      drawn: name of a block -> name of each line -> its runs, for `draw_pages`.
      code: the exit code, 1 if a block could not be made, which was told.
    """

    text: str
    file: Path
    drawn: Mapping[str, Mapping[str, Sequence[Path]]]
    code: int


def write_tables(
    table: Table,
    lines: Sequence[LineRuns],
    workdir: Path,
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    stopped: bool,
) -> Written:
    """Writes the tables of all finished runs.

    A block is shown if its first line is, to which the others are compared. Runs that
    are not finished are named, with the reason if they have failed.

    Args:
      table: what is shown. If its runs share their time, all with an evaluation are
        shown, up to the last round that all of a block have evaluated.
      lines: its lines and their runs.
      workdir: of the runs.
      folder: of the table; is made. It gets table.md, or a folder below it does if the
        seeds of the lines are others than the table's own.
      overrides: what was changed in all runs; is shown.
      stopped: whether the command has to end soon, so that checkpoints are not
        measured.
    """

    def is_shown(run: Run) -> bool:
        if table.share_time:
            return _last_evaluation(workdir / run.folder) > 0
        return is_finished(run, workdir)

    def has_failed(run: Run) -> bool:
        return bool(error_of(run, workdir)) and not is_finished(run, workdir)

    runs = {each.line: each.runs for each in lines}
    parts, drawn, code = [f"# {table.question}\n"], {}, 0
    if table.differs:
        parts.append(f"{table.differs}\n")
    if overrides:
        parts.append(f"All runs with `{' '.join(overrides)}`.\n")
    for block in table.blocks:
        shown = {
            line.name: [workdir / run.folder for run in runs[line] if is_shown(run)]
            for line in block.lines
        }
        parts.append(f"## {block.title}\n")
        if not block.lines:
            parts.append(_without_runs(block, folder))
            continue
        if block.of_checkpoints and stopped:
            parts.append("not measured: the command was stopped\n")
        elif shown[block.lines[0].name]:
            shown = {name: folders for name, folders in shown.items() if folders}
            try:
                parts.append(_results(block, shown, table.share_time))
                if not block.of_checkpoints:
                    drawn[block.name] = shown
            except _UNREADABLE as error:
                # The other blocks are still shown.
                console.print_error(f"{block.title}: {error}")
                parts.append(f"failed: {error}\n")
                code = 1
        left = {
            line.name: [r for r in runs[line] if not is_shown(r) or has_failed(r)]
            for line in block.lines
        }
        seeds = {line.name: len(runs[line]) for line in block.lines}
        parts += unfinished(left, seeds, workdir)
    text, out = "\n".join(parts), _folder_of_tables(table, lines, folder)
    out.mkdir(parents=True, exist_ok=True)
    replace(out / _FILE, text.encode())
    return Written(text, out / _FILE, drawn, code)


def _folder_of_tables(table: Table, lines: Sequence[LineRuns], folder: Path) -> Path:
    """Tables of a few seeds for a trial do not replace those of the table's own."""
    seeds = sorted({run.config.seed for each in lines for run in each.runs})
    if not seeds or seeds == sorted(table.seeds):
        return folder
    return folder / safe_name(f"seeds={','.join(map(str, seeds))}")


def draw_pages(written: Written) -> int:
    """Draws a page for each block into a folder of its own beside the tables.

    Returns:
      The exit code: 1 if a page could not be written, which is told. Without the extra
      `report` none is drawn.
    """
    if written.drawn and not is_installed():
        print(f"pages: not drawn; for pictures: {PIP}")
        return 0
    code = 0
    for block, runs in written.drawn.items():
        names = {workdir: name for name, each in runs.items() for workdir in each}
        try:
            page = write_report(list(names), written.file.parent / block, names=names)
            print(f"page: {page}")
        except WorkdirError as error:
            console.print_error(f"{block}: {error}")
            code = 1
    return code


def _results(block: Block, runs: Mapping[str, Sequence[Path]], share_time: bool) -> str:
    """The table of a block, and how much its lines still changed at their ends."""
    published = {line.name: line.published for line in block.lines if line.published}
    common = math.inf
    if share_time:
        common = min(_last_evaluation(f) for each in runs.values() for f in each)
    return block.make(runs, published, common) + _changes(runs, common)


def _changes(runs: Mapping[str, Sequence[Path]], most_rounds: float) -> str:
    """How far the first line has converged, and which others have not."""
    words = []
    for number, (name, workdirs) in enumerate(runs.items()):
        changes = changes_at_the_end(workdirs, most_rounds)
        points = [100 * change for change in changes]
        if points and (number == 0 or abs(np.mean(points)) >= 1):
            largest = max(map(abs, points))
            words.append(f"{name} {np.mean(points):+.1f} (at most {largest:.1f})")
    if not words:
        return ""
    return (
        "\nChange of the accuracy in the last fifth of the rounds, in points, mean and "
        "largest of the seeds, of the first line and those with a mean of 1 or more: "
        f"{', '.join(words)}.\n"
    )


def measure_blocks(table: Table, folder: Path, seconds: float) -> int:
    """Measures the blocks that need no runs, each once: their files are kept.

    Args:
      table: whose blocks they are.
      folder: of the table; is made.
      seconds: that they may take together.

    Returns:
      The exit code: 1 if one could not be measured, or a part of it, INTERRUPTED if the
      time was too short; all are told, and left for the next call.
    """
    code, end = 0, time.monotonic() + seconds
    for block in left_to_measure(table, folder):
        assert block.measure is not None
        print(f"measuring: {block.title}", flush=True)
        try:
            found = block.measure(folder / block.name, end - time.monotonic())
        except WorkerError as error:
            console.print_error(f"{block.title}: {error}")
            code = 1
            continue
        if found is None:
            print(f"{block.title}: not ended; the same command goes on", flush=True)
            code = code or INTERRUPTED
            continue
        folder.mkdir(parents=True, exist_ok=True)
        if found.failed:
            words = ", ".join(found.failed)
            console.print_error(
                f"{block.title}: {words} failed; the same command tries again"
            )
            replace(_partial_file(folder, block), found.text.encode())
            code = 1
        else:
            replace(_file(folder, block), found.text.encode())
            _partial_file(folder, block).unlink(missing_ok=True)
    return code


def left_to_measure(table: Table, folder: Path) -> list[Block]:
    """The blocks that `measure_blocks` would measure."""
    return [b for b in table.blocks if b.measure and not _file(folder, b).exists()]


def _file(folder: Path, block: Block) -> Path:
    return folder / f"{block.name}.md"


def _partial_file(folder: Path, block: Block) -> Path:
    """The table while a part of it has failed; the whole one is not there then."""
    return folder / f"{block.name}.partial.md"


def _without_runs(block: Block, folder: Path) -> str:
    if not block.measure:
        return block.make({}, {}, math.inf)
    files = (_file(folder, block), _partial_file(folder, block))
    texts = (file.read_text() for file in files if file.exists())
    return next(texts, "not measured\n")


def _last_evaluation(workdir: Path) -> int:
    """The last round that a run has evaluated; 0 if it has evaluated none."""
    rounds = [row["round"] for row in read_metrics(workdir) if ACCURACY in row]
    return max(rounds, default=0)
