"""Accuracies of several methods against the number of clients (FedDP, figure 5)."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from fedjax_prune.runs.metrics import HEADLINE
from fedjax_prune.runs.tables import less, markdown, read_lines, with_interval

_OWN = "eval/client_local/mean"


def line_name(method: str, clients: str) -> str:
    """The name of a line, by which `by_clients` finds its row and its column."""
    return f"{method}, {clients} clients"


def by_clients(
    runs: Mapping[str, Sequence[Path]],
    published: Mapping[str, str],
    most_rounds: float,
) -> str:
    """A row for each method and a column for each number of clients, in Markdown.

    Args:
      runs: `line_name` -> workdirs of its seeds, with at least one evaluation each.
      published: is not shown.
      most_rounds: of each run; later ones are left out.

    Returns:
      Three tables of means over seeds with a 95 % interval: the accuracy on the shared
      test set, what it is less that of the first method with as many clients, seed by
      seed, and the accuracy on own validation. A run's accuracy is its mean in the last
      fifth of its rounds. "(of 2)" marks a mean of 2 seeds if another has more.
    """
    del published
    lines = {line.name: line for line in read_lines(runs, most_rounds)}
    parts = {name: name.rpartition(", ") for name in lines}
    methods = list(dict.fromkeys(method for method, _, _ in parts.values()))
    columns = list(dict.fromkeys(clients for _, _, clients in parts.values()))
    most = max(len(line.seeds) for line in lines.values())

    def table(heading: str, cells: Mapping[str, str]) -> str:
        rows = [
            [m, *(cells.get(f"{m}, {clients}", "") for clients in columns)]
            for m in methods
        ]
        return markdown([heading, *columns], rows)

    def marked(words: str, seeds: Collection[int]) -> str:
        return words if len(seeds) == most else f"{words} (of {len(seeds)})"

    def with_intervals(values: Mapping[str, Mapping[int, float]]) -> dict[str, str]:
        return {
            name: marked(with_interval(list(seeds.values())), seeds)
            for name, seeds in values.items()
        }

    accuracy = {name: line.values(HEADLINE) for name, line in lines.items()}
    own = {name: line.values(_OWN) for name, line in lines.items()}
    first = {
        name: f"{methods[0]}, {clients}" for name, (_, _, clients) in parts.items()
    }
    differences = {
        name: marked(less(values, compared), values.keys() & compared.keys())
        for name, values in accuracy.items()
        if first[name] != name and (compared := accuracy.get(first[name]))
    }
    return "\n".join(
        [
            table("accuracy", with_intervals(accuracy)),
            table(f"less {methods[0]}", differences),
            table("own validation", with_intervals(own)),
        ]
    )
