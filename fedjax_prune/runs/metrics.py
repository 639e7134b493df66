"""A round's numbers: whether a run can go on with them."""

import numpy as np

from fedjax_prune.engine.outcome import TrainingError
from fedjax_prune.types import Config


def require_alive(config: Config, sums: dict[str, np.ndarray]) -> None:
    """Refuses masks that leave nothing of an array.

    Args:
      config: of the run.
      sums: of a round or of the preparation, with the scalars of `wire.mask_facts`
        if the algorithm has masks.

    Raises:
      TrainingError: if an array has no entry left; the message names the array and the
        threshold.
    """
    for name, kept in sums.items():
        if name.startswith("mask/kept/") and kept == 0:
            threshold = config.algorithm.get("threshold", "")
            raise TrainingError(
                f"algorithm.threshold {threshold} leaves nothing of "
                f"{name.removeprefix('mask/kept/')}: it must be smaller, "
                "algorithm.min_keep larger, in (0, 1], or fewer channels be removed."
            )
