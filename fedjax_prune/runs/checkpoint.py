"""Checkpoints of the complete state: saved whole or not at all, restored exactly.

A checkpoint is the folder `directory/ROUND`: the server's state in `state/`, written by
Orbax, the rows of all clients in `rows/`, written by their store (of rows on disk only
the index, see engine/row_log.py), and `manifest.json` with the shapes and dtypes of the
leaves, the origin of the run and the checksums of the files and of itself. The folder
is built under a hidden name, read back and renamed at the end, so a killed save leaves
nothing that could be taken for a checkpoint. A damaged checkpoint is never deleted: the
one before it is restored, and the run that goes on from there puts it aside as
`directory/ROUND.damaged`.

Of several processes each writes the rows that it holds, into the same files, and the
first one everything else. All of them call the functions here.
"""

import errno
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_prune.engine import processes
from fedjax_prune.engine.store import Store
from fedjax_prune.models.costs import tree_bytes
from fedjax_prune.runs import state_files
from fedjax_prune.runs.files import free_name, remove, sync
from fedjax_prune.runs.manifest import (
    CheckpointError,
    Damage,
    check_origin,
    check_rows,
    check_tree,
    intact_manifest,
    write_manifest,
)
from fedjax_prune.runs.origin import Origin
from fedjax_prune.runs.state_files import copy_leaves
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
    keep_every: int = 0,
) -> None:
    """Saves a tree and rows as a round's checkpoint and deletes the oldest ones.

    Runs `begin_save` and what that returns. What fails, fails in all processes.
    """
    more = {"keep": keep, "keep_every": keep_every}
    finish = begin_save(directory, round, state, rows=rows, origin=origin, **more)
    processes.together(finish)


def begin_save(
    directory: str | Path,
    round: int,
    state: Tree,
    *,
    rows: Store | None = None,
    origin: Origin | None = None,
    keep: int,
    keep_every: int = 0,
) -> Callable[[], None]:
    """Takes what a checkpoint needs; the function that it returns writes the rest.

    Rows are written at once, and the state is copied to the host, so both may be
    replaced before the function is called, in any thread. Until it has ended in the
    first process there is no such checkpoint, and no other may begin.

    A round that is already saved is left as it is. Checkpoints that a restored run has
    passed over, because they are damaged, are put aside.

    Args:
      directory: of the checkpoints, made if missing.
      round: finished rounds, at least 0.
      state: a pytree of JAX or numpy arrays.
      rows: of all clients; they are written in pieces.
      origin: of the run; a later `restore` compares its own with it.
      keep: newest checkpoints that stay, at least 1.
      keep_every: of multiples of this round all stay; 0 is none.

    Raises:
      ValueError: if `keep` is below 1 or `keep_every` is negative.
      CheckpointError: if it cannot be written, such as on a full disk. Nothing of it is
        left, and those before it stay. The function raises it, too.
      ProcessError: if it cannot be written by another process.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}.")
    if keep_every < 0:
        raise ValueError(f"keep_every must be at least 0, got {keep_every}.")
    directory = Path(directory).absolute()
    folder, needed = directory / _UNFINISHED, _num_bytes(state, rows)

    def begin() -> bool:
        _put_damaged_aside(directory, round, rows)
        if round in rounds(directory):
            return False
        with _no_remains(directory, round, needed):
            _begin(folder, needed)
        return True

    is_new = processes.on_first(begin)
    if rows is not None:
        # Also those put aside, which could still be mended. Not in `finish`: the loop
        # then uses the store. The list is made where it is read, in the first process.
        rows.keep(f / "rows" for d in [directory] for f in d.iterdir() if f.is_dir())
    if is_new and rows is not None:
        with _no_remains(directory, round, needed):
            rows.snapshot(folder / "rows")
    if not processes.is_first():
        return lambda: None
    leaves = copy_leaves(state) if is_new else {}
    facts: dict[str, Any] = {"state": _signature(state)}
    if rows is not None:
        facts["rows"] = _signature(rows.shapes)
    if origin is not None:
        facts |= {"config": dict(origin.config), "data": dict(origin.data)}

    def finish() -> None:
        if is_new:
            with _no_remains(directory, round, needed):
                state_files.write(folder / "state", leaves)
                write_manifest(folder, _parts(rows), facts)
                # Without this a loss of power may spare the new name alone.
                sync(folder)
                folder.rename(directory / str(round))
            # It is there; if only its name is lost, the one before is not removed yet.
            with suppress(OSError):
                sync(directory, below=False)
        for old in rounds(directory)[:-keep]:
            if not keep_every or old % keep_every:
                try:
                    remove(directory / str(old))
                except OSError as error:
                    # What is new is saved, so the run goes on.
                    words = f"The old checkpoint {directory / str(old)} stays: {error}"
                    warnings.warn(words, stacklevel=2)

    return finish


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
      ProcessError: if another process cannot read it.
    """
    directory = Path(directory).absolute()
    number, manifest = processes.on_first(
        lambda: newest_intact(directory, _parts(rows))
    )
    folder = directory / str(number)
    if origin is not None:
        check_origin(folder, manifest, origin)
    check_tree(folder, manifest["state"], _signature(template))
    if rows is not None:
        check_rows(folder, manifest.get("rows", {}), _signature(rows.shapes))
        rows.restore(folder / "rows")
    return processes.together(lambda: state_files.read(folder / "state", template))


