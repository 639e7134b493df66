"""How `model.json` of an exported folder is read. Nothing that it names is run."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_prune.models import own
from fedjax_prune.runs.export.ask import KINDS
from fedjax_prune.runs.export.facts import DTYPES, FORMATS
from fedjax_prune.runs.files import WorkdirError
from fedjax_prune.runs.workdir import usable
from fedjax_prune.types import Config


class Facts(NamedTuple):
    """The facts of an exported network that are needed to make it again.

    Attributes:
      file: that was read.
      config: of the run, not checked yet: nested dicts.
      format: one of FORMATS.
      kind: one of KINDS.
      left: name of a group -> number of its channels that are left.
      values: all of `model.json`.
    """

    file: Path
    config: dict[str, Any]
    format: str
    kind: str
    left: dict[str, int]
    values: Mapping[str, Any]


def read_facts(file: Path) -> Facts:
    """Reads `model.json`.

    Raises:
      WorkdirError: if the file is missing or not what `export_model` has written.
    """
    try:
        found = json.loads(file.read_text())
        facts = Facts(
            file=file,
            config=dict(found["config"]),
            format=found["format"],
            kind=found["kind"],
            left=found["architecture"]["left"],
            values=found,
        )
        counts = all(type(n) is int and 1 <= n < 2**31 for n in facts.left.values())
        shape, dtype = found["input"]["shape"], found["input"]["dtype"]
        sizes = len(shape) == 4 and all(type(n) is int for n in shape)
    except (OSError, ValueError) as error:
        raise WorkdirError(f"{file} cannot be read: {error}.") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise WorkdirError(
            f"{file} is not what an export writes: {type(error).__name__} {error}."
        ) from error
    if dotted := [name for name in facts.config if "." in name]:
        # A second model.name would be used after the first one was checked.
        raise WorkdirError(
            f"{file} is not what an export writes: names of fields must have no dots, "
            f"got {dotted[0]!r}."
        )
    for name, value, known in (
        ("format", facts.format, FORMATS),
        ("kind", facts.kind, KINDS),
        ("dtype", dtype, DTYPES),
    ):
        if value not in known:
            raise WorkdirError(
                f"{file} describes no model: {name} must be one of {', '.join(known)}, "
                f"got {value!r}."
            )
    if not counts or not sizes:
        raise WorkdirError(
            f"{file} describes no model: left must be counts and the input's shape "
            f"four numbers, got {facts.left} and {shape}."
        )
    return facts


def check_own(facts: Facts, name: str | None) -> None:
    """Refuses a class of the user's own that the caller does not name, or another one.

    Args:
      facts: of a network.
      name: FILE.py:CLASS that the caller names, or None.

    Raises:
      ValueError: if the network is of a class of the user's own and the name is not of
        such a class, or it is not and there is a name.
      WorkdirError: if the file or a module beside it is not that of the export.
    """
    model = facts.config.get("model")
    fields = model if isinstance(model, dict) else {}
    wanted = str(fields.get("name"))
    if not own.is_own(wanted):
        if name is not None:
            raise ValueError(f"own must be None for {wanted!r}, got {name!r}.")
        return
    cls = wanted.rpartition(":")[2]
    if not own.is_own(name) or str(name).rpartition(":")[2] != cls:
        raise ValueError(
            f"own must be FILE.py:{cls}, with the file of the class, which is run to "
            f"load this network: load_model(folder, own={wanted!r}); got {name!r}."
        )
    if own.file_hash(str(name)) != fields.get("file_hash"):
        raise WorkdirError(
            f"{facts.file} is of another file than that of {name} and the modules "
            "beside it, of which one has changed."
        )


def config_of(facts: Facts, name: str | None) -> Config:
    """Checks the configuration of a network; a class of the user's own is run.

    Args:
      facts: of the network.
      name: as in `check_own`, which has accepted it.

    Raises:
      WorkdirError: if this version cannot use it.
    """
    values = copy.deepcopy(facts.config)
    if name is not None:
        values["model"]["name"] = name
    # An export does not name the folder of the data, and a network does not need it.
    if isinstance(data := values.get("data"), dict) and not data.get("dir"):
        data["dir"] = "not exported"
    return usable(facts.file, values)
