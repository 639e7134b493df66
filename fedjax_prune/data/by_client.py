"""Data sets that come with their clients: Shakespeare by speaker, FEMNIST by writer.

Neither of them has a test set. A part of each client's examples is held out, and the
held-out examples of all clients together serve as the test set.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_prune.data.datasets import (
    DATASETS,
    DataError,
    data_folder,
    resolve_count,
)
from fedjax_prune.data.load import as_dataset
from fedjax_prune.data.population import from_sizes, positions, select
from fedjax_prune.data.splitting import NumClients
from fedjax_prune.data.validation import OF_CLIENTS, holdout
from fedjax_prune.fields import Seed, checked
from fedjax_prune.types import Dataset, Population

SYMBOLS = (
    "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
)
"""LEAF's 80 symbols; any other character is read as a space."""
WINDOW = 80
"""Characters that a model reads to predict the next one."""

_SYMBOL_OF = np.full(0x110000, SYMBOLS.index(" "), np.uint8)  # one per code point
_SYMBOL_OF[[ord(symbol) for symbol in SYMBOLS]] = np.arange(len(SYMBOLS))


class ByClient(NamedTuple):
    """A data set and the clients that hold its examples.

    Attributes:
      dataset: the examples of all clients, for training and held out.
      population: each client's training examples.
      held_out: each client's held-out examples.
    """

    dataset: Dataset
    population: Population
    held_out: Population


class Source(NamedTuple):
    """The way in which the clients of a data set are read and split.

    Attributes:
      read: folder -> each client's examples, in the order of the folder's files.
      least: fewest examples of a client of which some can be held out.
      hold_out: (all clients, seed) -> (their training examples, held-out ones).
    """

    read: Callable[[Path], list[Dataset]]
    least: int
    hold_out: Callable[[Population, int], tuple[Population, Population]]


@checked
def load_by_client(
    name: str,
    folder: str | Path,
    num_clients: NumClients,
    *,
    num_train: int = 0,
    seed: Seed,
) -> ByClient:
    """Reads a data set by client.

    Args:
      name: a key of `SOURCES`. `shakespeare` has 80 characters and the next one. It
        reads every *.json of the folder, in LEAF's form or with each speaker's
        speeches or text; if there is none, it reads every *.txt as
        `speeches_by_speaker` does. Who speaks no more than twice is left out.
        `femnist` reads LEAF's all_data_*.json.
      folder: the folder of these files.
      num_clients: number of clients, at least 1. They are drawn from the clients with
        enough examples to hold some out.
      num_train: number of examples after which the last client is cut, at most those
        of the clients drawn; 0 = all.
      seed: seed of the draw and of what is held out, in [0, 2^32).

    Returns:
      The examples and the clients that hold them.

    Raises:
      ValueError: if the name is unknown, or `num_clients` or `seed` is out of range.
      DataError: if files are missing or damaged, or if there are too few clients or
        examples.

    References:
      Caldas et al., LEAF: A Benchmark for Federated Settings,
      https://arxiv.org/abs/1812.01097.
    """
    if name not in SOURCES:
        raise ValueError(f"name must be one of {', '.join(SOURCES)}, got {name!r}.")
    source, path = SOURCES[name], data_folder(folder)
    clients = [c for c in source.read(path) if len(c.labels) >= source.least]
    order = np.random.RandomState(seed).permutation(len(clients))[:num_clients]
    drawn = [clients[client] for client in order]
    if len(drawn) < num_clients:
        raise DataError(
            f"{name} in {path} has {len(clients)} clients with at least {source.least} "
            f"examples: data.num_clients must be at most that, got {num_clients}."
        )
    total = sum(len(client.labels) for client in drawn)
    taken = f"the {num_clients} clients drawn from {name}"
    chosen = _first(drawn, resolve_count(taken, "train", num_train, total))
    # The last client may be cut to fewer examples than can be split.
    if min(len(client.labels) for client in chosen) < source.least:
        raise DataError(
            f"data.num_train = {num_train} leaves some of {taken} fewer than "
            f"{source.least} examples: raise it or lower data.num_clients."
        )
    sizes = np.array([len(client.labels) for client in chosen])
    dataset = Dataset(*map(np.concatenate, zip(*chosen, strict=True)))
    everyone = from_sizes(np.arange(sizes.sum()), sizes)
    return ByClient(dataset, *source.hold_out(everyone, seed))


