"""Data that comes with its clients, and the splits of AutoFLIP's experiments."""

import json

import numpy as np
import pytest

from fedjax_prune.data.by_client import SYMBOLS, WINDOW, load_by_client
from fedjax_prune.data.load import DataError, resize
from fedjax_prune.data.paper_splits import dirichlet_in_turn, pathological
from fedjax_prune.types import Dataset

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 500))


def test_text_windows_by_hand(tmp_path):
    speech = "".join(SYMBOLS[40 + i % 20] for i in range(1500))
    play = "".join(f"ANNA:\n{speech[i : i + 500]}\n\n" for i in (0, 500, 1000))
    play += "BOB:\nShort.\n\n" * 3 + f"CARL:\n{speech}\n\n"
    (tmp_path / "play.txt").write_text(play)
    found = load_by_client("shakespeare", tmp_path, 1, seed=0)
    # Three speeches joined by two line ends; Bob says too little, Carl speaks once.
    total = 1502 - WINDOW
    assert found.population.sizes.tolist() == [total * 9 // 10]
    assert found.held_out.sizes.tolist() == [total - total * 9 // 10 - WINDOW + 1]
    images, labels = found.dataset
    assert images.shape == (total, WINDOW, 1, 1) and images.dtype == np.uint8
    text = [SYMBOLS[i] for i in images[3, :, 0, 0]]
    assert "".join(text) == speech[3 : 3 + WINDOW]
    assert SYMBOLS[labels[3]] == speech[3 + WINDOW]
    last_seen = found.population.indices[0, -1] + WINDOW
    assert found.held_out.indices[0, 0] == last_seen


def test_symbols_are_leafs():
    assert len(SYMBOLS) == len(set(SYMBOLS)) == 80


def test_speeches_from_json(tmp_path):
    text = "ab cd " * 200
    content = {"users": ["X", "Y"], "user_data": {"X": [text] * 3, "Y": {"x": [text]}}}
    (tmp_path / "speakers.json").write_text(json.dumps(content))
    found = load_by_client("shakespeare", tmp_path, 1, seed=0)
    assert len(found.population.sizes) == 1
    with pytest.raises(DataError, match=r"1 of them .* must be at most that, got 2"):
        load_by_client("shakespeare", tmp_path, 2, seed=0)


def test_images_of_writers(tmp_path):
    rng = np.random.default_rng(0)
    users = [f"w{i}" for i in range(4)]
    data = {
        user: {"x": rng.random((20, 784)).round(3).tolist(), "y": [i] * 20}
        for i, user in enumerate(users)
    }
    (tmp_path / "all_data_0.json").write_text(
        json.dumps({"users": users, "user_data": data})
    )
    found = load_by_client("femnist", tmp_path, 3, num_train=50, seed=1)
    order = np.random.RandomState(1).permutation(4)[:3]
    expected = np.repeat(order, [20, 20, 10])
    np.testing.assert_array_equal(found.dataset.labels, expected)
    pixels = np.round(255 * np.array(data[users[order[0]]]["x"][0])).reshape(28, 28)
    np.testing.assert_array_equal(found.dataset.images[0, :, :, 0], pixels)
    assert found.population.sizes.tolist() == [18, 18, 9]
    assert found.held_out.sizes.tolist() == [2, 2, 1]
    both = [*found.population.indices.ravel(), *found.held_out.indices.ravel()]
    assert set(both) == set(range(50))


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(DataError, match=r"no .*json of LEAF and no .*txt"):
        load_by_client("shakespeare", tmp_path, 1, seed=0)
    with pytest.raises(DataError, match=r"no all_data_.*json .* TFDS's emnist has no"):
        load_by_client("femnist", tmp_path, 1, seed=0)
    (tmp_path / "all_data_0.json").write_text('{"users": ["a"]}')
    with pytest.raises(DataError, match="is not json of LEAF"):
        load_by_client("femnist", tmp_path, 1, seed=0)


@pytest.mark.parametrize("seed", range(5))
def test_pathological_clients_have_two_whole_shards(seed):
    parts = pathological(LABELS, 20, 2, np.random.RandomState(seed))
    assert len(parts) == 20 and {len(part) for part in parts} == {250}
    assert len(np.unique(np.concatenate(parts))) == 5000
    for part in parts:
        classes, counts = np.unique(LABELS[part], return_counts=True)
        assert len(classes) == 2 and (counts == 125).all()


def test_pathological_limits():
    rng = np.random.RandomState(0)
    with pytest.raises(ValueError, match=r"multiple of the 10 classes, got 3 \* 2"):
        pathological(LABELS, 3, 2, rng)
    with pytest.raises(ValueError, match=r"classes_per_client must be in \[1, 10\]"):
        pathological(LABELS, 20, 11, rng)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0])
def test_dirichlet_in_turn_takes_at_most_an_even_share(alpha):
    parts = dirichlet_in_turn(LABELS, 20, alpha, np.random.RandomState(0))
    taken = np.concatenate(parts)
    assert len(np.unique(taken)) == len(taken)
    sizes = np.array([len(part) for part in parts])
    assert sizes.min() > 0 and sizes.max() <= 250
    assert 0.6 * 5000 < len(taken) <= 5000
    # Each class is handed out from its front.
    for label in range(10):
        own = np.sort(taken[LABELS[taken] == label])
        front = np.flatnonzero(label == LABELS)[: len(own)]
        np.testing.assert_array_equal(own, front)


def test_resized_images():
    """A ramp stays a ramp; a constant stays what it is."""
    ramp = np.tile(np.arange(8, dtype=np.uint8) * 30, (1, 8, 1))[..., None]
    images = np.concatenate([ramp, np.full_like(ramp, 77)])
    found = resize(Dataset(images, np.zeros(2, np.int32)), 4).images
    assert found.shape == (2, 4, 4, 1) and found.dtype == np.uint8
    assert (found[1] == 77).all()
    np.testing.assert_allclose(found[0, 0, 1:3, 0], [75, 135], atol=1)
