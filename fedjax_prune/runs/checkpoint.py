"""Checkpoints of the complete state: saved whole or not at all, restored exactly.

A checkpoint is the folder `directory/ROUND`: the server's state in `state/`, written by
Orbax, the rows of all clients in `rows/`, written by their store (of rows on disk only
the index, see engine/row_log.py), and `manifest.json`
with the shapes and dtypes of the leaves, the origin of the run and the checksums of the
files and of itself. Leaf n of a tree is named n. The folder is built under a hidden
name and renamed at the end, so a killed save leaves nothing that could be taken for a
checkpoint. A damaged checkpoint is never deleted: the one before it is restored, and a
later save puts it aside as `directory/ROUND.damaged`.
"""

import errno
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_prune.engine.store import Store
from fedjax_prune.models.costs import tree_bytes
from fedjax_prune.runs.files import free_name, remove
from fedjax_prune.runs.manifest import (
    CheckpointError,
    Damage,
    intact_manifest,
    write_manifest,
)
from fedjax_prune.runs.origin import Origin, differences
from fedjax_prune.types import Tree

_UNFINISHED = ".unfinished"


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
      CheckpointError: if it cannot be written, such as on a full disk. Nothing of it is
        left, and those before it stay.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}.")
    directory = Path(directory).absolute()
    _put_aside(directory, round, rows)
    if round not in rounds(directory):
        try:
            _build(directory, round, state, rows, origin)
        except OSError as error:
            with suppress(OSError):
                remove(directory / _UNFINISHED)
            needed = _num_bytes(state, rows)
            raise _unsaved(directory, round, needed, error) from error
    for old in rounds(directory)[:-keep]:
        remove(directory / str(old))
    if rows is not None:
        # Also those put aside, which could still be mended.
        rows.keep([f / "rows" for f in directory.iterdir() if f.is_dir()])


def require_room(
    directory: str | Path, state: Tree, rows: Store, *, written: int = 0
) -> None:
    """Refuses to begin what could not be saved.

    Args:
      directory: of the checkpoints; it need not exist.
      state: arrays or `jax.ShapeDtypeStruct`s.
      rows: of all clients.
      written: bytes that are written beside it before it is saved.

    Raises:
      CheckpointError: if a checkpoint is larger than what is free on the disk.
    """
    directory = Path(directory).absolute()
    if (needed := _num_bytes(state, rows) + written) > _free_bytes(directory):
        raise CheckpointError(
            f"A checkpoint could not be saved in {directory}. "
            f"{_room(directory, needed)}: make room, or name a workdir on another disk."
        )


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
            manifest = intact_manifest(folder, parts)
        except Damage as damage:
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
                intact_manifest(folder, _parts(rows))
                continue
            except Damage:
                pass
        folder.rename(free_name(folder))


def _num_bytes(state: Tree, rows: Store | None) -> int:
    return tree_bytes(state) + (0 if rows is None else rows.snapshot_bytes)


def _free_bytes(directory: Path) -> int:
    existing = next(f for f in (directory, *directory.parents) if f.exists())
    return shutil.disk_usage(existing).free


def _room(directory: Path, needed: int) -> str:
    """What a checkpoint takes and what its disk has, in words."""
    free = _free_bytes(directory)
    return f"It takes about {needed:,} bytes, and {free:,} bytes are free"


def _unsaved(
    directory: Path, round: int, needed: int, error: OSError
) -> CheckpointError:
    reason = error.strerror or f"the disk takes no more ({error})"
    before = latest(directory)
    stays = "there is no other" if before is None else f"that of round {before} stays"
    return CheckpointError(
        f"The checkpoint {directory / str(round)} cannot be saved: {reason}. "
        f"{_room(directory, needed)}; {stays}. The same command goes on when it can be "
        "saved."
    )


def _build(
    directory: Path,
    round: int,
    state: Tree,
    rows: Store | None,
    origin: Origin | None,
) -> None:
    """Writes a checkpoint into a new folder and gives it its name.

    Raises:
      OSError: if the disk is full or cannot be written.
    """
    folder = directory / _UNFINISHED
    remove(folder)
    # Orbax would fail, too, but its threads would write to the terminal.
    if _num_bytes(state, rows) > _free_bytes(directory):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    folder.mkdir(parents=True)
    facts: dict[str, Any] = {"state": _signature(state)}
    _write(folder / "state", state)
    if rows is not None:
        facts["rows"] = _signature(rows.shapes)
        rows.snapshot(folder / "rows")
    if origin is not None:
        facts |= {"config": dict(origin.config), "data": dict(origin.data)}
    write_manifest(folder, _parts(rows), facts)
    folder.rename(directory / str(round))


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
    with _quiet_threads():
        try:
            handler.save(epath.Path(folder), args=ocp.args.StandardSave(kept))
        except ValueError as error:
            # TensorStore reports what the system says as text.
            code = re.search(r"os_error_code='(\d+)'", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
        finally:
            handler.close()


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Drops the traceback that each of Orbax's threads logs.

    The error itself is raised where the threads are waited for.
    """

    def drop(record: logging.LogRecord) -> bool:
        del record
        return False

    logger = logging.getLogger("absl")
    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)


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