def _first(clients: list[Dataset], count: int) -> list[Dataset]:
    """Keeps the first `count` examples of all clients together; some may keep none."""
    cut = []
    for client in clients:
        cut.append(client.at(slice(count)))
        count -= len(cut[-1].labels)
    return cut


def speeches_by_speaker(text: str) -> dict[str, list[str]]:
    """Splits a play into the speeches of its speakers.

    Args:
      text: the play. A speech begins with a line `NAME:` after a blank line or at the
        start and ends before the next such line. Text before the first speech is left
        out.

    Returns:
      For each speaker, in order of appearance, the speeches that are not empty.
    """
    text = re.sub(r"(?m)^[ \t]+$", "", text).strip()
    parts = re.split(r"(?:\A|(?<=\n\n))([^\n:]+):[ \t]*\n", text + "\n")
    speeches: dict[str, list[str]] = {}
    for speaker, speech in zip(parts[1::2], parts[2::2], strict=True):
        if speech.strip():
            speeches.setdefault(speaker, []).append(speech.strip())
    return speeches


def _shakespeare(folder: Path) -> list[Dataset]:
    """Makes windows of texts and of those who speak more than twice; LEAF's stay."""
    pairs: dict[str, list[Dataset]] = {}
    speeches: dict[str, list[str]] = {}
    whole: set[str] = set()
    for file in sorted(folder.glob("*.json")):
        for user, entry in _users(file):
            where = f"{file}: user {user}"
            if isinstance(entry, dict) and "y" in entry:
                pairs.setdefault(user, []).append(_pairs(entry, where))
            else:
                said = _speeches(entry, where)
                if isinstance(said, str):
                    whole.add(user)
                    said = [said]
                speeches.setdefault(user, []).extend(said)
    if not pairs and not speeches:
        for file in sorted(folder.glob("*.txt")):
            for speaker, said in speeches_by_speaker(_read(file)).items():
                speeches.setdefault(speaker, []).extend(said)
    if not pairs and not speeches:
        raise DataError(
            f"no *.json of LEAF and no *.txt in {folder} in which lines NAME: after "
            "blank lines begin speeches, as in tiny Shakespeare (input.txt of "
            "github.com/karpathy/char-rnn)."
        )
    clients = [
        _windows("\n".join(said))
        for user, said in sorted(speeches.items())
        if user in whole or len(said) > 2
    ]
    return clients + [_joined(parts) for _, parts in sorted(pairs.items())]


def _joined(parts: Sequence[Dataset]) -> Dataset:
    """Joins what several files have of one user."""
    if len(parts) == 1:
        return parts[0]
    return Dataset(*map(np.concatenate, zip(*parts, strict=True)))


def _windows(text: str) -> Dataset:
    """Makes an example of every 81 consecutive characters."""
    if len(text) <= WINDOW:
        return Dataset(np.zeros((0, WINDOW, 1, 1), np.uint8), np.zeros(0, np.int32))
    windows = np.lib.stride_tricks.sliding_window_view(_symbols(text), WINDOW + 1)
    images = np.ascontiguousarray(windows[:, :WINDOW])[:, :, None, None]
    return Dataset(images, windows[:, WINDOW].astype(np.int32))


def _pairs(entry: dict[str, Any], where: str) -> Dataset:
    """Reads LEAF's `x`, windows of 80 characters, and `y`, the character after each."""
    texts: Any = entry.get("x")
    nexts: Any = entry["y"]
    for field, values, length in (("x", texts, WINDOW), ("y", nexts, 1)):
        if not isinstance(values, list):
            raise DataError(f"{where}: {field} must be a list, got {type(values)}.")
        for index, value in enumerate(values):
            if not isinstance(value, str) or len(value) != length:
                raise DataError(
                    f"{where}: {field} must hold texts of {length} characters, got "
                    f"{value!r} at index {index}."
                )
    if len(texts) != len(nexts):
        raise DataError(
            f"{where}: x and y must be equally long, got {len(texts)} and {len(nexts)}."
        )
    images = _symbols("".join(texts)).reshape(-1, WINDOW, 1, 1)
    return Dataset(images, _symbols("".join(nexts)).astype(np.int32))


def _speeches(entry: Any, where: str) -> list[str] | str:
    """Reads a user's speeches or text, which may be `raw` in a dictionary."""
    speeches = entry.get("raw") if isinstance(entry, dict) else entry
    if isinstance(speeches, str):
        return speeches
    if not isinstance(speeches, list) or not all(isinstance(s, str) for s in speeches):
        raise DataError(
            f"{where} must have x and y, raw, or a list of speeches, got "
            f"{str(entry)[:WINDOW]}."
        )
    return speeches


