"""Devices and lanes: what fits, what is chosen, what is kept."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from fedjax_prune.engine.placing import put_cohort, put_split, put_whole
from fedjax_prune.engine.store import make_store
from fedjax_prune.models.costs import tree_bytes
from fedjax_prune.runs import capacity, dispatch, machine, train
from fedjax_prune.runs.learning import start
from fedjax_prune.runs.liveness import peak_bytes
from fedjax_prune.runs.policy import placement_of
from fedjax_prune.runs.programs import WholeRounds
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.workdir import WorkdirError, read_config
from fedjax_prune.types import RoundInputs
from tests.small_runs import (
    build,
    final_state,
    plain_config,
    pruned_config,
    tiny_config,
)


def test_peak_of_a_chain_by_hand():
    """1 x 4 to 1 x 1,000 to 1 x 10: 4,000 and 40 bytes at once."""
    first, second = np.ones((4, 1000), np.float32), np.ones((1000, 10), np.float32)

    def chain(x, first, second):
        # Doubling is done in place.
        return jnp.maximum(2 * (x @ first), 0.0) @ second

    x = np.ones((1, 4), np.float32)
    assert peak_bytes(chain, x, first, second) == 4000 + 40
    assert peak_bytes(jax.jit(chain), x, first, second) == 4000 + 40


CONFIGS = {
    "one lane": lambda: tiny_config(devices=1, lanes=1),
    "fixed order, rows on the host": lambda: tiny_config(
        devices=1, lanes=3, reduction="fixed_order", client_rows="host"
    ),
    "wide": lambda: tiny_config(
        devices=1,
        lanes=1,
        **{"model.gated": False, "model.width": 2.0, "client.batch_size": 64},
    ),
    "a median of wide messages": lambda: tiny_config(
        devices=1,
        lanes=1,
        aggregator="median",
        cohort_size=5,
        **{"model.gated": False, "model.width": 2.0},
    ),
    # Squared gradients are kept and sent; they are as large as the parameters.
    "prunefl": lambda: pruned_config(
        "prunefl", {}, devices=1, lanes=3, **{"model.width": 2.0}
    ),
}


def planned_bytes(experiment):
    """What XLA plans for a round, with the rows of all clients on the device."""
    config, learning, data = experiment.config, experiment.learning, experiment.data
    placement = placement_of(config)
    state, row = put_whole(placement, start(learning))
    state = state._replace(pending=())
    cohort = dispatch.draw_cohort(experiment, placement, 0)
    num_clients = config.data.num_clients
    rows = make_store("device", row, num_clients, placement)
    train_set, test = put_whole(placement, (data.train, data.test))
    rounds = WholeRounds(learning.task, learning.algorithm.round, placement)
    inputs = RoundInputs(
        state=state,
        rows=rows.take(cohort.client_ids),
        dataset=train_set,
        cohort=put_cohort(placement, cohort),
        key=put_whole(placement, jax.random.key(0)),
    )
    wanted = put_split(placement, np.ones(len(cohort.client_ids), bool))
    plan = rounds.compile(inputs, test, wanted).memory_analysis()
    planned = (
        plan.argument_size_in_bytes
        + plan.temp_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
    )
    on_device = config.client_rows == "device"
    return planned + on_device * num_clients * tree_bytes(row)


LONG = ("one lane", "wide")
"""A fixed order with several lanes, and wide messages, are estimated as well."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.long] * (n in LONG)) for n in CONFIGS],
)
def test_memory_estimate_is_within_a_quarter_of_what_xla_plans(name):
    experiment = build(CONFIGS[name]())
    planned = planned_bytes(experiment)
    estimate = capacity.memory_estimate(experiment)(experiment.config.lanes)
    assert 0.75 * planned < estimate < 1.25 * planned


def test_the_estimate_knows_the_algorithms_own_chain_and_messages():
    """PruneFL's lanes hold two trees more than FedAvg's: kept sums and sent means."""
    sizes = {}
    for name in ("fedavg", "prunefl"):
        experiment = build(pruned_config(name, {}, devices=1))
        need = [*map(capacity.memory_estimate(experiment), (1, 2))]
        sizes[name] = need[1] - need[0]
        params = jax.eval_shape(lambda e=experiment: start(e.learning))[0].params
    assert sizes["prunefl"] - sizes["fedavg"] >= 2 * tree_bytes(params)


def test_all_lanes_train_at_once_and_one_is_evaluated(monkeypatch):
    experiment, need = build(tiny_config(devices=1)), {}
    for size in (0, 10**9):
        monkeypatch.setattr(capacity, "_evaluation_bytes", lambda _, n=size: n)
        need[size] = np.array([*map(capacity.memory_estimate(experiment), (1, 2, 3))])
    by_step, by_evaluation = (np.diff(x) for x in need.values())
    assert by_step[0] == by_step[1] > by_evaluation[0] == by_evaluation[1] > 0
    assert 10**9 < need[10**9][0] < 10**9 + need[0][0]


def test_fewer_lanes_are_taken_where_memory_is_short():
    config = tiny_config(devices=1)
    experiment = build(config)
    estimate = capacity.memory_estimate(experiment)
    need = [estimate(n) for n in (1, 2, 3)]
    assert need[2] > need[1] > need[0]
    assert capacity.fitting_lanes(estimate, 64, need[1]) == 2
    assert capacity.fitting_lanes(estimate, 64, need[2] - 1) == 2
    assert capacity.fitting_lanes(estimate, 1, need[2]) == 1
    with pytest.raises(SettingsError, match=r"one lane needs .* GB on each device"):
        capacity.fitting_lanes(estimate, 64, need[0] - 1)


