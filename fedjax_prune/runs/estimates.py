"""What the rest of a run will cost, known without data, devices and compiling."""

import functools
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fedjax_prune.data.datasets import DATASETS
from fedjax_prune.data.load import count_examples, is_at_hand
from fedjax_prune.data.own_splits import Facts, count_pictures
from fedjax_prune.data.synthetic import client_sizes
from fedjax_prune.data.validation import OF_CLIENTS, OF_DEALT
from fedjax_prune.models import costs
from fedjax_prune.pruning.costs import traffic
from fedjax_prune.runs import checkpoint, environment
from fedjax_prune.runs.evaluated import evaluates_last_clients
from fedjax_prune.runs.learning import make_learning, start_shapes
from fedjax_prune.runs.metrics import ACCURACY
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.saving import CHECKPOINTS
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.types import Config


class Estimate(NamedTuple):
    """The costs of the rounds that are left, without masks and preparations.

    Attributes:
      rounds: rounds left.
      sent: bytes down and up.
      macs: multiply-accumulates; a training step counts as three forward passes. NaN
        if the number of training examples is not known before the data are read.
    """

    rounds: int
    sent: int
    macs: float


def rounds_done(workdir: Path) -> int:
    """The round of the newest checkpoint of a run; 0 if there is none."""
    return checkpoint.latest(workdir / CHECKPOINTS) or 0


def require_rounds(config: Config, workdir: Path) -> None:
    """Refuses rounds after which a run could not end any more.

    Raises:
      SettingsError: if there are fewer than it has finished, or as many and the last of
        them, after which a signal had stopped it, was not evaluated, or with other
        clients than the last round of a run is.
    """
    if (done := rounds_done(workdir)) < config.rounds:
        return
    run = f"the run in {workdir} has finished"
    if done > config.rounds:
        found = f"rounds must be at least {done}, which {run}, got {config.rounds}"
        raise SettingsError([found])
    last = [row for row in read_metrics(workdir) if row["round"] == done > 0]
    if not last:
        return
    if ACCURACY not in last[0]:
        found = f"rounds must be above {done}, which {run} without an evaluation"
        raise SettingsError([found])
    starts = [s for s in environment.read(workdir) if s["finished"] < done]
    # Of what is not known, such as starts of older versions, it is not doubted.
    wanted = starts[-1]["fields"].get("rounds", done) if starts else done
    if wanted != done and not evaluates_last_clients(config, done):
        found = f"rounds must be above {done}, which {run} with an evaluation of other "
        raise SettingsError([found + "clients than those of the last round"])


def is_finished(config: Config, workdir: Path) -> bool:
    """Whether all rounds of a run are saved, and its result is in the metrics."""
    if rounds_done(workdir) < config.rounds:
        return False
    rows = read_metrics(workdir)
    return bool(rows) and rows[-1]["round"] >= config.rounds and ACCURACY in rows[-1]


def estimate(config: Config, workdir: Path) -> Estimate:
    """Estimates what is left of a run.

    Nothing is left of one whose rounds are done, and its data may be gone.

    Args:
      config: checked.
      workdir: of the run, started or not.

    Raises:
      SettingsError: if the network, the data and the algorithm do not fit together.
      DataError: if the data set is damaged or has too few examples.
    """
    left = config.rounds - rounds_done(workdir)
    if left <= 0:
        return Estimate(rounds=0, sent=0, macs=0.0)
    alike = config.copy_and_resolve_references()
    alike.seed, alike.rounds = 0, 1
    sent, macs = _costs_of_a_round(alike.to_json_best_effort())
    return Estimate(left, left * sent, left * macs)


@functools.lru_cache(maxsize=1024)
def _costs_of_a_round(fields: str) -> tuple[int, float]:
    """Bytes and multiply-accumulates; many runs of a sweep differ only in their seed.

    Args:
      fields: of the configuration, as JSON.
    """
    config: Config = ConfigDict(json.loads(fields))
    learning = make_learning(config)
    state, _ = start_shapes(learning)
    messages = learning.algorithm.messages(state)
    sent = traffic(messages, config.cohort_size, {})
    macs = learning.macs.dense
    images = (
        _examples_a_client(learning.config) * config.client.epochs * config.cohort_size
    )
    return sent.down + sent.up, costs.FORWARDS * macs * images


def _examples_a_client(config: Config) -> float:
    """Training examples of a client on average, without those held out; or NaN."""
    data = config.data
    info, by_client = DATASETS[data.name], data.partitioner == "by_client"
    count: float = data.num_train
    if info.generated:
        sizes = {"client_size": data.client_size, "seed": data.seed}
        sizes["client_size_sigma"] = data.client_size_sigma
        own = client_sizes(data.num_clients, **sizes)
        return float(np.mean(own - np.maximum(1, OF_CLIENTS * own)))
    if not count and not by_client:
        if data.name == "image_folder":
            facts = Facts(tuple(data.classes), data.image_shape)
            count, _ = count_pictures(data.dir, facts)
        elif not info.own and is_at_hand(data.name, data.dir):
            count, _ = count_examples(data.name, data.dir)
    share = 1.0
    if data.local_val == "holdout":
        share = 1 - (OF_CLIENTS if by_client else OF_DEALT)
    return share * count / data.num_clients if count else math.nan
