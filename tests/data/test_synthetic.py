"""Generated populations follow their formulas, client by client."""

import numpy as np
import pytest

from fedjax_prune.data import synthetic
from fedjax_prune.data.datasets import DATASETS, DataError
from fedjax_prune.data.load import load
from fedjax_prune.data.synthetic import GENERATORS, client_sizes, generate

ALPHA, BETA = 0.5, 2.0
SPREAD = {"synthetic_alpha": ALPHA, "synthetic_beta": BETA}
FIXED = {"client_size": 3, "client_size_sigma": 0.0}


def softmax(logits):
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


def test_vectors_follow_the_formulas_of_fedprox():
    """A loop over examples with the same random numbers."""
    found = generate("synthetic", 4, seed=7, **FIXED, **SPREAD)
    clients = synthetic._generator(7, synthetic._CLIENTS, 0)
    examples = synthetic._generator(7, synthetic._TRAIN, 0)
    blocks = synthetic.BLOCK
    normal_u, normal_b = clients.standard_normal((2, blocks, 1), np.float32)
    normal_v = clients.standard_normal((blocks, 60), np.float32)
    normal_w = clients.standard_normal((blocks, 61, 10), np.float32)
    for k in range(4):
        u, b = ALPHA * normal_u[k, 0], BETA * normal_b[k, 0]
        weights = u + normal_w[k].astype(float)
        v = b + normal_v[k].astype(float)
        for i in range(3):
            variance = np.array([j**-1.2 for j in range(1, 61)])
            noise = examples.standard_normal(60, np.float32)
            x = v + np.sqrt(variance) * noise
            y = softmax(x @ weights[:60] + weights[60]).argmax()
            place = 3 * k + i
            np.testing.assert_allclose(
                found.train.images[place, :, 0, 0], x, rtol=1e-5, atol=1e-5
            )
            assert found.train.labels[place] == y


def test_vectors_have_the_moments_of_the_definition():
    """Standard errors: 0.02 for the variances over 20,000 clients."""
    n = 20_000
    found = generate(
        "synthetic", n, seed=1, client_size=2, client_size_sigma=0.0, synthetic_beta=2.0
    )
    pairs = found.train.images.reshape(n, 2, 60).astype(float)
    within = (pairs[:, 0] - pairs[:, 1]).var(axis=0) / 2
    np.testing.assert_allclose(within, np.arange(1, 61) ** -1.2, rtol=0.05)
    # Of two numbers of a vector, B_k is common: their covariance is beta^2.
    covariance = np.cov(pairs[:, 0, 20], pairs[:, 0, 50])
    assert covariance[0, 1] == pytest.approx(4, rel=0.05)
    assert covariance[0, 0] == pytest.approx(4 + 1 + 21**-1.2, rel=0.05)
    assert abs(pairs.mean()) < 0.05
    assert np.bincount(found.train.labels, minlength=10).min() > 0.08 * 2 * n


def test_images_follow_their_formulas():
    found = generate("synthetic_images", 4, seed=7, **FIXED, **SPREAD)
    prototypes = synthetic._generator(7, synthetic._EVERYONE, 0).random((10, 4, 4))
    clients = synthetic._generator(7, synthetic._CLIENTS, 0)
    skews = clients.standard_normal((synthetic.BLOCK, 10))
    styles = clients.standard_normal((synthetic.BLOCK, 4, 4))
    examples = synthetic._generator(7, synthetic._TRAIN, 0)
    for k in range(4):
        for i in range(3):
            noise = examples.standard_normal((8, 8), np.float32)
            label = found.train.labels[3 * k + i]
            image = np.empty((8, 8))
            for row in range(8):
                for column in range(8):
                    cell = row // 2, column // 2
                    image[row, column] = prototypes[label][cell]
                    image[row, column] += BETA * styles[k][cell] / 10
                    image[row, column] += noise[row, column] / 10
            expected = np.rint(255 * image.clip(0, 1))
            np.testing.assert_array_equal(
                found.train.images[3 * k + i, :, :, 0], expected
            )
    # Labels are drawn from each client's softmax.
    many = generate(
        "synthetic_images", 2, seed=7, client_size=20_000, client_size_sigma=0.0
    )
    for k in range(2):
        own = many.train.labels[20_000 * k : 20_000 * (k + 1)]
        shares = np.bincount(own, minlength=10) / 20_000
        np.testing.assert_allclose(shares, softmax(skews[k]), atol=0.012)


