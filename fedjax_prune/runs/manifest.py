"""The manifest of a checkpoint: are its files those that were saved?

And is it of the run that asks for it?
"""

import json
import zlib
from pathlib import Path
from typing import Any

from fedjax_prune.engine import row_log
from fedjax_prune.runs.files import create
from fedjax_prune.runs.origin import Origin, differences

_MANIFEST = "manifest.json"
_FORMAT = 2
"""Format of the folder. Format 1 had server and rows in one tree, and no number.

The first checkpoints of format 2 know no origin and have no checksum of the manifest.
They are read as they are.
"""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names it and says what to do.

    Examples:
      >>> try:
      ...     fedjax_prune.runs.checkpoint.restore("/nowhere", template={})
      ... except fedjax_prune.CheckpointError as error:
      ...     print(error)
      /nowhere has no checkpoint.
    """


class Damage(Exception):
    """The reason for which a checkpoint cannot be used."""


def write_manifest(folder: Path, parts: tuple[str, ...], facts: dict[str, Any]) -> None:
    """Writes what is known of a checkpoint, and the checksums of its files.

    Args:
      folder: of the checkpoint.
      parts: the folders in it.
      facts: as JSON can hold them.
    """
    files = {part: _checksums(folder / part) for part in parts}
    manifest = {"format": _FORMAT} | facts | {"files": files}
    manifest["checksum"] = _checksum_of(manifest)
    create(folder / _MANIFEST, json.dumps(manifest, indent=1).encode())


def intact_manifest(folder: Path, parts: tuple[str, ...]) -> dict[str, Any]:
    """Reads the manifest and compares the files of some parts with it.

    This comes before Orbax reads: on a broken file its loader threads outlive the
    error, and it does not notice a changed byte inside an array. Of rows on disk, the
    files that the checkpoint names are read, too. Object storage that does not answer
    says nothing about them, so it is no damage.

    Raises:
      Damage: with the reason.
      RowsError: if object storage with rows does not answer or refuses.
      CheckpointError: if the checkpoint is of another version of this library.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise Damage(f"{_MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict):
        raise Damage(f"{_MANIFEST} must hold an object, got {manifest!r}")
    version = manifest.get("format", 1)
    if type(version) is not int:
        raise Damage(f"format in {_MANIFEST} must be a number, got {version!r}")
    if version != _FORMAT:
        raise CheckpointError(
            f"The checkpoint {folder} was written by another version of fedjax_prune: "
            f"its format is {version}, this version reads {_FORMAT}. Use the version "
            "that wrote it, or another workdir."
        )
    # A checkpoint that was saved without rows does not name them.
    parts_of_it = {"state": None, "files": None, "rows": {}, "config": {}, "data": {}}
    for name, default in parts_of_it.items():
        if not isinstance(found := manifest.get(name, default), dict):
            raise Damage(f"{name} in {_MANIFEST} must hold an object, got {found!r}")
    for part in parts:
        try:
            found = _checksums(folder / part)
        except OSError as error:
            raise Damage(f"{part} cannot be read: {error}") from error
        saved = manifest["files"].get(part, {})
        if not isinstance(saved, dict):
            raise Damage(
                f"files of {part} in {_MANIFEST} must hold an object, got {saved!r}"
            )
        unlike = [n for n in sorted(saved | found) if saved.get(n) != found.get(n)]
        if unlike:
            shown = ", ".join(unlike[:3] + ["..."] * (len(unlike) > 3))
            raise Damage(f"the files in {part} are not those that were saved: {shown}")
    if "rows" in parts:
        try:
            row_log.check(folder / "rows")
        except (OSError, ValueError) as error:
            raise Damage(f"rows cannot be read: {error}") from error
    checksum = manifest.pop("checksum", None)
    if checksum is not None and checksum != _checksum_of(manifest):
        raise Damage(f"{_MANIFEST} is not what was saved")
    return manifest


def has_rows(folder: Path) -> bool:
    """Whether an intact checkpoint was saved with rows; those of Flower were not."""
    return "rows" in json.loads((folder / _MANIFEST).read_text())["files"]


def check_origin(folder: Path, manifest: dict[str, Any], origin: Origin) -> None:
    """Refuses the checkpoint in a folder if it is of another run.

    Raises:
      CheckpointError: with the differences.
    """
    saved = Origin(manifest.get("config", {}), manifest.get("data", {}))
    if found := differences(saved, origin):
        raise CheckpointError(
            f"The checkpoint {folder} is of another run: {'; '.join(found)}. Use the "
            "old values and data to continue, or another workdir to start anew."
        )


def check_rows(folder: Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
    """Refuses the checkpoint in a folder if it has other rows, or none.

    Args:
      folder: of the checkpoint.
      saved: path of an array -> dtype and shape; {} if it was saved without rows.
      wanted: the same of the rows that are asked for.

    Raises:
      CheckpointError: if they differ.
    """
    if wanted and not saved:
        raise CheckpointError(
            f"The checkpoint {folder} was saved without the rows of clients. After a "
            "run on Flower the gates, and whatever else a client keeps, are on the "
            "nodes."
        )
    check_tree(folder, saved, wanted)


def check_tree(folder: Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
    """Refuses the checkpoint in a folder if it has other arrays; see `check_rows`.

    Raises:
      CheckpointError: if they differ.
    """
    differing = [
        f"{name}: saved {saved.get(name, 'nothing')}, needed {wanted.get(name, 'none')}"
        for name in {**wanted, **saved}
        if saved.get(name) != wanted.get(name)
    ]
    if differing:
        shown = differing[:5] + ["..."] * (len(differing) > 5)
        raise CheckpointError(
            f"The checkpoint {folder} holds another model or algorithm, or one of "
            f"another version of fedjax_prune: {'; '.join(shown)}. Use another workdir."
        )


def _checksums(folder: Path) -> dict[str, list[int]]:
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return {str(f.relative_to(folder)): _checksum(f) for f in files}


def _checksum(file: Path) -> list[int]:
    """Size in bytes and CRC-32, read in pieces of 16 MiB."""
    crc = 0
    with file.open("rb") as stream:
        while piece := stream.read(2**24):
            crc = zlib.crc32(piece, crc)
    return [file.stat().st_size, crc]


def _checksum_of(manifest: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())
