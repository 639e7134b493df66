"""Exports the trained shared model of a run, by default without pruned channels.

The folder holds `model.json`, which describes the network, and a checkpoint of it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fedjax_prune.models.modules import without_gates
from fedjax_prune.models.platforms import check_platform, traced_platform, tracing_for
from fedjax_prune.models.precision import product_precision
from fedjax_prune.pruning.smaller import kept_channels, shrink, smaller_model
from fedjax_prune.runs import checkpoint
from fedjax_prune.runs.learning import make_learning, make_model, task_of
from fedjax_prune.runs.start import restore_state
from fedjax_prune.runs.workdir import WorkdirError, read_usable_config, usable
from fedjax_prune.types import Config, Variables

_MODEL = "model.json"


class Exported(NamedTuple):
    """A trained model.

    Attributes:
      model: the network without gates, because gates are personal.
      variables: of the network; `personal` is empty.
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
      compact: slice removed channels out of the arrays; the logits stay the same
        except for rounding.

    Returns:
      What was written.

    Raises:
      WorkdirError, CheckpointError: if there is nothing to export or the folder is
        not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WorkdirError(f"{folder} must be a new or an empty folder.")
    config = read_usable_config(workdir)
    learning = make_learning(config)
    state = restore_state(learning, Path(workdir))
    variables, left = learning.algorithm.deliver(state)._replace(alive={}), {}
    masked, groups = learning.algorithm.masked, learning.task.groups
    if masked is not None and compact and groups:
        masks = masked.delivered(state)
        kept = kept_channels(learning.model, masks, learning.image_shape)
        variables = shrink(variables, groups, kept)
        left = {name: len(indices) for name, indices in kept.items()}
    checkpoint.save(folder, int(state.round), variables, keep=1)
    described = {"config": json.loads(config.to_json_best_effort()), "left": left}
    (folder / _MODEL).write_text(json.dumps(described, indent=2) + "\n")
    return load_model(folder)


def load_model(folder: str | Path, *, platform: str | None = None) -> Exported:
    """Reads an exported model.

    Args:
      folder: as `export_model` has written it.
      platform: one of `platforms.PLATFORMS`; lets `predict` be lowered for a platform
        other than the default device's.

    Raises:
      WorkdirError, CheckpointError: if there is none or it is damaged.
      ValueError: if the platform is unknown.
    """
    if platform is not None:
        check_platform(platform)
    config, left = _described(Path(folder) / _MODEL)
    model = smaller_model(without_gates(make_model(config)), left)
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


def _described(file: Path) -> tuple[Config, dict[str, int]]:
    """The configuration of an exported model, and its numbers of channels by group.

    Raises:
      WorkdirError: if the file is missing or not what `export_model` has written.
    """
    try:
        found = json.loads(file.read_text())
        config, left = usable(file, found["config"]), found["left"]
        counts = all(type(n) is int and 1 <= n < 2**31 for n in left.values())
    except (OSError, ValueError) as error:
        raise WorkdirError(f"{file} cannot be read: {error}.") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise WorkdirError(
            f"{file} must hold `config` and `left` of an exported model, got {found!r}."
        ) from error
    if not counts:
        raise WorkdirError(
            f"{file} describes no model: left must be counts, got {left}."
        )
    return config, left
