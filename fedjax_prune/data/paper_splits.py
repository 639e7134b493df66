"""The splits of AutoFLIP's experiments, in which clients draw in turn.

References:
  https://github.com/ChristianInterno/AutoFLIP. Its pathological split can leave no
  class for the last clients; here such an assignment is drawn again.
"""

import numpy as np

from fedjax_prune.data.splitting import check_split, dirichlet_shares

MAX_DRAWS = 1000


def pathological(
    labels: np.ndarray,
    num_clients: int,
    classes_per_client: int,
    rng: np.random.RandomState,
) -> list[np.ndarray]:
    """Gives each client one shard of each of a few classes.

    Every class is cut into floor(num_clients classes_per_client / num_classes) shards
    of nearly equal size. One client after another draws distinct classes, with a
    probability proportional to the shards that are left.

    Args:
      labels: [num_examples] integers.
      num_clients: at least 1.
      classes_per_client: number of distinct classes of each client, at least 1.
      rng: is advanced in place.

    Returns:
      For each client its indices, [size] int64.

    Raises:
      ValueError: if an argument is out of range, if there are not enough shards, if a
        class has fewer examples than shards, or if no draw gave each client enough
        classes.
    """
    check_split(labels, num_clients, classes_per_client=classes_per_client)
    classes, counts = np.unique(labels, return_counts=True)
    num_shards = num_clients * classes_per_client // len(classes)
    if num_shards * len(classes) < num_clients * classes_per_client:
        raise ValueError(
            "num_clients * classes_per_client must be a multiple of the "
            f"{len(classes)} classes, got {num_clients} * {classes_per_client}."
        )
    if counts.min() < num_shards:
        raise ValueError(
            "num_clients * classes_per_client / num_classes must be at most the "
            f"{counts.min()} examples of class {classes[counts.argmin()]}, or some "
            f"shards are empty, got {num_clients} * {classes_per_client} / "
            f"{len(classes)}."
        )
    for _ in range(MAX_DRAWS):
        left = np.full(len(classes), num_shards)
        chosen = []
        while len(chosen) < num_clients and (left > 0).sum() >= classes_per_client:
            draw = rng.choice(
                len(classes), classes_per_client, replace=False, p=left / left.sum()
            )
            left[draw] -= 1
            chosen.append(draw)
        if len(chosen) == num_clients:
            break
    else:
        raise ValueError(
            f"pathological: none of {MAX_DRAWS} draws gave each of {num_clients} "
            f"clients {classes_per_client} classes."
        )
    shards = [
        np.array_split(rng.permutation(np.flatnonzero(labels == label)), num_shards)
        for label in classes
    ]
    return [
        np.concatenate([shards[c].pop(rng.randint(len(shards[c]))) for c in draw])
        for draw in chosen
    ]


def dirichlet_in_turn(
    labels: np.ndarray,
    num_clients: int,
    alpha: float,
    rng: np.random.RandomState,
) -> list[np.ndarray]:
    """Gives clients in turn class shares of at most 1 / num_clients of the data.

    A client draws p ~ Dirichlet(alpha, ..., alpha) over the classes that have examples
    left and takes floor(p_c floor(num_examples / num_clients)) of class c. If some
    class has fewer, it is left out, p is drawn again, and each count is multiplied by a
    number from U(0, 1), until there are enough. Some examples belong to no client.

    Args:
      labels: [num_examples] integers.
      num_clients: at least 1.
      alpha: above 0.
      rng: is advanced in place.

    Returns:
      For each client its indices, [size] int64.

    Raises:
      ValueError: if an argument is out of range or a client ends without examples.
    """
    check_split(labels, num_clients, alpha=alpha)
    per_client = len(labels) // num_clients
    pools = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    left = np.array([len(pool) for pool in pools])
    parts = []
    for client in range(num_clients):
        open_classes = left > 0
        counts = np.zeros(len(pools), int)
        shrink = False
        while open_classes.any():
            shares = np.zeros(len(pools))
            everyone = np.ones(open_classes.sum(), bool)
            shares[open_classes] = dirichlet_shares(alpha, everyone, rng)
            wanted = np.floor(shares * per_client)
            if shrink:
                wanted = np.floor(wanted * rng.random_sample(len(pools)))
            counts = wanted.astype(int)
            if (counts <= left).all():
                break
            open_classes &= counts <= left
            counts, shrink = np.zeros(len(pools), int), True
        if counts.sum() == 0:
            raise ValueError(
                f"dirichlet_in_turn: alpha {alpha} leaves client {client} of "
                f"{num_clients} without examples: take another seed, a larger alpha "
                "or fewer clients."
            )
        starts = np.array([len(pool) for pool in pools]) - left
        part = [
            pool[start : start + n]
            for pool, start, n in zip(pools, starts, counts, strict=True)
        ]
        parts.append(np.concatenate(part))
        left = left - counts
    return parts