def put_aside(directory: str | Path, after: int) -> None:
    """Renames the checkpoints of later rounds, which are damaged.

    Otherwise they would count among the newest ones, which stay.

    Args:
      directory: of the checkpoints.
      after: the round that was restored.
    """
    for later in [n for n in rounds(directory) if n > after]:
        folder = Path(directory) / str(later)
        folder.rename(free_name(folder))


def newest_intact(
    directory: Path, parts: tuple[str, ...]
) -> tuple[int, dict[str, Any]]:
    """The round of the newest checkpoint whose parts are whole, and its manifest.

    Raises:
      CheckpointError: if there is none.
    """
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
        return round, manifest
    if damages:
        raise CheckpointError(
            f"{' '.join(damages)} No other checkpoint is left, and nothing was "
            "deleted. Restore the files, or use another workdir."
        )
    raise CheckpointError(f"{directory} has no checkpoint.")


def _put_damaged_aside(directory: Path, round: int, rows: Store | None) -> None:
    """Puts aside what is in the way of a round's checkpoint.

    What saves this round has restored an older one, so later ones are damaged; one of
    this round may also be that of a finished run.
    """
    put_aside(directory, round)
    if round in rounds(directory):
        try:
            intact_manifest(directory / str(round), _parts(rows))
        except Damage:
            put_aside(directory, round - 1)


def _num_bytes(state: Tree, rows: Store | None) -> int:
    return tree_bytes(state) + (0 if rows is None else rows.snapshot_bytes)


def _free_bytes(directory: Path) -> int:
    existing = next(f for f in (directory, *directory.parents) if f.exists())
    return shutil.disk_usage(existing).free


def _room(directory: Path, needed: int) -> str:
    """What a checkpoint takes and what its disk has, in words."""
    free = _free_bytes(directory)
    return f"It takes about {needed:,} bytes, and {free:,} bytes are free"


@contextmanager
def _no_remains(directory: Path, round: int, needed: int) -> Iterator[None]:
    """Makes an error of the system one line, and removes what was written."""
    try:
        yield
    except OSError as error:
        if processes.is_first():
            with suppress(OSError):
                remove(directory / _UNFINISHED)
        reason = error.strerror or f"the disk takes no more ({error})"
        before = latest(directory)
        stays = (
            "there is no other" if before is None else f"that of round {before} stays"
        )
        raise CheckpointError(
            f"The checkpoint {directory / str(round)} cannot be saved: {reason}. "
            f"{_room(directory, needed)}; {stays}. The same command goes on when it "
            "can be saved."
        ) from error


def _begin(folder: Path, needed: int) -> None:
    """Makes the folder of a checkpoint.

    Raises:
      OSError: if the disk is full or cannot be written.
    """
    remove(folder)
    # Orbax would fail, too, but its threads would write to the terminal.
    if needed > _free_bytes(folder.parent):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    folder.mkdir(parents=True)


def _parts(rows: Store | None) -> tuple[str, ...]:
    """The folders that are written or read."""
    return ("state",) if rows is None else ("state", "rows")


def _signature(tree: Tree) -> dict[str, str]:
    """The leaves by their paths: shapes and dtypes."""
    return {
        jax.tree_util.keystr(path): f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
