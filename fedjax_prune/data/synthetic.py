"""Generated populations of any number of clients, each with examples of its own.

`synthetic` is synthetic(alpha, beta) of FedProx, whose clients have vectors x of 60
numbers. Client k draws

    u_k ~ N(0, alpha^2),  W_k ~ N(u_k, 1) [60, 10],  b_k ~ N(u_k, 1) [10],
    B_k ~ N(0, beta^2),   v_k ~ N(B_k, 1) [60],

and its examples x ~ N(v_k, diag(1^-1.2, ..., 60^-1.2)) and y = argmax(x W_k + b_k).
alpha is how much the models of the clients differ, and beta how much their inputs do.
As in the published code, alpha and beta are standard deviations. There, too, u_k adds
the same to all logits of an example, so that alpha changes no label.

`synthetic_images` has images of 8 by 8 pixels. For everyone P_c ~ U(0, 1) [4, 4] is the
prototype of class c; client k draws

    g_k ~ N(0, 1) [10],  S_k ~ N(0, 1) [4, 4],

and its examples y ~ softmax(alpha g_k) and P_y + beta S_k / 10 + e / 10, where each
entry of P and S covers 2 by 2 pixels, and e ~ N(0, 1) for each pixel. The result is cut
to [0, 1] and stored as uint8. alpha is the skew of the labels, and beta that of the
style.

Client k has max(2, floor(client_size exp(client_size_sigma z_k))) examples, z_k ~
N(0, 1), at most MOST_TIMES client_size: log-normal sizes, or all alike with sigma 0.

What client k trains on depends on (seed, k) alone and not on the number of clients:
clients are drawn in blocks of BLOCK, each by generators of its own. What a client has
is drawn for whole blocks, and its examples are drawn one after another, so that the
clients after it change nothing.

References:
  Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, section 5.1,
  https://arxiv.org/abs/1812.06127, after Shamir et al., Communication-Efficient
  Distributed Optimization using an Approximate Newton-type Method, ICML 2014,
  https://arxiv.org/abs/1312.7853. LEAF's data of this name,
  https://arxiv.org/abs/1812.01097, have clusters of clients in place of alpha and beta.

Choices: a tenth of each client's examples, at least one, is its validation set, as
FedProx's test set is. The test set has further examples of the first clients.
"""

import functools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, NamedTuple

import numpy as np

from fedjax_prune.data.datasets import DATASETS, DataError
from fedjax_prune.data.population import from_sizes
from fedjax_prune.data.splitting import NumClients
from fedjax_prune.data.validation import OF_CLIENTS, holdout
from fedjax_prune.fields import Rule, Seed, at_least, checked
from fedjax_prune.types import Dataset, Population

BLOCK = 256
"""Clients that share a generator."""
NUM_TEST = 10_000
"""Test examples at least."""
MOST_TIMES = 100
"""The largest client has at most this many times `client_size` examples."""
MOST_EXAMPLES = 2**31 - 1
"""Indices are int32."""

_DIMENSION, _CLASSES, _SIDE = 60, 10, 8
# What a block draws for its sizes, for its clients, for their examples and for those of
# the test set; the last one is for everyone.
_SIZES, _CLIENTS, _TRAIN, _TEST, _EVERYONE = range(5)

ClientSize = Annotated[
    int, at_least(2), "Median examples of a client of generated data."
]
ClientSizeSigma = Annotated[
    float,
    Rule(lambda v: 0 <= v <= 5, "in [0, 5]"),
    "Spread of log-normal client sizes of generated data; 0 makes all of them alike.",
]
SyntheticAlpha = Annotated[
    float,
    at_least(0),
    "Generated data: how much the clients' models, or their labels, differ.",
]
SyntheticBeta = Annotated[
    float, at_least(0), "Generated data: how much the clients' inputs differ."
]


class Generated(NamedTuple):
    """A generated data set.

    Attributes:
      train: the examples of all clients, those for validation included.
      test: test examples.
      population: each client's training examples.
      held_out: each client's validation examples, indices into `train`.
    """

    train: Dataset
    test: Dataset
    population: Population
    held_out: Population


class Spread(NamedTuple):
    """How much clients differ: alpha and beta of the definitions."""

    alpha: float
    beta: float


