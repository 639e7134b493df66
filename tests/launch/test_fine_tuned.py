"""What fine-tuning makes of a run's model, beside the next round of the same run."""

import numpy as np
import pytest

from fedjax_prune.runs import train
from fedjax_prune.runs.experiment import load_data
from fedjax_prune.runs.metrics_log import read_metrics
from launch.reproduce.fine_tuned import accuracies, fine_tuned
from tests.small_runs import plain_config, tiny_config


def trained(config, workdir, rounds):
    config.rounds = rounds
    assert train.run(config, workdir) == 0
    return read_metrics(workdir)[-1]


def everyone(make):
    """All clients train in each round, and all are evaluated after it."""
    return make(**{"cohort_size": 5, "eval.num_clients": 0, "eval.every": 1})


@pytest.mark.parametrize("gated", [False, True])
def test_a_client_is_fine_tuned_as_in_the_next_round_of_fedavg(tmp_path, gated):
    config = everyone(plain_config)
    config.model.gated = gated
    last = trained(config, tmp_path, 2)
    found = accuracies(tmp_path)
    following = trained(config, tmp_path, 3)
    np.testing.assert_allclose(
        [found.own, found.test, found.tuned_test],
        [
            last["eval/client_local/mean"],
            last["eval/client_gated/mean"],
            following["eval/after_local/mean"],
        ],
        rtol=1e-6,
    )
    assert found.tuned_own != found.own


def test_control_variates_do_not_take_part(tmp_path):
    """The next round of SCAFFOLD has them, so its clients end elsewhere."""
    config = everyone(tiny_config)
    trained(config, tmp_path, 2)
    found = accuracies(tmp_path).tuned_test
    assert found != trained(config, tmp_path, 3)["eval/after_local/mean"]


def test_the_largest_class_of_each_client_by_hand(tmp_path):
    config = everyone(plain_config)
    trained(config, tmp_path, 1)
    data, shares = load_data(config), []
    for client in range(config.data.num_clients):
        own = np.bincount(data.training_of(client).labels)
        shares.append(np.mean(data.validation_of(client).labels == own.argmax()))
    found = accuracies(tmp_path)
    assert found.largest == pytest.approx(np.mean(shares))
    *_, last = fine_tuned({"FedAvg": [tmp_path]}).splitlines()
    assert last.split(" | ")[2] == f"{np.mean(shares):.1%}"


def test_runs_are_compared_with_the_first_one_after_its_fine_tuning(tmp_path):
    runs = {"FedAvg": tmp_path / "plain", "FedAvg with gates": tmp_path / "gated"}
    for name, workdir in runs.items():
        config = everyone(plain_config)
        config.model.gated = name != "FedAvg"
        trained(config, workdir, 1)
    first = accuracies(runs["FedAvg"])
    text = fine_tuned({name: [workdir] for name, workdir in runs.items()})
    header, _, *lines, _ = text.splitlines()
    assert header.endswith(" | test less fine-tuned FedAvg |")
    for line, (name, workdir) in zip(lines, runs.items(), strict=True):
        found = accuracies(workdir)
        shown = [found.own, found.test, found.tuned_own, found.tuned_test]
        cells = [f"{x:.1%}" for x in shown]
        cells += [f"{found.own - first.tuned_own:+.1%}"]
        cells += [f"{found.test - first.tuned_test:+.1%}"]
        assert line == f"| {name} | 1 | {' | '.join(cells)} |"
