"""Rows of all clients as files: one for each leaf, written and read in pieces.

The files are the same wherever the rows live and on any number of devices. The host
holds one piece at a time, beside the rows themselves.
"""

import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from fedjax_prune.engine import processes
from fedjax_prune.types import ClientState

Pieces = Iterator[tuple[int, np.ndarray]]
"""Pieces of a leaf along its leading axis, each with the row at which it begins."""

PIECE_BYTES = 2**26
"""Size of a piece, in bytes; a larger row is a piece of its own."""


def create(folder: str | Path, shapes: ClientState) -> None:
    """Makes a file for each leaf, in NumPy's format and still without values.

    Args:
      folder: made here; leaf n of the tree becomes `n.npy`.
      shapes: leaves `jax.ShapeDtypeStruct` [num_clients, ...].

    Raises:
      OSError: if the folder exists or cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    for place, like in enumerate(jax.tree.leaves(shapes)):
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(like.dtype)),
            "fortran_order": False,
            "shape": like.shape,
        }
        with (folder / f"{place}.npy").open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            stream.truncate(stream.tell() + like.shape[0] * _row_bytes(like))


def fill(folder: str | Path, shapes: ClientState, leaves: Iterable[Pieces]) -> None:
    """Writes values into the files that `create` has made.

    Several processes may fill the same files, each with the rows that it holds.

    Args:
      folder: of the files.
      shapes: as in `create`.
      leaves: for each leaf, pieces along the leading axis and where they begin. Rows
        beyond `num_clients` are padding and are not written.

    Raises:
      OSError: if a file cannot be written.
    """
    likes = jax.tree.leaves(shapes)
    for place, (like, pieces) in enumerate(zip(likes, leaves, strict=True)):
        # A mapped file would end the process when the disk is full.
        with (Path(folder) / f"{place}.npy").open("r+b") as stream:
            size = stream.seek(0, os.SEEK_END)
            first = size - like.shape[0] * _row_bytes(like)
            for start, piece in pieces:
                real = piece[: max(0, like.shape[0] - start)]
                stream.seek(first + start * _row_bytes(like))
                # `ndarray.tofile` does not tell when its last bytes find no room.
                whole = np.ascontiguousarray(real).reshape(-1)
                stream.write(whole.view(np.uint8).data)
            stream.flush()
            os.fsync(stream.fileno())


def write(folder: str | Path, shapes: ClientState, leaves: Iterable[Pieces]) -> None:
    """Writes the rows of all processes, each its own, into the same files.

    Args:
      folder: made here.
      shapes: leaves `jax.ShapeDtypeStruct` [num_clients, ...].
      leaves: for each leaf the pieces that this process holds.

    Raises:
      OSError: if the folder exists or cannot be written.
    """
    processes.together(lambda: create(folder, shapes) if processes.is_first() else None)
    processes.together(lambda: fill(folder, shapes, leaves))


def open_leaves(folder: str | Path, shapes: ClientState) -> ClientState:
    """Opens the files of a snapshot; a row is read when it is used.

    Args:
      folder: as `create` and `fill` have made it.
      shapes: as in `create`.

    Returns:
      Leaves [num_clients, ...], read-only numpy arrays.

    Raises:
      OSError: if a file is missing or cannot be read.
      ValueError: if a file does not hold the leaf that it should.
    """

    def open_leaf(place: int, like: jax.ShapeDtypeStruct) -> np.ndarray:
        file = Path(folder) / f"{place}.npy"
        saved = np.load(file, mmap_mode="r")
        # NumPy's format stores a dtype that it does not know, like bfloat16, as bytes.
        dtype = like.dtype if saved.dtype.kind == "V" else saved.dtype
        if (saved.shape, dtype) != (like.shape, like.dtype):
            raise ValueError(
                f"{file} must hold {like.dtype}{list(like.shape)}, got "
                f"{saved.dtype}{list(saved.shape)}."
            )
        return np.asarray(saved).view(like.dtype)

    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, map(open_leaf, range(len(leaves)), leaves))


def pieces_of_host(leaf: np.ndarray, first: int) -> Pieces:
    """Cuts the rows that this process holds of a leaf, from client `first` on."""
    for start, count in _pieces(leaf):
        yield first + start, leaf[start : start + count]


def pieces_of_devices(leaf: jax.Array) -> Pieces:
    """Reads what this process's devices hold of a leaf, one device after another."""
    for shard in sorted(leaf.addressable_shards, key=lambda x: x.index[0].start or 0):
        part, first = shard.data, shard.index[0].start or 0
        for start, count in _pieces(part):
            piece = part
            if count < len(part):
                # Put explicitly, as a loop under a transfer guard asks for.
                place = jax.device_put(np.int32(start), shard.device)
                piece = jax.lax.dynamic_slice_in_dim(part, place, count)
            yield first + start, jax.device_get(piece)


def place(saved: np.ndarray, shape: tuple[int, ...], sharding: Sharding) -> jax.Array:
    """Sends each device its part of a leaf.

    Args:
      saved: [num_clients, ...], as `open_leaves` gives it.
      shape: of the result, whose leading axis may be longer: it is padded with zeros.
      sharding: of the result, along the leading axis.
    """
    parts = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        first, last, _ = index[0].indices(shape[0])
        parts.append(_place_part(saved[first:last], last - first, device))
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def rows_at_once(row_bytes: int) -> int:
    """Says how many rows make a piece."""
    return max(1, PIECE_BYTES // max(1, row_bytes))


def _pieces(leaf: np.ndarray | jax.Array) -> Iterator[tuple[int, int]]:
    """Yields where each piece begins along the leading axis, and its length."""
    count = rows_at_once(_row_bytes(leaf))
    for start in range(0, len(leaf), count):
        yield start, min(count, len(leaf) - start)


def _row_bytes(leaf: np.ndarray | jax.Array | jax.ShapeDtypeStruct) -> int:
    return leaf.dtype.itemsize * int(np.prod(leaf.shape[1:]))


def _place_part(saved: np.ndarray, length: int, device: Any) -> jax.Array:
    """Sends a device its rows, piece by piece, and pads them to a length."""
    # It waits for each piece, so that the host holds no more than one.
    shape = (length, *saved.shape[1:])
    if length <= rows_at_once(_row_bytes(saved)):
        whole = np.zeros(shape, saved.dtype)
        whole[: len(saved)] = saved
        return jax.block_until_ready(jax.device_put(whole, device))
    part = jnp.zeros(shape, saved.dtype, device=device)
    for start, count in _pieces(saved):
        piece = jax.device_put(np.array(saved[start : start + count]), device)
        part = jax.block_until_ready(_fill(part, piece, start))
    return part


@partial(jax.jit, donate_argnums=0)
def _fill(part: jax.Array, piece: jax.Array, start: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(part, piece, start, axis=0)
