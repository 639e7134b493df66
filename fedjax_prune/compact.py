"""From a masked model to really smaller computations."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax


def gathered_predict(
    model: nn.Module, variables: Mapping[str, Any], image: jax.Array
) -> jax.Array:
    """Runs one image through only the channels its gates keep.

    Kernels are gathered by index on both axes (FedDP, equation 3), so the
    products really are small; in evaluation mode the result equals the masked
    model's to rounding. Shapes are static: it can be jitted and mapped.

    Args:
      model: one of MODELS.
      variables: its collections, `params` and those it has of `gates` and
        `batch_stats`.
      image: [height, width, channels] float32.

    Returns:
      logits [num_classes] float32.

    References:
      Yu et al., Heterogeneous Federated Learning using Dynamic Model Pruning and
      Adaptive Gradient, section 3, https://arxiv.org/abs/2106.06921.
    """
    logits = model.apply(variables, image, method="gathered")
    assert isinstance(logits, jax.Array)
    return logits
