"""The CIFAR-10 benchmark of pfl-research, trained by this library and by pfl itself."""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_prune.engine.dealing import draw_clients
from fedjax_prune.runs.experiment import load_data
from fedjax_prune.runs.metrics import ACCURACY
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.tables import markdown, with_interval
from fedjax_prune.types import Config

from .. import runtime
from ..benchmark.process import install, python_of
from ..side_by_side import Job, run_all
from ..train_grid import ending
from .table import LineRuns

_PEER = "pfl_sim"


class _Seed(NamedTuple):
    """What a run has reached.

    Attributes:
      round: of its last evaluation.
      accuracy: then, on the test set.
      seconds: of all rounds until then, without evaluations.
    """

    round: int
    accuracy: float
    seconds: float


def train_pfl(lines: Sequence[LineRuns], workdir: Path, seconds: float) -> int:
    """Trains pfl with the data, the cohorts and the seeds of the first line's runs.

    Args:
      lines: of the table.
      workdir: of the runs.
      seconds: after which it is stopped. What it has saved is kept.

    Returns:
      The exit code, as of `train_all`.
    """
    end = time.monotonic() + seconds
    peers_dir = runtime.cache_folder() / "peers"
    for run in lines[0].runs:
        file = _rows_of_pfl(workdir / run.folder)
        if (found := _of_pfl(file)) and found.round >= run.config.rounds:
            continue
        install([_PEER], peers_dir)
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data.npz"
            write_for_pfl(run.config, data)
            command = [str(python_of(_PEER, peers_dir)), "-m"]
            command += ["launch.reproduce.pfl_run", f"--data={data}"]
            command += [f"--output={file}", f"--seed={run.config.seed}"]
            command += [f"--threads={len(runtime.cores())}"]
            job = Job(f"{run.folder}, pfl", tuple(command), file.with_suffix(".log"))
            left = end - time.monotonic()
            if code := ending(run_all([job], 1, print, left)):
                return code
    return 0


def write_for_pfl(config: Config, file: Path) -> None:
    """Writes a run's data and cohorts, as `launch.benchmark.worker` reads them.

    Args:
      config: of a run whose clients train with the same step size in all rounds.
      file: is written; has the test set, too, as `test_images` and `test_labels`.
    """
    data, client = load_data(config), config.client
    cohorts = [
        draw_clients(
            config.data.num_clients, config.cohort_size, seed=config.seed, round=number
        )
        for number in range(config.rounds)
    ]
    arrays = {
        "images": data.train.images,
        "labels": data.train.labels,
        "test_images": data.test.images,
        "test_labels": data.test.labels,
        "indices": data.population.indices,
        "offsets": data.population.offsets,
        "cohorts": np.array(cohorts, np.int32),
        "batch_size": client.batch_size,
        "epochs": client.epochs,
        "client_lr": client.lr,
        "server_lr": config.server.lr,
        "num_classes": 1 + int(data.train.labels.max()),
    }
    np.savez(file, **arrays)


def beside_pfl(
    runs: Mapping[str, Sequence[Path]],
    published: Mapping[str, str],
    most_rounds: float,
) -> str:
    """Accuracy after the last round and time of both libraries.

    Args:
      runs: name -> workdirs of its seeds; one line.
      published: is not shown.
      most_rounds: is not used: runs that are not finished are left out.

    Returns:
      Means over seeds, with a 95 % interval, and the differences of the seeds that both
      have. Seconds are of all rounds, without evaluations.
    """
    del published, most_rounds
    (name, workdirs), *_ = runs.items()
    ours = {workdir: _of_ours(workdir) for workdir in workdirs}
    theirs = {}
    for workdir, seed in ours.items():
        found = _of_pfl(_rows_of_pfl(workdir))
        if found and found.round >= seed.round:
            theirs[workdir] = found
    header = ["library", "rounds", "seeds", "accuracy", "difference", "seconds"]
    rows = []
    for library, seeds in ((name, ours), ("pfl-research, FedAvg", theirs)):
        if seeds:
            of_seeds = list(seeds.values())
            less = [seed.accuracy - ours[key].accuracy for key, seed in seeds.items()]
            accuracies = [seed.accuracy for seed in of_seeds]
            rows.append(
                [
                    library,
                    str(of_seeds[0].round),
                    str(len(seeds)),
                    with_interval(accuracies),
                    with_interval(less, "+") if seeds is theirs else "",
                    f"{np.mean([seed.seconds for seed in of_seeds]):,.0f}",
                ]
            )
    return markdown(header, rows)


def _rows_of_pfl(workdir: Path) -> Path:
    return workdir.with_name(f"pfl,{workdir.name}.jsonl")


def _of_pfl(file: Path) -> _Seed | None:
    if not file.exists():
        return None
    row = json.loads(file.read_text().splitlines()[-1])
    return _Seed(row["round"], row["accuracy"], row["seconds"])


def _of_ours(workdir: Path) -> _Seed:
    rows = read_metrics(workdir)
    last = [row for row in rows if ACCURACY in row][-1]
    seconds = sum(row["seconds"] for row in rows)
    return _Seed(last["round"], last[ACCURACY], seconds)
