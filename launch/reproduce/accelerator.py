"""What one accelerator does: the paper's own size, W1 in seconds, lanes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedjax_prune.runs.metrics import ACCURACY, HEADLINE
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.tables import markdown

from .. import runtime
from ..benchmark.process import WorkerError
from ..benchmark.suites import SUITES
from ..benchmark.turns import Options, run_suite
from .feddp import PUBLISHED
from .others import W1
from .table import Block, Line, Table

_REPEATS = 3
"""Rounds of the benchmark that count."""


def pace(
    runs: Mapping[str, Sequence[Path]],
    published: Mapping[str, str],
    most_rounds: float,
) -> str:
    """How far each run got and how fast, and its accuracy where all have been.

    Args:
      runs: name -> workdirs, with at least one evaluation each.
      published: name -> what others have published.
      most_rounds: the round at which accuracies are compared.

    Returns:
      Seconds of a round are the median of rounds without an evaluation, and FLOPs those
      of the network without gates: masked training saves none. Seconds of all rounds
      include evaluations and saving.
    """
    header = ["run", "rounds", "seconds of a round", "training, TFLOP/s"]
    header += ["seconds of all rounds", "compiling, seconds"]
    header += ["accuracy", "own validation", "in round", "published"]
    table = []
    for name, workdirs in runs.items():
        for workdir in workdirs:
            rows = read_metrics(workdir)
            rounds = [row for row in rows if row["round"] > 0]
            plain = [row for row in rounds if ACCURACY not in row]
            seconds = np.median([row["seconds"] for row in plain])
            flops = np.median([row["flops/dense"] for row in plain])
            common = [
                row for row in rows if ACCURACY in row and row["round"] <= most_rounds
            ]
            table.append(
                [
                    name,
                    f"{rows[-1]['round']:,}",
                    f"{seconds:.3f}",
                    f"{flops / seconds / 1e12:.2f}" if flops else "",
                    f"{sum(row['seconds'] for row in rounds):,.0f}",
                    f"{sum(row.get('seconds/compile') or 0 for row in rows):.0f}",
                    f"{common[-1][HEADLINE]:.1%}",
                    f"{common[-1]['eval/client_local/mean']:.1%}",
                    f"{common[-1]['round']:,}",
                    published.get(name, ""),
                ]
            )
    return markdown(header, table)


def lanes() -> str:
    """Time and memory of a round with 1 to 64 clients side by side.

    Raises:
      WorkerError: if the machine's limits cannot be measured, or no number of lanes.
    """
    options = Options(
        rounds=_REPEATS,
        threads=len(runtime.cores()),
        peers=[],
        peers_dir=runtime.cache_folder() / "peers",
        compile=False,
    )
    found = run_suite(SUITES["lanes"], options)
    if not found["rows"]:
        raise WorkerError("no number of lanes could be timed")
    header = ["lanes", "images a second", "times as fast as 1 lane"]
    header += ["share of the product rate", "memory on the device, MB"]
    rows = [
        [
            row["name"],
            f"{row['median']:,.0f}",
            "" if row["time"] is None else f"{1 / row['time']:.2f}",
            "" if row["share"] is None else f"{row['share']:.1%}",
            f"{row['num_bytes'] / 1e6:,.0f}",
        ]
        for row in found["rows"]
    ]
    # Such as one whose lanes do not fit into the memory.
    rows += [[name, "failed", "", "", ""] for name in found["failed"]]
    return f"{markdown(header, rows)}\nOn {found['device']}.\n"


def _full(model: str) -> Block:
    """FedDP and SCAFFOLD at the paper's size, in both precisions."""
    lines = tuple(
        Line(
            f"{name}, {precision}",
            f"feddp:{method},{model},10",
            (f"precision={precision}", "eval.every=5", "report.every=0"),
            PUBLISHED[name] if model == "vgg11" else "",
        )
        for precision in ("float32", "bfloat16")
        for name, method in (("SCAFFOLD", "scaffold"), ("FedDP", "feddp"))
    )
    return Block(model, f"CIFAR-10, ten clients, {model}", lines, pace)


ACCELERATOR = Table(
    "What does one accelerator do? FedDP at the paper's size, W1, lanes.",
    (
        Block("lanes", "Lanes of one device", (), lambda *_: lanes(), timed=True),
        Block("w1", "W1", W1.blocks[0].lines, pace),
        _full("vgg11"),
        _full("resnet32"),
    ),
    seeds=(0,),
    differs="Rounds are as many as fit into --minutes.",
    share_time=True,
)
