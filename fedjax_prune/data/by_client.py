"""Data that comes with its clients: Shakespeare by speaker, FEMNIST by writer.

Neither has a test set of its own: a part of each client's examples is held out, and
those of all clients together stand for it.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_prune.data.load import DataError
from fedjax_prune.data.partition import to_population
from fedjax_prune.data.validation import holdout
from fedjax_prune.types import Dataset, Population

SYMBOLS = (
    "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
)
"""LEAF's 80; what is not among them is read as a space."""
WINDOW = 80


class ByClient(NamedTuple):
    """A data set and whose examples they are.

    Attributes:
      dataset: of all clients, what is trained on and what is held out.
      population: each client's training examples.
      held_out: each client's other examples.
    """

    dataset: Dataset
    population: Population
    held_out: Population


def load_by_client(
    name: str, folder: str | Path, num_clients: int, *, num_train: int = 0, seed: int
) -> ByClient:
    """Reads a data set by client.

    Args:
      name: `shakespeare`: 80 characters and the next one, from every *.txt of the
        folder, in which a line `NAME:` begins a speech, or from LEAF's json;
        `femnist`: LEAF's all_data_*.json.
      folder: where the files lie.
      num_clients: how many clients are taken, of those in random order.
      num_train: stop where so many examples are reached, the last client cut; 0 = all.
      seed: of the order and of what is held out.

    Returns:
      The data.

    Raises:
      DataError: if files or clients are missing.
    """
    path = Path(folder).expanduser()
    clients = READERS[name](path)
    order = np.random.RandomState(seed).permutation(len(clients))
    chosen, total = [], 0
    for client in order[:num_clients]:
        images, labels = clients[client]
        if num_train:
            images, labels = images[: num_train - total], labels[: num_train - total]
        # The last one may be cut to what cannot be split.
        if len(labels) >= LEAST[name]:
            chosen.append((images, labels))
            total += len(labels)
    if len(chosen) < num_clients:
        raise DataError(
            f"{name} in {path} has {len(clients)} clients with enough examples, "
            f"{len(chosen)} of them within data.num_train = {num_train}: "
            f"data.num_clients must be at most that, got {num_clients}."
        )
    ends = np.cumsum([len(labels) for _, labels in chosen])
    parts = np.split(np.arange(ends[-1]), ends[:-1])
    dataset = Dataset(
        np.concatenate([images for images, _ in chosen]),
        np.concatenate([labels for _, labels in chosen]),
    )
    if name == "shakespeare":
        split = [_windows_apart(part) for part in parts]
        return ByClient(
            dataset,
            to_population([train for train, _ in split]),
            to_population([test for _, test in split]),
        )
    return ByClient(dataset, *holdout(to_population(parts), 0.1, seed))


def _windows_apart(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first nine tenths, and those windows whose text begins after theirs."""
    stop = len(part) * 9 // 10
    return part[:stop], part[stop + WINDOW - 1 :]


def _shakespeare(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Windows of every speaker who has enough of them to hold some out."""
    speeches: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*.json")):
        for user, entry in _read_json(file).items():
            speeches.setdefault(user, []).extend(_speeches(entry))
    if not speeches:
        for file in sorted(folder.glob("*.txt")):
            parts = re.split(r"(?m)^([^\n:]+):\n", file.read_text())
            for speaker, speech in zip(parts[1::2], parts[2::2], strict=True):
                speeches.setdefault(speaker, []).append(speech.strip())
    if not speeches:
        raise DataError(
            f"no *.json of LEAF and no *.txt with lines NAME: in {folder}. Any play as "
            "plain text will do, such as those of Project Gutenberg."
        )
    code = np.full(0x110000, SYMBOLS.index(" "), np.uint8)
    code[[ord(symbol) for symbol in SYMBOLS]] = np.arange(len(SYMBOLS))
    clients = []
    for _, texts in sorted(speeches.items()):
        if len(texts) <= 2:
            continue
        text = code[[ord(c) for c in "\n".join(texts)]]
        if len(text) <= WINDOW:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(text, WINDOW + 1)
        if len(windows) >= LEAST["shakespeare"]:
            images = np.ascontiguousarray(windows[:, :WINDOW])[:, :, None, None]
            clients.append((images, windows[:, WINDOW].astype(np.int32)))
    return clients


def _femnist(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images of every writer, white paper, upright."""
    files = sorted(folder.glob("all_data*.json"))
    if not files:
        raise DataError(
            f"no all_data_*.json in {folder}. FEMNIST by writer is made by LEAF "
            "(github.com/TalwalkarLab/leaf, data/femnist, preprocess.sh -s niid); "
            "TFDS's emnist has no writers."
        )
    clients = []
    for file in files:
        for entry in _read_json(file).values():
            pixels = np.asarray(entry["x"], np.float64)
            images = np.round(255 * pixels).astype(np.uint8).reshape(-1, 28, 28, 1)
            clients.append((images, np.asarray(entry["y"], np.int32)))
    return clients


def _speeches(entry: Any) -> list[str]:
    """A user's speeches: a list, one text, or a dictionary with either as x or raw."""
    if isinstance(entry, dict):
        entry = entry.get("raw", entry.get("x", []))
    return [entry] if isinstance(entry, str) else list(entry)


def _read_json(file: Path) -> dict[str, Any]:
    """User -> what LEAF's json says of them."""
    try:
        content = json.loads(file.read_text())
        return {user: content["user_data"][user] for user in content["users"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is not json of LEAF with users and user_data: {error}"
        ) from error


READERS = {"shakespeare": _shakespeare, "femnist": _femnist}
"""name -> folder -> each client's images and labels."""

LEAST = {"shakespeare": 10 * WINDOW - 9, "femnist": 2}
"""name -> examples of a client that leave something to hold out."""
