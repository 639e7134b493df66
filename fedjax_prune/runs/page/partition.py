"""The partition of the data as a client x class picture."""

from collections.abc import Sequence

import numpy as np

from fedjax_prune.runs.page.panel import Panel, data_of, each, in_order
from fedjax_prune.runs.page.read import Line

MOST_CLIENTS = 100
"""Clients that are drawn: the first ones."""
MOST_PARTITIONS = 4
"""Different partitions that are drawn."""


def partition(lines: Sequence[Line]) -> Panel | None:
    """Who holds how many examples of which class; None if it was not recorded."""
    import altair as alt

    counts: dict[tuple[bytes, tuple[str, ...]], np.ndarray] = {}
    of_lines: dict[tuple[bytes, tuple[str, ...]], list[str]] = {}
    for line in lines:
        held, classes = line.runs[0].partition, line.runs[0].classes
        if held is not None:
            shown = held[:MOST_CLIENTS]
            key = shown.tobytes(), classes
            counts[key] = shown
            of_lines.setdefault(key, []).append(line.name)
    if not counts:
        return None
    names = {key: "; ".join(found) for key, found in of_lines.items()}
    drawn = list(counts)[:MOST_PARTITIONS]
    values = [
        {"of": names[key], "client": client, "class": name, "examples": int(count)}
        for key in drawn
        for name, held in zip(key[1], counts[key].T, strict=True)
        for client, count in enumerate(held)
        if count
    ]
    num_clients = max(len(counts[key]) for key in drawn)
    num_classes = max(counts[key].shape[1] for key in drawn)
    every = -(-num_clients // 25)
    labels = alt.Axis(values=list(range(0, num_clients, every)), labelAngle=0)
    chart = (
        alt.Chart(data_of("partition", "client"))
        .mark_rect()
        .encode(
            x=alt.X("client:O", title="client", axis=labels),
            # In the order of the data.
            y=alt.Y("class:O", title="class", sort=None),
            color=alt.Color(
                "examples:Q",
                title="training examples",
                scale=alt.Scale(scheme="blues", type="sqrt", domainMin=0),
                legend=alt.Legend(gradientLength=240),
            ),
            tooltip=["client:O", "class:O", "examples:Q"],
        )
        .properties(
            width=max(200, min(860, 28 * num_clients)),
            height=max(140, min(420, 18 * num_classes)),
        )
    )
    return Panel(
        name="partition",
        title="Who holds which classes",
        words="Training examples of each client and class; white is none. Of more than "
        f"{MOST_CLIENTS} clients the first ones are drawn, and of more than "
        f"{MOST_PARTITIONS} partitions those of the first runs.",
        chart=each(chart, "of", in_order(values, "of"), columns=1),
        values=values,
    )
