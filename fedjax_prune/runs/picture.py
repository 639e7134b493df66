"""A run as a picture: accuracies, training loss, traffic and masks over its rounds."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_prune.runs.files import replace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

ACCURACIES = {
    "eval/global_dense/accuracy": "test set, shared model without gates",
    "eval/client_gated/mean": "test set, shared model with own gates (mean)",
    "eval/after_local/mean": "test set, before averaging (mean)",
    "eval/client_local/mean": "own validation sets (mean)",
    "train/accuracy": "training images, during the round",
}
"""Field of a row -> its line in the legend; means are over clients."""

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "0.9",
    "lines.linewidth": 1.5,
}


def draw(rows: Rows, file: str | Path) -> None:
    """Draws a run into a PNG file; without a finished round it writes nothing.

    Args:
      rows: of metrics.jsonl, as `metrics_log.read_metrics` gives them.
      file: is replaced if it exists.

    Raises:
      WorkdirError: if the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure = plot(rows)
    if figure is None:
        return
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    stream = BytesIO()
    picture.save(stream, "PNG", optimize=True)
    replace(Path(file), stream.getvalue())


def plot(rows: Rows) -> "Figure | None":
    """Plots a run: accuracies above, below them loss, traffic and sparsity.

    Args:
      rows: of metrics.jsonl. Row 0, the preparation, counts only in the traffic.
        Values that are not finite leave gaps.

    Returns:
      A figure whose axes are labelled `accuracy (%)`, `training loss`, `MB sent so far`
      and, if the run has masks, `pruned (%)`; None if no round is finished.
    """
    # Slow to import, and only the end of a run needs it. Without pyplot there is no
    # global figure and no window.
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rounds = [row for row in rows if row["round"] > 0]
    if not rounds:
        return None
    has_masks = any("sparsity/all" in row for row in rounds)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.8), dpi=130, layout="constrained")
        grid = figure.add_gridspec(2, 3 if has_masks else 2, height_ratios=[3, 2])
        _plot_accuracies(figure.add_subplot(grid[0, :]), rounds)
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
        loss = figure.add_subplot(grid[1, 0])
        _line(loss, rounds, "train/loss")
        loss.margins(y=0.1)
        loss.set(ylabel="training loss", ylim=(0, None))
        _plot_traffic(figure.add_subplot(grid[1, 1]), rows)
        if has_masks:
            pruned = figure.add_subplot(grid[1, 2])
            _line(pruned, rounds, "sparsity/all", scale=100)
            pruned.set(ylabel="pruned (%)", ylim=(0, 100))
        for axes in figure.axes:
            axes.set_xlabel("round")
            axes.xaxis.set_major_locator(
                MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
            )
    return figure


def _plot_accuracies(axes: "Axes", rounds: Rows) -> None:
    labels = dict(ACCURACIES)
    if not any(name.startswith("gates/") for row in rounds for name in row):
        labels["eval/global_dense/accuracy"] = "test set, shared model"
        del labels["eval/client_gated/mean"]
    for field, label in labels.items():
        # The mean over one client says nothing about the others.
        drawn = [
            row
            for row in rounds
            if field in row
            and not (field.endswith("/mean") and row["eval/clients"] == 1)
        ]
        if drawn:
            _line(axes, drawn, field, label=label, scale=100)
    axes.set(ylabel="accuracy (%)", ylim=(None, 101))


def _plot_traffic(axes: "Axes", rows: Rows) -> None:
    sent = unmasked = 0.0
    totals = []
    for row in rows:
        sent += (row["bytes/down"] + row["bytes/up"]) / 1e6
        unmasked += row["bytes/dense"] / 1e6
        totals.append({"round": row["round"], "sent": sent, "unmasked": unmasked})
    _line(axes, totals, "sent", label="with masks")
    top = None
    # An exploration may send more than the masks save.
    if sent != unmasked:
        _line(axes, totals, "unmasked", label="without", color="0.6", linestyle="--")
        # The legend needs room above the lines.
        top = 1.5 * max(sent, unmasked)
        axes.legend(loc="upper left", frameon=False)
    axes.set(ylabel="MB sent so far", ylim=(0, top))


def _line(
    axes: "Axes", rows: Rows, field: str, *, scale: float = 1, **style: Any
) -> None:
    """Draws a field of the rows that have it, with marks where they are few."""
    points = [(row["round"], scale * row[field]) for row in rows if field in row]
    marker = "o" if len(points) <= 20 else None
    axes.plot(*zip(*points, strict=True), marker=marker, markersize=3.5, **style)
