"""What one accelerator does: the paper's own size, W1 in seconds, lanes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedjax_prune.runs.metrics import ACCURACY, HEADLINE
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.tables import markdown

from .feddp import PUBLISHED
from .lanes import lanes
from .others import W1
from .table import Block, Line, Table


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
        Block("lanes", "Lanes of one device", (), measure=lanes),
        Block("w1", "W1", W1.blocks[0].lines, pace),
        _full("vgg11"),
        _full("resnet32"),
    ),
    seeds=(0,),
    differs="Rounds are as many as fit into --minutes.",
    share_time=True,
)
