"""Accuracies and losses of runs against rounds, bytes and client compute."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_prune.runs.metrics import ACCURACY, HEADLINE
from fedjax_prune.runs.page.bands import (
    Measure,
    band_chart,
    banded,
    few,
    field,
    is_of_one,
    of_more,
    points,
    with_costs,
)
from fedjax_prune.runs.page.panel import Panel, data_of, each, in_order
from fedjax_prune.runs.page.read import Line

KINDS = {
    ACCURACY: "test set, without gates",
    "eval/client_local/mean": "own validation, mean of clients",
    "eval/client_local/min": "own validation, worst client",
    "eval/after_local/mean": "test set, before averaging",
    "train/accuracy": "training examples",
}
"""Field of a row -> what its accuracy is of, beside the test accuracy."""


def accuracy(lines: Sequence[Line]) -> Panel | None:
    """Test accuracy against rounds, MB sent and TFLOP of clients; None without any."""
    import altair as alt

    gated = [line for line in lines if line.runs[0].config.get("model.gated")]
    values = [
        point
        for line in lines
        for point in with_costs(line, points(line, field(HEADLINE, 100)))
    ]
    if not values:
        return None
    data, marks = data_of("accuracy", "low", "high"), few(values)
    axes = (
        ("round", "round"),
        ("sent", "MB sent so far, both directions"),
        ("computed", "TFLOP of kept channels so far"),
    )
    parts = [
        band_chart(data, lines, x, "test accuracy (%)", marks=marks).properties(
            width=270
        )
        for x in axes
    ]
    return Panel(
        name="accuracy",
        title="Accuracy against rounds, bytes and client compute",
        words=f"{banded(lines)}Accuracy of the shared parameters on the test set; with "
        f"gates those of each client, mean over clients. {of_more(gated)}"
        "Compute is local training without the channels that masks remove or gates "
        "drop. Gates drop them for each image, which dense hardware does not save.",
        chart=alt.hconcat(*parts),
        values=values,
    )


def kinds(lines: Sequence[Line]) -> Panel | None:
    """All accuracies that a row may have, a picture each; None without any."""
    values: list[dict[str, Any]] = []
    for name, kind in KINDS.items():
        for line in lines:
            # Without gates it is the test accuracy.
            if name != ACCURACY or line.runs[0].config.get("model.gated"):
                found = points(line, _of_several(name))
                values += [{**x, "kind": kind} for x in found]
    if not values:
        return None
    # Accuracies of training have more points, and no need of marks.
    evaluated = [x for x in values if x["kind"] != KINDS["train/accuracy"]]
    chart = band_chart(
        data_of("accuracies", "low", "high"),
        lines,
        ("round", "round"),
        "accuracy (%)",
        marks=few(evaluated),
    ).properties(width=270, height=180)
    names = in_order(values, "kind")
    if len(names) == 1:
        chart = chart.properties(title=names[0])
    return Panel(
        name="accuracies",
        title="Whose accuracy",
        words=f"{banded(lines)}Own validation: each client's model on data with its "
        "own class shares. Before averaging: each client's model after local training. "
        f"{of_more(lines)}",
        chart=each(chart, "kind", names, columns=3),
        values=values,
    )


def loss(lines: Sequence[Line]) -> Panel | None:
    """The training loss against rounds; None without any."""
    values = [x for line in lines for x in points(line, field("train/loss"))]
    if not values:
        return None
    chart = band_chart(
        data_of("loss", "low", "high"),
        lines,
        ("round", "round"),
        "training loss",
        scale={"zero": True},
        marks=few(values),
    )
    return Panel(
        name="loss",
        title="Training loss",
        words=f"{banded(lines)}Mean over all examples of all local steps of a round.",
        chart=chart.properties(width=560),
        values=values,
    )


def _of_several(name: str) -> Measure:
    """A field in percent, unless it is of one client."""
    in_percent = field(name, 100)

    def measure(row: Mapping[str, Any]) -> float | None:
        return None if is_of_one(row, name) else in_percent(row)

    return measure
