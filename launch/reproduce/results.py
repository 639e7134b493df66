"""Prints a table of results and writes its pages."""

from collections.abc import Sequence
from pathlib import Path

from fedjax_prune.runs import console, tables
from fedjax_prune.runs.files import replace
from fedjax_prune.runs.metrics import ACCURACY
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.page.write import write_report
from fedjax_prune.runs.settings import SettingsError

from ..grid import Run
from ..train_grid import is_finished
from .table import Block, LineRuns, Table

FILE = "table.md"
"""Name of the tables in their folder."""


def write_results(
    table: Table, lines: Sequence[LineRuns], workdir: Path, folder: Path, *, pages: bool
) -> str:
    """Writes the tables of all finished runs, and a page for each block.

    Args:
      table: what is shown.
      lines: its lines and their runs.
      workdir: of the runs.
      folder: is made; gets table.md and a folder for each page.
      pages: whether pages are drawn.

    Returns:
      What was written into table.md.
    """

    def is_shown(run: Run) -> bool:
        if table.share_time:
            return any(ACCURACY in row for row in read_metrics(workdir / run.folder))
        return is_finished(run, workdir)

    shown = {
        each.line: [workdir / run.folder for run in each.runs if is_shown(run)]
        for each in lines
    }
    parts = [f"# {table.question}\n"]
    for block in table.blocks:
        runs = {line.name: shown[line] for line in block.lines if shown[line]}
        if runs or not block.lines:
            parts.append(_block(block, runs))
        if runs and pages and block.drawn:
            _draw(folder / block.name, [path for own in runs.values() for path in own])
    text = "\n".join(parts)
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / FILE, text.encode())
    return text


def _block(block: Block, runs: dict[str, list[Path]]) -> str:
    published = {line.name: line.published for line in block.lines if line.published}
    text = f"## {block.title}\n\n{block.make(runs, published)}"
    for name, workdirs in list(runs.items())[:1]:
        change = tables.change_at_the_end(workdirs)
        text += (
            f"\nIn the last fifth of the rounds the accuracy of {name} changed by "
            f"{100 * change:+.1f} points.\n"
        )
    return text


def _draw(folder: Path, workdirs: Sequence[Path]) -> None:
    try:
        page = write_report(workdirs, folder)
    except SettingsError as error:
        console.print_error(error.problems)
    else:
        print(f"page: {page}")
