"""Follows a run that another process trains, in the terminal."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedjax_prune.runs.files import WorkdirError
from fedjax_prune.runs.metrics import HEADLINE, bytes_sent
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.settings import flatten
from fedjax_prune.runs.workdir import has_config, read_config, runs_below

PAUSE = 1.0
"""Seconds between two looks at the workdir."""
_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 50
"""Letters of a line drawn in letters."""

Rows = Sequence[Mapping[str, Any]]


def follow(folder: Path, pause: float = PAUSE) -> None:
    """Shows a run until its last round is finished or the user stops with Ctrl-C.

    A terminal shows one table that changes; elsewhere each round is a line.

    Args:
      folder: the workdir. If no run was started there, it says so and waits for one.
      pause: seconds between two looks.

    Raises:
      WorkdirError: if the configuration cannot be read, or if the folder holds the
        workdirs of several runs.
    """
    if not has_config(folder):
        _require_no_runs_below(folder)
        print(f"waiting for a run to start in {folder}", flush=True)
    console = Console()
    try:
        if not console.is_terminal:
            _follow_in_lines(folder, pause)
            return
        with Live(console=console, auto_refresh=False) as shown:
            while True:
                config, rows = _look(folder)
                shown.update(_table(folder, config, rows), refresh=True)
                if _is_over(config, rows):
                    return
                time.sleep(pause)
    except KeyboardInterrupt:
        return


def facts(config: Mapping[str, Any], rows: Rows) -> dict[str, str]:
    """What is known of a run so far, ready to print.

    Args:
      config: dotted name -> value; {} if no run was started.
      rows: of metrics.jsonl.
    """
    rounds = [row for row in rows if row["round"] > 0]
    if not config:
        return {"rounds": "waiting for a run to start"}
    if not rounds:
        return {"rounds": f"waiting for the first of {config['rounds']}"}
    last = rounds[-1]
    found = {"rounds": f"{last['round']} of {config['rounds']}"}
    found |= _number("training loss", rounds, "train/loss", "{:.4g}")
    found |= _number("training accuracy", rounds, "train/accuracy", "{:.1%}")
    found |= _number("test accuracy", rounds, HEADLINE, "{:.1%}")
    found |= _number("worst client", rounds, "eval/client_local/min", "{:.1%}")
    found |= _number("pruned", rounds, "sparsity/all", "{:.1%}")
    sent = sum(map(bytes_sent, rows)) / 1e6
    found["traffic"] = f"{sent:,.1f} MB"
    seconds = float(np.median([row["seconds"] for row in rounds]))
    left = seconds * (config["rounds"] - last["round"])
    found["time"] = f"{seconds:.3g} s a round, about {left:,.0f} s left"
    return found


def drawn(values: Sequence[float]) -> str:
    """Numbers as one line of letters, from their lowest to their highest.

    Examples:
      >>> drawn([0, 1, 2, 3, 4])
      '▁▃▅▆█'
    """
    finite = np.array([value for value in values if np.isfinite(value)], float)
    if not finite.size:
        return ""
    places = np.linspace(0, finite.size - 1, min(_WIDTH, finite.size)).round()
    kept = finite[places.astype(int)]
    span = (kept.max() - kept.min()) or 1.0
    heights = 1 + np.round((kept - kept.min()) / span * 7).astype(int)
    return "".join(_BARS[height] for height in heights)


def _number(name: str, rounds: Rows, field: str, form: str) -> dict[str, str]:
    """The newest number of a field and all of them drawn; {} without any."""
    values = [x for row in rounds if (x := row.get(field)) is not None]
    if not values:
        return {}
    return {name: f"{form.format(values[-1]):>8}  {drawn(values)}"}


def _look(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    if not has_config(folder):
        return {}, []
    return flatten(read_config(folder)), read_metrics(folder)


def _is_over(config: Mapping[str, Any], rows: Rows) -> bool:
    return bool(config and rows) and rows[-1]["round"] >= config["rounds"]


def _table(folder: Path, config: Mapping[str, Any], rows: Rows) -> Table:
    table = Table(title=str(folder), title_justify="left", box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="crop")
    for name, value in facts(config, rows).items():
        table.add_row(Text(name), Text(value))
    return table


def _require_no_runs_below(folder: Path) -> None:
    """Refuses a folder of a sweep, in which no run will start.

    Raises:
      WorkdirError: naming the first of the runs below it.
    """
    if found := runs_below(folder):
        raise WorkdirError(
            f"--live follows one run, but {folder} has {len(found)} below it, such as "
            f"{found[0]}: name one of them."
        )


def _follow_in_lines(folder: Path, pause: float) -> None:
    shown = 0
    while True:
        config, rows = _look(folder)
        for row in rows:
            if row["round"] > shown:
                shown = row["round"]
                print(_line(row, config["rounds"]), flush=True)
        if _is_over(config, rows):
            return
        time.sleep(pause)


def _line(row: Mapping[str, Any], rounds: int) -> str:
    words = [f"round {row['round']}/{rounds}"]
    if row.get("train/loss") is not None:
        words.append(f"loss {row['train/loss']:.4g}")
    if row.get(HEADLINE) is not None:
        words.append(f"test accuracy {row[HEADLINE]:.1%}")
    return "  ".join([*words, f"{row['seconds']:.3g} s"])
