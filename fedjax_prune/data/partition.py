"""Splits the examples of a data set over clients.

Every partitioner gives each example to exactly one client and takes a numpy legacy
generator, whose stream is frozen: a seed means the same split for ever.
"""

from collections.abc import Callable, Sequence

import numpy as np

from fedjax_prune.data.in_turn import dirichlet_in_turn, pathological
from fedjax_prune.types import Population


def iid(labels: np.ndarray, num_clients: int, rng: np.random.RandomState) -> Population:
    """Deals shuffled examples out evenly.

    Args:
      labels: [num_examples] integers.
      num_clients: at least 1, at most num_examples.
      rng: advanced in place.

    Returns:
      A Population; sizes differ by at most 1.

    Raises:
      ValueError: if there are more clients than examples.
    """
    _check(labels, num_clients, min_size=1)
    return to_population(np.array_split(rng.permutation(len(labels)), num_clients))


def dirichlet(
    labels: np.ndarray,
    num_clients: int,
    alpha: float,
    rng: np.random.RandomState,
    *,
    min_size: int = 10,
    max_draws: int = 1000,
) -> Population:
    """Gives each class to the clients in shares drawn from a Dirichlet.

    Class by class, shares p ~ Dirichlet(alpha, ..., alpha) are drawn, set to zero
    for clients who already hold num_examples / num_clients examples, and scaled to
    sum to 1. The whole is drawn again until the smallest client is large enough.

    Args:
      labels: [num_examples] integers.
      num_clients: at least 1.
      alpha: above 0; the smaller, the fewer classes a client has.
      rng: advanced in place.
      min_size: examples that every client must get, at least 1.
      max_draws: how often to try.

    Returns:
      A Population.

    Raises:
      ValueError: if an argument is out of range, if there are too few examples, or
        if no draw was even enough.

    References:
      Li et al., Federated Learning on Non-IID Data Silos: An Experimental Study,
      ICDE 2022, section IV-A, https://arxiv.org/abs/2102.02079; the cap on full
      clients and the minimum are those of its published code.
    """
    _check(labels, num_clients, min_size, alpha)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(max_draws):
        orders, cuts = [], []
        sizes = np.zeros(num_clients, np.int64)
        for indices in members:
            orders.append(rng.permutation(indices))
            shares = rng.dirichlet(np.full(num_clients, alpha))
            takes = sizes < len(labels) / num_clients
            cuts.append(_cut(shares, takes, len(indices)))
            sizes += np.diff(cuts[-1], prepend=0, append=len(indices))
        if sizes.min() >= min_size:
            pieces = zip(*map(np.split, orders, cuts), strict=True)
            return to_population([rng.permutation(np.concatenate(p)) for p in pieces])
    raise _too_uneven("dirichlet", num_clients, alpha, min_size, max_draws)


def quantity(
    labels: np.ndarray,
    num_clients: int,
    alpha: float,
    rng: np.random.RandomState,
    *,
    min_size: int = 10,
    max_draws: int = 1000,
) -> Population:
    """Gives clients unequal numbers of examples of all classes alike.

    Args:
      labels: [num_examples] integers.
      num_clients: at least 1.
      alpha: above 0; sizes are in proportion to a Dirichlet(alpha, ..., alpha).
      rng: advanced in place.
      min_size: examples that every client must get, at least 1.
      max_draws: how often to try.

    Returns:
      A Population.

    Raises:
      ValueError: if an argument is out of range, if there are too few examples, or
        if no draw was even enough.

    References:
      Li et al., Federated Learning on Non-IID Data Silos: An Experimental Study,
      ICDE 2022, section IV-C, https://arxiv.org/abs/2102.02079.
    """
    _check(labels, num_clients, min_size, alpha)
    order = rng.permutation(len(labels))
    everyone = np.ones(num_clients, bool)
    for _ in range(max_draws):
        shares = rng.dirichlet(np.full(num_clients, alpha))
        cuts = _cut(shares, everyone, len(labels))
        if np.diff(cuts, prepend=0, append=len(labels)).min() >= min_size:
            return to_population(np.split(order, cuts))
    raise _too_uneven("quantity", num_clients, alpha, min_size, max_draws)


def shards(
    labels: np.ndarray,
    num_clients: int,
    classes_per_client: int,
    rng: np.random.RandomState,
) -> Population:
    """Gives each client one shard of each of a few classes.

    The classes are cut into num_clients * classes_per_client shards, more for the
    larger classes, so that shards are as equal as whole classes allow.

    Args:
      labels: [num_examples] integers.
      num_clients: at least 1.
      classes_per_client: how many distinct classes each client gets, at least 1.
      rng: advanced in place.

    Returns:
      A Population.

    Raises:
      ValueError: if a client cannot have that many classes, if the shards do not
        cover all classes, or if there are fewer examples than shards.

    References:
      McMahan et al., Communication-Efficient Learning of Deep Networks from
      Decentralized Data, AISTATS 2017, section 3, https://arxiv.org/abs/1602.05629;
      there shards are equal and may straddle two classes.
    """
    _check(labels, num_clients, min_size=1)
    classes, counts = np.unique(labels, return_counts=True)
    if not 1 <= classes_per_client <= len(classes):
        raise ValueError(
            f"classes_per_client must be in [1, {len(classes)}], "
            f"got {classes_per_client}."
        )
    num_shards = _num_shards(counts, num_clients, classes_per_client)
    pieces = [
        np.array_split(rng.permutation(np.flatnonzero(labels == label)), number)
        for label, number in zip(classes, num_shards, strict=True)
    ]
    parts = []
    for _ in range(num_clients):
        # Always from the classes with most shards left, or the last clients would
        # find too few different ones; equals in random order.
        left = np.array([len(piece) for piece in pieces])
        chosen = np.lexsort((rng.permutation(len(classes)), -left))
        chosen = chosen[:classes_per_client]
        part = np.concatenate([pieces[c].pop() for c in chosen])
        parts.append(rng.permutation(part))
    return to_population([parts[client] for client in rng.permutation(num_clients)])


