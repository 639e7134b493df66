"""What differs between two runs: rows of metrics, checkpoints, environments.

Nothing here trains or reads a file; `replay` does both.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_prune.runs.settings import flatten
from fedjax_prune.types import Tree

TIMES = ("seconds", "seconds/compile", "seconds/evaluate", "seconds/save")
"""Fields of a row that differ whenever a run is repeated."""
_NOT_COMPARED = ("started", "finished", "fields")
"""Fields of an environment that say when and how far a start has trained."""


class Difference(NamedTuple):
    """A place where two runs differ.

    Attributes:
      where: the round, or the checkpoint's.
      field: of the row, or an entry of a leaf.
      first: what it is in the first run, in words.
      second: what it is in the second run.
    """

    where: str
    field: str
    first: str
    second: str


class Findings(NamedTuple):
    """What a comparison of two runs has found.

    Attributes:
      names: of the two runs, as they are reported.
      rounds: numbers of the rows that were compared.
      hashed: how many of them have a hash of the state in both runs.
      rows: differences of the rows, in the order of the rounds.
      checkpoint: which checkpoints were compared, or why none were.
      leaves: their differences.
      settings: differences of the configurations.
      environment: differences of the environments.
    """

    names: tuple[str, str]
    rounds: list[int]
    hashed: int
    rows: list[Difference]
    checkpoint: str
    leaves: list[Difference]
    settings: list[Difference]
    environment: list[Difference]

    @property
    def equal(self) -> bool:
        """Whether all that was compared of rows and checkpoints is equal."""
        return not self.rows and not self.leaves


def row_differences(
    first: Mapping[int, Mapping[str, Any]], second: Mapping[int, Mapping[str, Any]]
) -> list[Difference]:
    """Compares rows of metrics exactly, except for times.

    Args:
      first: round -> row; a hash that only one of two rows has is not compared.
      second: the same of the other run.
    """
    found = []
    for number in sorted(first.keys() | second.keys()):
        where = f"round {number}"
        if number not in first or number not in second:
            presence = ("missing", "there")
            values = presence[number in first], presence[number in second]
            found.append(Difference(where, "the row", *values))
            continue
        one, other = first[number], second[number]
        for field in {**one, **other}:
            alone = field not in one or field not in other
            if field in TIMES or (alone and field.startswith("hash/")):
                continue
            found += _if_different(where, field, one, other)
    return found


def leaf_differences(
    where: str, first: Tree, second: Tree, ids: np.ndarray | None = None
) -> list[Difference]:
    """Compares the bits of two trees; each leaf that differs gives one difference.

    Args:
      where: for the report.
      first: leaves arrays, or shapes alone, which are then compared.
      second: the same of the other run.
      ids: what the first indices of every leaf are called; None leaves them.
    """
    one, other = _leaves(first), _leaves(second)
    shapes = [
        {name: _shape(leaf) for name, leaf in side.items()} for side in (one, other)
    ]
    found = []
    for name in {**one, **other}:
        unlike = _if_different(where, name, *shapes)
        if not unlike and not isinstance(one[name], jax.ShapeDtypeStruct):
            unlike = _entry(where, name, one[name], other[name], ids)
        found += unlike
    return found


def settings_differences(first: Any, second: Any) -> list[Difference]:
    """Compares two configurations, nested dicts or ConfigDicts."""
    return _all_differences("config.json", flatten(first), flatten(second))


def environment_differences(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> list[Difference]:
    """Compares what two runs were computed with.

    Args:
      first: the entries of its environment.json.
      second: the same of the other run.

    Returns:
      A difference for each field that had not the same values in both; the values of
      several starts are joined.
    """
    return _all_differences("environment.json", _joined(first), _joined(second))


def report(found: Findings) -> dict[str, str]:
    """Findings in a few lines, name -> words."""
    rounds = f"{len(found.rounds)} rows"
    if found.rounds:
        rounds += f", rounds {found.rounds[0]} to {found.rounds[-1]}"
    if found.hashed:
        rounds += f", {found.hashed} with the hash of the state"
    facts = {
        "result": "equal" if found.equal else "different",
        "rows": rounds,
        "checkpoint": found.checkpoint,
    }
    differing = found.rows + found.leaves
    if differing:
        facts["first difference"] = _words(found, differing[0])
        facts["differences"] = f"{len(found.rows)} in rows"
        if found.leaves:
            facts["differences"] += f", {len(found.leaves)} in the checkpoint"
    if found.rows and found.leaves:
        facts["in the checkpoint"] = _words(found, found.leaves[0])
    for name, differences in (
        ("configuration", found.settings),
        ("environment", found.environment),
    ):
        if differences:
            lines = [f"{d.field}: {d.first} and {d.second}" for d in differences]
            facts[name] = "\n".join(lines)
    return facts


def _words(found: Findings, difference: Difference) -> str:
    where, field, first, second = difference
    one, other = found.names
    return f"{where}, {field}: {first} in {one}, {second} in {other}"


def _if_different(
    where: str, field: str, first: Mapping[str, Any], second: Mapping[str, Any]
) -> list[Difference]:
    """Compares a field as it is written, so that NaN equals NaN, and 1 is not 1.0."""
    one, other = (
        repr(values[field]) if field in values else "nothing"
        for values in (first, second)
    )
    return [] if one == other else [Difference(where, field, one, other)]


def _all_differences(
    where: str, first: Mapping[str, Any], second: Mapping[str, Any]
) -> list[Difference]:
    fields = {**first, **second}
    return [d for field in fields for d in _if_different(where, field, first, second)]


def _leaves(tree: Tree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path).removeprefix("."): leaf for path, leaf in leaves}


def _shape(leaf: Any) -> tuple[str, tuple[int, ...]]:
    return np.dtype(leaf.dtype).name, leaf.shape


def _entry(
    where: str, name: str, first: Any, second: Any, ids: np.ndarray | None
) -> list[Difference]:
    """The first entry with different bits of two arrays alike in shape and dtype."""
    flat = [np.asarray(x, order="C").reshape(-1) for x in (first, second)]
    bits = [x.view(np.uint8).reshape(x.size, x.dtype.itemsize) for x in flat]
    changed = (bits[0] != bits[1]).any(axis=1)
    if not changed.any():
        return []
    place = int(changed.argmax())
    index = [int(i) for i in np.unravel_index(place, first.shape)]
    if index:
        index[0] = index[0] if ids is None else int(ids[index[0]])
        name += f"[{', '.join(map(str, index))}]"
    if (more := int(changed.sum()) - 1) > 0:
        name += f" and {more} more of its {changed.size} entries"
    return [Difference(where, name, str(flat[0][place]), str(flat[1][place]))]


def _joined(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The values of each field over all starts: one value, or the list of them."""
    values: dict[str, list[Any]] = {}
    for entry in entries:
        for name, value in flatten(entry).items():
            known = values.setdefault(name, [])
            if name.partition(".")[0] not in _NOT_COMPARED and value not in known:
                known.append(value)
    return {k: v[0] if len(v) == 1 else v for k, v in values.items() if v}
