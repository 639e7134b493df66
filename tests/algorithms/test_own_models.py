"""Modules that say nothing of their channels: every algorithm, linen and NNX alike."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.engine import store as stores
from fedjax_prune.models.task import make_task
from fedjax_prune.types import RoundInputs
from tests import problems, toys


class Linen(nn.Module):
    """A hidden layer and a layer of logits."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(5, name="hidden")(x.reshape(x.shape[0], -1)))
        return nn.Dense(problems.NUM_CLASSES, name="fc")(x)


class NNX(nnx.Module):
    """The same with the same names, and a dropout that drops nothing."""

    def __init__(self, *, rngs):
        self.hidden = nnx.Linear(9, 5, rngs=rngs)
        self.drop = nnx.Dropout(0.0, rngs=rngs)
        self.fc = nnx.Linear(5, problems.NUM_CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))
        return self.fc(self.drop(x))


MODELS = {"linen": Linen(), "nnx": NNX}
UNSTRUCTURED = {
    "autoflip": {"structured_rule": "off"},
    "random_pruning": {"structured_rule": "off"},
    "magnitude": {"structured_rule": "off"},
}


@functools.cache
def task_of(kind):
    return make_task(MODELS[kind], problems.SHAPE)


@functools.cache
def played(name, kind):
    """State, rows and sums of two rounds, from the parameters of the linen model."""
    fields = UNSTRUCTURED.get(name, {})
    algorithm = problems.build(name, model_task=task_of(kind), **fields)
    key = jax.random.key(0)
    state, rows = toys.first(algorithm, len(problems.SIZES), key)
    params = task_of("linen").init(key).params
    state = state._replace(params=params)
    dataset = problems.dataset_of_clients()
    if algorithm.prepare is not None:
        ids = list(range(algorithm.prepare.num_clients(len(problems.SIZES))))
        cohort = toys.contiguous_cohort(problems.SIZES, ids, num_lanes=2)
        taken = stores.take(rows, cohort.client_ids)
        run = toys.compiled_preparation(algorithm)
        state, taken, _ = run(RoundInputs(state, taken, dataset, cohort, key))
        rows = stores.put(rows, cohort.client_ids, taken)
    sums = {}
    for ids in ([0, 1, 3], [1, 4, 2]):
        cohort = toys.contiguous_cohort(problems.SIZES, ids, num_lanes=2)
        state, rows, sums = toys.compiled_round(algorithm)(
            state, rows, dataset, cohort, jax.random.fold_in(key, ids[0])
        )
    return algorithm, state, rows, sums


@pytest.mark.parametrize("name", [n for n in ALGORITHMS if n != "eflprune"])
def test_every_algorithm_trains_a_model_without_channels(name):
    algorithm, state, _, sums = played(name, "linen")
    assert task_of("linen").groups is None
    first = task_of("linen").init(jax.random.key(0)).params
    changes = jax.tree.map(lambda a, b: float(abs(a - b).max()), state.params, first)
    assert all(0 < change < 10 for change in jax.tree.leaves(changes))
    assert np.isfinite(sums["loss"]).all()
    if algorithm.masked is not None:
        masks = algorithm.masked.delivered(state)
        kept = [np.asarray(mask) for mask in jax.tree.leaves(masks)]
        assert sum(int((~mask).sum()) for mask in kept) > 0
        delivered = algorithm.deliver(state).params
        for mask, leaf in zip(kept, jax.tree.leaves(delivered), strict=True):
            assert (np.asarray(leaf)[~mask] == 0).all() and mask.any()


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "autoflip"])
def test_the_same_model_in_nnx_gives_the_same_round(name):
    _, state, rows, sums = played(name, "linen")
    _, other, others, again = played(name, "nnx")
    for one, two in ((state.params, other.params), (rows, others), (sums, again)):
        assert jax.tree.structure(one) == jax.tree.structure(two)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", ["autoflip", "random_pruning", "magnitude"])
def test_removing_channels_says_what_it_needs(name, kind):
    with pytest.raises(
        ValueError, match=r"structured_rule must be off .*channel_groups"
    ):
        problems.build(name, model_task=task_of(kind), structured_rule="keep_ratio")


def test_an_algorithm_of_channels_says_what_it_needs():
    with pytest.raises(ValueError, match=r"task must have groups, .* channel_groups"):
        problems.build("eflprune", model_task=task_of("nnx"))
