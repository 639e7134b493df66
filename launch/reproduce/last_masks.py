"""The accuracy of a pruned model under the masks of its last round."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from fedjax_prune.engine.evaluate import correct_examples
from fedjax_prune.pruning.enforce import apply_masks
from fedjax_prune.runs.tables import markdown, with_interval

from .newest import newest


def under_last_masks(runs: Mapping[str, Sequence[Path]]) -> str:
    """Test accuracies as delivered and under the masks of the last round, in Markdown.

    AutoFLIP trains under the masks of each round's clients (`participants`), but is
    delivered under that of all explorers. Other schedules deliver their last masks.

    Args:
      runs: name -> workdirs of its seeds, with masks and without gates.

    Returns:
      Means over seeds with a 95 % interval, and the differences seed by seed.
    """
    rows = []
    for name, workdirs in runs.items():
        delivered, last = np.transpose([accuracies(workdir) for workdir in workdirs])
        cells = [with_interval(delivered), with_interval(last)]
        less = with_interval(last - delivered, "+")
        rows.append([name, str(len(workdirs)), *cells, less])
    header = ["method", "seeds", "as delivered", "masks of the last round"]
    return markdown([*header, "difference"], rows)


def accuracies(workdir: Path) -> tuple[float, float]:
    """Test accuracies of a run's newest checkpoint.

    Args:
      workdir: of a run with masks and without gates.

    Returns:
      As delivered, and under the masks of the last round.

    Raises:
      WorkdirError, CheckpointError, DataError: if there is nothing to measure.
    """
    with newest(workdir) as (experiment, state, _):
        learning, data = experiment
        delivered = learning.algorithm.deliver(state)
        pruned = apply_masks(state.server.masks, state.params)
        test = jax.device_put(data.test)

        @jax.jit
        def accuracy(params):
            variables = delivered._replace(params=params)
            return correct_examples(learning.task, variables, test).mean()

        return float(accuracy(delivered.params)), float(accuracy(pruned))
