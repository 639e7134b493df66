"""Writes a folder with a network, what it is, and how it is loaded."""

import json
from os.path import realpath
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_prune.models.own import is_own
from fedjax_prune.runs.export.arrays import ARRAYS, to_bytes
from fedjax_prune.runs.export.ask import Asked, ask, problems
from fedjax_prune.runs.export.card import CARD, card
from fedjax_prune.runs.export.choose import Chosen, read
from fedjax_prune.runs.export.facts import (
    FACTS,
    FORMATS,
    facts_of,
    input_of,
    input_problems,
)
from fedjax_prune.runs.export.folder import folder_problems, whole_folder
from fedjax_prune.runs.export.program import (
    PROGRAM,
    input_spec,
    make_serve,
    serialise,
)
from fedjax_prune.runs.export.to_onnx import convert, onnx_problems
from fedjax_prune.runs.files import WorkdirError
from fedjax_prune.runs.saving import CHECKPOINTS
from fedjax_prune.runs.settings import SettingsError


class Plan(NamedTuple):
    """An export whose arguments are right.

    Attributes:
      asked: the network.
      folder: for the network.
      format: one of FORMATS.
      input: as `input_of` returns it.
    """

    asked: Asked
    folder: Path
    format: str
    input: dict[str, Any]


def export_model(
    workdir: str | Path,
    folder: str | Path,
    *,
    format: str = "safetensors",
    kind: str | None = None,
    client: int | None = None,
    macs: float | None = None,
    multiple: int = 1,
    batch_size: int = 0,
    input_dtype: str | None = None,
) -> Chosen:
    """Writes a network of a run's newest checkpoint, and its model card.

    The folder has `README.md`, the card; `model.json`, the same and more for programs;
    and the network. As `stablehlo` it is `model.stablehlo`, which has everything. As
    `safetensors` it is `model.safetensors`, and `model.stablehlo` takes its arrays. As
    `onnx` it is `model.onnx`. Programs take examples as they are stored, and scale and
    normalise them.

    Args:
      workdir: of the run.
      folder: for the network, new or empty.
      format: one of FORMATS.
      kind: as in `choose`.
      client: as in `choose`.
      macs: as in `choose`.
      multiple: as in `choose`.
      batch_size: of the program; 0 is any.
      input_dtype: `uint8` for stored bytes or `float32` for floats, as images of
        `from_arrays` may be; None is uint8, for vectors float32.

    Returns:
      What was written.

    Raises:
      SettingsError: with everything that the run cannot give, or the packages that are
        missing.
      WorkdirError, CheckpointError, RowsError, DataError: as `choose`, or if the folder
        is not empty, or the network cannot be converted. Nothing is left then.
    """
    plan = plan_export(
        workdir,
        folder,
        format=format,
        kind=kind,
        client=client,
        macs=macs,
        multiple=multiple,
        batch_size=batch_size,
        input_dtype=input_dtype,
    )
    return write_export(plan)


def plan_export(
    workdir: str | Path,
    folder: str | Path,
    *,
    format: str = "safetensors",
    kind: str | None = None,
    client: int | None = None,
    macs: float | None = None,
    multiple: int = 1,
    batch_size: int = 0,
    input_dtype: str | None = None,
) -> Plan:
    """Checks all arguments of `export_model` before a checkpoint is read.

    Raises:
      SettingsError: with everything that is wrong.
      WorkdirError: if there is no run, or only the folder is wrong.
    """
    asked = ask(workdir, kind, client, macs, multiple)
    config, found = asked.learning.config, problems(asked)
    if format not in FORMATS:
        found.append(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if format == "onnx":
        found += onnx_problems(config)
    found += input_problems(config, input_dtype, batch_size)
    taken = folder_problems(Path(folder))
    checkpoints = asked.workdir / CHECKPOINTS
    # Path.resolve raises for a link to itself in some versions of Python.
    if Path(realpath(folder)).is_relative_to(realpath(checkpoints)):
        taken = [f"{folder} must not be in the checkpoints of the run, {checkpoints}"]
    if found:
        raise SettingsError(found + taken)
    if taken:
        raise WorkdirError(f"{taken[0]}.")
    given = input_of(config, input_dtype, batch_size)
    return Plan(asked, Path(folder), format, given)


def write_export(plan: Plan) -> Chosen:
    """Writes what was planned; see `export_model`.

    Raises:
      SettingsError, WorkdirError, CheckpointError, RowsError, DataError: as
        `export_model`.
    """
    format, given = plan.format, plan.input
    chosen = read(plan.asked)
    config = chosen.learning.config
    facts = facts_of(chosen, plan.asked.workdir, format, given)
    with whole_folder(plan.folder) as unfinished:
        (unfinished / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
        if format != "stablehlo":
            (unfinished / ARRAYS).write_bytes(to_bytes(chosen.variables))
        if format == "onnx":
            name = config.model.name
            convert(unfinished, name if is_own(name) else None)
            (unfinished / ARRAYS).unlink()
        else:
            spec = input_spec(tuple(given["shape"]), given["dtype"])
            serve = make_serve(chosen.task, chosen.variables, config.precision)
            program = serialise(
                serve, chosen.variables, spec, has_arrays=format == "stablehlo"
            )
            (unfinished / PROGRAM).write_bytes(program)
        sizes = {f.name: f.stat().st_size for f in sorted(unfinished.iterdir())}
        (unfinished / CARD).write_text(card(facts, sizes))
    return chosen