def to_population(parts: Sequence[np.ndarray]) -> Population:
    """Pads clients' index lists to the longest.

    Args:
      parts: for each client a non-empty array of indices into a Dataset.

    Returns:
      A Population, padded with 0.
    """
    sizes = np.array([len(part) for part in parts], np.int32)
    indices = np.zeros((len(parts), sizes.max()), np.int32)
    for row, part in zip(indices, parts, strict=True):
        row[: len(part)] = part
    return Population(indices, sizes)


PARTITIONERS: dict[str, Callable[..., Population]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "quantity": quantity,
    "shards": shards,
    "pathological": lambda *args, **options: to_population(
        pathological(*args, **options)
    ),
    "dirichlet_in_turn": lambda *args, **options: to_population(
        dirichlet_in_turn(*args, **options)
    ),
}

OPTIONS: dict[str, tuple[str, ...]] = {
    "iid": (),
    "dirichlet": ("alpha", "min_size"),
    "quantity": ("alpha", "min_size"),
    "shards": ("classes_per_client",),
    "pathological": ("classes_per_client",),
    "dirichlet_in_turn": ("alpha",),
}
"""name -> the options of `partition` that it takes."""


def partition(
    name: str,
    labels: np.ndarray,
    num_clients: int,
    *,
    seed: int,
    alpha: float = 0.1,
    min_size: int = 10,
    classes_per_client: int = 2,
) -> Population:
    """Splits examples by the partitioner of that name.

    Args:
      name: a key of `PARTITIONERS`.
      labels: [num_examples] integers.
      num_clients: at least 1.
      seed: in [0, 2**32).
      alpha: for all but `iid`, `shards` and `pathological`, above 0.
      min_size: for `dirichlet` and `quantity`, at least 1.
      classes_per_client: for `shards` and `pathological`, at least 1.

    Returns:
      A Population.

    Raises:
      ValueError: if the name is unknown or the split impossible.
    """
    if name not in PARTITIONERS:
        known = ", ".join(PARTITIONERS)
        raise ValueError(f"partitioner must be one of {known}, got {name!r}.")
    options = {
        "alpha": alpha,
        "min_size": min_size,
        "classes_per_client": classes_per_client,
    }
    return PARTITIONERS[name](
        np.asarray(labels),
        num_clients,
        rng=np.random.RandomState(seed),
        **{option: options[option] for option in OPTIONS[name]},
    )


def _check(
    labels: np.ndarray, num_clients: int, min_size: int, alpha: float = 1.0
) -> None:
    if num_clients < 1:
        raise ValueError(f"num_clients must be at least 1, got {num_clients}.")
    if min_size < 1:
        raise ValueError(f"min_size must be at least 1, got {min_size}.")
    # Not `alpha <= 0`, which would let NaN through.
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha must be finite and above 0, got {alpha}.")
    if num_clients * min_size > len(labels):
        raise ValueError(
            f"num_clients must be at most {len(labels) // min_size} for "
            f"{len(labels)} examples and min_size {min_size}, got {num_clients}."
        )


def _cut(shares: np.ndarray, takes: np.ndarray, length: int) -> np.ndarray:
    """Where to cut `length` examples into the shares of the clients who take some."""
    shares = shares * takes
    if not shares.sum() > 0:
        # With a tiny alpha all weight may fall on full clients, or underflow to NaN.
        shares = takes
    return (np.cumsum(shares / shares.sum()) * length).astype(int)[:-1]


def _too_uneven(
    name: str, num_clients: int, alpha: float, min_size: int, max_draws: int
) -> ValueError:
    return ValueError(
        f"{name}: none of {max_draws} draws with alpha {alpha} gave each of "
        f"{num_clients} clients min_size {min_size} examples. "
        "Raise alpha, lower min_size or use fewer clients."
    )


def _num_shards(
    counts: np.ndarray, num_clients: int, classes_per_client: int
) -> np.ndarray:
    """Shards per class: each next one goes to the class whose shards are largest."""
    num_shards = np.ones_like(counts)
    # A client takes a class once, and no shard may be empty.
    most = np.minimum(counts, num_clients)
    wanted = num_clients * classes_per_client
    if not len(counts) <= wanted <= most.sum():
        raise ValueError(
            f"num_clients * classes_per_client must be in [{len(counts)}, "
            f"{most.sum()}] to cover {len(counts)} classes with non-empty shards, "
            f"got {wanted}."
        )
    for _ in range(wanted - len(counts)):
        num_shards[np.argmax(np.where(num_shards < most, counts / num_shards, 0))] += 1
    return num_shards
