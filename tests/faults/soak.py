"""Kills a run of FedDP and one of AutoFLIP at random times, and compares their ends.

    python -m tests.faults.soak --kills=100

Each run is started again after each SIGKILL until it is finished, and so is a twin that
nobody kills. The state, the rows of clients and the rows of metrics must be the same.
The exit code is 1 if they are not.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from fedjax_prune.runs.interrupt import INTERRUPTED
from fedjax_prune.runs.metrics_log import read_metrics
from tests.faults.lives import begin, live
from tests.small_runs import final_state, pruned_config, tiny_config

_RUNS = {
    "feddp": (tiny_config, {}, 1),
    "autoflip": (pruned_config, {"devices": 1, "compact_training": True}, 0),
}


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=100, help="of each run")
    parser.add_argument("--rounds", type=int, default=2000, help="of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the times")
    options = parser.parse_args()
    failed = []
    for name in _RUNS:
        with tempfile.TemporaryDirectory() as folder:
            if not _survives(name, Path(folder), options):
                failed.append(name)
    print(f"{len(_RUNS) - len(failed)} of {len(_RUNS)} runs end like their twins")
    return 1 if failed else 0


def _survives(name: str, folder: Path, options: argparse.Namespace) -> bool:
    make, changes, first = _RUNS[name]
    config = make(rounds=options.rounds, **{"eval.every": 100} | changes)
    run, twin = folder / "run", folder / "twin"
    began = time.monotonic()
    assert live(config, twin) == 0
    rng = np.random.default_rng(options.seed)
    short = make(rounds=1, **changes)
    start = time.monotonic()
    assert live(short, folder / "short") == 0
    longest = 1.4 * (time.monotonic() - start)
    kills = 0
    while kills < options.kills:
        process = begin(config, run)
        process.join(rng.uniform(0, longest))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        if process.exitcode in (0, INTERRUPTED):
            break
        assert process.exitcode == -signal.SIGKILL, run.with_suffix(".txt").read_text()
        kills += 1
    ended = read_metrics(run)[-1]["round"] if (run / "metrics.jsonl").exists() else 0
    assert live(config, run) == 0
    seconds = time.monotonic() - began
    print(
        f"{name}: {kills} kills until about round {ended} of {options.rounds}, "
        f"{seconds:.0f} s",
        flush=True,
    )
    try:
        jax.tree.map(
            np.testing.assert_array_equal,
            final_state(config, twin),
            final_state(config, run),
        )
        numbers = [row["round"] for row in read_metrics(run)]
        np.testing.assert_array_equal(numbers, np.arange(first, options.rounds + 1))
    except AssertionError as error:
        print(f"{name}: the ends differ: {error}", flush=True)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