@pytest.mark.parametrize("limit", [1, 2, 8])
def test_lanes_are_doubled_until_they_do_not_fit(monkeypatch, limit):
    """Each doubling would be worth it, and the estimate allows eight lanes."""

    def rate(experiment, lanes):
        if lanes > limit:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return 100.0 * lanes

    monkeypatch.setattr(machine, "images_per_second", rate)
    best, rates = machine.fastest_lanes(None, 8)
    assert best == limit and [lanes for lanes, _ in rates][-1] == limit
    monkeypatch.setattr(machine, "images_per_second", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        machine.fastest_lanes(None, 8)


def test_rows_that_the_host_cannot_hold_are_refused(tmp_path):
    """A billion clients: on the host all rows count, on disk those of the rounds."""
    experiment = build(tiny_config(devices=1, lanes=1))
    config = experiment.config.copy_and_resolve_references()
    config.data.num_clients, config.client_rows = 10**9, "host"
    experiment = experiment.with_config(config)
    row_bytes = tree_bytes(start(experiment.learning)[1])
    width = experiment.data.population.max_size
    tables = 4 * width * config.cohort_size
    assert capacity.host_bytes(experiment) == 10**9 * row_bytes + tables
    with pytest.raises(SettingsError, match="client_rows = host with 1,000,000,000"):
        machine.choose(experiment, tmp_path)
    config.client_rows = "disk"
    of_rounds = 12 * config.rounds * config.cohort_size
    cohorts = 3 * config.cohort_size * row_bytes
    assert capacity.host_bytes(experiment) == of_rounds + cohorts + tables
    assert machine.choose(experiment, tmp_path).experiment.config.lanes == 1


def test_lanes_bring_more_explorers_at_once(monkeypatch):
    """4, 32, 40, 40 rows of explorers: each further lane adds fewer."""
    monkeypatch.setattr(capacity, "_evaluation_bytes", lambda experiment: 0)
    sizes = {"data.num_clients": 40, "data.num_train": 400, "data.partitioner": "iid"}
    config = pruned_config(devices=1, client_rows="host", **sizes)
    experiment = build(config)
    estimate = capacity.memory_estimate(experiment)
    need = [estimate(n) for n in (1, 2, 3, 4)]
    steps = np.diff(need)
    assert steps[0] > steps[1] > steps[2] > 0
    for lanes, available in enumerate(need, start=1):
        fitting = capacity.fitting_lanes(estimate, 64, available)
        assert fitting == lanes


def test_chosen_lanes_and_devices_are_kept_on_resume(tmp_path, capsys):
    config = tiny_config(rounds=1, devices=0)
    config.lanes = "auto"
    assert train.run(config, tmp_path) == 0
    assert "chosen by images a second (1: " in capsys.readouterr().out
    chosen = read_config(tmp_path)
    assert chosen["lanes"] in (1, 2, 4)
    assert chosen["devices"] == min(jax.local_device_count(), 3)
    again = machine.choose(build(config), tmp_path)
    assert again.experiment.config.lanes == chosen["lanes"]
    assert again.experiment.config.devices == chosen["devices"]
    assert "chosen by" not in again.words


def test_a_run_goes_on_with_what_another_machine_has(tmp_path):
    """The run had twenty devices; a number that is asked for comes before."""
    before = {"devices": 20, "lanes": 2}
    (tmp_path / "config.json").write_text(json.dumps(before))
    experiment = build(tiny_config(devices=0, lanes="auto"))
    chosen = machine.choose(experiment, tmp_path)
    found = chosen.experiment.config
    assert (found.devices, found.lanes) == (min(jax.local_device_count(), 3), 1)
    assert "1 in place of 2, as a device has 1 of a round's clients" in chosen.words
    assert chosen.words.endswith("where before there were 20 devices and 2 lanes")
    experiment = build(tiny_config(devices=1, lanes=1000))
    chosen = machine.choose(experiment, tmp_path)
    found = chosen.experiment.config
    assert (found.devices, found.lanes) == (1, 3)


def test_a_fixed_order_goes_on_elsewhere_with_the_same_bits(tmp_path):
    """On another number of devices, with rows at another place."""
    fixed = dict(reduction="fixed_order", lanes=2)
    whole = plain_config(rounds=2, devices=1, **fixed)
    assert train.run(whole, tmp_path / "whole") == 0
    for changed in (
        dict(rounds=1, devices=1),
        dict(rounds=2, devices=2, client_rows="host"),
    ):
        config = plain_config(**fixed, **changed)
        assert train.run(config, tmp_path / "moved") == 0
    jax.tree.map(
        np.testing.assert_array_equal,
        final_state(whole, tmp_path / "whole"),
        final_state(config, tmp_path / "moved"),
    )


@pytest.mark.parametrize(
    ("damaged", "told"),
    [
        ({"devices": "two"}, "devices must be a whole number, got 'two'"),
        ({"devices": -1}, "devices must be at least 0, got -1"),
        ({"lanes": 0}, "lanes must be a whole number, at least 1 .* got 0"),
        ({"lanes": None}, "lanes must be .* got None"),
    ],
)
def test_a_damaged_config_chooses_nothing(damaged, told, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(damaged))
    experiment = build(tiny_config(devices=0, lanes="auto"))
    with pytest.raises(WorkdirError, match=rf"config.json is damaged: {told}"):
        machine.choose(experiment, tmp_path)


def test_more_devices_than_there_are(tmp_path):
    config = tiny_config(devices=jax.local_device_count() + 1)
    with pytest.raises(SettingsError, match=r"devices must be in \[0, \d+\] on this"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_base_leaves_both_to_the_machine():
    config = base.get_config()
    assert (config.devices, config.lanes) == (0, "auto")
