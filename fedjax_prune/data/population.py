"""Functions that make a Population of the indices of each client."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_prune.fields import TYPES
from fedjax_prune.types import Population


def to_population(parts: Sequence[Any], *, num_examples: int) -> Population:
    """Checks clients' index lists and pads them to the longest.

    Clients may share examples, and a client may hold an example twice.

    Args:
      parts: for each client its indices into a Dataset, [size] integers, at least one.
      num_examples: number of examples of that Dataset, in [1, 2^31].

    Returns:
      A Population, padded with 0.

    Raises:
      ValueError: if there is no client, if `num_examples` is out of range, or if a
        client has no examples, an array that is not [size] integers (pass
        `np.flatnonzero(mask)` in place of a mask), or an index outside
        [0, num_examples).

    Examples:
      >>> to_population([[4, 5], [1]], num_examples=6).indices.tolist()
      [[4, 5], [1, 0]]
    """
    if len(parts) == 0:
        raise ValueError("parts must hold at least 1 client, got none.")
    if not TYPES[int].holds(num_examples) or not 1 <= num_examples <= 2**31:
        raise ValueError(
            f"num_examples must be a whole number in [1, 2^31], got {num_examples!r}."
        )
    return pad(
        [
            as_indices(f"client {client}", part, num_examples)
            for client, part in enumerate(parts)
        ]
    )


def pad(rows: Sequence[np.ndarray]) -> Population:
    """Pads clients' indices to the longest.

    Args:
      rows: for each client [size] integers that are known to be right.

    Returns:
      A Population, padded with 0.

    Examples:
      >>> pad([np.array([4, 5]), np.array([1])]).sizes.tolist()
      [2, 1]
    """
    sizes = np.array([len(row) for row in rows], np.int32)
    indices = np.zeros((len(rows), sizes.max()), np.int32)
    for row, part in zip(indices, rows, strict=True):
        row[: len(part)] = part
    return Population(indices, sizes)


def as_indices(
    holder: str, values: Any, length: int, *, of: str = "example"
) -> np.ndarray:
    """Checks a list of indices and makes an array of it.

    Args:
      holder: who has them, for the message.
      values: [size] integers, at least one, in [0, length).
      length: of what they are indices into, at most 2^31.
      of: what an index stands for, for the message.

    Returns:
      [size] int32.

    Raises:
      ValueError: if the values are something else. Nothing is cut, wrapped or rounded.

    Examples:
      >>> as_indices("client_ids", [0, 2], 3)
      array([0, 2], dtype=int32)
      >>> as_indices("client_ids", [0, 3], 3)
      Traceback (most recent call last):
      ValueError: client_ids must have indices in [0, 3), got 3 at position 1.
    """
    try:
        indices = np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{holder} must have integers of shape [size], got lists of several "
            "lengths."
        ) from error
    if indices.shape == (0,):
        raise ValueError(f"{holder} must have at least 1 {of}, got none.")
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        first = f", first {indices.flat[0]}" if indices.size else ""
        raise ValueError(
            f"{holder} must have integers of shape [size], got "
            f"{indices.dtype} of shape {indices.shape}{first}."
        )
    outside = np.flatnonzero((indices < 0) | (indices >= length))
    if len(outside):
        raise ValueError(
            f"{holder} must have indices in [0, {length}), got "
            f"{indices[outside[0]]} at position {outside[0]}."
        )
    return indices.astype(np.int32)