def of_client(found, k):
    """All examples of a client, those held out included."""
    first = found.population.offsets[k] + found.held_out.offsets[k]
    last = found.population.offsets[k + 1] + found.held_out.offsets[k + 1]
    return found.train.images[first:last], found.train.labels[first:last]


@pytest.mark.parametrize("name", GENERATORS)
def test_a_client_does_not_depend_on_the_number_of_clients(name):
    sets = [generate(name, n, seed=3) for n in (3, 256, 300, 2000)]
    for k in (0, 1, 2, 255, 299):
        having = [s for s in sets if len(s.population.sizes) > k]
        images, labels = of_client(having[-1], k)
        for other in having[:-1]:
            np.testing.assert_array_equal(of_client(other, k)[0], images)
            np.testing.assert_array_equal(of_client(other, k)[1], labels)
            np.testing.assert_array_equal(
                other.held_out.of(k) - other.held_out.of(k)[0],
                having[-1].held_out.of(k) - having[-1].held_out.of(k)[0],
            )
    assert not np.array_equal(
        of_client(sets[0], 0)[0][:2], of_client(sets[0], 1)[0][:2]
    )
    other = generate(name, 3, seed=4)
    assert not np.array_equal(other.train.images[:2], sets[0].train.images[:2])


@pytest.mark.parametrize("name", GENERATORS)
def test_what_a_population_is_made_of(name):
    found = generate(name, 500, seed=0, client_size=12)
    info = DATASETS[name]
    sizes = client_sizes(500, seed=0, client_size=12)
    assert found.train.images.shape == (sizes.sum(), *info.image_shape)
    assert found.train.labels.dtype == np.int32
    held = np.clip(np.rint(0.1 * sizes), 1, None)
    np.testing.assert_array_equal(found.held_out.sizes, held)
    np.testing.assert_array_equal(found.population.sizes, sizes - held)
    every = np.concatenate([found.population.indices, found.held_out.indices])
    np.testing.assert_array_equal(np.sort(every), np.arange(sizes.sum()))
    # 20 test examples of each client, which are not those that it holds.
    assert len(found.test.labels) == 10_000
    means = found.test.images.reshape(500, 20, -1).mean(axis=1).astype(float)
    for k in range(5):
        own = of_client(found, k)[0].reshape(-1, means.shape[1]).mean(axis=0)
        assert ((means - own) ** 2).sum(axis=1).argmin() == k or name != "synthetic"
    assert not set(map(bytes, found.test.images)) & set(map(bytes, found.train.images))


def test_the_test_set_is_of_the_first_clients_if_there_are_many():
    found = generate("synthetic_images", 12_000, seed=0, client_size=2)
    assert len(found.test.labels) == 10_000


def test_sizes_are_log_normal():
    """The logarithm of the size has the median log(40) and the deviation 0.5."""
    logs = np.log(client_sizes(20_000, seed=0, client_size=40, client_size_sigma=0.5))
    assert np.median(logs) == pytest.approx(np.log(40), abs=0.03)
    assert logs.std() == pytest.approx(0.5, abs=0.02)
    wide = client_sizes(20_000, seed=0, client_size=3, client_size_sigma=5.0)
    assert (wide.min(), wide.max()) == (2, 300)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"client_size": 1}, "client_size must be at least 2, got 1"),
        ({"client_size_sigma": 5.1}, r"client_size_sigma must be in \[0, 5\], got 5.1"),
        ({"synthetic_alpha": -1.0}, "synthetic_alpha must be at least 0, got -1.0"),
        ({"synthetic_beta": np.inf}, "synthetic_beta must be finite and at least 0"),
        ({"seed": -1}, r"seed must be in \[0, 2\^32\), got -1"),
        ({"num_clients": 0}, "num_clients must be at least 1, got 0"),
        ({"name": "nist"}, "name must be one of synthetic, synthetic_images, got"),
    ],
)
def test_arguments_out_of_range_are_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        generate(**{"name": "synthetic", "num_clients": 2, "seed": 0} | fields)


def test_too_many_examples_are_refused_before_any_is_drawn():
    with pytest.raises(DataError, match=r"at most 2,147,483,647 examples, got 4,\d"):
        generate("synthetic", 4, seed=0, client_size=2**30, client_size_sigma=0.0)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generated_set_is_not_read_as_others(name):
    with pytest.raises(ValueError, match=f"{name} comes by client: .* with generate"):
        load(name)
