"""The compiled functions of a run."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_prune.engine import evaluate
from fedjax_prune.runs.experiment import Experiment
from fedjax_prune.engine.devices import Placement
from fedjax_prune.types import RoundInputs


class Programs(NamedTuple):
    """What a run compiles, once each.

    Attributes:
      train: (state, rows, train, test, cohort, key, wanted) -> (state, rows, sums)
        after one round of the cohort with these rows; the clients in `wanted`
        [num_places] bool are probed before aggregation. State and rows are donated.
      measure: (state, personal, client_ids, train, test, validation) -> accuracies
        of these clients with their personal parameters.
    """

    train: jax.stages.Wrapped
    measure: jax.stages.Wrapped


def compile_programs(experiment: Experiment, placement: Placement) -> Programs:
    """Makes the compiled functions of a run.

    Args:
      experiment: of the run.
      placement: where they run.
    """
    algorithm, task = experiment.algorithm, experiment.task

    @partial(jax.jit, donate_argnums=(0, 1))
    def train_round(state, rows, train, test, cohort, key, wanted):
        inputs = RoundInputs(
            state=state,
            rows=rows,
            dataset=train,
            cohort=cohort,
            key=jax.random.fold_in(key, state.round),
            probe=evaluate.after_local_probe(task, test, wanted),
        )
        return algorithm.round(inputs, placement)

    @jax.jit
    def measure(state, personal, ids, train, test, validation):
        # On every device: each evaluates all clients on its own examples.
        shared = algorithm.deliver(state)
        own = shared._replace(personal=personal)
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

    return Programs(train_round, measure)
