"""A round's numbers, as one flat row of metrics.jsonl.

README.md beside it describes every field.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fedjax_prune.engine.evaluate import summarise
from fedjax_prune.engine.outcome import TrainingError, flagged
from fedjax_prune.models import costs
from fedjax_prune.models.channels import array_name
from fedjax_prune.pruning.costs import masked_macs, traffic
from fedjax_prune.runs.experiment import Experiment
from fedjax_prune.runs.learning import Learning
from fedjax_prune.types import Config, Tree

ACCURACY = "eval/global_dense/accuracy"
HEADLINE = "eval/headline"

_NAMED = {
    "clients/dropped": "nonfinite",
    "clients/clipped": "clipped",
    "clients/absent": "absent",
    "clients/slow": "slow",
    "clients/hostile": "hostile",
}
"""Field of a row with ids of clients -> the sum that is above 0 for them."""

_PRUNING = {
    "threshold": "lower",
    "prune_share": "lower",
    "channel_share": "lower",
    "structured_share": "lower",
    "structured_density": "lower",
    "min_keep": "raise",
}
"""Fields of algorithms that say how much is pruned, and how they leave more."""


def round_row(
    finished: int,
    seconds: float,
    sums: dict[str, np.ndarray],
) -> dict[str, Any]:
    """The row of one round, without its costs and its evaluation.

    Args:
      finished: rounds done, this one included.
      seconds: since the previous round finished, with evaluation, without compiling.
      sums: of the round, on the host, leaves [cohort_size, ...].

    Returns:
      Flat fields.
    """
    arrived = sums["arrived"] > 0
    count, loss, correct = (
        float(sums[name][arrived].sum()) for name in ("count", "loss", "correct")
    )
    row = {
        "round": finished,
        "seconds": seconds,
        "clients": len(sums["count"]),
        "clients/arrived": int(arrived.sum()),
        "train/loss": _ratio(loss, count),
        "train/accuracy": _ratio(correct, count),
        "steps/real": int(sums["steps"].sum()),
        "steps/executed": int(sums["steps_executed"]),
        "steps/executed_over_real": _ratio(sums["steps_executed"], sums["steps"].sum()),
    }
    for name, selected in sums.items():
        if name.startswith("selected/"):
            layer = name.removeprefix("selected/")
            if not arrived.any():
                continue
            selected = np.asarray(selected)[arrived]
            row[f"gates/{layer}/used"] = float((selected > 0).mean())
            row[f"gates/{layer}/entropy"] = float(np.mean(entropy(selected)))
    return row


def named_clients(sums: dict[str, np.ndarray], ids: np.ndarray) -> dict[str, str]:
    """The ids of the clients with which something was wrong, as fields of a row.

    Args:
      sums: of the round, on the host, leaves [cohort_size, ...].
      ids: of the clients, ascending.
    """
    found = {field: flagged(sums, name, ids) for field, name in _NAMED.items()}
    return {
        field: " ".join(str(client) for client in clients)
        for field, clients in found.items()
        if clients.size
    }


def accuracy_row(experiment: Experiment, values: dict[str, Any]) -> dict[str, float]:
    """What an evaluation has found, as fields of a metrics row."""
    row = {ACCURACY: float(values["global_dense"])}
    for name in ("client_gated", "client_local"):
        row |= statistics(name, values[name])
    gated = experiment.config.model.gated
    row[HEADLINE] = row["eval/client_gated/mean" if gated else ACCURACY]
    return row | {
        "eval/clients": len(values["client_local"]),
        "eval/examples": len(experiment.data.test.labels),
    }


def after_local_row(
    experiment: Experiment, sums: dict[str, np.ndarray], num_measured: int
) -> dict[str, float]:
    """Accuracies of clients before they are averaged, as fields of a metrics row.

    Args:
      experiment: of the run.
      sums: of the round, on the host, leaves [cohort_size, ...].
      num_measured: how many of the cohort are measured, its first ones.
    """
    arrived = sums["arrived"][:num_measured] > 0
    after = sums["after_local"][:num_measured] / len(experiment.data.test.labels)
    # What nobody has sent has no accuracy.
    return statistics(
        "after_local", after[arrived] if arrived.any() else np.full(1, np.nan)
    )


def statistics(name: str, accuracies: np.ndarray) -> dict[str, float]:
    """Statistics over clients, as fields of a metrics row."""
    return {f"eval/{name}/{key}": value for key, value in summarise(accuracies).items()}


def cost_row(
    learning: Learning, messages: tuple[Tree, Tree], sums: dict[str, np.ndarray]
) -> dict[str, Any]:
    """What a round has sent and computed, and how much of the model is pruned.

    FLOPs are those of `costs.training_flops`. A client that does not report receives a
    message, makes no step and sends nothing.

    Args:
      learning: of the run.
      messages: of its algorithm.
      sums: of the round, on the host, leaves [cohort_size, ...].

    Returns:
      Flat fields; those of gates and masks only if there are any.
    """
    facts = {name: int(x) for name, x in sums.items() if name.startswith("mask/")}
    cohort_size, num_absent = len(sums["count"]), int(np.sum(sums.get("absent", 0)))
    sent = traffic(messages, cohort_size, facts, num_absent=num_absent)
    images = float(sums["count"].sum())
    macs = masked_macs(
        learning.model, learning.image_shape, facts, layers=learning.task.layers
    )
    row: dict[str, Any] = {"bytes/down": sent.down, "bytes/up": sent.up}
    unmasked = traffic(messages, cohort_size, {}, num_absent=num_absent)
    row["bytes/dense"] = unmasked.down + unmasked.up
    row["flops/dense"] = costs.training_flops(macs.dense, images)
    if learning.macs.gates:
        row["flops/kept"] = costs.training_flops(macs.kept, images)
    if not facts:
        return row
    row |= {
        "bytes_spec/down": sent.spec_down,
        "bytes_spec/up": sent.spec_up,
        "flops/theoretical": costs.training_flops(macs.theoretical, images),
        "flops/realisable": costs.training_flops(macs.realisable, images),
        "flops/hybrid": costs.training_flops(macs.hybrid, images),
        "macs/theoretical": _ratio(macs.theoretical, macs.dense),
        "macs/realisable": _ratio(macs.realisable, macs.dense),
        "mask/guarded": facts["mask/guarded"],
    }
    row |= _sparsities(learning, facts)
    for name, value in facts.items():
        if name.startswith("mask/channels/"):
            row[f"channels/{name.removeprefix('mask/channels/')}"] = value
    return row


def bytes_sent(row: Mapping[str, Any]) -> int:
    """Bytes of a row, in both directions."""
    return row["bytes/down"] + row["bytes/up"]


def preparation_costs(
    learning: Learning, messages: tuple[Tree, Tree], sums: dict[str, np.ndarray]
) -> dict[str, Any]:
    """The costs of what is done before the first round, on the whole model."""
    facts = {name: int(x) for name, x in sums.items() if name.startswith("mask/")}
    unmasked = {name: x for name, x in sums.items() if name not in facts}
    row = cost_row(learning, messages, unmasked)
    for kind in ("theoretical", "realisable", "hybrid"):
        row[f"flops/{kind}"] = row["flops/dense"]
    row |= {"bytes_spec/down": row["bytes/down"], "bytes_spec/up": row["bytes/up"]}
    return row | _sparsities(learning, facts)


def require_alive(config: Config, sums: dict[str, np.ndarray]) -> None:
    """Refuses masks that prune a whole array.

    Raises:
      TrainingError: naming the array and the fields of the algorithm.
    """
    for name, kept in sums.items():
        if name.startswith("mask/kept/") and kept == 0:
            advice = [
                f"{change} algorithm.{field} = {config.algorithm[field]}"
                for field, change in _PRUNING.items()
                if field in config.algorithm
            ] or ["choose fields of the section algorithm that prune less"]
            raise TrainingError(
                f"The masks of {config.algorithm.name} leave nothing of "
                f"{name.removeprefix('mask/kept/')}: {' or '.join(advice)}."
            )


def _sparsities(learning: Learning, facts: dict[str, int]) -> dict[str, float]:
    """Pruned shares by mask: of all parameters, of the prunable, of each array."""
    params = learning.task.shapes.params
    sizes = {
        array_name(path): math.prod(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    kept = {name: facts[f"mask/kept/{name}"] for name in sizes}
    total, left = sum(sizes.values()), sum(kept.values())
    prunable = max(1, facts["mask/prunable"])
    row = {
        "sparsity/all": 1 - left / total,
        "sparsity/prunable": 1 - facts["mask/prunable_kept"] / prunable,
        "compression": total / left,
    }
    return row | {f"sparsity/{name}": 1 - kept[name] / sizes[name] for name in sizes}


def _ratio(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else math.nan


def entropy(selected: np.ndarray) -> np.ndarray:
    """How evenly each client selects channels, [cohort_size]: 1 = all equally often."""
    if selected.shape[1] == 1:
        return np.ones(len(selected))
    share = selected / selected.sum(axis=1, keepdims=True)
    logs = np.log(share, where=share > 0, out=np.zeros_like(share))
    return -(share * logs).sum(axis=1) / np.log(selected.shape[1])
