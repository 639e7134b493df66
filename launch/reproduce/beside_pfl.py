"""The CIFAR-10 benchmark of pfl-research, trained by this library and by pfl itself."""

import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_prune.data.augment import NORMALISATIONS
from fedjax_prune.engine.dealing import draw_clients
from fedjax_prune.runs import console
from fedjax_prune.runs.experiment import load_data
from fedjax_prune.runs.learning import data_info
from fedjax_prune.runs.metrics import ACCURACY
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.tables import markdown, with_interval
from fedjax_prune.runs.workdir import HOUSEKEEPING
from fedjax_prune.types import Config

from .. import runtime
from ..benchmark.process import install, python_of
from ..side_by_side import Job, run_all
from ..train_grid import ending
from .pace import seconds_of_a_round
from .table import LineRuns

_PEER = "pfl_sim"

PFL_FIELDS = frozenset(
    (
        *("rounds", "cohort_size", "server.lr", "eval.num_examples"),
        *("client.batch_size", "client.epochs", "client.lr"),
        *("data.dir", "data.num_train", "data.num_clients", "data.seed"),
        *("data.partitioner", "data.alpha", "data.min_size"),
        *HOUSEKEEPING,
    )
)
"""Fields that pfl gets with the data of a run, and those that change no result."""


class _Seed(NamedTuple):
    """What a run has reached.

    Attributes:
      round: of its last evaluation.
      accuracy: then, on the test set.
      seconds: of a round, as `seconds_of_a_round`; of pfl those that it has written.
    """

    round: int
    accuracy: float
    seconds: float


def train_pfl(lines: Sequence[LineRuns], workdir: Path, seconds: float) -> int:
    """Trains pfl with the data, the cohorts and the seeds of the first line's runs.

    Its environment is installed first. Each run has all cores.

    Args:
      lines: of the table.
      workdir: of the runs.
      seconds: after which it is stopped. What it has saved, every 50 rounds, is kept.

    Returns:
      The exit code, as of `train_all`.
    """
    end = time.monotonic() + seconds
    peers_dir = runtime.cache_folder() / "peers"
    files = [(run, _rows_of_pfl(workdir / run.folder)) for run in lines[0].runs]
    waiting = [
        (run, file)
        for run, file in files
        if _at(_read(file), run.config.rounds) is None
    ]
    if not waiting:
        return 0
    if seconds > 0 and not install([_PEER], peers_dir):
        console.print_error("the environment of pfl could not be installed")
        return 1
    jobs = []
    with tempfile.TemporaryDirectory() as folder:
        for run, file in waiting:
            data = Path(folder) / f"{run.config.seed}.npz"
            if seconds > 0:
                write_for_pfl(run.config, data)
            command = [str(python_of(_PEER, peers_dir)), "-m"]
            command += ["launch.reproduce.pfl_run", f"--data={data}"]
            command += [f"--output={file}", f"--seed={run.config.seed}"]
            command += [f"--threads={len(runtime.cores())}"]
            name = f"{run.folder}, pfl"
            jobs.append(Job(name, tuple(command), file.with_suffix(".log")))
        left = end - time.monotonic()
        return ending(run_all(jobs, 1, lambda text: print(text, flush=True), left))


def write_for_pfl(config: Config, file: Path) -> None:
    """Writes a run's data and cohorts, as `launch.reproduce.pfl_files` reads them.

    Args:
      config: of a run whose clients train with the same step size in all rounds.
      file: is written.
    """
    data, client = load_data(config), config.client
    cohorts = [
        draw_clients(
            config.data.num_clients, config.cohort_size, seed=config.seed, round=number
        )
        for number in range(config.rounds)
    ]
    mean, std = NORMALISATIONS[config.data.normalize]
    channels = data.train.images.shape[-1]
    arrays = {
        "images": data.train.images,
        "labels": data.train.labels,
        "test_images": data.test.images,
        "test_labels": data.test.labels,
        "mean": np.array(mean or [0] * channels, np.float32),
        "std": np.array(std or [1] * channels, np.float32),
        "indices": data.population.indices,
        "offsets": data.population.offsets,
        "cohorts": np.array(cohorts, np.int32),
        "batch_size": client.batch_size,
        "epochs": client.epochs,
        "client_lr": client.lr,
        "server_lr": config.server.lr,
        "num_classes": data_info(config).num_classes,
    }
    np.savez(file, **arrays)


def beside_pfl(runs: Mapping[str, Sequence[Path]]) -> str:
    """Accuracy after the last round and time of both libraries.

    Args:
      runs: name -> workdirs of its seeds; one line.

    Returns:
      Means over seeds, with a 95 % interval, and the differences of the seeds that both
      have. Seconds are those of `seconds_of_a_round`, and of pfl the like, times the
      number of rounds.
    """
    (name, workdirs), *_ = runs.items()
    ours = {workdir: _of_ours(workdir) for workdir in workdirs}
    found = {w: _at(_read(_rows_of_pfl(w)), each.round) for w, each in ours.items()}
    ended = {workdir: each for workdir, each in found.items() if each}
    theirs = {w: each for w, each in ended.items() if math.isfinite(each.accuracy)}
    header = ["library", "rounds", "seeds", "accuracy", "difference", "seconds"]
    rows = [_row(name, ours, [])]
    if theirs:
        less = [seed.accuracy - ours[w].accuracy for w, seed in theirs.items()]
        rows.append(_row("pfl-research, FedAvg", theirs, less))
    text = markdown(header, rows)
    for what, count in (
        ("finished", len(ours) - len(ended)),
        ("finite", len(ended) - len(theirs)),
    ):
        if count:
            text += f"\nNot {what}: pfl-research ({count} of {len(ours)} seeds).\n"
    return text


def _row(name: str, seeds: Mapping[Path, _Seed], less: Sequence[float]) -> list[str]:
    each = list(seeds.values())
    seconds = float(np.mean([seed.round * seed.seconds for seed in each]))
    return [
        name,
        str(each[0].round),
        str(len(each)),
        with_interval([seed.accuracy for seed in each]),
        with_interval(less, "+") if less else "",
        "" if math.isnan(seconds) else f"{seconds:,.0f}",
    ]


def _rows_of_pfl(workdir: Path) -> Path:
    # Inside, so that a run that is deleted to be made anew takes it along.
    return workdir / "pfl.jsonl"


def _read(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


def _at(rows: Sequence[Mapping[str, Any]], last: int) -> _Seed | None:
    """What pfl had reached after a round; None if it was not evaluated then."""
    seconds = [row["seconds"] for row in rows if row["round"] <= last]
    for row in rows:
        if row["round"] == last:
            return _Seed(last, row["accuracy"], float(np.nanmedian(seconds)))
    return None


def _of_ours(workdir: Path) -> _Seed:
    rows = [row for row in read_metrics(workdir) if row["round"] > 0]
    last = [row for row in rows if ACCURACY in row][-1]
    return _Seed(last["round"], last[ACCURACY], seconds_of_a_round(rows))
