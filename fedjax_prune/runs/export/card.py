"""`README.md` of an exported network: its model card, with the lines that load it."""

from collections.abc import Mapping
from typing import Any

CARD = "README.md"

_LOAD = {
    "safetensors": """
import jax.export
import numpy as np
from safetensors.numpy import load_file

arrays = load_file("model.safetensors")
with open("model.stablehlo", "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
examples = {examples}
logits = program.call(arrays, examples)
""",
    "stablehlo": """
import jax.export
import numpy as np

with open("model.stablehlo", "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
examples = {examples}
logits = program.call(examples)
""",
    "onnx": """
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
examples = {examples}
(logits,) = session.run(["logits"], {{"input": examples}})
""",
}
"""Format -> lines that load the network and use nothing of this library."""

_NEEDS = {
    "safetensors": (
        "`pip install jax flatbuffers safetensors`. The arrays alone can be read by "
        "any library that knows safetensors; `model.json` lists the layers. With "
        "fedjax_prune, `fedjax_prune.runs.export.load_model` reads this folder."
    ),
    "stablehlo": (
        "`pip install jax flatbuffers`. The program holds the arrays and runs on CPUs, "
        "NVIDIA GPUs and TPUs."
    ),
    "onnx": "`pip install onnxruntime`.",
}

_WHOSE = {
    "eval/global_dense": "the shared parameters are",
    "eval/client_gated": "those with each evaluated client's gates, if any, are",
}
"""Fields of metrics that an evaluation may have -> whose accuracy they are."""


def card(facts: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    """Writes the card.

    Args:
      facts: what `model.json` holds.
      sizes: name of each file -> its bytes.

    Returns:
      Markdown. Its one block of code runs in the folder of the network.
    """
    read, training = facts["input"], facts["training"]
    batch_size, *shape = read["shape"]
    numbers = ", ".join(map(str, shape))
    zeros = f"np.zeros(({batch_size or 1}, {numbers}), np.{read['dtype']})"
    labels = facts["output"]["labels"]
    shown = ", ".join(repr(label) for label in labels[:10])
    starts = training["starts"]
    then = starts[-1] if starts else {}
    parts = [
        f"# {facts['architecture']['class']} for {training['data']}",
        f"{facts['what']}.",
        "## How it is loaded",
        f"```python{_LOAD[facts['format']].format(examples=zeros)}```",
        _NEEDS[facts["format"]],
        "## What it takes and gives",
        _list(
            {
                "input": (
                    f"{read['dtype']} [{batch_size or 'any batch size'}, {numbers}], "
                    f"{read['holds']}"
                ),
                "the program then": _preprocessing(read),
                "logits": f"float32 [batch, {len(labels)}]",
                "labels": shown + (", ..." if len(labels) > 10 else ""),
            }
        ),
        "## What it costs",
        _list(_costs(facts) | {name: f"{n:,} bytes" for name, n in sizes.items()}),
        "## How accurate the run was",
        _accuracies(facts),
        "## How it was trained",
        _list(
            {
                "algorithm": training["algorithm"],
                "rounds": f"{training['rounds']} of {training['rounds_of_run']}",
                "clients": (
                    f"{training['cohort_size']} of {training['num_clients']} a round, "
                    f"split by {training['partitioner']}"
                ),
                "data and seed": f"{training['data']}, {training['seed']}",
                "trained with": _pairs(then.get("versions") or {}),
                "commit": then.get("commit") or "unknown",
                "exported with": _pairs(facts["versions"]),
            }
        ),
        "`model.json` holds the configuration, except names of folders, and each start "
        "of the run.",
    ]
    return "\n\n".join(parts) + "\n"


def _preprocessing(read: Mapping[str, Any]) -> str:
    steps = []
    if read["divided_by"] != 1:
        steps.append(f"divides by {read['divided_by']}")
    if read["mean_subtracted"]:
        steps.append(f"subtracts {read['mean_subtracted']}")
        steps.append(f"divides by {read['std_divided_by']}")
    return ", ".join(steps) or "changes nothing"


def _costs(facts: Mapping[str, Any]) -> dict[str, str]:
    size, macs = facts["size"], facts["macs"]
    found = {
        "parameters": (
            f"{size['parameters']:,} of {size['parameters_of_full_network']:,}"
        ),
        "sparsity": f"{size['sparsity']:.1%} of all parameters are 0 or removed",
        "MACs of an example": (
            f"{macs['computed']:,} computed; the full network without gates has "
            f"{macs['of_full_network']:,}"
        ),
        "arrays without gates": (
            f"{size['bytes']:,} of {size['bytes_of_full_network']:,} bytes of the full "
            "network"
        ),
    }
    if size["gate_parameters"]:
        found["gates"] = (
            f"{size['gate_parameters']:,} parameters, {size['bytes_of_gates']:,} bytes"
        )
        found["MACs of the gates and the channels they keep"] = f"{macs['kept']:,}"
    return found


def _accuracies(facts: Mapping[str, Any]) -> str:
    """Accuracies of the last evaluation, and those of a client's compact network."""
    parts = []
    if found := dict(facts["accuracy"]):
        rows = {
            name: f"{x:,}" if isinstance(x, int) else f"{x:.4g}"
            for name, x in found.items()
            if name != "round"
        }
        whose = [
            f"{words} `{field}`"
            for field, words in _WHOSE.items()
            if any(name.startswith(f"{field}/") for name in rows)
        ]
        where = f", where {', '.join(whose)}" if whose else ""
        parts.append(f"After round {found['round']}{where}:\n\n{_list(rows)}")
    else:
        parts.append("The run had not been evaluated.")
    if own := facts["own_validation"]:
        rows = {
            "the shared network without gates": f"{own['dense']:.4g}",
            "the same with the client's gates": f"{own['gated']:.4g}",
            "this network": f"{own['compact']:.4g}",
        }
        parts.append(
            f"On the {own['examples']} validation examples of client {own['client']}:"
            f"\n\n{_list(rows)}"
        )
    return "\n\n".join(parts)


def _list(rows: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in rows.items())


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "unknown"
