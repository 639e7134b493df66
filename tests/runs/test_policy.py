"""Policies in whole runs: what is counted, replayed and reported."""

import numpy as np
import pytest

from fedjax_prune.engine.policy import PLAIN
from fedjax_prune.runs import settings, train
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.policy import policy_of
from tests.small_runs import plain_config, pruned_config, tiny_config, undocumented


def test_a_run_without_a_policy_has_none():
    assert policy_of(tiny_config()) == PLAIN


def test_a_run_counts_who_is_absent_slow_clipped_and_hostile(tmp_path):
    config = plain_config(
        rounds=3,
        cohort_size=5,
        aggregator="trimmed_mean",
        trim_fraction=0.2,
        on_bad_client="clip",
        clip_norm=0.05,
        client_dropout=0.3,
        stragglers=0.7,
        **{"hostile.fraction": 0.4, "data.partitioner": "iid"},
    )
    assert train.run(config, tmp_path) == 0
    rows = read_metrics(tmp_path)
    seen = set().union(*rows)
    for row in rows:
        assert undocumented(row) == []
        absent = row.get("clients/absent", "").split()
        assert row["clients/arrived"] == 5 - len(absent)
        # All receive the model, and who does not report sends nothing.
        assert row["bytes/up"] * 5 == row["bytes/down"] * (5 - len(absent))
        assert row["bytes/dense"] == row["bytes/down"] + row["bytes/up"]
        hostile = policy_of(config).hostile
        assert row["clients/hostile"] == " ".join(map(str, hostile.client_ids))
        assert not {*absent} & {*row.get("clients/slow", "").split()}
    assert {"clients/absent", "clients/slow", "clients/clipped"} <= seen


def test_a_private_run_tells_its_epsilon(tmp_path, capsys):
    config = plain_config(
        rounds=2,
        on_bad_client="drop",
        **{"privacy.clip_norm": 0.5, "privacy.noise_multiplier": 8.0},
    )
    assert train.run(config, tmp_path) == 0
    first, second = read_metrics(tmp_path)
    assert undocumented(second) == []
    assert 0 < first["privacy/epsilon"] < second["privacy/epsilon"] < 5
    assert np.isclose(second["privacy/delta"], 1e-5)
    told = f"epsilon {second['privacy/epsilon']:.3g} at delta 1e-05"
    assert capsys.readouterr().out.count(told) == 2


@pytest.mark.parametrize("aggregator", ["median", "trimmed_mean"])
def test_an_aggregator_that_counts_clients_the_same_takes_no_weights(aggregator):
    fields = {"aggregator": aggregator, "trim_fraction": 0.4}
    fields["algorithm.control_weights"] = "size"

    def problems(**changes):
        config = tiny_config(**fields | changes)
        return settings.problems(config)

    assert problems() == [
        f"algorithm.control_weights must be uniform with aggregator {aggregator}, "
        "which counts all clients the same, got 'size'"
    ]
    assert problems(**{"algorithm.control_weights": "uniform"}) == []
    assert problems(aggregator="mean") == []


def test_agreement_of_signs_is_a_mean():
    fields = {"mask_schedule": "agreement", "agreement_source": "update_sign"}
    config = pruned_config("autoflip", fields, aggregator="median")
    assert settings.problems(config) == [
        "algorithm.agreement_source must not be update_sign with aggregator median: it "
        "needs a mean over clients"
    ]
    config.aggregator = "norm_clipping"
    assert settings.problems(config) == []


@pytest.mark.parametrize(
    ("policy", "value"), [("aggregator", "norm_clipping"), ("on_bad_client", "clip")]
)
@pytest.mark.parametrize(
    ("field", "equal", "other"),
    [
        ("algorithm.control_weights", "uniform", "size"),
        ("algorithm.control_divisor", "num_clients", "m_legacy"),
    ],
)
def test_a_bound_is_for_equal_shares(policy, value, field, equal, other):
    def problems(**changes):
        return settings.problems(tiny_config(**changes))

    assert problems(**{policy: value, field: other}) == [
        f"{field} must be {equal} with {policy} {value}, which bounds all clients the "
        f"same, got '{other}'"
    ]
    assert problems(**{policy: value, field: equal}) == problems(**{field: other}) == []
