"""What comes before the first round: in groups, so that lanes bound the memory."""

from functools import partial

import jax
import numpy as np
import pytest

from fedjax_prune.data.population import to_population
from fedjax_prune.engine import devices as placement
from fedjax_prune.engine import preparation
from fedjax_prune.engine.devices import make_placement
from fedjax_prune.engine.outcome import TrainingError
from fedjax_prune.engine.placing import put_whole
from fedjax_prune.engine.policy import make_policy
from fedjax_prune.engine.store import HostStore, make_store
from fedjax_prune.runs.learning import start
from fedjax_prune.types import RoundInputs
from tests import problems, toys
from tests.small_runs import PRUNED_FIELDS, build, pruned_config


def prepare(experiment, where, state, rows):
    return preparation.prepare(
        algorithm=experiment.learning.algorithm,
        state=state,
        rows=rows,
        dataset=experiment.data.train,
        population=experiment.data.population,
        seed=experiment.config.seed,
        num_lanes=experiment.config.lanes,
        placement=where,
    )


def prepared(config, num_devices=1):
    """The state, the rows and the sums after the preparation, all numpy."""
    experiment = build(config)
    where = make_placement(num_devices, config.reduction)
    state, row = jax.jit(partial(start, experiment.learning))()
    rows = make_store(config.client_rows, row, config.data.num_clients, where)
    state = put_whole(where, state)
    done = prepare(experiment, where, state, rows)
    return (jax.device_get(done.state), toys.all_rows(rows, where)), done.sums


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
        prepare(experiment, placement.ONE_DEVICE, state, rows)


