"""Checkpoints of the complete state: saved whole or not at all, restored exactly.

A checkpoint is the folder `directory/ROUND`: the leaves, written by Orbax under
their paths in the tree, and `manifest.json` with the shapes and dtypes of the
leaves and the checksums of the files. It is built under a hidden name and renamed
at the end, so a killed save leaves nothing that could be taken for a checkpoint.
"""

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from fedjax_prune.types import Tree

_MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names it and says what to do."""


def save(directory: str | Path, round: int, tree: Tree, *, keep: int) -> None:
    """Saves a tree as the checkpoint of a round and deletes the oldest ones.

    A round that is already saved is left as it is.

    Args:
      directory: of the checkpoints, made if missing.
      round: finished rounds, at least 0.
      tree: a pytree of JAX or numpy arrays.
      keep: checkpoints that stay, at least 1.

    Raises:
      ValueError: if `keep` is below 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}.")
    directory = Path(directory).absolute()
    if round not in rounds(directory):
        unfinished = directory / _UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        leaves = {
            name: np.asarray(leaf)
            for name, leaf in _by_path(jax.device_get(tree)).items()
        }
        _write(unfinished / "leaves", leaves)
        manifest = {"leaves": _signature(leaves), "files": _checksums(unfinished)}
        (unfinished / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        unfinished.rename(directory / str(round))
    for old in rounds(directory)[:-keep]:
        shutil.rmtree(directory / str(old))


def rounds(directory: str | Path) -> list[int]:
    """The rounds with a checkpoint, oldest first."""
    folders = Path(directory).glob("[0-9]*")
    return sorted(int(f.name) for f in folders if f.name.isdecimal())


def latest(directory: str | Path) -> int | None:
    """The newest round with a checkpoint, or None."""
    return max(rounds(directory), default=None)


def restore(directory: str | Path, template: Tree) -> Tree:
    """Restores the newest checkpoint, bit for bit.

    Args:
      directory: of the checkpoints.
      template: a tree of arrays or `jax.ShapeDtypeStruct`s, as it was saved.

    Returns:
      A tree like `template`; leaves are numpy arrays where the template's are and
      JAX arrays elsewhere.

    Raises:
      CheckpointError: if there is no checkpoint, it is damaged, or its tree is
        another one than the template's.
    """
    directory = Path(directory).absolute()
    newest = latest(directory)
    if newest is None:
        raise CheckpointError(f"{directory} has no checkpoint.")
    folder = directory / str(newest)
    wanted = _by_path(template)
    _check_tree(folder, _intact_signature(folder), _signature(wanted))
    buffers = {k: np.empty(v.shape, v.dtype) for k, v in wanted.items() if _size(v)}
    restored = _read(folder / "leaves", buffers)

    def leaf(path: Any, like: Any) -> Any:
        # Orbax refuses arrays without entries, so those come from the template.
        empty = np.empty(like.shape, like.dtype)
        value = restored.get(jax.tree_util.keystr(path), empty)
        return value if isinstance(like, np.ndarray) else jax.device_put(value)

    return jax.tree_util.tree_map_with_path(leaf, template)


def _write(folder: Path, leaves: dict[str, np.ndarray]) -> None:
    kept = {name: leaf for name, leaf in leaves.items() if _size(leaf)}
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(folder, args=ocp.args.StandardSave(kept))


def _read(folder: Path, buffers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        return checkpointer.restore(folder, args=ocp.args.StandardRestore(buffers))


def _by_path(tree: Tree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _size(leaf: Any) -> int:
    return int(np.prod(leaf.shape))


def _signature(leaves: dict[str, Any]) -> dict[str, str]:
    return {k: f"{np.dtype(v.dtype).name}{list(v.shape)}" for k, v in leaves.items()}


def _checksums(folder: Path) -> dict[str, list[int]]:
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != _MANIFEST)
    return {str(f.relative_to(folder)): _checksum(f) for f in files}


def _checksum(file: Path) -> list[int]:
    """Size in bytes and CRC-32, read in pieces of 16 MiB."""
    crc = 0
    with file.open("rb") as stream:
        while piece := stream.read(2**24):
            crc = zlib.crc32(piece, crc)
    return [file.stat().st_size, crc]


def _intact_signature(folder: Path) -> dict[str, str]:
    # Checked before Orbax reads: on a broken file its loader threads outlive the
    # error, and a changed byte inside an array is no error to it at all.
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        intact = manifest["files"] == _checksums(folder)
        signature = manifest["leaves"]
    except (OSError, ValueError, KeyError, TypeError):
        intact, signature = False, {}
    if not intact:
        raise CheckpointError(
            f"The checkpoint {folder} is damaged. Delete this folder and start again "
            "to go on from the checkpoint before it."
        )
    return signature


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
