"""What differs between two runs: rows, leaves, environments, and how it is said."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.runs.verify import (
    Difference,
    Findings,
    environment_differences,
    leaf_differences,
    report,
    row_differences,
    settings_differences,
)
from fedjax_prune.types import ServerState

NAN = float("nan")


def make_rows(**changes):
    rows = {
        n: {"round": n, "seconds": n / 7, "loss": 1 / n, "bad": NAN} for n in (1, 2)
    }
    rows[2] |= changes
    return rows


def test_equal_rows_differ_in_nothing():
    changes = {"seconds": 9.0, "seconds/compile": 1.5}
    assert row_differences(make_rows(), make_rows(**changes)) == []


@pytest.mark.parametrize(
    ("changes", "field", "first", "second"),
    [
        ({"loss": np.nextafter(0.5, 1)}, "loss", "0.5", "0.5000000000000001"),
        ({"bad": 0.0}, "bad", "nan", "0.0"),
        ({"round": 2.0}, "round", "2", "2.0"),
        ({"more": "x"}, "more", "nothing", "'x'"),
    ],
)
def test_a_field_that_differs_is_named_with_both_values(changes, field, first, second):
    changes = {k: v.item() if hasattr(v, "item") else v for k, v in changes.items()}
    found = [Difference("round 2", field, first, second)]
    assert row_differences(make_rows(), make_rows(**changes)) == found


def test_the_earliest_round_comes_first():
    first, second = make_rows(loss=3.0), make_rows()
    second[1]["loss"] = 2.0
    assert [d.where for d in row_differences(first, second)] == ["round 1", "round 2"]


def test_a_missing_row_is_a_difference():
    rows = make_rows()
    del rows[1]
    assert row_differences(rows, make_rows()) == [
        Difference("round 1", "the row", "missing", "there")
    ]


def test_a_hash_counts_only_where_both_have_one():
    assert row_differences(make_rows(**{"hash/state": "1"}), make_rows()) == []
    hashes = ({"hash/state": "1"}, {"hash/state": "2"})
    found = row_differences(*(make_rows(**change) for change in hashes))
    assert found == [Difference("round 2", "hash/state", "'1'", "'2'")]


def make_state(w, server=()):
    params = {"w": np.array(w, np.float32)}
    return ServerState(np.int32(1), params, model_state={}, server=server)


def test_the_first_entry_with_other_bits_is_named():
    state, minus = make_state([[1, 0], [NAN, 3]]), make_state([[1, -0.0], [NAN, 4]])
    assert leaf_differences("here", state, state) == []
    assert leaf_differences("here", state, minus) == [
        Difference(
            "here", "params['w'][0, 1] and 1 more of its 4 entries", "0.0", "-0.0"
        )
    ]


def test_rows_are_named_by_their_client_and_scalars_have_no_index():
    ids = np.array([40, 43])
    found = leaf_differences("x", make_state([1, 2]), make_state([1, 3]), ids=ids)
    assert found == [Difference("x", "params['w'][43]", "2.0", "3.0")]
    other = make_state([1, 2])._replace(round=np.int32(7))
    found = leaf_differences("x", make_state([1, 2]), other)
    assert found == [Difference("x", "round", "1", "7")]


@pytest.mark.parametrize(
    ("server", "other", "field", "words"),
    [
        ({"m": np.ones(2, bool)}, {"m": np.array([True, False])}, "server['m'][1]", ""),
        (
            {"m": jnp.ones(2, jnp.bfloat16)},
            {"m": jnp.zeros(2)},
            "server['m']",
            "float32",
        ),
        ({"m": np.ones(2)}, {"m": np.ones(3)}, "server['m']", "(3,)"),
        ({"m": np.ones(2)}, (), "server['m']", "nothing"),
        ({}, {"n": np.ones((0, 2))}, "server['n']", "(0, 2)"),
    ],
)
def test_leaves_of_any_kind_are_compared(server, other, field, words):
    assert leaf_differences("x", make_state(1, server), make_state(1, server)) == []
    (found,) = leaf_differences("x", make_state(1, server), make_state(1, other))
    assert found.field == field and words in found.second


ENVIRONMENT = {
    "started": "2026-01-01T00:00:00+00:00",
    "finished": 0,
    "fields": {"rounds": 4},
    "versions": {"jax": "0.10.2"},
    "commit": None,
    "flags": {"XLA_FLAGS": "--a"},
    "devices": {"cpu": 2},
}


def test_environments_differ_in_what_has_computed():
    later = ENVIRONMENT | {"started": "2027", "finished": 3, "fields": {"rounds": 9}}
    assert environment_differences([ENVIRONMENT], [ENVIRONMENT, later]) == []
    newer = later | {"versions": {"jax": "0.11.0"}, "flags": {}, "devices": {"cpu": 4}}
    where = "environment.json"
    assert environment_differences([ENVIRONMENT], [ENVIRONMENT, newer]) == [
        Difference(where, "versions.jax", "'0.10.2'", "['0.10.2', '0.11.0']"),
        Difference(where, "devices.cpu", "2", "[2, 4]"),
    ]
    assert environment_differences([ENVIRONMENT], [newer])[1:] == [
        Difference(where, "flags.XLA_FLAGS", "'--a'", "nothing"),
        Difference(where, "devices.cpu", "2", "4"),
    ]


def test_configurations_are_compared_field_by_field():
    first, second = {"seed": 0, "eval": {"every": 2}}, {"seed": 1, "eval": {"every": 2}}
    assert settings_differences(first, second) == [
        Difference("config.json", "seed", "0", "1")
    ]


def findings(**changes):
    found = Findings(
        names=("a", "b"),
        rounds=[1, 2, 3],
        hashed=2,
        rows=[],
        checkpoint="of round 3, compared",
        leaves=[],
        settings=[],
        environment=[],
    )
    return found._replace(**changes)


def test_equal_runs_are_reported_in_three_lines():
    assert findings().equal
    assert report(findings()) == {
        "result": "equal",
        "rows": "3 rows, rounds 1 to 3, 2 with the hash of the state",
        "checkpoint": "of round 3, compared",
    }


def test_the_first_difference_and_what_may_explain_it_are_reported():
    rows = [Difference(f"round {n}", "train/loss", "1.5", "2.5") for n in (2, 3)]
    leaf = Difference("checkpoint of round 3", "params['w'][0]", "0.0", "1.0")
    other = [
        Difference("", "versions.jax", "'1'", "'2'"),
        Difference("", "x", "3", "4"),
    ]
    found = findings(rows=rows, leaves=[leaf], environment=other)
    assert not found.equal
    facts = report(found)
    assert facts["result"] == "different"
    assert facts["first difference"] == "round 2, train/loss: 1.5 in a, 2.5 in b"
    assert facts["differences"] == "2 in rows, 1 in the checkpoint"
    assert facts["in the checkpoint"] == (
        "checkpoint of round 3, params['w'][0]: 0.0 in a, 1.0 in b"
    )
    assert facts["environment"] == "versions.jax: '1' and '2'\nx: 3 and 4"
    alone = report(findings(leaves=[leaf]))
    assert alone["first difference"] == facts["in the checkpoint"]
    assert alone["differences"] == "0 in rows, 1 in the checkpoint"


def test_an_environment_that_differs_alone_is_no_difference():
    found = findings(environment=[Difference("", "versions.jax", "'1'", "'2'")])
    assert found.equal and "environment" in report(found)
