"""The compiled functions of a run."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_prune import evaluate, store
from fedjax_prune.experiment import Experiment
from fedjax_prune.placement import Placement

PREPARATION = 2**32 - 2
"""Stands for a round in the keys and draws of what comes before the first."""


class Programs(NamedTuple):
    """What a run compiles, once each.

    Attributes:
      train: (state, rows, train, test, cohort, key, wanted) -> (state, rows, sums)
        after one round; the clients in `wanted` [num_places] bool are probed before
        aggregation. State and rows are donated.
      prepare: like `train`, of what is done once before the first round; None if there
        is nothing.
      measure: (state, rows, client_ids, train, test, validation) -> accuracies.
    """

    train: jax.stages.Wrapped
    prepare: jax.stages.Wrapped | None
    measure: jax.stages.Wrapped


def compile_programs(experiment: Experiment, placement: Placement) -> Programs:
    """Makes the two compiled functions of a run.

    Args:
      experiment: of the run.
      placement: where they run.
    """
    algorithm, task = experiment.algorithm, experiment.task

    def on_rows(run: Callable[..., tuple]) -> jax.stages.Wrapped:
        """What `run` does to a cohort, done to the rows of all clients."""

        @partial(jax.jit, donate_argnums=(0, 1))
        def train(state, rows, train, test, cohort, key, wanted):
            state, cohort_rows, sums = run(
                state,
                store.take(rows, cohort.client_ids, placement),
                train,
                cohort,
                key,
                evaluate.after_local_probe(task, test, wanted),
                placement,
            )
            rows = store.put(rows, cohort.client_ids, cohort_rows, placement)
            return state, rows, sums

        return train

    def train_round(state, rows, train, cohort, key, probe, placement):
        key = jax.random.fold_in(key, state.round)
        return algorithm.round(state, rows, train, cohort, key, probe, placement)

    def prepare(state, rows, train, cohort, key, probe, placement):
        assert algorithm.prepare is not None
        del probe  # nobody is measured
        key = jax.random.fold_in(key, PREPARATION)
        return algorithm.prepare.run(state, rows, train, cohort, key, None, placement)

    @jax.jit
    def measure(state, rows, ids, train, test, validation):
        shared = algorithm.deliver(state)
        # Few rows, on every device: each evaluates all clients on its own examples.
        own = shared._replace(personal=store.take_whole(rows, ids).personal)
        validation = jax.tree.map(lambda x: x[ids], validation)
        correct = evaluate.correct_by_client(task, own, test, placement)
        local = (
            evaluate.holdout_accuracy(task, own, train, validation, placement)
            if experiment.held_out
            else evaluate.local_accuracy(correct, validation)
        )
        dense = correct
        if experiment.model.gates is not None:
            dense = evaluate.correct_by_client(
                experiment.dense_task, shared, test, placement
            )
        return {
            "global_dense": dense.mean(),
            "client_gated": jnp.broadcast_to(correct.mean(axis=1), ids.shape),
            "client_local": local,
        }

    return Programs(
        train=on_rows(train_round),
        prepare=None if algorithm.prepare is None else on_rows(prepare),
        measure=measure,
    )
