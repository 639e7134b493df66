"""Accuracies of clients as a distribution, and the clients who do worst."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_prune.runs.page.panel import (
    Panel,
    colour_of,
    data_of,
    each,
    in_order,
    thinned,
)
from fedjax_prune.runs.page.read import Line, PageRun
from fedjax_prune.runs.record import Record

WORST = 5
"""Clients of a line that are named."""
MOST_DOTS = 100
"""Clients of a run that are drawn; of more, every n-th."""
MOST_CLASSES = 3
"""Classes of a client that are named."""
_KINDS = {
    "client_gated": "on the test set, with own gates",
    "client_local": "on its own validation set",
}


class Worst(NamedTuple):
    """A client that does badly.

    Attributes:
      line: name of its line.
      client: id.
      own: accuracy on its own validation set, in [0, 1].
      test: accuracy of its model on the test set, in [0, 1].
      examples: training examples; None if the partition was not recorded.
      classes: its most frequent classes and their examples, `cat: 120, dog: 5`.
    """

    line: str
    client: int
    own: float
    test: float
    examples: int | None
    classes: str


def last_evaluated(run: PageRun) -> Record | None:
    """The newest record with accuracies of several clients; None without any."""
    found = [r for r in run.records if r.accuracies and len(r.evaluated) > 1]
    return found[-1] if found else None


def distribution(lines: Sequence[Line]) -> Panel | None:
    """Accuracies of clients at the last recorded evaluation; None without any."""
    import altair as alt

    values = [x for line in lines for run in line.runs for x in _dots(line.name, run)]
    if not values:
        return None
    base = alt.Chart(data_of("clients")).encode(
        x=alt.X("accuracy:Q", title="accuracy (%)", scale=alt.Scale(domain=[0, 100])),
        y=alt.Y(
            "line:N",
            title=None,
            sort=[line.name for line in lines],
            axis=alt.Axis(labelLimit=0),
        ),
    )
    boxes = base.mark_boxplot(
        size=22, opacity=0.3, color="#555", median={"color": "black"}
    )
    dots = base.mark_circle(size=28, opacity=0.7).encode(
        color=colour_of(lines).legend(None),
        tooltip=[
            alt.Tooltip("line:N", title="run"),
            alt.Tooltip("client:Q"),
            alt.Tooltip("seed:Q"),
            alt.Tooltip("accuracy:Q", title="accuracy (%)", format=".1f"),
        ],
    )
    chart = alt.layer(boxes, dots).properties(width=340, height=alt.Step(36))
    return Panel(
        name="clients",
        title="Accuracy of each client",
        words="A dot is a client at the last recorded evaluation; of more than "
        f"{MOST_DOTS} clients of a run not all are drawn. The box holds the middle "
        "half of the dots and their median.",
        chart=each(chart, "kind", in_order(values, "kind"), columns=2),
        values=values,
    )


def worst(lines: Sequence[Line]) -> list[Worst]:
    """The clients of each line's first seed that do worst on their own validation."""
    found = []
    for line in lines:
        run = line.runs[0]
        record = last_evaluated(run)
        if record is None:
            continue
        own = record.accuracies["client_local"]
        for place in np.argsort(own, kind="stable")[:WORST]:
            client = int(record.evaluated[place])
            examples, classes = _held(run, client)
            found.append(
                Worst(
                    line=line.name,
                    client=client,
                    own=float(own[place]),
                    test=float(record.accuracies["client_gated"][place]),
                    examples=examples,
                    classes=classes,
                )
            )
    return found


def _dots(name: str, run: PageRun) -> list[dict[str, Any]]:
    record = last_evaluated(run)
    if record is None:
        return []
    found = []
    for field, kind in _KINDS.items():
        # Without gates all clients have the same model.
        if field == "client_gated" and not run.config.get("model.gated"):
            continue
        pairs = list(zip(record.evaluated, record.accuracies[field], strict=True))
        found += [
            {
                "line": name,
                "kind": kind,
                "client": int(client),
                "seed": run.config["seed"],
                "accuracy": 100 * float(accuracy),
            }
            for client, accuracy in thinned(pairs, MOST_DOTS)
        ]
    return found


def _held(run: PageRun, client: int) -> tuple[int | None, str]:
    if run.partition is None or client >= len(run.partition):
        return None, ""
    counts = run.partition[client]
    classes = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]
    words = [f"{run.classes[c]}: {counts[c]:,}" for c in classes[:MOST_CLASSES]]
    words += ["..."] * (len(classes) > MOST_CLASSES)
    return int(counts.sum()), ", ".join(words)
