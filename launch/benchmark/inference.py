"""The suite `inference`: what a network needs for a few images, in all its forms.

python -m launch.benchmark.inference --threads=2 --rounds=5 --output=FILE.json

All forms are in one process and are called in turn. A call takes images as they are
stored, uint8 on the host, and gives logits on the host. Then FedDP is trained on
digits, and each client's compacted network is compared with the gated and the dense one
on the client's own validation data.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from configs import quickstart
from fedjax_prune.runs import console, train
from fedjax_prune.runs.export.choose import choose
from fedjax_prune.runs.export.client_accuracy import ClientAccuracy

from .. import runtime
from .forms import FLOPS_TARGET, IMAGE_SHAPE, MODELS, MULTIPLE, Form, makers, set_up
from .process import ROOT, WorkerError

NAME = "inference"
CALLS = {1: 20, 8: 8, 64: 3}
"""Batch size -> calls of a form in one round."""
TRAINED_ROUNDS = 20
ALIKE = {
    "gathered": "masked",
    "dense, onnxruntime": "dense",
    "compacted, onnxruntime": "compacted",
}
"""Form -> the form with the same network, whose logits it must have."""
TOLERANCE = 1e-4
"""By how much these logits may differ, relative to the largest one."""


def run_inference(threads: int, rounds: int) -> dict[str, Any]:
    """Runs the suite in a process of its own, which prints its tables.

    Args:
      threads: CPU threads.
      rounds: rounds that count.

    Returns:
      Everything that was measured, for JSON.

    Raises:
      WorkerError: if the process does not run to the end.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "launch.benchmark.inference"]
        command += [f"--threads={threads}", f"--rounds={rounds}", f"--output={file}"]
        if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
            raise WorkerError(f"{NAME} has failed with exit code {code}")
        found = json.loads(file.read_text())
        return {**found, "failed": wrong_logits(found["rows"])}


def wrong_logits(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Prints in which rows, those of `Row`, logits are wrong, and returns the lines."""
    wrong = [
        f"{row['network']}, {row['form']}, batch {row['batch_size']}: logits differ "
        f"from those of {ALIKE[row['form']]} by {row['difference']:.1e}, relative to "
        f"the largest one; at most {TOLERANCE:.0e} is rounding"
        for row in rows
        # Also if it is NaN.
        if row["form"] in ALIKE and not row["difference"] <= TOLERANCE
    ]
    if wrong:
        console.print_error(wrong)
    return wrong


class Row(NamedTuple):
    """The latency of one form.

    Attributes:
      network: one of MODELS.
      batch_size: images of a call.
      form: name of the form.
      macs: those of the form over those of the dense network.
      median: of a call, in milliseconds.
      p95: the time that 95% of the calls needed at most, in milliseconds.
      speed: median of the dense network over this median.
      difference: largest difference of a logit from those of the form in ALIKE, over
        the largest of these; None if it has none.
    """

    network: str
    batch_size: int
    form: str
    macs: float
    median: float
    p95: float
    speed: float
    difference: float | None


def measure(network: str, forms: Mapping[str, Form], rounds: int) -> list[Row]:
    """Times all forms in turn, and compares logits of the same network.

    Args:
      network: its name.
      forms: `dense` and `masked` among them.
      rounds: rounds that count.
    """
    rows = []
    for batch_size, calls in CALLS.items():
        rng = np.random.default_rng(2)
        images = rng.integers(0, 256, (batch_size, *IMAGE_SHAPE), np.uint8)
        # Compiles.
        logits = {name: form.call(images) for name, form in forms.items()}
        seconds = {name: [] for name in forms}
        for _ in range(rounds):
            for name, form in forms.items():
                # The caches hold what was computed before, the arrays of other forms.
                form.call(images)
                for _ in range(calls):
                    began = time.perf_counter()
                    form.call(images)
                    seconds[name].append(time.perf_counter() - began)
        for name, form in forms.items():
            difference = None
            if name in ALIKE:
                wanted = logits[ALIKE[name]]
                error = np.abs(logits[name] - wanted).max() / np.abs(wanted).max()
                difference = float(error)
            median = float(np.median(seconds[name]))
            rows.append(
                Row(
                    network=network,
                    batch_size=batch_size,
                    form=name,
                    macs=form.macs / forms["dense"].macs,
                    median=1e3 * median,
                    p95=1e3 * float(np.quantile(seconds[name], 0.95)),
                    speed=float(np.median(seconds["dense"])) / median,
                    difference=difference,
                )
            )
    return rows


def print_rows(rows: Sequence[Row]) -> None:
    """Prints a line for each form and batch size."""
    table = Table(box=None, header_style="bold")
    for name in ("network", "batch", "form", "MACs", "median ms", "p95 ms", "speed"):
        side = "left" if name in ("network", "form") else "right"
        table.add_column(name, justify=side, no_wrap=True)
    for row in rows:
        numbers = f"{row.median:.2f}", f"{row.p95:.2f}", f"{row.speed:.2f} x"
        size, share = str(row.batch_size), f"{row.macs:.2f}"
        table.add_row(row.network, size, row.form, share, *numbers)
    Console(highlight=False).print(table)


def print_accuracies(rows: Sequence[ClientAccuracy]) -> None:
    """Prints a line for each client, and the means."""
    table = Table(box=None, header_style="bold")
    for name in ("client", "examples", "dense", "gated", "compacted", "MACs"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        shares = row.dense, row.gated, row.compact, row.macs
        table.add_row(str(row.client), str(row.examples), *(f"{x:.3f}" for x in shares))
    means = np.mean([row[2:] for row in rows], 0)
    table.add_row("mean", "", *(f"{x:.3f}" for x in means))
    Console(highlight=False).print(table)


def trained_accuracies(folder: Path) -> dict[int, list[ClientAccuracy]]:
    """Trains the quick start for some rounds and measures all of its clients.

    Returns:
      Channels of a block, 1 and MULTIPLE -> accuracies of the compacted networks.
    """
    config = quickstart.get_config()
    config.rounds = config.eval.every = TRAINED_ROUNDS
    train.run(config, folder)

    def compacted(multiple: int) -> list[ClientAccuracy]:
        chosen = [
            choose(folder, "compact", client, FLOPS_TARGET, multiple)
            for client in range(config.data.num_clients)
        ]
        return [each.own_validation for each in chosen if each.own_validation]

    return {multiple: compacted(multiple) for multiple in (1, MULTIPLE)}


def main() -> None:
    """Runs the suite."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, runtime.cores()[: options.threads])
    # onnxruntime computes on the CPU, too.
    runtime.hold_no_device()
    runtime.configure()
    height, width, channels = IMAGE_SHAPE
    print(
        f"images of {height}x{width}x{channels}, gates and the compacted network keep "
        f"{FLOPS_TARGET:.0%} of the MACs; random parameters; a call with host arrays.",
        flush=True,
    )
    rows, functions = [], makers()
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            setup = set_up(name, Path(folder))
            forms = {form: make(setup) for form, make in functions.items()}
            rows += measure(name, forms, options.rounds)
        print_rows(rows)
        accuracies = trained_accuracies(Path(folder) / "run")
        for multiple, of_clients in accuracies.items():
            print(f"accuracies with channels compacted in blocks of {multiple}:")
            print_accuracies(of_clients)
    result = {
        "rows": [row._asdict() for row in rows],
        "accuracies": {
            multiple: [row._asdict() for row in of_clients]
            for multiple, of_clients in accuracies.items()
        },
    }
    options.output.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
