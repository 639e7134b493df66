"""What a run compiles: one program for each width of cohorts and validation sets."""

from functools import partial

import jax
import numpy as np
import pytest

from fedjax_prune.data.padded import table_of
from fedjax_prune.data.population import from_sizes
from fedjax_prune.engine.devices import ONE_DEVICE
from fedjax_prune.engine.store import make_store
from fedjax_prune.runs import programs
from fedjax_prune.runs.learning import own_personal, start
from fedjax_prune.types import RoundInputs
from tests import seven_clients, toys
from tests.small_runs import build, tiny_config


def test_rounds_compile_once_for_each_width():
    """A wider table is more padding: another program with the same result."""
    algorithm = seven_clients.algorithm("linear")
    rounds = programs.WholeRounds(
        seven_clients.TASKS["linear"](), algorithm.round, ONE_DEVICE
    )
    data = seven_clients.dataset()
    compiled, params = [], []
    for width in (12, 40, 12, 40):
        cohort = seven_clients.draw_cohort(ONE_DEVICE, (1, 4, 5), width=width)
        state, rows = jax.device_put(seven_clients.start("linear"))
        taken = toys.store_of(rows).take(cohort.client_ids)
        inputs = RoundInputs(state, taken, data, cohort, jax.random.key(0))
        state, _, _ = rounds(inputs, data, np.zeros(3, bool))
        compiled.append(rounds.seconds > 0)
        params.append(jax.device_get(state.params))
    assert compiled == [True, True, False, False]
    for other in params[1:]:
        jax.tree.map(np.testing.assert_array_equal, params[0], other)


def test_evaluation_of_clients_with_few_or_many_held_out_examples():
    """Client 0 holds 5,000 validation examples, all others 2: two widths."""
    config = tiny_config(**{"data.local_val": "holdout", "model.gated": False})
    experiment = build(config)
    sizes = np.array([5000, 2, 2, 2, 2])
    examples = np.arange(sizes.sum()) % len(experiment.data.train.labels)
    validation = from_sizes(examples, sizes)
    data = experiment.data._replace(validation=partial(table_of, validation))
    experiment = experiment._replace(data=data)
    state, row = jax.jit(partial(start, experiment.learning))()
    rows = make_store("host", row, 5)
    evaluation = programs.Evaluation(experiment, ONE_DEVICE)
    evaluation.compile(state, rows, {2})
    with jax.transfer_guard("disallow"):  # as in a run
        together = evaluation(state, rows, np.array([0, 3], np.int32))
        alone = evaluation(state, rows, np.array([3, 4], np.int32))
    first, third = jax.device_get(together["client_local"])
    assert third == alone["client_local"][0] and third in (0, 0.5, 1)
    # Whole repetitions of all examples, and a part of them.
    assert 0 < first < 1


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("local_val", ["matched_test", "holdout"])
def test_groups_of_clients_change_no_bit(gated, local_val, monkeypatch):
    """Five clients at once, and in groups of at most two, of which one is not full."""
    changes = {"data.local_val": local_val, "model.gated": gated}
    experiment = build(tiny_config(**changes))
    state, row = jax.jit(partial(start, experiment.learning))()
    rows = make_store("host", row, 5, own_personal=own_personal(experiment.learning))
    results = []
    for group in (256, 2):
        monkeypatch.setattr(programs, "GROUP", group)
        evaluation = programs.Evaluation(experiment, ONE_DEVICE)
        evaluation.compile(state, rows, {5})
        with jax.transfer_guard("disallow"):
            found = evaluation(state, rows, np.arange(5, dtype=np.int32))
        results.append(jax.device_get(found))
    assert results[0]["client_local"].shape == (5,)
    jax.tree.map(np.testing.assert_array_equal, *results)