@pytest.mark.parametrize("name", ["scaffold", "fedsnip"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_clients": 3}, "rows must be those of the population's 5 clients, got 3"),
        ({"first_label": -1}, r"labels must be in \[0, num_classes\), got -1 at 0"),
        ({"num_examples": 28}, r"client 4 must have indices in \[0, 28\), got 28 at"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(name, changes, words):
    """Also where the algorithm has nothing to prepare."""
    algorithm, key = problems.build(name), jax.random.key(0)
    population = to_population(
        np.split(np.arange(29), np.cumsum(problems.SIZES)[:-1]), num_examples=29
    )
    dataset = jax.tree.map(
        lambda x: np.array(x)[: changes.get("num_examples", 29)],
        problems.dataset_of_clients(),
    )
    dataset.labels[0] = changes.get("first_label", 0)
    row = algorithm.row(key)._replace(personal={"gates": np.zeros(2, np.float32)})
    rows = make_store("host", row, changes.get("num_clients", 5))
    with pytest.raises(ValueError, match=words):
        preparation.prepare(
            algorithm, algorithm.init(key), rows, dataset, population, seed=0
        )


class CountingStore(HostStore):
    """Notes the bytes of all arrays on the devices whenever rows are taken."""

    def __init__(self, row, num_clients):
        super().__init__(row, num_clients)
        self.before = jax.live_arrays()
        self.on_devices = []

    def take(self, client_ids):
        taken = super().take(client_ids)
        self.count()
        return taken

    def count(self):
        before = {id(x) for x in self.before}
        new = [x for x in jax.live_arrays() if id(x) not in before]
        self.on_devices.append(sum(x.nbytes for x in new))


def noting_programs(algorithm):
    """The algorithm, and a list of the programs that its preparation compiles."""
    programs = []

    def noted(function):
        def traced(*arguments):
            shapes = [
                jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), x)
                for x in arguments
                if not isinstance(x, placement.Placement)
            ]
            others = arguments[len(shapes) :]
            lowered = jax.jit(lambda *x: function(*x, *others)).lower(*shapes)
            programs.append(lowered.as_text())
            return function(*arguments)

        return traced

    steps = algorithm.prepare
    steps = steps._replace(gather=noted(steps.gather), finish=noted(steps.finish))
    return algorithm._replace(prepare=steps), programs


@pytest.mark.parametrize("schedule", ["participants", "fixed"])
def test_memory_is_bounded_by_lanes(schedule):
    """Ten times the explorers: the same programs, and the same arrays beside them."""
    seen = []
    for num_clients in (8, 80):
        config = pruned_config(
            fields=PRUNED_FIELDS | {"explore_epochs": 1, "mask_schedule": schedule},
            client_rows="host",
            **{"data.num_clients": num_clients, "data.num_train": 800},
            **{"data.partitioner": "iid"},
        )
        experiment = build(config)
        # All clients have the same ten images, whatever their number.
        population = to_population([range(10)] * num_clients, num_examples=10)
        data = experiment.data._replace(population=population)
        learning = experiment.learning
        algorithm, programs = noting_programs(learning.algorithm)
        experiment = experiment._replace(
            data=data, learning=learning._replace(algorithm=algorithm)
        )
        state, row = jax.jit(partial(start, learning))()
        rows = CountingStore(row, num_clients)
        done = prepare(experiment, placement.ONE_DEVICE, state, rows)
        rows.count()
        assert len(done.sums["steps"]) == num_clients
        seen.append((programs, max(rows.on_devices), rows.on_devices[-1]))
        del state, row, rows, done
    assert len(seen[0][0]) == 2 and seen[0] == seen[1]


def test_an_explorer_that_diverges_is_left_out_where_bad_clients_are():
    """Its deviation does not count, and its row stays."""
    fields = PRUNED_FIELDS | {"mask_schedule": "participants"}
    experiment = build(pruned_config(fields=fields, devices=1, client_rows="host"))
    images = np.asarray(experiment.data.train.images, np.float32) / 255
    images[experiment.data.population.of(2)] = np.nan
    train = experiment.data.train._replace(images=images)
    experiment = experiment._replace(data=experiment.data._replace(train=train))
    first, row = jax.jit(partial(start, experiment.learning))()

    def explore(on_bad_client):
        where = make_placement(policy=make_policy(on_bad_client=on_bad_client))
        rows = make_store("host", row, 5, where)
        done = prepare(experiment, where, first, rows)
        return done, toys.all_rows(rows, where)

    with pytest.raises(TrainingError, match="gates of client 2 became non-finite"):
        explore("abort")
    done, rows = explore("drop")
    np.testing.assert_array_equal(done.client_ids, range(5))
    np.testing.assert_array_equal(done.sums["arrived"], [1, 1, 0, 1, 1])
    for leaf in jax.tree.leaves(jax.device_get((done.state.server.guide, rows))):
        assert np.isfinite(leaf).all()
    for own in jax.tree.leaves(rows.client.own):
        assert not own[2].any() and own[0].any()


def test_only_if_all_explorers_diverge_nothing_can_go_on(monkeypatch):
    """One of two groups may be empty, so that lanes change nothing."""
    monkeypatch.setattr(placement, "ALONE", 3)
    experiment = build(pruned_config(devices=1, client_rows="host"))
    first, row = jax.jit(partial(start, experiment.learning))()
    where = make_placement(policy=make_policy(on_bad_client="drop"))

    def explore(diverging):
        images = np.asarray(experiment.data.train.images, np.float32) / 255
        for client in diverging:
            images[experiment.data.population.of(client)] = np.nan
        train = experiment.data.train._replace(images=images)
        broken = experiment._replace(data=experiment.data._replace(train=train))
        return prepare(broken, where, first, make_store("host", row, 5, where))

    np.testing.assert_array_equal(explore([3, 4]).sums["arrived"], [1, 1, 1, 0, 0])
    with pytest.raises(TrainingError, match="No client of the preparation is left"):
        explore(range(5))


def test_a_preparation_of_one_group_needs_somebody_too():
    algorithm, key = problems.build("fedsnip"), jax.random.key(0)
    dataset = problems.dataset_of_clients()
    nowhere = dataset._replace(images=np.full(dataset.images.shape, np.nan, np.float32))
    cohort = toys.contiguous_cohort(problems.SIZES)
    state, rows = toys.first(algorithm, 5, key)
    with pytest.raises(TrainingError, match="No client of the preparation is left"):
        algorithm.prepare.run(RoundInputs(state, rows, nowhere, cohort, key))
