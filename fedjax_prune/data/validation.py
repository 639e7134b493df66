"""Functions that give each client validation examples like its own."""

import numpy as np

from fedjax_prune.data.choices import choose
from fedjax_prune.data.population import (
    from_sizes,
    places,
    select,
    sizes_of,
    to_population,
)
from fedjax_prune.fields import Count, Seed, checked
from fedjax_prune.types import Population

SIZE = 1000
"""Test examples of a client, unless another number is asked for."""
OF_CLIENTS, OF_DEALT = 0.1, 0.2
"""Shares of its examples that a client holds out: of data that come with their clients,
and of data that are dealt to them."""


def class_counts(
    labels: np.ndarray, population: Population, num_classes: int
) -> np.ndarray:
    """Counts each client's examples of each class.

    Args:
      labels: [num_examples] integers in [0, num_classes).
      population: the clients that hold them.
      num_classes: at least 1.

    Returns:
      [num_clients, num_classes] int64.

    Raises:
      ValueError: if a label is no class.
    """
    labels = _checked_labels("labels", labels, num_classes)
    num_clients = len(population.sizes)
    first_cells = np.repeat(np.arange(num_clients) * num_classes, population.sizes)
    cells = first_cells + labels[population.indices].astype(np.int64)
    counts = np.bincount(cells, minlength=num_clients * num_classes)
    return counts.reshape(num_clients, num_classes)


@checked
def matched_test(
    train_labels: np.ndarray,
    population: Population,
    test_labels: np.ndarray,
    num_classes: Count,
    seed: Seed,
    *,
    size: Count = SIZE,
    client_ids: np.ndarray | None = None,
) -> Population:
    """Draws for each client test examples in its own class proportions.

    A client's class counts are the largest-remainder rounding of its shares. If the
    test set has too few of a class, the client gets the largest number of examples,
    up to `size`, whose rounded counts the test set has. Clients may share examples.
    Clients draw one by one, each in about a quarter of a millisecond.

    Args:
      train_labels: [num_examples] integers in [0, num_classes).
      population: the clients that hold the training examples.
      test_labels: [num_test_examples] integers in [0, num_classes).
      num_classes: at least 1.
      seed: in [0, 2^32). A client's draw depends on (seed, client_id) alone.
      size: examples per client, at least 1.
      client_ids: [count] integers in [0, num_clients), the clients for which is drawn;
        None is all.

    Returns:
      A Population of indices into the test set; client n of it is `client_ids[n]`.

    Raises:
      ValueError: if a number or a label is out of range, or if the test set has no
        example for some client.
    """
    test_labels = _checked_labels("test_labels", test_labels, num_classes)
    members = [
        np.flatnonzero(test_labels == label).astype(np.int32)
        for label in range(num_classes)
    ]
    available = np.array([len(indices) for indices in members])
    parts = []
    if client_ids is None:
        _checked_labels("train_labels", train_labels, num_classes)
        client_ids = np.arange(len(population.sizes))
    counts = counts_of(train_labels, population, client_ids, num_classes)
    for client_id, own in zip(client_ids.tolist(), counts, strict=True):
        wanted = _matched_counts(own, available, size)
        if wanted is None:
            raise _unmatched(client_id, own, available)
        rng = np.random.default_rng((seed, client_id))
        drawn = [
            rng.choice(indices, count, replace=False)
            for indices, count in zip(members, wanted, strict=True)
        ]
        parts.append(np.sort(np.concatenate(drawn)))
    return to_population(parts, num_examples=len(test_labels))


