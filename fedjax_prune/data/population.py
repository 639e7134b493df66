"""Functions that make a Population of the indices of each client."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_prune.types import Population


def to_population(parts: Sequence[Any], *, num_examples: int) -> Population:
    """Checks clients' index lists and pads them to the longest.

    Clients may share examples, and a client may hold an example twice.

    Args:
      parts: for each client its indices into a Dataset, [size] integers, at least one.
      num_examples: number of examples of that Dataset.

    Returns:
      A Population, padded with 0.

    Raises:
      ValueError: if there is no client, or if a client has no examples, an array that
        is not [size] integers (pass `np.flatnonzero(mask)` in place of a mask), or an
        index outside [0, num_examples).

    Examples:
      >>> to_population([[4, 5], [1]], num_examples=6).indices.tolist()
      [[4, 5], [1, 0]]
    """
    if len(parts) == 0:
        raise ValueError("parts must hold at least 1 client, got none.")
    rows = []
    for client, part in enumerate(parts):
        try:
            rows.append(np.asarray(part))
        except ValueError as error:
            raise ValueError(
                f"client {client} must have integers of shape [size], got lists of "
                "several lengths."
            ) from error
        check_indices(client, rows[-1], num_examples)
    return pad(rows)


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


def check_indices(client: int, indices: np.ndarray, num_examples: int) -> None:
    """Refuses a client whose examples cannot be used.

    Args:
      client: number of the client, for the message.
      indices: [size] integers, at least one, in [0, num_examples).
      num_examples: number of examples of the Dataset.

    Raises:
      ValueError: if the indices are something else.
    """
    if indices.shape == (0,):
        raise ValueError(f"client {client} must have at least 1 example, got none.")
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        first = f", first {indices.flat[0]}" if indices.size else ""
        raise ValueError(
            f"client {client} must have integers of shape [size], got "
            f"{indices.dtype} of shape {indices.shape}{first}."
        )
    outside = np.flatnonzero((indices < 0) | (indices >= num_examples))
    if len(outside):
        raise ValueError(
            f"client {client} must have indices in [0, {num_examples}), got "
            f"{indices[outside[0]]} at position {outside[0]}."
        )
