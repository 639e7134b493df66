"""The tables that a run prints: two before it and one after it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_prune.data.partition import OPTIONS
from fedjax_prune.engine.dealing import num_steps
from fedjax_prune.models import costs
from fedjax_prune.pruning.costs import traffic
from fedjax_prune.runs import savings
from fedjax_prune.runs.accounting import EPSILON, privacy_row
from fedjax_prune.runs.experiment import Experiment
from fedjax_prune.runs.files import shown
from fedjax_prune.runs.learning import Learning, start_shapes
from fedjax_prune.runs.machine import Chosen, images_per_second
from fedjax_prune.runs.metrics import ACCURACY, HEADLINE, bytes_sent
from fedjax_prune.runs.targets import cost_paper, rounds_to_target
from fedjax_prune.types import Config

WORTH_TIMING = 5e12
"""Runs of at least this many FLOPs, about a minute on two CPU cores, are timed."""
LONG = 3600
"""Above this many seconds, the table says how to make the run a short trial."""
TRIAL_EXAMPLES = 1000
"""Least number of training examples of a trial."""
TRIAL_FACTOR = 10
"""Examples of a trial over the least its clients need; fewer can seldom be split."""


def plan(learning: Learning) -> dict[str, str]:
    """What is known of a run before its data are loaded."""
    config = learning.config
    state, _ = start_shapes(learning)
    messages = learning.algorithm.messages(state)
    sent = traffic(messages, config.cohort_size, {})
    macs = learning.macs
    facts = {
        "run": f"{_method(config)}, {config.model.name}, {config.data.name}",
        "rounds": f"{config.rounds}",
        "clients": f"{config.data.num_clients:,}, {config.cohort_size:,} a round",
        "parameters": f"{costs.num_entries(state.params):,} shared",
        "MACs an image": f"{macs.dense:,}",
        "traffic a round": f"{_megabytes(sent.down)} down, {_megabytes(sent.up)} up"
        + (", before masks" if learning.algorithm.masked else ""),
    }
    if config.aggregator != "mean":
        facts["aggregator"] = config.aggregator
    if config.hostile.fraction:
        facts["attack"] = (
            f"{config.hostile.attack}, by {_percent(config.hostile.fraction)} of the "
            "clients"
        )
    if spent := privacy_row(config, config.rounds):
        facts["privacy"] = _privacy(spent)
    if config.model.gated:
        facts["keep ratio"] = f"{learning.model.gates.keep_ratio:.3f} of the channels"
    # Which layers have gates is not known of a class that does not describe them.
    if macs.gates:
        kept, more = (_share(part, macs.dense) for part in (macs.kept, macs.gates))
        facts["MACs an image"] += f" dense, {kept} kept, {more} more for the gates"
        used = costs.params_used(learning.task.layers)
        facts["keep ratio"] += f", an image uses {used:.1%} of the weights"
    return facts


def preflight(
    chosen: Chosen, finished: int, rows: list[dict[str, Any]]
) -> dict[str, str]:
    """What is known of a run once its data are loaded and its lanes are chosen.

    Args:
      chosen: devices and lanes.
      finished: rounds done before.
      rows: of metrics.jsonl; the estimate of the time uses their seconds.
    """
    experiment, config = chosen.experiment, chosen.experiment.config
    sizes = np.asarray(experiment.data.population.sizes)
    steps = num_steps(sizes, config.client.epochs, config.client.batch_size)
    facts = {
        "client size": f"{sizes.min()} / {int(np.median(sizes))} / {sizes.max()} "
        "examples (smallest / median / largest)",
        "steps a round": f"about {steps.mean() * config.cohort_size:,.0f}, "
        f"{steps.max():,} for the largest client",
        "lanes": chosen.words,
        "memory": f"about {_megabytes(chosen.memory)} on each device",
    }
    if finished:
        facts["rounds done"] = f"{finished} of {config.rounds}"
    measured = [row for row in rows if row["round"] > 0]
    seconds = round_seconds(chosen, measured)
    left = config.rounds - finished
    if seconds and left:
        words = "with evaluations" if measured else "without evaluation"
        facts["time"] = (
            f"about {_span(seconds)} a round, {_span(seconds * left)} for "
            f"{left} rounds, {words}"
        )
        before = 0.0 if rows else seconds * _rounds_of_preparation(experiment)
        if before:
            facts["time"] += f", and up to {_span(before)} before them"
        if before + seconds * left > LONG:
            facts["for a trial"] = trial(config, len(experiment.data.train.labels))
    return facts


def trial(config: Config, num_train: int) -> str:
    """The overrides that make a run short.

    Args:
      config: of the run.
      num_train: its training examples.
    """
    data, rounds = config.data, "--config.rounds=2"
    options = OPTIONS.get(data.partitioner, ())
    least = data.min_size if "min_size" in options else 1
    wanted = max(TRIAL_EXAMPLES, TRIAL_FACTOR * least * data.num_clients)
    # Clients that come with their examples cannot have fewer of them.
    if data.partitioner == "by_client" or wanted >= num_train:
        return rounds
    return f"{rounds} --config.data.num_train={wanted}"


def round_seconds(chosen: Chosen, rows: list[dict[str, Any]]) -> float:
    """Expected training seconds of a round; 0 if the run is too short to time.

    Args:
      chosen: devices and lanes; lanes that were not timed are timed here.
      rows: of finished rounds; if there are any, their median is the result.
    """
    if rows:
        return float(np.median([row["seconds"] for row in rows]))
    experiment, config = chosen.experiment, chosen.experiment.config
    sizes = np.asarray(experiment.data.population.sizes)
    images = float(sizes.mean()) * config.client.epochs * config.cohort_size
    flops = costs.training_flops(experiment.learning.macs.dense, images)
    if flops * config.rounds < WORTH_TIMING:
        return 0.0
    rate = chosen.images_per_second or images_per_second(experiment, config.lanes)
    return images / (rate * config.devices)


def _rounds_of_preparation(experiment: Experiment) -> float:
    """How many rounds have as many images as the preparation, if nobody stops early."""
    config, steps = experiment.config, experiment.learning.algorithm.prepare
    if steps is None:
        return 0.0
    trainings = steps.num_clients(config.data.num_clients) * steps.most_trainings
    epochs = trainings * steps.solver.epochs
    return epochs / (config.cohort_size * config.client.epochs)


def summary(
    learning: Learning, rows: list[dict[str, Any]], folder: Path
) -> dict[str, str]:
    """The results of a run, on one screen.

    Args:
      learning: of the run.
      rows: of metrics.jsonl.
      folder: the workdir.

    Returns:
      Name -> value, ready to print.
    """
    config = learning.config
    if not rows:
        return {
            "rounds": "stopped before the first was finished; the same command goes "
            "on from here"
        }
    last = rows[-1]
    facts = {"rounds": f"{last['round']} of {config.rounds}"}
    evaluated = [row for row in rows if ACCURACY in row]
    if evaluated:
        facts |= accuracies(config, evaluated[-1])
    # Which layers have gates is not known of a class that does not describe them.
    if (macs := learning.macs).gates:
        facts["MACs an image"] = (
            f"{macs.kept:,} of {macs.dense:,} ({_share(macs.kept, macs.dense)}), "
            f"and {macs.gates:,} for the gates"
        )
    if savings.masks_in(rows):
        facts |= savings.in_words(rows)
    down = sum(row["bytes/down"] for row in rows)
    up = sum(row["bytes/up"] for row in rows)
    facts["traffic"] = f"{_megabytes(down)} down, {_megabytes(up)} up"
    if config.eval.target_accuracy and evaluated:
        facts["to target"] = _to_target(learning, rows)
    dropped = [
        row["clients/dropped"].split() for row in rows if "clients/dropped" in row
    ]
    if num_dropped := sum(map(len, dropped)):
        facts["dropped"] = (
            f"{num_dropped:,} messages, as losses, updates or gates were not finite"
        )
    if EPSILON in last:
        facts["privacy"] = _privacy(last)
    seconds = sum(row["seconds"] for row in rows)
    compiling = sum(row.get("seconds/compile", 0) for row in rows)
    facts["training time"] = f"{seconds:,.0f} s, and {compiling:,.0f} s to compile"
    facts["files"] = shown(folder)
    if last["round"] < config.rounds:
        facts["next"] = "stopped; the same command goes on from here"
    return facts


def _privacy(row: dict[str, Any]) -> str:
    return (
        f"epsilon {row[EPSILON]:.3g} at delta {row['privacy/delta']:.3g} for a client"
    )


def accuracies(config: Config, row: Mapping[str, Any]) -> dict[str, str]:
    """What an evaluation has found, in words.

    Args:
      config: of the run.
      row: of metrics.jsonl with an evaluation, or what `evaluate_workdir` returns.

    Returns:
      Name -> value, ready to print.
    """
    gated = config.model.gated
    words = "with each client's gates" if gated else "of the shared model"
    facts = {
        "test accuracy": f"{row[HEADLINE]:.1%} {words}, after round {row['round']}"
    }
    names = {"client_local": "own validation", "after_local": "before averaging"}
    if gated:
        # Without gates all clients have the shared model.
        names = {"client_gated": "each client"} | names
    # One client says nothing about the others.
    for name, label in names.items() if row["eval/clients"] > 1 else ():
        mean, std, p10, worst = (
            row.get(f"eval/{name}/{key}", math.nan)
            for key in ("mean", "std", "p10", "min")
        )
        if math.isnan(mean):
            continue
        facts[label] = (
            f"mean {mean:.1%}, sd {std:.1%}, 10th percentile {p10:.1%}, "
            f"worst {worst:.1%}"
        )
    if gated:
        facts["without gates"] = f"{row[ACCURACY]:.1%}"
    return facts


def _to_target(learning: Learning, rows: list[dict[str, Any]]) -> str:
    config = learning.config
    target = config.eval.target_accuracy
    reached = rounds_to_target(rows, target)
    if reached is None:
        return f"{_percent(target)} not reached"
    sent = sum(bytes_sent(row) for row in rows if row["round"] <= reached)
    state, _ = start_shapes(learning)
    up = costs.tree_bytes(learning.algorithm.messages(state)[1])
    paper = cost_paper(
        costs.num_entries(state.params),
        reached,
        config.cohort_size,
        factor=up // costs.tree_bytes(state.params),
    )
    steady = rounds_to_target(rows, target, consecutive=3)
    text = f"{_percent(target)} in {reached} rounds, {_megabytes(sent)} sent"
    text += f" ({paper:.3g} GiB by the paper's formula)"
    return text + (f"; 3 evaluations in a row from round {steady} on" if steady else "")


def _percent(share: float) -> str:
    """A share that the user has written, as he has."""
    return f"{100 * share:.4g}%"


def _method(config: Config) -> str:
    return config.algorithm.name + (" with gates" if config.model.gated else "")


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}"


def _megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _span(seconds: float) -> str:
    """A length of time with at least two digits, in the unit that suits it."""
    units = ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"))
    length, unit = next((u for u in units if seconds >= 2 * u[0]), units[-1])
    number = seconds / length
    return f"{number:.2g} {unit}" if number < 10 else f"{number:,.0f} {unit}"
