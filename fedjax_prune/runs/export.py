"""The trained model without its run: shared parameters under masks, really smaller.

The folder holds `model.json`, what the network is, and its variables as a checkpoint.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from fedjax_prune.runs import checkpoint
from fedjax_prune.pruning.smaller import kept_channels, shrink, smaller_model
from fedjax_prune.runs.experiment import build, image_shape_of, make_model, task_of
from fedjax_prune.models.platforms import check_platform, traced_platform, tracing_for
from fedjax_prune.models.precision import product_precision
from fedjax_prune.runs.start import restore_state
from fedjax_prune.types import Config, Variables
from fedjax_prune.runs.workdir import WorkdirError, read_config

_MODEL = "model.json"


class Exported(NamedTuple):
    """A trained model.

    Attributes:
      model: the network, without gates: those are the clients' own.
      variables: of it; `personal` is empty.
      predict: images [batch_size, height, width, channels] as they are stored, uint8 or
        floats in [0, 1], text as uint8 symbols -> logits [batch_size, num_classes].
    """

    model: Any
    variables: Variables
    predict: Callable[[jax.Array], jax.Array]


def export_model(
    workdir: str | Path, folder: str | Path, *, compact: bool = True
) -> Exported:
    """Writes the shared model of a run's newest checkpoint.

    Where the final masks prune, parameters are 0 (AutoFLIP, step 27).

    Args:
      workdir: of the run.
      folder: for the model, new or empty.
      compact: slice removed channels out of the arrays; the logits stay the same but
        for rounding.

    Returns:
      What was written.

    Raises:
      WorkdirError, CheckpointError, DataError: if there is nothing to export or the
        folder is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WorkdirError(f"{folder} must be a new or an empty folder.")
    config: Config = ConfigDict(read_config(workdir))
    experiment = build(config)
    state = restore_state(config, experiment, Path(workdir))
    variables, left = experiment.algorithm.deliver(state)._replace(alive={}), {}
    masked = experiment.algorithm.masked
    if masked is not None and compact and experiment.task.groups:
        shape = image_shape_of(config)
        kept = kept_channels(experiment.model, masked.delivered(state), shape)
        variables = shrink(variables, experiment.task.groups, kept)
        left = {name: len(indices) for name, indices in kept.items()}
    checkpoint.save(folder, int(state.round), variables, keep=1)
    described = {"config": json.loads(config.to_json_best_effort()), "left": left}
    (folder / _MODEL).write_text(json.dumps(described, indent=2) + "\n")
    return load_model(folder)


def load_model(folder: str | Path, *, platform: str | None = None) -> Exported:
    """Reads an exported model.

    Args:
      folder: as `export_model` has written it.
      platform: one of `platforms.PLATFORMS`, to lower `predict` ahead of time for
        another platform than that of the default device.

    Raises:
      WorkdirError, CheckpointError: if there is none or it is damaged.
      ValueError: if the platform is unknown.
    """
    if platform is not None:
        check_platform(platform)
    file = Path(folder) / _MODEL
    try:
        found: Mapping[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise WorkdirError(f"{file} cannot be read: {error}.") from error
    config: Config = ConfigDict(found["config"])
    model = smaller_model(make_model(config).clone(gates=None), found["left"])
    task = task_of(config, model)
    template = jax.eval_shape(task.init, jax.random.key(0))
    variables = checkpoint.restore(folder, template)

    def predict(images: jax.Array) -> jax.Array:
        with (
            product_precision(config.precision),
            tracing_for(platform or traced_platform()),
        ):
            return task.predict(variables, images)

    return Exported(model, variables, predict)