def _symbols(text: str) -> np.ndarray:
    """Gives the places in SYMBOLS of a text's characters, [length] uint8."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return _SYMBOL_OF[codes]


def _femnist(folder: Path) -> list[Dataset]:
    """Reads the images of every writer; they are upright, on white paper."""
    files = sorted(folder.glob("all_data*.json"))
    if not files:
        raise DataError(
            f"no all_data_*.json in {folder}. FEMNIST by writer is made by LEAF "
            "(github.com/TalwalkarLab/leaf, data/femnist, preprocess.sh -s niid); "
            "TFDS's emnist has no writers."
        )
    writers: dict[str, list[Dataset]] = {}
    for file in files:
        for user, entry in _users(file):
            try:
                writers.setdefault(user, []).append(_writer(entry))
            except (ValueError, KeyError, TypeError) as error:
                reason = f"{error} is missing" if type(error) is KeyError else error
                raise DataError(f"{file}: user {user}: {reason}") from error
    return [_joined(parts) for parts in writers.values()]


def _writer(entry: dict[str, Any]) -> Dataset:
    """Reads a writer's `x`, images of 784 numbers in [0, 1], and `y`, their classes."""
    if not isinstance(entry, dict):
        raise ValueError(f"must have x and y, got {entry!r}")
    info = DATASETS["femnist"]
    pixels, labels = _numbers("x", entry["x"]).astype(float), _numbers("y", entry["y"])
    count = len(pixels)
    if count == 0 and len(labels) == 0:
        return Dataset(
            np.zeros((0, *info.image_shape), np.uint8), np.zeros(0, np.int32)
        )
    if pixels.size != count * np.prod(info.image_shape):
        raise ValueError(
            f"x must hold images of 784 numbers, got lists of shape {pixels.shape}."
        )
    images = pixels.reshape(count, *info.image_shape)
    dataset = as_dataset(images, labels, num_classes=info.num_classes)
    return dataset._replace(images=np.round(255 * images).astype(np.uint8))


def _numbers(field: str, values: Any) -> np.ndarray:
    """Reads a list of numbers, or of lists that are equally long."""
    if not isinstance(values, list):
        raise ValueError(f"{field} must be a list, got {values!r}")
    try:
        numbers = np.asarray(values)
    except ValueError as error:
        lengths = [len(v) if isinstance(v, list) else "no list" for v in values]
        odd = next((i for i, n in enumerate(lengths) if n != lengths[0]), 0)
        raise ValueError(
            f"{field} must hold lists that are equally long, got {lengths[odd]} at "
            f"index {odd} and {lengths[0]} at index 0"
        ) from error
    if values and numbers.dtype.kind not in "iuf":
        for index, value in np.ndenumerate(np.asarray(values, object)):
            if type(value) not in (int, float):
                where = ", ".join(map(str, index))
                raise ValueError(
                    f"{field} must hold numbers, got {value!r} at index {where}"
                )
        raise ValueError(f"{field} must hold numbers below 2^64")
    return numbers


def _users(file: Path) -> Iterator[tuple[str, Any]]:
    """Yields each user of a json file in LEAF's form, with the user's data."""
    try:
        content = json.loads(_read(file))
        users = [(str(user), content["user_data"][user]) for user in content["users"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is not json of LEAF with users and user_data: {error}"
        ) from error
    yield from users


def _read(file: Path) -> str:
    """Reads a text; a byte order mark and the kind of line ends change nothing."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} must be text in UTF-8: {error}") from error


def _windows_apart(everyone: Population, seed: int) -> tuple[Population, Population]:
    """Takes the first nine tenths, and the windows that begin after their text."""
    del seed  # because nothing is drawn
    stops = np.repeat(everyone.sizes * 9 // 10, everyone.sizes)
    windows = positions(everyone.sizes)
    return (
        select(everyone, windows < stops),
        select(everyone, windows >= stops + WINDOW - 1),
    )


SOURCES = {
    "shakespeare": Source(_shakespeare, 10 * WINDOW - 9, _windows_apart),
    "femnist": Source(
        _femnist, 2, lambda everyone, seed: holdout(everyone, OF_CLIENTS, seed)
    ),
}
"""Name of a data set -> how its clients are read."""
