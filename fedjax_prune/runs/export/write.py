"""Writes a folder with a network, what it is, and how it is loaded."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedjax_prune.models.own import is_own
from fedjax_prune.runs.export.arrays import ARRAYS, to_bytes
from fedjax_prune.runs.export.card import CARD, card
from fedjax_prune.runs.export.choose import Chosen, choose
from fedjax_prune.runs.export.facts import FACTS, FORMATS, facts_of, input_of
from fedjax_prune.runs.export.program import (
    PROGRAM,
    input_spec,
    make_serve,
    serialise,
)
from fedjax_prune.runs.export.to_onnx import convert, require_onnx
from fedjax_prune.runs.files import WorkdirError, remove
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.workdir import read_usable_config


def export_model(
    workdir: str | Path,
    folder: str | Path,
    *,
    format: str = "safetensors",
    kind: str | None = None,
    client: int | None = None,
    macs: float | None = None,
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
      batch_size: of the program; 0 is any.
      input_dtype: `uint8` for stored bytes or `float32` for floats; None is uint8, for
        vectors float32.

    Returns:
      What was written.

    Raises:
      SettingsError: if the run cannot give that, or packages are missing.
      WorkdirError, CheckpointError, RowsError, DataError: as `choose`, or if the folder
        is not empty, or the network cannot be converted. Nothing is left then.
    """
    folder, workdir = Path(folder), Path(workdir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WorkdirError(f"{folder} must be a new or an empty folder.")
    if format not in FORMATS:
        raise SettingsError(
            [f"format must be one of {', '.join(FORMATS)}, got {format!r}"]
        )
    config = read_usable_config(workdir)
    if format == "onnx":
        require_onnx(config)
    chosen = choose(workdir, kind, client, macs)
    # What the user's own files hold is known only now.
    read = input_of(chosen.learning.config, input_dtype, batch_size)
    facts = facts_of(chosen, workdir, format, read)
    with _whole(folder) as unfinished:
        (unfinished / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
        if format != "stablehlo":
            (unfinished / ARRAYS).write_bytes(to_bytes(chosen.variables))
        if format == "onnx":
            name = config.model.name
            convert(unfinished, name if is_own(name) else None)
            (unfinished / ARRAYS).unlink()
        else:
            spec = input_spec(tuple(read["shape"]), read["dtype"])
            serve = make_serve(chosen.task, chosen.variables, config.precision)
            program = serialise(
                serve, chosen.variables, spec, has_arrays=format == "stablehlo"
            )
            (unfinished / PROGRAM).write_bytes(program)
        sizes = {f.name: f.stat().st_size for f in sorted(unfinished.iterdir())}
        (unfinished / CARD).write_text(card(facts, sizes))
    return chosen


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Makes a hidden folder that gets its name when all is in it.

    Raises:
      WorkdirError: if it cannot be written.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    try:
        remove(unfinished)
        unfinished.mkdir(parents=True)
        yield unfinished
        os.replace(unfinished, folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise WorkdirError(f"{folder} cannot be written: {reason}.") from error
    finally:
        remove(unfinished)
