"""What a client's compacted network keeps of the accuracy on the client's own data."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax

from fedjax_prune.engine.evaluate import correct_examples
from fedjax_prune.models import costs
from fedjax_prune.models.modules import without_gates
from fedjax_prune.runs.experiment import RunData
from fedjax_prune.runs.learning import image_shape_of, task_of
from fedjax_prune.types import Config, Variables


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


def client_accuracy(
    config: Config,
    data: RunData,
    client: int,
    gated: tuple[Any, Variables],
    compact: tuple[Any, Variables],
) -> ClientAccuracy | None:
    """Measures the networks of a client on its validation set; None if it is empty.

    Args:
      config: of the run, whose precision of products is set.
      data: of the run.
      client: its id.
      gated: the gated network, whole, and its variables with the client's gates.
      compact: the client's compacted network and its variables.
    """
    examples = jax.device_put(data.validation_of(client))
    if not len(examples.labels):
        return None
    model, variables = gated
    plain = without_gates(model)
    networks: Mapping[str, tuple[Any, Variables]] = {
        "dense": (plain, variables._replace(personal={}, alive={})),
        "gated": gated,
        "compact": compact,
    }
    accuracies = {
        name: float(
            jax.jit(partial(correct_examples, task_of(config, network)))(
                arrays, examples
            ).mean()
        )
        for name, (network, arrays) in networks.items()
    }
    shape = image_shape_of(config)
    share = costs.macs(compact[0], shape).dense / costs.macs(plain, shape).dense
    return ClientAccuracy(client, len(examples.labels), **accuracies, macs=share)
