"""What a client's compacted network keeps of the accuracy on the client's own data."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.engine.evaluate import correct_examples
from fedjax_prune.models import costs
from fedjax_prune.models.modules import without_gates
from fedjax_prune.models.precision import product_precision
from fedjax_prune.runs.experiment import load_data
from fedjax_prune.runs.export.choose import choose
from fedjax_prune.runs.learning import task_of
from fedjax_prune.types import Dataset


class ClientAccuracy(NamedTuple):
    """Accuracies on a client's validation set, in [0, 1], and what they cost.

    Attributes:
      client: its id.
      examples: number of examples in its validation set.
      dense: of the shared parameters without gates.
      gated: of the shared parameters with the client's gates.
      compact: of the client's compacted network.
      macs: multiply-accumulates of the compacted network over those of the dense one.
    """

    client: int
    examples: int
    dense: float
    gated: float
    compact: float
    macs: float


def client_accuracies(
    workdir: str | Path, clients: Sequence[int], *, macs: float | None = None
) -> list[ClientAccuracy]:
    """Measures the networks of clients on their validation sets.

    Args:
      workdir: of a run with gates.
      clients: ids of trained clients.
      macs: budget of the compacted networks, as in `client_network`.

    Raises:
      SettingsError, WorkdirError, CheckpointError, RowsError, DataError: as `choose`.
    """
    found = []
    for client in clients:
        gated = choose(workdir, "gated", client)
        compact = choose(workdir, "compact", client, macs)
        config = gated.learning.config
        data = load_data(config)
        source = data.train if data.held_out else data.test
        table = data.validation(np.array([client], np.int32))
        indices = table.indices[0, : table.sizes[0]]
        own = Dataset(
            jnp.asarray(source.images[indices]), jnp.asarray(source.labels[indices])
        )
        plain = without_gates(gated.model)
        networks = {
            "dense": (plain, gated.variables._replace(personal={}, alive={})),
            "gated": (gated.model, gated.variables),
            "compact": (compact.model, compact.variables),
        }
        accuracies = {}
        with product_precision(config.precision):
            for name, (model, variables) in networks.items():
                task = task_of(config, model)
                correct = jax.jit(
                    lambda variables, own, task=task: correct_examples(
                        task, variables, own
                    )
                )(variables, own)
                accuracies[name] = float(np.mean(correct))
        shape = gated.learning.image_shape
        share = costs.macs(compact.model, shape).dense / costs.macs(plain, shape).dense
        found.append(
            ClientAccuracy(client, examples=len(indices), **accuracies, macs=share)
        )
    return found
