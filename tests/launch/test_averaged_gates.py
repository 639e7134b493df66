"""A run with averaged gates beside the run whose gates stay on their clients."""

import jax
import numpy as np

from fedjax_prune.data.population import sizes_of
from fedjax_prune.runs import train
from fedjax_prune.runs.experiment import load_data
from launch.reproduce.averaged_gates import FOLDER, with_averaged_gates
from tests.small_runs import final_state, plain_config, tiny_config
from tests.toys import assert_same_bits


def test_after_a_round_only_the_gates_differ_and_are_their_mean(tmp_path):
    """All clients begin with the same gates, so the first round trains alike."""
    everyone = {"rounds": 1, "cohort_size": 5, "eval.every": 1}
    config = tiny_config(**everyone)
    runs = {"FedDP": [tmp_path / "gated"], "FedAvg": [tmp_path / "plain"]}
    assert train.run(config, tmp_path / "gated") == 0
    assert train.run(plain_config(**everyone), tmp_path / "plain") == 0
    text = with_averaged_gates(runs)
    _, _, *lines = text.splitlines()
    names = [line.split(" | ")[0] for line in lines]
    assert names == ["| FedDP", "| FedAvg", "| FedDP, gates averaged"]
    state, rows = final_state(config, tmp_path / "gated")
    averaged_state, averaged = final_state(config, tmp_path / "gated" / FOLDER)
    assert_same_bits(averaged_state, state)
    assert_same_bits(averaged.client, rows.client)
    sizes = sizes_of(load_data(config).population, np.arange(5))

    def is_mean(found, of):
        mean = np.average(of, axis=0, weights=sizes)
        np.testing.assert_allclose(found, [mean] * 5, rtol=1e-6, atol=1e-7)
        assert np.ptp(of, axis=0).max() > 0

    jax.tree.map(is_mean, averaged.personal, rows.personal)
    log = tmp_path / "gated" / FOLDER / "train.log"
    trained = log.read_text()
    assert with_averaged_gates(runs) == text
    assert log.read_text() == trained
