"""Accuracies of several methods against the number of clients (FedDP, figure 5)."""

from collections.abc import Collection, Iterable, Mapping, Sequence
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
    *,
    plain: Mapping[str, str],
) -> str:
    """A row for each method and a column for each number of clients, in Markdown.

    Args:
      runs: `line_name` -> workdirs of its seeds, with at least one evaluation each.
      published: is not shown.
      most_rounds: of each run; later ones are left out.
      plain: method with gates or narrow -> the same method without.

    Returns:
      Tables of means over seeds with a 95 % interval: accuracies on the shared test set
      and on own validation, what the first is less that of the first method with as
      many clients, and what both are less those of the plain method, seed by seed. A
      run's accuracy is its mean in the last fifth of its rounds. "(of 2)" marks a mean
      of 2 seeds if another has more.
    """
    del published
    lines = {line.name: line for line in read_lines(runs, most_rounds)}
    parts = {name: name.rpartition(", ") for name in lines}
    methods = list(dict.fromkeys(method for method, _, _ in parts.values()))
    columns = list(dict.fromkeys(clients for _, _, clients in parts.values()))
    most = max(len(line.seeds) for line in lines.values())

    def table(heading: str, cells: Mapping[str, str], shown: Iterable[str]) -> str:
        rows = [
            [m, *(cells.get(f"{m}, {clients}", "") for clients in columns)]
            for m in shown
        ]
        return markdown([heading, *columns], rows)

    def marked(words: str, seeds: Collection[int]) -> str:
        return words if len(seeds) == most else f"{words} (of {len(seeds)})"

    def with_intervals(values: Mapping[str, Mapping[int, float]]) -> dict[str, str]:
        return {
            name: marked(with_interval(list(seeds.values())), seeds)
            for name, seeds in values.items()
        }

    def differences(
        values: Mapping[str, Mapping[int, float]], others: Mapping[str, str]
    ) -> dict[str, str]:
        """What lines are less that of another method with as many clients."""
        found = {}
        for name, (method, _, clients) in parts.items():
            first = values.get(f"{others.get(method)}, {clients}", {})
            if common := values[name].keys() & first.keys():
                found[name] = marked(less(values[name], first), common)
        return found

    accuracy = {name: line.values(HEADLINE) for name, line in lines.items()}
    own = {name: line.values(_OWN) for name, line in lines.items()}
    to_first = dict.fromkeys(methods[1:], methods[0])
    changed = [method for method in methods if method in plain]
    tables = [
        table("accuracy", with_intervals(accuracy), methods),
        table("own validation", with_intervals(own), methods),
        table(f"less {methods[0]}", differences(accuracy, to_first), methods[1:]),
    ]
    for words, values in (("accuracy", accuracy), ("own validation", own)):
        heading = f"{words} less that without gates"
        tables.append(table(heading, differences(values, plain), changed))
    return "\n".join(tables)
