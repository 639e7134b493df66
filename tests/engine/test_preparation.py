"""What comes before the first round: in groups, so that lanes bound the memory."""

from functools import partial

import jax
import numpy as np
import pytest

from fedjax_prune.engine import devices as placement
from fedjax_prune.engine import preparation
from fedjax_prune.engine.devices import make_placement
from fedjax_prune.engine.store import make_store
from fedjax_prune.runs.experiment import build
from fedjax_prune.runs.learning import start
from fedjax_prune.types import Population
from tests.small_runs import PRUNED_FIELDS, pruned_config
from tests.toys import all_rows


def prepare(config, experiment, where, state, rows):
    return preparation.prepare(
        experiment.learning.algorithm,
        state,
        rows,
        experiment.data.train,
        experiment.data.population,
        seed=config.seed,
        num_lanes=config.lanes,
        placement=where,
    )


def prepared(config, num_devices=1):
    """The state, the rows and the sums after the preparation, all numpy."""
    experiment = build(config)
    where = make_placement(num_devices, config.reduction)
    state, row = jax.jit(partial(start, experiment.learning))()
    rows = make_store(config.client_rows, row, config.data.num_clients, where)
    state = placement.put_whole(where, state)
    done = prepare(config, experiment, where, state, rows)
    return (jax.device_get(done.state), all_rows(rows, where)), done.sums


@pytest.mark.parametrize(
    ("schedule", "client_rows"),
    [("participants", "device"), ("agreement", "host"), ("fixed", "host")],
)
def test_groups_add_up_to_all(schedule, client_rows, monkeypatch):
    """Five explorers at once, and in groups of two, two and one."""
    fields = PRUNED_FIELDS | {"mask_schedule": schedule, "start_from": "explored_mean"}
    config = pruned_config(fields=fields, client_rows=client_rows)
    monkeypatch.setattr(placement, "ALONE", 5)
    (state, rows), sums = prepared(config)
    monkeypatch.setattr(placement, "ALONE", 2)
    (grouped, grouped_rows), grouped_sums = prepared(config)
    jax.tree.map(np.testing.assert_array_equal, rows, grouped_rows)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        state.params,
        grouped.params,
    )
    jax.tree.map(
        np.testing.assert_array_equal, state.server.masks, grouped.server.masks
    )
    assert sums.keys() == grouped_sums.keys()
    for name in sums:
        np.testing.assert_array_equal(sums[name], grouped_sums[name], name)


def test_groups_in_a_fixed_order_are_the_same_on_any_number_of_devices(monkeypatch):
    monkeypatch.setattr(placement, "GROUP", 2)
    config = pruned_config(reduction="fixed_order", client_rows="host")
    one, two = (prepared(config, devices)[0] for devices in (1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_clients_have_no_examples_beyond_the_data():
    config = pruned_config()
    experiment = build(config)
    data = experiment.data
    train = jax.tree.map(lambda x: x[:-1], data.train)
    lost = len(train.labels)
    experiment = experiment._replace(data=data._replace(train=train))
    state, row = jax.jit(partial(start, experiment.learning))()
    rows = make_store("host", row, config.data.num_clients)
    with pytest.raises(
        ValueError, match=rf"client \d .* in \[0, {lost}\), got {lost} at"
    ):
        prepare(config, experiment, placement.ONE_DEVICE, state, rows)


@pytest.mark.parametrize("schedule", ["participants", "fixed"])
def test_memory_is_bounded_by_lanes(schedule, monkeypatch):
    """Ten times the explorers: the same arrays on the device, XLA's plan the same."""
    seen = []
    for num_clients in (4, 40):
        config = pruned_config(
            fields=PRUNED_FIELDS | {"explore_epochs": 1, "mask_schedule": schedule},
            client_rows="host",
            **{"data.num_clients": num_clients, "data.num_train": 400},
            **{"data.partitioner": "iid"},
        )
        experiment = build(config)
        # All clients have the same ten images, whatever their number.
        shape = (num_clients, 10)
        indices = np.broadcast_to(np.arange(10, dtype=np.int32), shape)
        sizes = np.full(num_clients, 10, np.int32)
        population = Population(indices, sizes)
        data = experiment.data._replace(population=population)
        experiment = experiment._replace(data=data)
        plans = []
        compile_program = jax.stages.Lowered.compile

        def noted(lowered, *arguments, plans=plans, compile_program=compile_program):
            compiled = compile_program(lowered, *arguments)
            plan = compiled.memory_analysis()
            plans.append(plan.argument_size_in_bytes + plan.temp_size_in_bytes)
            return compiled

        before = {id(x) for x in jax.live_arrays()}
        state, row = jax.jit(partial(start, experiment.learning))()
        rows = make_store("host", row, num_clients)
        with monkeypatch.context() as patch:
            patch.setattr(jax.stages.Lowered, "compile", noted)
            done = prepare(config, experiment, placement.ONE_DEVICE, state, rows)
        assert len(done.sums["steps"]) == num_clients
        after = [x for x in jax.live_arrays() if id(x) not in before]
        seen.append((plans, sum(x.nbytes for x in after)))
        del state, row, rows, done
    assert len(seen[0][0]) == 2 and seen[0] == seen[1]
