"""What a checkpoint was made of: the fields of its configuration, and its data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_prune.runs import environment
from fedjax_prune.runs.settings import flatten, gained
from fedjax_prune.runs.workdir import (
    WorkdirError,
    changed_fields,
    has_config,
    plain_fields,
    read_config,
)
from fedjax_prune.types import Config

_PARTS = {
    "train": "the training examples",
    "test": "the test examples",
    "population": "the examples that the clients hold",
}
"""The parts of the data, in words."""

_TEST_SIZE = "eval.num_examples"
"""The field that cuts the test examples; it may change when a run is resumed."""


class Origin(NamedTuple):
    """What a run is made of, as its checkpoints keep it.

    Attributes:
      config: dotted name of each field -> its value, as JSON has it.
      data: part of the data -> its hash; {} where the data are not loaded.
    """

    config: Mapping[str, Any]
    data: Mapping[str, str]


def origin_of(config: Config, hashes: Mapping[str, str] | None = None) -> Origin:
    """What a run is made of.

    Args:
      config: nested dicts or a ConfigDict.
      hashes: of its data, as `RunData` has them; None if they are not loaded.
    """
    return Origin(plain_fields(config), hashes or {})


def differences(saved: Origin, now: Origin) -> list[str]:
    """Says in which ways the origin of a checkpoint is another one.

    What only one of the two knows is not compared: checkpoints of earlier versions do
    not know their origin. Fields that the library has gained since count as their
    defaults.

    Args:
      saved: of the checkpoint.
      now: of the run that is to go on from it.

    Returns:
      One clause for each difference.
    """
    old, new = {**saved.config, **gained(saved.config)}, now.config
    found = []
    if old and new:
        found += [
            f"{field} is {new.get(field, 'not set')!r}, but it was saved with "
            f"{old.get(field, 'not set')!r}"
            for field in changed_fields(old, new)
        ]
    return found + [
        f"{words} are not those of its rounds"
        for part, words in _PARTS.items()
        if part in saved.data and part in now.data
        if saved.data[part] != now.data[part]
        if part != "test" or old.get(_TEST_SIZE) == new.get(_TEST_SIZE)
    ]


def require_moved(folder: Path, config: Config, hashes: Mapping[str, str]) -> None:
    """Refuses another `data.dir` than that of a run if its data are others.

    Checkpoints say so themselves. Before the first of them, and before an exploration
    that was kept is thrown away, only this does.

    Args:
      folder: of the run; it need not have begun.
      config: of this start.
      hashes: of its data.

    Raises:
      WorkdirError: with what is different.
    """
    if not has_config(folder):
        return
    before = flatten(read_config(folder))
    if before.get("data.dir") == config.data.dir:
        return
    try:
        starts = environment.read(folder)
    except WorkdirError:
        return  # It is put aside when this start is recorded.
    # Earlier versions have not recorded it.
    known = starts[-1].get("data", {}) if starts else {}
    saved = Origin({_TEST_SIZE: before.get(_TEST_SIZE)}, known)
    now = Origin({_TEST_SIZE: config.eval.num_examples}, hashes)
    if found := differences(saved, now):
        raise WorkdirError(
            f"data.dir is {config.data.dir!r}, where other data are than the run in "
            f"{folder} has begun with: {'; '.join(found)}."
        )
