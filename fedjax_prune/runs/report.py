"""What a run tells: the table before it, its rows of metrics, the table after it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fedjax_prune.models import costs
from fedjax_prune.runs import ledger
from fedjax_prune.runs.capacity import memory_estimate
from fedjax_prune.engine.dealing import num_steps
from fedjax_prune.engine.evaluate import summarise
from fedjax_prune.runs.experiment import Experiment, image_shape_of, make_model, start
from fedjax_prune.pruning.costs import traffic
from fedjax_prune.runs.targets import cost_paper, rounds_to_target
from fedjax_prune.types import Config
from fedjax_prune.runs.workdir import read_config, read_metrics


def preflight(config: Config, experiment: Experiment, finished: int) -> dict[str, str]:
    """What is known before anything is compiled."""
    sizes = np.asarray(experiment.population.sizes)
    steps = num_steps(sizes, config.client.epochs, config.client.batch_size)
    state, _ = jax.eval_shape(lambda: start(config, experiment))
    sent = traffic(experiment.algorithm.messages(state), config.cohort_size, {})
    macs = costs.macs(experiment.model, experiment.train.images.shape[1:])
    memory = memory_estimate(config, experiment, config.lanes)
    facts = {
        "run": f"{_method(config)}, {config.model.name}, {config.data.name}",
        "rounds": f"{config.rounds}" + (f", {finished} done" if finished else ""),
        "clients": f"{len(sizes)}, {config.cohort_size} a round",
        "client size": f"{sizes.min()} / {int(np.median(sizes))} / {sizes.max()} "
        "examples (smallest / median / largest)",
        "steps a round": f"about {steps.mean() * config.cohort_size:,.0f}, "
        f"{steps.max():,} for the largest client",
        "parameters": f"{costs.tree_bytes(state.params) // 4:,} shared",
        "MACs an image": f"{macs.dense:,}",
        "traffic a round": f"{_megabytes(sent.down)} down, {_megabytes(sent.up)} up"
        + (", before masks" if experiment.algorithm.masked else ""),
        "memory": f"about {_megabytes(memory)} on each device",
    }
    if config.model.gated:
        kept, more = (_share(part, macs.dense) for part in (macs.kept, macs.gates))
        facts["MACs an image"] += f" dense, {kept} kept, {more} more for the gates"
        used = costs.params_used(experiment.model, experiment.train.images.shape[1:])
        facts["keep ratio"] = (
            f"{experiment.model.gates.keep_ratio:.3f} of the channels, an image uses "
            f"{used:.1%} of the weights"
        )
    return facts


def round_row(
    finished: int,
    seconds: float,
    sums: dict[str, np.ndarray],
) -> dict[str, Any]:
    """The row of one round, without its costs and its evaluation.

    Args:
      finished: rounds done, this one included.
      seconds: since the round before was done, evaluation included, compilation not.
      sums: of the round, on the host, leaves [cohort_size, ...].

    Returns:
      Flat fields.
    """
    count = float(sums["count"].sum())
    row = {
        "round": finished,
        "seconds": seconds,
        "clients": len(sums["count"]),
        "train/loss": float(sums["loss"].sum()) / count,
        "train/accuracy": float(sums["correct"].sum()) / count,
        "steps/real": int(sums["steps"].sum()),
        "steps/executed": int(sums["steps_executed"]),
        "steps/executed_over_real": float(sums["steps_executed"] / sums["steps"].sum()),
    }
    for name, selected in sums.items():
        if name.startswith("selected/"):
            layer = name.removeprefix("selected/")
            row[f"gates/{layer}/used"] = float((selected > 0).mean())
            row[f"gates/{layer}/entropy"] = float(
                np.mean(_entropy(np.asarray(selected)))
            )
    return row


def accuracy_row(values: dict[str, Any], experiment: Experiment) -> dict[str, float]:
    """The accuracies of the shared parameters, as fields of a metrics row."""
    row = {"eval/global_dense/accuracy": float(values["global_dense"])}
    for name in ("client_gated", "client_local"):
        row |= statistics(name, values[name])
    return row | {
        "eval/clients": len(values["client_local"]),
        "eval/examples": len(experiment.test.labels),
    }


def statistics(name: str, accuracies: np.ndarray) -> dict[str, float]:
    """Statistics over clients, as fields of a metrics row."""
    return {f"eval/{name}/{key}": value for key, value in summarise(accuracies).items()}


def _entropy(selected: np.ndarray) -> np.ndarray:
    """Of the channels a client selects: 1 = all equally often, [cohort_size]."""
    share = selected / selected.sum(axis=1, keepdims=True)
    logs = np.log(share, where=share > 0, out=np.zeros_like(share))
    return -(share * logs).sum(axis=1) / np.log(selected.shape[1])


def headline(config: Config) -> tuple[str, str]:
    """The field that measures this run, and what it is in words."""
    if config.model.gated:
        return "eval/client_gated/mean", "with each client's gates"
    return "eval/global_dense/accuracy", "of the shared model"


def summary(
    config: Config,
    experiment: Experiment,
    rows: list[dict[str, Any]],
    folder: Path,
) -> dict[str, str]:
    """What came out, on one screen.

    Args:
      config: of the run.
      experiment: of the run.
      rows: of metrics.jsonl.
      folder: the workdir.

    Returns:
      Name -> value, ready to print.
    """
    if not rows:
        return {"rounds": "stopped before the first was finished; nothing is kept"}
    last = rows[-1]
    facts = {"rounds": f"{last['round']} of {config.rounds}"}
    evaluated = [row for row in rows if "eval/global_dense/accuracy" in row]
    if evaluated:
        facts |= _accuracies(config, evaluated)
    if config.model.gated:
        macs = costs.macs(experiment.model, experiment.train.images.shape[1:])
        facts["MACs an image"] = (
            f"{macs.kept:,} of {macs.dense:,} ({_share(macs.kept, macs.dense)}), "
            f"and {macs.gates:,} for the gates"
        )
    if ledger.masks_in(rows):
        facts |= ledger.in_words(rows)
    down = sum(row["bytes/down"] for row in rows)
    up = sum(row["bytes/up"] for row in rows)
    facts["traffic"] = f"{_megabytes(down)} down, {_megabytes(up)} up"
    if config.eval.target_accuracy and evaluated:
        facts["to target"] = _to_target(config, experiment, rows, evaluated)
    seconds = sum(row["seconds"] for row in rows)
    compiling = sum(row.get("seconds/compile", 0) for row in rows)
    facts["training time"] = f"{seconds:,.0f} s, and {compiling:,.0f} s to compile"
    facts["files"] = str(folder)
    if last["round"] < config.rounds:
        facts["next"] = "stopped; the same command goes on from here"
    return facts


def comparison(runs: Mapping[str, Sequence[Path]]) -> str:
    """One row for each setting, as a Markdown table.

    Args:
      runs: name -> workdirs of its seeds, with at least one evaluation each.

    Returns:
      The table, means over seeds: accuracies after the last round, kept MACs, bytes of
      the whole run.
    """
    columns = {
        "run": "",
        "rounds": "round",
        "headline": "",
        "shared model": "eval/global_dense/accuracy",
        "with own gates": "eval/client_gated/mean",
        "worst client": "eval/client_gated/min",
        "own validation": "eval/client_local/mean",
        "before averaging": "eval/after_local/mean",
    }
    lines = [
        f"| {' | '.join([*columns, 'MACs kept', 'MB sent'])} |",
        f"|{'---|' * (len(columns) + 2)}",
    ]
    for name, workdirs in runs.items():
        config: Config = ConfigDict(read_config(workdirs[0]))
        rows = [read_metrics(workdir) for workdir in workdirs]
        cells = [name, str(rows[0][-1]["round"])]
        fields = [headline(config)[0], *list(columns.values())[3:]]
        cells += [f"{np.mean([r[-1][field] for r in rows]):.1%}" for field in fields]
        macs = costs.macs(make_model(config), image_shape_of(config))
        sent = sum(row["bytes/down"] + row["bytes/up"] for seed in rows for row in seed)
        cells += [f"{macs.kept / 1e6:.2f} M", f"{sent / len(rows) / 1e6:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _accuracies(config: Config, evaluated: list[dict[str, Any]]) -> dict[str, str]:
    last = evaluated[-1]
    field, words = headline(config)
    facts = {"test accuracy": f"{last[field]:.1%} {words}, after round {last['round']}"}
    names = {
        "client_gated": "each client",
        "client_local": "own validation",
        "after_local": "before averaging",
    }
    # One client says nothing of the others.
    for name, label in names.items() if last["eval/clients"] > 1 else ():
        mean, std, p10, worst = (
            last[f"eval/{name}/{key}"] for key in ("mean", "std", "p10", "min")
        )
        facts[label] = (
            f"mean {mean:.1%}, sd {std:.1%}, 10th percentile {p10:.1%}, "
            f"worst {worst:.1%}"
        )
    if config.model.gated:
        facts["without gates"] = f"{last['eval/global_dense/accuracy']:.1%}"
    return facts


def _to_target(
    config: Config,
    experiment: Experiment,
    rows: list[dict[str, Any]],
    evaluated: list[dict[str, Any]],
) -> str:
    target, (field, _) = config.eval.target_accuracy, headline(config)
    reached = rounds_to_target(
        [row["round"] for row in evaluated], [row[field] for row in evaluated], target
    )
    if reached is None:
        return f"{target:.0%} not reached"
    sent = sum(
        row["bytes/down"] + row["bytes/up"] for row in rows if row["round"] <= reached
    )
    state, _ = jax.eval_shape(lambda: start(config, experiment))
    num_params = costs.tree_bytes(state.params) // 4
    up = costs.tree_bytes(experiment.algorithm.messages(state)[1])
    paper = cost_paper(
        num_params, reached, config.cohort_size, factor=up // (4 * num_params)
    )
    steady = rounds_to_target(
        [row["round"] for row in evaluated],
        [row[field] for row in evaluated],
        target,
        consecutive=3,
    )
    text = f"{target:.0%} in {reached} rounds, {_megabytes(sent)} sent"
    text += f" ({paper:.3g} GiB by the paper's formula)"
    return text + (f"; in 3 evaluations running: round {steady}" if steady else "")


def _method(config: Config) -> str:
    return config.algorithm.name + (" with gates" if config.model.gated else "")


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}"


def _megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
