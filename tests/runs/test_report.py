"""The tables of a run: its time, advice for a trial, its sizes, its headline."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import base
from fedjax_prune.runs import machine, report, settings
from fedjax_prune.runs.learning import make_learning, make_model, start
from fedjax_prune.runs.machine import Chosen
from tests.small_runs import build, pruned_config, tiny_config


def chosen_of(images_per_second, **changes):
    return Chosen(build(tiny_config(**changes)), "2", images_per_second, 3_000_000)


def test_the_time_of_a_round_by_hand(monkeypatch):
    """300 images of 5 clients, 3 a round, one epoch: 180 images on 2 devices."""
    monkeypatch.setattr(report, "WORTH_TIMING", 0.0)
    chosen = chosen_of(9.0, devices=2)
    assert report.round_seconds(chosen, []) == pytest.approx(180 / (9 * 2))
    rows = [{"round": i, "seconds": s} for i, s in ((1, 9.0), (2, 4.0), (3, 5.0))]
    assert report.round_seconds(chosen, rows) == 5.0


def test_a_run_that_is_over_in_no_time_is_not_timed(monkeypatch):
    monkeypatch.setattr(machine, "images_per_second", None)
    chosen = chosen_of(0.0)
    assert report.round_seconds(chosen, []) == 0.0
    facts = report.preflight(chosen, 0, [])
    assert "time" not in facts and facts["lanes"] == "2"


def test_a_long_run_says_what_to_change_for_a_trial(monkeypatch):
    monkeypatch.setattr(report, "WORTH_TIMING", 0.0)
    facts = report.preflight(chosen_of(0.01, rounds=400), 0, [])
    assert facts["time"] == (
        "about 5 h a round, 83 days for 400 rounds, without evaluation"
    )
    assert facts["for a trial"] == "--config.rounds=2"
    short = report.preflight(chosen_of(1000.0), 2, [])
    assert short["rounds done"] == "2 of 4" and "for a trial" not in short


def test_the_time_before_the_first_round_is_told_apart(monkeypatch):
    """Five explorers with two epochs each, where a round has three with one epoch."""
    monkeypatch.setattr(report, "WORTH_TIMING", 0.0)
    experiment = build(pruned_config(rounds=400))
    facts = report.preflight(Chosen(experiment, "2", 0.01, 3_000_000), 0, [])
    assert facts["time"] == (
        "about 2.5 h a round, 42 days for 400 rounds, without evaluation, and up to "
        "8.3 h before them"
    )
    rows = [{"round": 0, "seconds": 9.0}, {"round": 1, "seconds": 36000.0}]
    facts = report.preflight(Chosen(experiment, "2", 0.01, 3_000_000), 1, rows)
    assert facts["time"] == (
        "about 10 h a round, 166 days for 399 rounds, with evaluations"
    )


def test_a_preparation_that_repeats_its_training_takes_all_its_time(monkeypatch):
    """PruneFL's one client trains up to 50 times, where a round has three clients."""
    monkeypatch.setattr(report, "WORTH_TIMING", 0.0)
    experiment = build(pruned_config("prunefl", {}, rounds=400))
    facts = report.preflight(Chosen(experiment, "2", 0.01, 3_000_000), 0, [])
    assert facts["time"].endswith("without evaluation, and up to 42 h before them")


@pytest.mark.parametrize(
    ("changes", "num_train"),
    [
        ({"data.num_clients": 5}, 1000),
        ({"data.num_clients": 3400}, 340_000),
        ({"data.num_clients": 3400, "data.partitioner": "iid"}, 34_000),
    ],
)
def test_the_advice_for_a_trial_is_accepted(changes, num_train):
    config = tiny_config(**{"data.min_size": 10, "data.num_train": 0, **changes})
    advice = report.trial(config, 10**6)
    assert advice == f"--config.rounds=2 --config.data.num_train={num_train}"
    for override in advice.split():
        name, value = override.removeprefix("--config.").split("=")
        config.update_from_flattened_dict({name: int(value)})
    assert settings.problems(config) == []


def test_the_numbers_of_parameters_do_not_depend_on_their_precision():
    """By hand: SCAFFOLD sends twice the parameters; the formula counts 4 bytes each."""
    changes = {"eval.target_accuracy": 0.5, "model.norm": "none", "model.gated": False}
    config = tiny_config(**changes)
    config.algorithm = base.algorithm("scaffold")
    row = {
        "round": 7,
        "seconds": 1.0,
        "bytes/down": 1e6,
        "bytes/up": 1e6,
        "eval/clients": 1,
        "eval/global_dense/accuracy": 0.75,
        "eval/headline": 0.75,
    }
    for x64 in (False, True):
        with jax.enable_x64(x64):
            learning = make_learning(config, make_model(config).clone(dtype=float))
            state, _ = jax.eval_shape(lambda learning=learning: start(learning))
            (size,) = {x.dtype.itemsize for x in jax.tree.leaves(state.params)}
            assert size == (8 if x64 else 4)
            count = report.plan(learning)["parameters"].removesuffix(" shared")
            text = report.summary(learning, [row], Path())["to target"]
        count = int(count.replace(",", ""))
        assert count == sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
        paper = 4 * count * 7 * 3 * 2 / 2**30
        assert f"in 7 rounds, 2.0 MB sent ({paper:.3g} GiB by the paper" in text


def test_shares_are_told_as_they_were_written():
    config = tiny_config(**{"eval.target_accuracy": 0.985, "hostile.fraction": 0.125})
    learning = make_learning(config)
    row = {"round": 1, "seconds": 1.0, "bytes/down": 1e6, "bytes/up": 1e6}
    row |= {"eval/global_dense/accuracy": 0.5, "eval/headline": 0.5, "eval/clients": 1}
    assert report.summary(learning, [row], Path())["to target"] == "98.5% not reached"
    attack = report.plan(learning)["attack"]
    assert attack.endswith("by 12.5% of the clients")


def test_the_headline_is_that_of_the_run():
    """With gates the clients' mean, without the shared model; one field for both."""
    values = {
        "global_dense": np.float32(0.25),
        "client_gated": np.array([0.5, 1.0]),
        "client_local": np.array([0.5, 0.5]),
    }
    from fedjax_prune.runs.metrics import accuracy_row

    gated = build(tiny_config())
    plain = gated.with_config(tiny_config(**{"model.gated": False}))
    assert accuracy_row(gated, values)["eval/headline"] == 0.75
    assert accuracy_row(plain, values)["eval/headline"] == 0.25


def test_a_run_without_a_round_says_how_it_goes_on():
    facts = report.summary(make_learning(tiny_config()), [], Path())
    assert facts == {
        "rounds": "stopped before the first was finished; the same command goes "
        "on from here"
    }
