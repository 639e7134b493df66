"""Runs on generated populations: their data, their refusals, and that they learn."""

import numpy as np
import pytest

from configs import synthetic
from fedjax_prune.data.synthetic import client_sizes
from fedjax_prune.runs import data_memory, estimates, train
from fedjax_prune.runs.experiment import load_data
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.settings import SettingsError


def small(kind, **changes):
    config = synthetic.get_config(kind)
    changes = {"devices": 1, "data.num_clients": 50, "eval.num_clients": 5} | changes
    config.update_from_flattened_dict(changes)
    return config


def test_a_run_has_its_clients_and_a_test_set_of_its_own():
    data = load_data(small("images", **{"eval.num_examples": 30, "data.size": 16}))
    assert data.train.images.shape[1:] == (16, 16, 1)
    assert len(data.test.labels) == 30 and data.held_out
    sizes = client_sizes(50, seed=2020, client_size=5, client_size_sigma=0.5)
    held_out = data.validation(np.arange(50)).sizes
    np.testing.assert_array_equal(data.population.sizes + held_out, sizes)
    assert set(data.hashes) == {"train", "test", "population"}


def test_examples_that_do_not_fit_the_memory_are_refused(monkeypatch):
    """Vectors have 240 bytes, a CPU device has a copy of them, 10,000 are of tests."""
    config = small(
        "vectors", **{"data.client_size": 1000, "data.client_size_sigma": 0.0}
    )
    monkeypatch.setattr(data_memory, "machine_bytes", lambda: 2 * 60_000 * 240 - 1)
    with pytest.raises(SettingsError) as error:
        load_data(config)
    assert error.value.problems == [
        "data.client_size must be smaller: 60,000 examples of 50 clients take 0.0 GB, "
        "and this machine has 0.0 GB, got 1000"
    ]


def test_more_clients_than_examples_are_refused_for_other_data():
    config = small("images", **{"data.name": "digits", "data.num_clients": 1443})
    config.data.partitioner = "iid"
    with pytest.raises(
        SettingsError, match="num_clients must be at most 1442 for 1442"
    ):
        load_data(config)


def test_the_estimate_knows_the_sizes_without_the_examples(tmp_path):
    """600 multiply-accumulates, ten clients, five epochs, four of five examples."""
    config = small("vectors", rounds=7, **{"data.client_size_sigma": 0.0})
    found = estimates.estimate(config, tmp_path)
    assert found.macs == pytest.approx(7 * 3 * 600 * 10 * 5 * 4)
    assert found.sent == 7 * 2 * 10 * 4 * 610


def test_a_small_cnn_learns_the_images(tmp_path):
    """Ten classes: chance is 10 %."""
    config = small(
        "images",
        rounds=30,
        **{"eval.every": 30, "eval.num_examples": 500, "model.width": 0.5},
    )
    config.data.synthetic_alpha = 0.0
    config.data.client_size = 20
    assert train.run(config, tmp_path) == 0
    assert read_metrics(tmp_path)[-1]["eval/global_dense/accuracy"] > 0.6
