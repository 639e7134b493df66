"""The files between the runs of this library and those of pfl-research.

Needs NumPy alone: `pfl_run` reads them in pfl's own environment, which has no JAX.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..benchmark import worker


class More(NamedTuple):
    """What the data file has beside the data of the benchmark.

    Attributes:
      test_images: [n, height, width, channels] uint8.
      test_labels: [n] int32.
      mean: [channels] float32 of images in [0, 1].
      std: [channels] float32.
    """

    test_images: np.ndarray
    test_labels: np.ndarray
    mean: np.ndarray
    std: np.ndarray


def read(path: Path | str) -> More:
    """Reads what `write_for_pfl` has written, without the data of the benchmark."""
    with np.load(path) as file:
        return More(*(file[name] for name in More._fields))


def mixed(*numbers: int) -> int:
    """A seed of 32 bits: torch's generator on CPUs uses no more of them.

    NumPy does not count zeros at the end, so (seed, 0) and (seed,) give the same one.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def digest(data: worker.Data, more: More, seed: int, rounds: int) -> str:
    """A hash of all that the model after these rounds, and its accuracy, depend on."""
    of_clients = (data.images, data.labels, data.indices, data.offsets)
    found = hashlib.sha256()
    for array in (*of_clients, data.cohorts[:rounds], *more):
        found.update(array.tobytes())
    settings = (data.batch_size, data.epochs, data.client_lr, data.server_lr, seed)
    found.update(repr(settings).encode())
    return found.hexdigest()


def write_rows(rows: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Replaces the rows of a run."""
    new = output.with_suffix(".rows")
    new.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    new.replace(output)
