"""The arrays of an exported network in one safetensors file, and how they are read.

The name of an array is its collection (`params`, `gates`, `batch_stats`, or `alive`,
the channels that gates may choose) and its path in it, joined by "/".
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fedjax_prune.models.channels import array_name
from fedjax_prune.models.modules import without_gates
from fedjax_prune.models.platforms import check_platform, traced_platform, tracing_for
from fedjax_prune.models.precision import product_precision
from fedjax_prune.pruning.smaller import smaller_model
from fedjax_prune.runs.export.facts import FACTS
from fedjax_prune.runs.export.read import Facts, check_own, config_of, read_facts
from fedjax_prune.runs.files import WorkdirError
from fedjax_prune.runs.learning import make_model, task_of
from fedjax_prune.types import Task, Tree, Variables

ARRAYS = "model.safetensors"
COLLECTIONS = {
    "params": "params",
    "personal": "gates",
    "model_state": "batch_stats",
    "alive": "alive",
}
"""Field of Variables -> first part of the names of its arrays."""


class Exported(NamedTuple):
    """A trained network that was exported.

    Attributes:
      model: the network; without gates unless those of a client were exported.
      task: of the network.
      variables: of the network.
      predict: images [batch_size, height, width, channels] as they are stored, uint8 or
        floats in [0, 1], text as uint8 symbols, or vectors -> logits
        [batch_size, num_classes].
      facts: what `model.json` says.
    """

    model: Any
    task: Task
    variables: Variables
    predict: Callable[[jax.Array | np.ndarray], jax.Array]
    facts: Mapping[str, Any]


def to_bytes(variables: Variables) -> bytes:
    """Writes the arrays of a network as a safetensors file."""
    return save({name: np.asarray(leaf) for name, leaf in by_name(variables).items()})


def by_name(variables: Variables) -> dict[str, Any]:
    """Name of each array -> the array."""
    return {
        _name(field, path): leaf
        for field in COLLECTIONS
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(variables, field))
    }


def to_variables(arrays: Mapping[str, Any], template: Variables) -> Variables:
    """Gives arrays by name the form of a network's variables.

    Args:
      arrays: as `by_name` returns them.
      template: variables of the network; it need not have `alive`.

    Raises:
      KeyError: if an array is missing.
    """

    def fill(field: str) -> Tree:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: arrays[_name(field, path)], getattr(template, field)
        )

    variables = Variables(*(fill(field) for field in template._fields))
    alive: Tree = {}
    for name, leaf in arrays.items():
        collection, *path, last = name.split("/")
        if collection == COLLECTIONS["alive"]:
            place = alive
            for key in path:
                place = place.setdefault(key, {})
            place[last] = leaf
    return variables._replace(alive=alive)


def load_model(
    folder: str | Path, *, own: str | None = None, platform: str | None = None
) -> Exported:
    """Reads a network that was exported as safetensors.

    Nothing is unpickled, and no code is run that the folder names.

    Args:
      folder: as `export_model` has written it.
      own: FILE.py:CLASS of a network that is a class of the user's own; None for all
        others. The file is run if it and the modules beside it that it imports are
        those of the export, and the arrays can be read.
      platform: one of `platforms.PLATFORMS`; lets `predict` be lowered for a platform
        other than the default device's.

    Raises:
      WorkdirError: if there is none, it is damaged or in another format, or the file
        of the class has changed.
      ValueError: if the platform is unknown, or `own` does not name the class.
    """
    if platform is not None:
        check_platform(platform)
    folder = Path(folder)
    facts = read_facts(folder / FACTS)
    check_own(facts, own)
    arrays = _read(folder, facts)
    config = config_of(facts, own)
    model = make_model(config)
    if facts.kind != "gated":
        model = without_gates(model)
    model = smaller_model(model, facts.left)
    task = task_of(config, model)
    template = task.shapes
    _compare(folder / ARRAYS, arrays, template)
    variables = to_variables(jax.tree.map(jax.numpy.asarray, arrays), template)

    def predict(images: Any) -> jax.Array:
        with (
            product_precision(config.precision),
            tracing_for(platform or traced_platform()),
        ):
            return task.predict(variables, images)

    return Exported(model, task, variables, predict, facts.values)


def _name(field: str, path: tuple[Any, ...]) -> str:
    return f"{COLLECTIONS[field]}/{array_name(path)}"


def _read(folder: Path, facts: Facts) -> dict[str, np.ndarray]:
    """Reads the arrays by name.

    Raises:
      WorkdirError: if there is no such file or it cannot be read.
    """
    file = folder / ARRAYS
    if not file.exists() and facts.format == "safetensors":
        raise WorkdirError(f"{file} is missing.")
    if not file.exists():
        raise WorkdirError(
            f"{folder} must hold a model in the format safetensors, got "
            f"{facts.format}: its README.md says how that is loaded."
        )
    try:
        return load_file(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise WorkdirError(f"{file} cannot be read: {error}.") from error


def _compare(file: Path, arrays: Mapping[str, Any], template: Variables) -> None:
    """Compares arrays with those that a network has.

    Raises:
      WorkdirError: if they are others.
    """
    wanted = {name: _kind(leaf) for name, leaf in by_name(template).items()}
    found = {
        name: _kind(leaf)
        for name, leaf in arrays.items()
        if not name.startswith(f"{COLLECTIONS['alive']}/")
    }
    if unlike := [
        f"{name} is {found.get(name, 'missing')}, needed {wanted.get(name, 'none')}"
        for name in sorted(wanted | found)
        if wanted.get(name) != found.get(name)
    ]:
        shown = unlike[:3] + ["..."] * (len(unlike) > 3)
        raise WorkdirError(f"{file} holds another network: {'; '.join(shown)}.")


def _kind(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
