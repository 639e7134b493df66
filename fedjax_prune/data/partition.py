"""The partitioners, which split the examples of a data set over clients.

A partitioner gives each example to at most one client; all of them except
`dirichlet_in_turn` use every example. Each takes a legacy generator of NumPy, whose
stream never changes, so a seed always gives the same split.

Examples:
  >>> sorted(PARTITIONERS)
  ['dirichlet', 'dirichlet_in_turn', 'iid', 'pathological', 'quantity', 'shards']
"""

from collections.abc import Callable

import numpy as np

from fedjax_prune.data.paper_splits import dirichlet_in_turn, pathological
from fedjax_prune.data.population import from_sizes, to_population
from fedjax_prune.data.splitting import (
    Alpha,
    ClassesPerClient,
    MinSize,
    check_split,
    dirichlet_shares,
)
from fedjax_prune.fields import Seed, checked
from fedjax_prune.types import Population

MIN_SIZE = 10
"""Examples that every client gets if nothing else is said, as in the published code."""


def iid(labels: np.ndarray, num_clients: int, rng: np.random.RandomState) -> Population:
    """Gives every client equally many examples, in random order.

    Args:
      labels: [num_examples] integers.
      num_clients: at least 1, at most num_examples.
      rng: is advanced in place.

    Returns:
      A Population; its sizes differ by at most 1.

    Raises:
      ValueError: if there are more clients than examples.
    """
    check_split(labels, num_clients)
    size, larger = divmod(len(labels), num_clients)
    sizes = size + (np.arange(num_clients) < larger)
    return from_sizes(rng.permutation(len(labels)), sizes)


def dirichlet(
    labels: np.ndarray,
    num_clients: int,
    alpha: float,
    rng: np.random.RandomState,
    *,
    min_size: int = MIN_SIZE,
    max_draws: int = 1000,
) -> Population:
    """Gives each class to the clients in shares drawn from a Dirichlet.

    Class by class, shares p ~ Dirichlet(alpha, ..., alpha) are drawn, set to zero
    for clients who already hold num_examples / num_clients examples, and scaled to
    sum to 1. The whole split is drawn again until the smallest client has `min_size`
    examples.

    Args:
      labels: [num_examples] integers.
      num_clients: at least 1.
      alpha: above 0; the smaller it is, the fewer classes a client has.
      rng: is advanced in place.
      min_size: examples that every client must get, at least 1.
      max_draws: number of draws after which the function gives up.

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
    check_split(labels, num_clients, min_size=min_size, alpha=alpha)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(max_draws):
        orders, cuts = [], []
        sizes = np.zeros(num_clients, np.int64)
        for indices in members:
            orders.append(rng.permutation(indices))
            takes = sizes < len(labels) / num_clients
            cuts.append(_cut(dirichlet_shares(alpha, takes, rng), len(indices)))
            sizes += np.diff(cuts[-1], prepend=0, append=len(indices))
        if sizes.min() >= min_size:
            pieces = zip(*map(np.split, orders, cuts), strict=True)
            parts = [rng.permutation(np.concatenate(p)) for p in pieces]
            return to_population(parts, num_examples=len(labels))
    raise _too_uneven("dirichlet", num_clients, alpha, min_size, max_draws)


def quantity(
    labels: np.ndarray,
    num_clients: int,
    alpha: float,
    rng: np.random.RandomState,
    *,
    min_size: int = MIN_SIZE,
    max_draws: int = 1000,
) -> Population:
    """Gives clients unequal numbers of examples of all classes alike.

    Args:
      labels: [num_examples] integers.
      num_clients: at least 1.
      alpha: above 0; sizes are in proportion to a Dirichlet(alpha, ..., alpha).
      rng: is advanced in place.
      min_size: examples that every client must get, at least 1.
      max_draws: number of draws after which the function gives up.

    Returns:
      A Population.

    Raises:
      ValueError: if an argument is out of range, if there are too few examples, or
        if no draw was even enough.

    References:
      Li et al., Federated Learning on Non-IID Data Silos: An Experimental Study,
      ICDE 2022, section IV-C, https://arxiv.org/abs/2102.02079.
    """
    check_split(labels, num_clients, min_size=min_size, alpha=alpha)
    order = rng.permutation(len(labels))
    everyone = np.ones(num_clients, bool)
    for _ in range(max_draws):
        cuts = _cut(dirichlet_shares(alpha, everyone, rng), len(labels))
        sizes = np.diff(cuts, prepend=0, append=len(labels))
        if sizes.min() >= min_size:
            return from_sizes(order, sizes)
    raise _too_uneven("quantity", num_clients, alpha, min_size, max_draws)


def shards(
    labels: np.ndarray,
    num_clients: int,
    classes_per_client: int,
    rng: np.random.RandomState,
) -> Population:
    """Gives each client one shard of each of a few classes.

    The classes are cut into num_clients * classes_per_client shards. Larger classes
    give more shards, so that shards are as equal as whole classes allow.

    Args:
      labels: [num_examples] integers.
      num_clients: at least 1.
      classes_per_client: number of distinct classes of each client, at least 1.
      rng: is advanced in place.

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
    check_split(labels, num_clients, classes_per_client=classes_per_client)
    classes, counts = np.unique(labels, return_counts=True)
    num_shards = _num_shards(counts, num_clients, classes_per_client)
    pieces = [
        np.array_split(rng.permutation(np.flatnonzero(labels == label)), number)
        for label, number in zip(classes, num_shards, strict=True)
    ]
    parts = []
    for _ in range(num_clients):
        # A client takes from the classes with most shards left, or the last clients
        # would find too few different classes. Ties are broken at random.
        left = np.array([len(piece) for piece in pieces])
        chosen = np.lexsort((rng.permutation(len(classes)), -left))
        chosen = chosen[:classes_per_client]
        part = np.concatenate([pieces[c].pop() for c in chosen])
        parts.append(rng.permutation(part))
    dealt = [parts[client] for client in rng.permutation(num_clients)]
    return to_population(dealt, num_examples=len(labels))


