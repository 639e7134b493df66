"""Accuracies of a pruned run as delivered and under the masks of its last round."""

import jax
import numpy as np
import pytest

from fedjax_prune.engine.evaluate import correct_examples
from fedjax_prune.runs import train
from fedjax_prune.runs.experiment import load_data
from fedjax_prune.runs.learning import make_learning
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.start import restore
from fedjax_prune.runs.workdir import read_usable_config
from launch.reproduce.last_masks import accuracies, under_last_masks
from tests.small_runs import PRUNED_FIELDS, pruned_config


@pytest.fixture(scope="module")
def of_participants(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("participants") / "seed=0"
    fields = PRUNED_FIELDS | {"mask_schedule": "participants", "threshold": 0.7}
    config = pruned_config(fields=fields, cohort_size=2, devices=1)
    assert train.run(config, workdir) == 0
    return workdir


def test_as_delivered_is_what_the_run_has_measured(of_participants):
    delivered, _ = accuracies(of_participants)
    last = read_metrics(of_participants)[-1]
    assert delivered == pytest.approx(last["eval/global_dense/accuracy"], rel=1e-6)


def test_the_masks_of_the_last_round_are_those_of_its_clients(of_participants):
    learning = make_learning(read_usable_config(of_participants))
    test = jax.device_put(load_data(read_usable_config(of_participants)).test)
    state, _ = restore(learning, of_participants)
    params = jax.tree.map(np.multiply, state.params, state.server.masks)
    variables = learning.algorithm.deliver(state)
    assert any(
        (np.asarray(a) != b).any()
        for a, b in zip(
            jax.tree.leaves(params), jax.tree.leaves(variables.params), strict=True
        )
    )
    variables = variables._replace(params=params)
    right = np.asarray(correct_examples(learning.task, variables, test))
    delivered, last = accuracies(of_participants)
    assert last == pytest.approx(right.mean(), rel=1e-6)
    text = under_last_masks({"v3": [of_participants]})
    cells = [cell.strip() for cell in text.splitlines()[-1].split("|")[1:-1]]
    expected = [f"{delivered:.1%}", f"{last:.1%}", f"{last - delivered:+.1%}"]
    assert cells == ["v3", "1", *expected]
