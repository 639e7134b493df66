"""`model.json`: what an exported network is, how it was trained, and what it costs."""

import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_prune.data.augment import NORMALISATIONS
from fedjax_prune.data.labels import labels_of
from fedjax_prune.models import costs, own
from fedjax_prune.models.checks import name_of
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.modules import gates_of
from fedjax_prune.runs import environment
from fedjax_prune.runs.export.choose import Chosen
from fedjax_prune.runs.learning import data_info, image_shape_of
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.types import Config

FACTS = "model.json"
FORMATS = ("safetensors", "stablehlo", "onnx")
DTYPES = ("uint8", "float32")
_FITTING = {"image": DTYPES, "text": DTYPES[:1], "vector": DTYPES[1:]}
"""Kind of data -> dtypes of the input, the default one first."""
INPUT, OUTPUT = "input", "logits"
"""Names of what a program takes and returns."""

_OF_STARTS = ("started", "finished", "versions", "commit", "devices")
"""What is told of the starts of a run; their flags could name folders of a user."""
_PACKAGES = {
    "safetensors": ("jax", "numpy", "safetensors"),
    "stablehlo": ("jax", "numpy"),
    "onnx": ("jax", "numpy", "jax2onnx", "onnx", "onnxruntime"),
}


def input_problems(config: Config, dtype: str | None, batch_size: int) -> list[str]:
    """Says what of the arguments of `input_of` is wrong."""
    kind, found = data_info(config).kind, []
    if dtype not in (None, *_FITTING[kind]):
        fitting = " or ".join(_FITTING[kind])
        found.append(f"input_dtype must be {fitting} for {kind}s, got {dtype!r}")
    if not 0 <= batch_size < 2**31:
        found.append(f"batch_size must be in [0, {2**31 - 1}], got {batch_size}")
    return found


def input_of(config: Config, dtype: str | None, batch_size: int) -> dict[str, Any]:
    """Says what a program takes, and what it does with it before the network.

    Args:
      config: of the run.
      dtype: one of DTYPES that fits the data; None is uint8, for vectors float32.
      batch_size: at least 0, which is any.
    """
    kind = data_info(config).kind
    dtype = dtype or _FITTING[kind][0]
    mean, std = NORMALISATIONS[config.data.normalize]
    words = {
        "image": "pixels from 0 to 255" if dtype == "uint8" else "pixels from 0 to 1",
        "text": "symbols: places in labels",
        "vector": "numbers",
    }
    return {
        "name": INPUT,
        "dtype": dtype,
        "shape": [batch_size, *image_shape_of(config)],
        "axes": ["batch", "height", "width", "channels"],
        "holds": words[kind],
        # The program does this; whoever calls it gives what is stored.
        "divided_by": 255 if kind == "image" and dtype == "uint8" else 1,
        "mean_subtracted": list(mean),
        "std_divided_by": list(std),
    }


def facts_of(
    chosen: Chosen, workdir: Path, format: str, read: Mapping[str, Any]
) -> dict[str, Any]:
    """Gathers what `model.json` holds.

    Args:
      chosen: the network.
      workdir: of its run.
      format: one of FORMATS.
      read: as `input_of` returns it.
    """
    learning, model = chosen.learning, chosen.model
    config = learning.config
    settings: GateSettings | None = gates_of(model)
    return {
        "format": format,
        "kind": chosen.kind,
        "client": chosen.client,
        "what": chosen.words,
        "input": dict(read),
        "output": {
            "name": OUTPUT,
            "holds": "logits [batch, classes]; a softmax makes probabilities",
            "labels": labels_of(config.data.name, config.data.classes),
        },
        "architecture": {
            "class": name_of(model),
            "gates": settings._asdict() if settings else None,
            "left": chosen.left,
            "layers": [layer._asdict() for layer in chosen.task.layers],
        },
        "training": {
            "algorithm": config.algorithm.name,
            "rounds": chosen.round,
            "rounds_of_run": config.rounds,
            "cohort_size": config.cohort_size,
            "num_clients": config.data.num_clients,
            "data": config.data.name,
            "partitioner": config.data.partitioner,
            "seed": config.seed,
            "starts": [
                {name: each.get(name) for name in _OF_STARTS}
                for each in environment.read(workdir)
            ],
        },
        "accuracy": _accuracy(workdir, chosen.round),
        "own_validation": measured._asdict()
        if (measured := chosen.own_validation)
        else None,
        "size": _size(chosen),
        "macs": _macs(chosen),
        "versions": _versions(format),
        "config": _without_folders(config),
    }


def _without_folders(config: Config) -> dict[str, Any]:
    """A configuration that names no folder of the user, for readers elsewhere."""
    values = json.loads(config.to_json_best_effort())
    values["rows_dir"] = values["data"]["dir"] = ""
    if own.is_own(values["model"]["name"]):
        values["model"]["name"] = own.without_folder(values["model"]["name"])
    return values


def _accuracy(workdir: Path, round: int) -> dict[str, Any]:
    """The last evaluation up to a round: fields of its row of metrics.jsonl."""
    rows = [row for row in read_metrics(workdir) if row["round"] <= round]
    for row in reversed(rows):
        found = {n: v for n, v in row.items() if n.startswith("eval/") and v == v}
        if found:
            return {"round": row["round"]} | found
    return {}


def _size(chosen: Chosen) -> dict[str, Any]:
    """Numbers of parameters, bytes, and the shares that are 0 and were removed."""
    whole = chosen.learning.dense_task.shapes
    params, gates, model_state, alive = chosen.variables
    full, left = costs.num_entries(whole.params), costs.num_entries(params)
    used = sum(int(np.count_nonzero(leaf)) for leaf in jax.tree.leaves(params))
    return {
        "parameters": left,
        "parameters_of_full_network": full,
        "gate_parameters": costs.num_entries(gates),
        "sparsity": 1 - used / full,
        # Both have the batch statistics, and neither has gates.
        "bytes": costs.tree_bytes((params, model_state)),
        "bytes_of_full_network": costs.tree_bytes((whole.params, whole.model_state)),
        "bytes_of_gates": costs.tree_bytes((gates, alive)),
    }


def _macs(chosen: Chosen) -> dict[str, int]:
    """The multiply-accumulates for one example."""
    macs = costs.macs_of(chosen.task.layers)
    return {
        # What this network computes: a mask after a convolution saves nothing.
        "computed": macs.dense + macs.gates,
        # Those of the channels that its gates keep.
        "kept": macs.kept + macs.gates,
        "of_full_network": costs.macs_of(chosen.learning.dense_task.layers).dense,
    }


def _versions(format: str) -> dict[str, str]:
    versions = {name: version_of(name) for name in _PACKAGES[format]}
    library = sys.modules["fedjax_prune"].__version__
    return {"python": platform.python_version(), "fedjax_prune": library} | versions


def version_of(module: str) -> str:
    """The version of the distribution that has a module.

    Several have the same one: `onnxruntime` is of onnxruntime or onnxruntime-gpu.
    """
    distributions = importlib.metadata.packages_distributions().get(module, [])
    return importlib.metadata.version(distributions[0]) if distributions else "unknown"