PARTITIONERS: dict[str, Callable[..., Population]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "quantity": quantity,
    "shards": shards,
    "pathological": lambda labels, *args, **options: to_population(
        pathological(labels, *args, **options), num_examples=len(labels)
    ),
    "dirichlet_in_turn": lambda labels, *args, **options: to_population(
        dirichlet_in_turn(labels, *args, **options), num_examples=len(labels)
    ),
}
"""Name -> (labels, num_clients, rng, options) -> a Population."""

OPTIONS: dict[str, tuple[str, ...]] = {
    "iid": (),
    "dirichlet": ("alpha", "min_size"),
    "quantity": ("alpha", "min_size"),
    "shards": ("classes_per_client",),
    "pathological": ("classes_per_client",),
    "dirichlet_in_turn": ("alpha",),
}
"""name -> the options of `partition` that it takes."""


@checked
def partition(
    name: str,
    labels: np.ndarray,
    num_clients: int,
    *,
    seed: Seed,
    alpha: Alpha = 0.1,
    min_size: MinSize = MIN_SIZE,
    classes_per_client: ClassesPerClient = 2,
) -> Population:
    """Splits examples by the partitioner of a given name.

    Args:
      name: a key of `PARTITIONERS`; each of them names its source.
      labels: [num_examples] integers.
      num_clients: at least 1.
      seed: in [0, 2**32).

    The other fields are described where they are declared, in the signature.

    Returns:
      A Population.

    Raises:
      ValueError: if the name is unknown, an argument is out of range, or the split is
        impossible.

    Examples:
      >>> partition("iid", np.zeros(10, int), 4, seed=0).sizes
      array([3, 3, 2, 2])
    """
    if name not in PARTITIONERS:
        known = ", ".join(PARTITIONERS)
        raise ValueError(f"name must be one of {known}, got {name!r}.")
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


def _cut(shares: np.ndarray, length: int) -> np.ndarray:
    """Gives the places where parts in proportion to the shares end, of `length`."""
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
    """Counts shards per class: each next one cuts the class with the largest shards."""
    num_shards = np.ones_like(counts)
    # A client takes a class at most once, and no shard may be empty.
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
