"""Checkpoints of the complete state: saved whole or not at all, restored exactly.

A checkpoint is the folder `directory/ROUND`: the server's state in `state/`, written by
Orbax, the rows of all clients in `rows/`, written by their store, and `manifest.json`
with the shapes and dtypes of the leaves, the origin of the run and the checksums of the
files and of itself. Leaf n of a tree is named n. The folder is built under a hidden
name and renamed at the end, so a killed save leaves nothing that could be taken for a
checkpoint. A damaged checkpoint is never deleted: the one before it is restored, and a
later save puts it aside as `directory/ROUND.damaged`.
"""

import json
import warnings
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_prune.engine.store import Store
from fedjax_prune.runs.files import free_name, remove
from fedjax_prune.runs.origin import Origin, differences
from fedjax_prune.types import Tree

_MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished"
_FORMAT = 2
"""Format of the folder. Format 1 had server and rows in one tree, and no number.

The first checkpoints of format 2 know no origin and have no checksum of the manifest.
They are read as they are.
"""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names it and says what to do.

    Examples:
      >>> try:
      ...     restore("/nowhere", template={})
      ... except fedjax_prune.CheckpointError as error:
      ...     print(error)
      /nowhere has no checkpoint.
    """


def save(
    directory: str | Path,
    round: int,
    state: Tree,
    *,
    rows: Store | None = None,
    origin: Origin | None = None,
    keep: int,
) -> None:
    """Saves a tree and rows as a round's checkpoint and deletes the oldest ones.

    A round that is already saved is left as it is. Checkpoints that a restored run has
    passed over, because they are damaged, are put aside.

    Args:
      directory: of the checkpoints, made if missing.
      round: finished rounds, at least 0.
      state: a pytree of JAX or numpy arrays; it is copied to the host as a whole.
      rows: of all clients; they are copied in pieces.
      origin: of the run; a later `restore` compares its own with it.
      keep: checkpoints that stay, at least 1.

    Raises:
      ValueError: if `keep` is below 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}.")
    directory = Path(directory).absolute()
    _put_aside(directory, round, rows)
    if round not in rounds(directory):
        unfinished = directory / _UNFINISHED
        remove(unfinished)
        unfinished.mkdir(parents=True)
        manifest: dict[str, Any] = {"format": _FORMAT, "state": _signature(state)}
        _write(unfinished / "state", state)
        if rows is not None:
            manifest["rows"] = _signature(rows.shapes)
            rows.snapshot(unfinished / "rows")
        manifest["files"] = {
            part: _checksums(unfinished / part) for part in _parts(rows)
        }
        if origin is not None:
            manifest |= {"config": dict(origin.config), "data": dict(origin.data)}
        manifest["checksum"] = _checksum_of(manifest)
        (unfinished / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        unfinished.rename(directory / str(round))
    for old in rounds(directory)[:-keep]:
        remove(directory / str(old))


def rounds(directory: str | Path) -> list[int]:
    """The rounds with a checkpoint, oldest first; other names are ignored."""
    names = [f.name for f in Path(directory).glob("[0-9]*") if f.is_dir()]
    return sorted(int(n) for n in names if n.isdecimal() and n == str(int(n)))


def latest(directory: str | Path) -> int | None:
    """The newest round with a checkpoint, or None."""
    return max(rounds(directory), default=None)


def restore(
    directory: str | Path,
    template: Tree,
    rows: Store | None = None,
    origin: Origin | None = None,
) -> Tree:
    """Restores the newest checkpoint that is not damaged, bit for bit.

    It warns of damaged newer ones.

    Args:
      directory: of the checkpoints.
      template: a tree of arrays or `jax.ShapeDtypeStruct`s, as it was saved.
      rows: of all clients, replaced by the saved ones; None leaves these unread.
      origin: of the run; None compares nothing.

    Returns:
      A tree like `template`; leaves are numpy arrays where the template's are and
      JAX arrays elsewhere.

    Raises:
      CheckpointError: if there is no checkpoint, all are damaged, the newest is of
        another version of this library, or its origin or its trees differ from those
        asked for.
    """
    directory = Path(directory).absolute()
    folder, manifest = _newest_intact(directory, _parts(rows))
    if origin is not None:
        _check_origin(folder, manifest, origin)
    _check_tree(folder, manifest["state"], _signature(template))
    if rows is not None:
        _check_tree(folder, manifest.get("rows", {}), _signature(rows.shapes))
        rows.restore(folder / "rows")
    return _read(folder / "state", template)


def _newest_intact(
    directory: Path, parts: tuple[str, ...]
) -> tuple[Path, dict[str, Any]]:
    """The folder of the newest checkpoint that is not damaged, and its manifest."""
    damages = []
    for round in reversed(rounds(directory)):
        folder = directory / str(round)
        try:
            manifest = _intact_manifest(folder, parts)
        except _Damage as damage:
            damages.append(f"The checkpoint {folder} is damaged: {damage}.")
            continue
        for damage in damages:
            warnings.warn(f"{damage} {folder} is used.", stacklevel=3)
        return folder, manifest
    if damages:
        raise CheckpointError(
            f"{' '.join(damages)} No other checkpoint is left, and nothing was "
            "deleted. Restore the files, or use another workdir."
        )
    raise CheckpointError(f"{directory} has no checkpoint.")


def _put_aside(directory: Path, round: int, rows: Store | None) -> None:
    """Renames damaged checkpoints of this round and later ones.

    A run that saves this round has restored an older one, so the later ones are
    damaged; one of this round may also be that of a finished run.
    """
    for later in [n for n in rounds(directory) if n >= round]:
        folder = directory / str(later)
        if later == round:
            try:
                _intact_manifest(folder, _parts(rows))
                continue
            except _Damage:
                pass
        folder.rename(free_name(folder))


class _Damage(Exception):
    """The reason for which a checkpoint cannot be used."""


def _parts(rows: Store | None) -> tuple[str, ...]:
    """The folders that are written or read."""
    return ("state",) if rows is None else ("state", "rows")


def _write(folder: Path, tree: Tree) -> None:
    # Orbax takes half a second to import, and only checkpoints use it.
    import orbax.checkpoint as ocp
    from etils import epath

    leaves = map(np.asarray, jax.tree.leaves(jax.device_get(tree)))
    kept = {str(n): leaf for n, leaf in enumerate(leaves) if leaf.size}
    folder.mkdir()
    # The handler is used directly and without OCDBT. A Checkpointer finds the databases
    # of OCDBT by a glob of the whole path, which fails in a folder like `runs[1]`. It
    # also writes under another name first; `save` does that here.
    handler = ocp.StandardCheckpointHandler(use_ocdbt=False)
    handler.save(epath.Path(folder), args=ocp.args.StandardSave(kept))
    handler.close()


def _read(folder: Path, template: Tree) -> Tree:
    import orbax.checkpoint as ocp

    likes, tree = jax.tree.flatten(template)
    # Orbax refuses arrays without entries, so those are made here.
    values = {str(n): np.empty(x.shape, x.dtype) for n, x in enumerate(likes)}
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        kept = {name: buffer for name, buffer in values.items() if buffer.size}
        values |= checkpointer.restore(folder, args=ocp.args.StandardRestore(kept))
    leaves = [
        value if isinstance(like, np.ndarray) else jax.device_put(value)
        for value, like in zip(values.values(), likes, strict=True)
    ]
    return jax.tree.unflatten(tree, leaves)


def _signature(tree: Tree) -> dict[str, str]:
    """The leaves by their paths: shapes and dtypes."""
    return {
        jax.tree_util.keystr(path): f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


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


def _intact_manifest(folder: Path, parts: tuple[str, ...]) -> dict[str, Any]:
    """Reads the manifest and compares the files of some parts with it.

    This comes before Orbax reads: on a broken file its loader threads outlive the
    error, and it does not notice a changed byte inside an array.

    Raises:
      _Damage: with the reason.
      CheckpointError: if the checkpoint is of another version of this library.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise _Damage(f"{_MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict):
        raise _Damage(f"{_MANIFEST} must hold an object, got {manifest!r}")
    version = manifest.get("format", 1)
    if type(version) is not int:
        raise _Damage(f"format in {_MANIFEST} must be a number, got {version!r}")
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
            raise _Damage(f"{name} in {_MANIFEST} must hold an object, got {found!r}")
    for part in parts:
        try:
            intact = manifest["files"].get(part, {}) == _checksums(folder / part)
        except OSError as error:
            raise _Damage(f"{part} cannot be read: {error}") from error
        if not intact:
            raise _Damage(f"the files in {part} are not those that were saved")
    checksum = manifest.pop("checksum", None)
    if checksum is not None and checksum != _checksum_of(manifest):
        raise _Damage(f"{_MANIFEST} is not what was saved")
    return manifest


def _checksum_of(manifest: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())


def _check_origin(folder: Path, manifest: dict[str, Any], origin: Origin) -> None:
    saved = Origin(manifest.get("config", {}), manifest.get("data", {}))
    if found := differences(saved, origin):
        raise CheckpointError(
            f"The checkpoint {folder} is of another run: {'; '.join(found)}. Use the "
            "old values and data to continue, or another workdir to start anew."
        )


def _check_tree(folder: Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
    differing = [
        f"{name}: saved {saved.get(name, 'nothing')}, needed {wanted.get(name, 'none')}"
        for name in {**wanted, **saved}
        if saved.get(name) != wanted.get(name)
    ]
    if differing:
        shown = differing[:5] + ["..."] * (len(differing) > 5)
        raise CheckpointError(
            f"The checkpoint {folder} holds another model or algorithm: "
            f"{'; '.join(shown)}. Use another workdir."
        )
