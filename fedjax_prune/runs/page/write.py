"""Writes the page of runs and its pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedjax_prune.runs.files import replace, unwritable
from fedjax_prune.runs.page import (
    clients,
    computing,
    curves,
    facts,
    masks,
    partition,
    population,
    selection,
    speed,
    target,
    troubled,
)
from fedjax_prune.runs.page.html import Facts, make_page
from fedjax_prune.runs.page.panel import Panel, require_installed
from fedjax_prune.runs.page.read import Line, as_lines, differences, read_runs

PAGE = "index.html"
"""Name of the page in its folder."""
_COMMON = {
    "model.name": "{}",
    "data.name": "{}",
    "data.num_clients": "{} clients",
    "cohort_size": "{} clients a round",
}
"""Field -> how the page names its value below the title, if all runs have the same."""
_USE = "Move over a picture for its numbers; the button at its corner saves it."
_SCALE = 2
"""Pixels of a PNG for each pixel of the page."""


def write_report(
    workdirs: Sequence[Path],
    folder: Path,
    *,
    wanted: float = 0.0,
    pictures: bool = True,
    names: Mapping[Path, str] | None = None,
) -> Path:
    """Writes `index.html` and, for each picture, `NAME.png` and `NAME.svg`.

    Args:
      workdirs: of one or several runs, each with at least one finished round. They may
        be running.
      folder: is made if missing; files of these names are replaced.
      wanted: accuracy in (0, 1] whose costs are drawn; 0 takes that of the first run.
      pictures: whether PNG and SVG files are written.
      names: workdir of each run -> name of its line, as in `as_lines`; None names
        lines by the fields that tell them apart.

    Returns:
      The page.

    Raises:
      SettingsError: if the extra `report` is not installed.
      WorkdirError: if a workdir has no finished round or a file cannot be written.
    """
    require_installed()
    import vl_convert

    lines = as_lines(read_runs(workdirs), names)
    parts = parts_of(lines, wanted)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    if pictures:
        for part in parts:
            if isinstance(part, Panel):
                write_pictures(part, folder)
    script = vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue]
    page = make_page(_title(lines), _intro(lines), parts, script)
    replace(folder / PAGE, page.encode())
    return folder / PAGE


def write_pictures(panel: Panel, folder: Path) -> None:
    """Writes a panel as `NAME.svg` and `NAME.png`.

    Args:
      panel: what is drawn.
      folder: exists.

    Raises:
      WorkdirError: if a file cannot be written.
    """
    import vl_convert

    svg = vl_convert.vegalite_to_svg(panel.spec())
    png = vl_convert.svg_to_png(svg, scale=_SCALE)
    replace(folder / f"{panel.name}.svg", svg.encode())
    replace(folder / f"{panel.name}.png", png)


def parts_of(lines: Sequence[Line], wanted: float = 0.0) -> list[Panel | Facts]:
    """The pictures and tables for which there are data, in the order of the page.

    Args:
      lines: at least one.
      wanted: as in `write_report`.
    """
    made = [
        facts.results(lines),
        curves.accuracy(lines),
        target.target(lines, wanted),
        computing.computing(lines),
        population.population(lines),
        curves.kinds(lines),
        curves.loss(lines),
        clients.distribution(lines),
        facts.worst_clients(lines),
        partition.partition(lines),
        facts.troubled_clients(lines),
        troubled.losses(lines),
        selection.of_clients(lines),
        selection.of_classes(lines),
        selection.evenness(lines),
        selection.never(lines),
        masks.density(lines),
        masks.churn(lines),
        masks.channels(lines),
        masks.savings(lines),
        speed.time(lines),
        speed.lanes(lines),
        facts.configurations(lines),
        facts.all_fields(lines),
        facts.versions(lines),
    ]
    return [part for part in made if part is not None]


def _title(lines: Sequence[Line]) -> str:
    if len(lines) == 1 and len(lines[0].runs) == 1:
        return f"{lines[0].name}: {lines[0].runs[0].folder.name}"
    return f"Report of {sum(len(line.runs) for line in lines)} runs"


def _intro(lines: Sequence[Line]) -> str:
    """What all lines have in common, and what a reader may do."""
    configs = [line.runs[0].config for line in lines]
    differing = differences(configs)
    common = ", ".join(
        words.format(configs[0][field])
        for field, words in _COMMON.items()
        if field not in differing
    )
    return f"{common}. {_USE}" if common else _USE