@checked
def client_sizes(
    num_clients: NumClients,
    *,
    seed: Seed,
    client_size: ClientSize = 5,
    client_size_sigma: ClientSizeSigma = 0.5,
) -> np.ndarray:
    """Draws how many examples each client has, those for validation included.

    Returns:
      [num_clients] int64, at least 2.

    Raises:
      ValueError: if an argument is out of range.

    Examples:
      >>> client_sizes(3, seed=0, client_size=4, client_size_sigma=0).tolist()
      [4, 4, 4]
    """
    blocks = range(-(-num_clients // BLOCK))
    normal = np.concatenate(
        [_normal(_generator(seed, _SIZES, block), BLOCK) for block in blocks]
    )
    logs = client_size_sigma * normal[:num_clients].astype(float)
    sizes = np.floor(client_size * np.exp(logs))
    return np.clip(sizes, 2, MOST_TIMES * client_size).astype(np.int64)


def num_test_examples(num_clients: int) -> int:
    """Counts the examples of a generated test set.

    Args:
      num_clients: at least 1.
    """
    return int(_test_sizes(num_clients).sum())


@checked
def generate(
    name: str,
    num_clients: NumClients,
    *,
    seed: Seed,
    client_size: ClientSize = 5,
    client_size_sigma: ClientSizeSigma = 0.5,
    synthetic_alpha: SyntheticAlpha = 1.0,
    synthetic_beta: SyntheticBeta = 1.0,
) -> Generated:
    """Generates a population.

    Args:
      name: a key of `GENERATORS`.
      num_clients: at least 1.
      seed: in [0, 2^32).

    The other fields are described where they are declared, in the signature.

    Returns:
      Its examples; those of a client lie side by side. Vectors are float32
      [num_examples, 60, 1, 1], images uint8 [num_examples, 8, 8, 1]; labels int32. A
      client has as many test examples as any other, the first 10,000 clients if there
      are more.

    Raises:
      ValueError: if the name is unknown or an argument is out of range.
      DataError: if there are 2^31 examples or more.

    Examples:
      >>> found = generate("synthetic", 2, seed=0, client_size=4, client_size_sigma=0)
      >>> found.population.sizes.tolist(), found.held_out.sizes.tolist()
      ([3, 3], [1, 1])
    """
    if name not in GENERATORS:
        raise ValueError(f"name must be one of {', '.join(GENERATORS)}, got {name!r}.")
    sizes = client_sizes(
        num_clients,
        seed=seed,
        client_size=client_size,
        client_size_sigma=client_size_sigma,
    )
    if sizes.sum() > MOST_EXAMPLES:
        raise DataError(
            f"{name} must have at most {MOST_EXAMPLES:,} examples, got "
            f"{sizes.sum():,}: lower data.client_size or data.num_clients."
        )
    test_sizes = _test_sizes(num_clients)
    spread = Spread(synthetic_alpha, synthetic_beta)
    everyone = from_sizes(np.arange(sizes.sum(), dtype=np.int32), sizes)
    return Generated(
        _draw(name, seed, _TRAIN, sizes, spread),
        _draw(name, seed, _TEST, test_sizes, spread),
        *holdout(everyone, OF_CLIENTS, seed),
    )


def _test_sizes(num_clients: int) -> np.ndarray:
    """Of the clients that have test examples, the first ones of the population."""
    tested = min(num_clients, NUM_TEST)
    return np.full(tested, -(-NUM_TEST // tested))


def _draw(
    name: str, seed: int, part: int, sizes: np.ndarray, spread: Spread
) -> Dataset:
    """Draws the examples of clients of given sizes, block by block on all cores."""
    info, draw = DATASETS[name], GENERATORS[name]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    dtype = np.float32 if info.kind == "vector" else np.uint8
    images = np.empty((offsets[-1], *info.image_shape), dtype)
    labels = np.empty(offsets[-1], np.int32)

    def fill(block: int) -> None:
        first = block * BLOCK
        last = min(first + BLOCK, len(sizes))
        place = slice(offsets[first], offsets[last])
        images[place], labels[place] = draw(
            seed, part, block, sizes[first:last], spread
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(fill, range(-(-len(sizes) // BLOCK))):
            pass
    return Dataset(images, labels)


def _draw_vectors(
    seed: int, part: int, block: int, sizes: np.ndarray, spread: Spread
) -> tuple[np.ndarray, np.ndarray]:
    """Draws vectors and labels of the first clients of a block, as the formulas say."""
    of_clients = _generator(seed, _CLIENTS, block)
    mean, centre = _normal(of_clients, 2, BLOCK, 1)
    inputs = spread.beta * centre + _normal(of_clients, BLOCK, _DIMENSION)
    # The last row is the bias.
    weights = _normal(of_clients, BLOCK, _DIMENSION + 1, _CLASSES)
    weights += spread.alpha * mean[:, :, None]
    deviation = np.arange(1, _DIMENSION + 1, dtype=np.float32) ** -0.6
    vectors = np.repeat(inputs[: len(sizes)], sizes, axis=0)
    of_examples = _generator(seed, part, block)
    vectors += deviation * _normal(of_examples, *vectors.shape)
    labels = np.empty(len(vectors), np.int32)
    stops = np.cumsum(sizes)
    for client, (start, stop) in enumerate(zip(stops - sizes, stops, strict=True)):
        # In float32 the order of addition, which CPUs choose, would decide near ties.
        own, inputs = weights[client].astype(float), vectors[start:stop].astype(float)
        labels[start:stop] = (inputs @ own[:-1] + own[-1]).argmax(axis=1)
    return vectors[:, :, None, None], labels


def _draw_images(
    seed: int, part: int, block: int, sizes: np.ndarray, spread: Spread
) -> tuple[np.ndarray, np.ndarray]:
    """Draws images and labels of the first clients of a block, as the formulas say."""
    half = _SIDE // 2
    prototypes = _generator(seed, _EVERYONE, 0).random((_CLASSES, half, half))
    of_clients = _generator(seed, _CLIENTS, block)
    skews = spread.alpha * _normal(of_clients, BLOCK, _CLASSES)
    styles = spread.beta * _normal(of_clients, BLOCK, half, half) / 10
    owners = np.repeat(np.arange(len(sizes)), sizes)
    of_examples = _generator(seed, part, block)
    noise = _normal(of_examples, len(owners), _SIDE, _SIDE) / 10
    of_labels = _generator(seed, part, block, 1)
    # The largest of logits plus Gumbel numbers is drawn from their softmax.
    gumbel = -np.log(of_labels.standard_exponential((len(owners), _CLASSES)))
    labels = (skews[owners] + gumbel).argmax(axis=1)
    coarse = prototypes[labels] + styles[owners]
    pixels = coarse.repeat(2, axis=1).repeat(2, axis=2) + noise
    images = np.rint(255 * pixels.clip(0, 1)).astype(np.uint8)
    return images[..., None], labels.astype(np.int32)


GENERATORS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "synthetic": _draw_vectors,
    "synthetic_images": _draw_images,
}
"""Name of a data set -> (seed, part, block, sizes, spread) -> images and labels."""


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Draws normal numbers with 16 bits each, six times as fast as NumPy.

    They are the quantiles of N(0, 1) at (i + 1/2) / 65,536, each with the same
    probability: their variance is 0.99998, and none is beyond 4.4.

    Returns:
      float32. If the first axis is longer, the numbers before stay the same.
    """
    count = math.prod(shape)
    words = rng.bit_generator.random_raw(-(-count // 4))
    drawn = np.take(_quantiles(), words.view(np.uint16)[:count], mode="clip")
    return drawn.reshape(shape)


@functools.cache
def _quantiles() -> np.ndarray:
    """Quantiles of the normal distribution, [2^16] float32."""
    # A quarter as slow to import as JAX, and needed for generated data alone.
    from scipy.special import ndtri

    return ndtri((np.arange(2**16) + 0.5) / 2**16).astype(np.float32)


def _generator(seed: int, *numbers: int) -> np.random.Generator:
    # No client has this id, so no draw for a client, such as holdout's, is the same.
    words = np.random.SeedSequence((seed, 2**32 - 1, *numbers))
    return np.random.Generator(np.random.SFC64(words))
