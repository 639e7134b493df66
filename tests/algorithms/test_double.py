"""With `jax_enable_x64` the state keeps its dtypes, from `init` through the rounds."""

import jax
import pytest

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.algorithms.autoflip.schedules import MASK_SCHEDULES, SOURCES
from fedjax_prune.engine import store
from fedjax_prune.types import RoundInputs
from tests import problems, toys

SCHEDULES = [
    *(("autoflip", {"mask_schedule": name}) for name in MASK_SCHEDULES),
    *(
        (
            "autoflip",
            {"mask_schedule": "agreement", "agreement_source": s, "threshold_ramp": 5},
        )
        for s in SOURCES
    ),
    ("autoflip", {"mask_schedule": "participants", "explorer_weighting": "samples"}),
    ("autoflip", {"start_from": "explored_mean"}),
]


def signature(tree):
    """The leaves by their paths, as a checkpoint compares them."""
    return {
        jax.tree_util.keystr(path): (leaf.dtype.name, leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize(
    ("name", "fields"), SCHEDULES + [(name, {}) for name in ALGORITHMS]
)
def test_preparation_and_rounds_keep_every_dtype(name, fields):
    algorithm = problems.build(name, **fields)
    ids, key = list(range(len(problems.SIZES))), jax.random.key(0)
    cohort = toys.contiguous_cohort(problems.SIZES, ids, num_lanes=2)
    dataset = toys.image_dataset(
        sum(problems.SIZES), problems.SHAPE, problems.NUM_CLASSES
    )
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        first = jax.eval_shape(algorithm.init, key)
        rows = jax.eval_shape(
            lambda: store.create(algorithm.row(key), len(cohort.client_ids))
        )
        state, taken = first, rows
        floats = {x.dtype.name for x in jax.tree.leaves((state.params, state.server))}
        assert "float64" in floats and "float32" not in floats
        steps = [] if algorithm.prepare is None else [algorithm.prepare.run]
        for step in [*steps, algorithm.round, algorithm.round]:
            inputs = RoundInputs(state, taken, dataset, cohort, key)
            state, taken, _ = jax.eval_shape(step, inputs)
            state = state._replace(pending=())
            assert signature(state) == signature(first._replace(pending=()))
            assert signature(taken) == signature(rows)
