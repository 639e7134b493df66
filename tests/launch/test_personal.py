"""Accuracies of a run's shared parameters with the gates of other clients."""

import math

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
from launch.reproduce.personal import (
    OWN,
    Swapped,
    by_client_and_class,
    over_clients,
    swapped,
    swapped_gates,
)
from tests.small_runs import tiny_config


def trained(workdir, *, is_gated=True):
    config = tiny_config(rounds=2, cohort_size=5)
    config.eval.num_clients, config.model.gated = 0, is_gated
    assert train.run(config, workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("gated") / "seed=0")


def test_accuracies_by_client_and_by_class_by_hand():
    """Two clients, of which the second lacks class 1; three images of each class."""
    right = np.array([[1, 1, 0, 0, 0, 1], [1, 1, 1, 0, 1, 1]], bool)
    counts = np.array([[4, 2], [5, 0]])
    found = Swapped({OWN: right}, {}, counts, np.array([0, 0, 0, 1, 1, 1]))
    np.testing.assert_allclose(found.of_clients(has=True), [1 / 2, 1])
    np.testing.assert_allclose(found.of_clients(has=False), [math.nan, 2 / 3])
    np.testing.assert_allclose(found.of_classes(has=True), [5 / 6, 1 / 3])
    np.testing.assert_allclose(found.of_classes(has=False), [math.nan, 2 / 3])


def test_own_gates_give_what_the_run_has_measured(gated):
    last, found = read_metrics(gated)[-1], over_clients(swapped(gated))
    np.testing.assert_allclose(
        [found["own validation, own gates"], found["test, own gates"]],
        [last["eval/client_local/mean"], last["eval/client_gated/mean"]],
        rtol=1e-6,
    )


def test_swapped_gates_are_those_of_the_next_client_and_classes_those_of_the_client(
    gated,
):
    """The same numbers, client by client."""
    config = read_usable_config(gated)
    learning, data = make_learning(config), load_data(config)
    state, rows = restore(learning, gated)
    clients = np.arange(config.data.num_clients, dtype=np.int32)
    gates = rows.take(clients).personal
    variables = jax.jit(learning.algorithm.deliver)(state)

    def hits(client, examples):
        own = jax.tree.map(lambda x: x[client], gates)
        on_device = jax.device_put(examples)
        return np.asarray(
            correct_examples(learning.task, variables._replace(personal=own), on_device)
        )

    of_next, has, others, owners = [], [], [], {True: [], False: []}
    for client in clients:
        following = (client + 1) % len(clients)
        of_next.append(hits(following, data.validation_of(client)).mean())
        start, end = data.population.offsets[client : client + 2]
        seen = data.train.labels[data.population.indices[start:end]]
        known = np.isin(data.test.labels, seen)
        right = hits(client, data.test)
        has.append(right[known].mean() if known.any() else math.nan)
        others.append(right[~known].mean() if not known.all() else math.nan)
        owners[7 in seen].append(right[data.test.labels == 7].mean())
    found = over_clients(swapped(gated))
    for column, values in {
        "own validation, another's gates": of_next,
        "test, own gates, classes that it has": has,
        "test, own gates, other classes": others,
    }.items():
        assert found[column] == pytest.approx(np.nanmean(values), rel=1e-6)
    text = by_client_and_class({"FedDP": [gated]})
    of_clients, of_classes = (part.splitlines()[2:] for part in text.split("\n\n"))
    last = f"| {len(clients) - 1} | {len(seen)} | {len(np.unique(seen))} | "
    assert of_clients[-1].startswith(last)
    assert np.isnan(others).any() and not np.isnan(others).all()
    for line, known, other in zip(of_clients, has, others, strict=True):
        shown = "" if math.isnan(other) else f"{other:.1%}"
        assert line.endswith(f"| {known:.1%} | {shown} |")
    shown = " | ".join(f"{np.mean(values):.1%}" for values in owners.values())
    assert of_classes[7] == f"| 7 | {len(owners[True])} | {shown} |"


def test_other_runs_are_compared_with_the_first_one(gated, tmp_path):
    plain = trained(tmp_path, is_gated=False)
    text = swapped_gates({"SCAFFOLD": [plain], "FedDP": [gated]})
    table, differences = (part.splitlines() for part in text.split("\n\n"))
    first, found = over_clients(swapped(plain)), over_clients(swapped(gated))
    assert table[0] == f"| run | seeds | {' | '.join(found)} |"
    assert differences[0] == f"| less SCAFFOLD | {' | '.join(found)} |"
    for line, values in zip(table[2:], (first, found), strict=True):
        shown = " | ".join(f"{value:.1%}" for value in values.values())
        assert line.endswith(f" | 1 | {shown} |")
    shown = " | ".join(f"{found[c] - first[c]:+.1%}" for c in found)
    assert differences[2:] == [f"| FedDP | {shown} |"]