def require_matched(
    train_labels: np.ndarray,
    population: Population,
    test_labels: np.ndarray,
    num_classes: int,
) -> None:
    """Refuses what `matched_test` would refuse for some client, without any draw.

    The class of which a client has most gets the first example, so a test set with an
    example of that class matches the client, and another one does not.

    Args:
      train_labels: as in `matched_test`.
      population: the same.
      test_labels: the same.
      num_classes: the same.

    Raises:
      ValueError: as `matched_test`.
    """
    train_labels = _checked_labels("train_labels", train_labels, num_classes)
    test_labels = _checked_labels("test_labels", test_labels, num_classes)
    available = np.bincount(test_labels, minlength=num_classes)
    if available.all():
        return
    for start in range(0, len(population.sizes), 10_000):
        client_ids = np.arange(start, min(start + 10_000, len(population.sizes)))
        counts = counts_of(train_labels, population, client_ids, num_classes)
        unmatched = np.flatnonzero(available[counts.argmax(axis=1)] == 0)
        if unmatched.size:
            raise _unmatched(start + unmatched[0], counts[unmatched[0]], available)


@checked
def holdout(
    population: Population, fraction: float, seed: Seed
) -> tuple[Population, Population]:
    """Sets a part of each client's examples aside.

    Args:
      population: all clients.
      fraction: share set aside, in (0, 1). Its number of examples is rounded, but
        both parts have at least one.
      seed: in [0, 2^32). A client's draw depends on (seed, client_id) alone.

    Returns:
      (train, validation) over the same examples, each in the original order.

    Raises:
      ValueError: if a number is out of range or a client has a single example.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be in (0, 1), got {fraction}.")
    sizes = population.sizes
    if (small := np.flatnonzero(sizes < 2)).size:
        raise ValueError(
            f"holdout needs at least 2 examples per client, got {sizes[small[0]]} for "
            f"client {small[0]}: take fewer clients, more examples or, where the "
            "partition has it, a larger min_size."
        )
    numbers = np.clip(np.rint(fraction * sizes).astype(np.int64), 1, sizes - 1)
    is_held = choose(seed, sizes, numbers)
    return select(population, ~is_held), select(population, is_held)


def counts_of(
    labels: np.ndarray, population: Population, client_ids: np.ndarray, num_classes: int
) -> np.ndarray:
    """Counts the classes of some clients, and looks at no other label.

    Args:
      labels: as in `class_counts`.
      population: as in `class_counts`.
      client_ids: [count] integers.
      num_classes: as in `class_counts`.

    Returns:
      [count, num_classes] int64.

    Raises:
      ValueError: if a label is no class.
    """
    held = np.asarray(population.indices)[places(population, client_ids)]
    own = from_sizes(np.arange(len(held)), sizes_of(population, client_ids))
    return class_counts(np.asarray(labels)[held], own, num_classes)


def _unmatched(client_id: int, own: np.ndarray, available: np.ndarray) -> ValueError:
    return ValueError(
        f"client {client_id} holds {own.tolist()} examples of each class, which "
        f"{available.tolist()} test examples cannot match. Use a larger test set."
    )


def _checked_labels(name: str, labels: np.ndarray, num_classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        raise ValueError(
            f"{name} must be in [0, {num_classes}), got {labels[outside[0]]} at index "
            f"{outside[0]}."
        )
    return labels


def _matched_counts(
    own: np.ndarray, available: np.ndarray, size: int
) -> np.ndarray | None:
    """Gives the counts of the largest possible total up to `size`; None if none is."""
    # A rounded count is at least its quota rounded down, which bounds the total.
    held = own > 0
    bounds = ((available[held] + 1) * own.sum() - 1) // own[held]
    for total in range(min(size, int(bounds.min())), 0, -1):
        counts = _largest_remainder(own, total)
        if (counts <= available).all():
            return counts
    return None


def _largest_remainder(own: np.ndarray, total: int) -> np.ndarray:
    """Rounds own / own.sum() * total to integers that sum to `total`."""
    counts, remainders = np.divmod(own * total, own.sum())
    missing = total - counts.sum()
    # Equal remainders go to the lower class.
    counts[np.argsort(-remainders, kind="stable")[:missing]] += 1
    return counts
