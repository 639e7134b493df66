"""What gates save: multiplications, time, bytes until a target."""

from fedjax_prune.models.costs import macs_of
from fedjax_prune.runs.learning import make_model, task_of
from fedjax_prune.runs.tables import markdown

from .. import runtime
from ..benchmark.inference import run_inference
from ..flags import load_config
from .feddp import with_and_without
from .table import Block, Table

_TABLE_I = {"vgg11": (15.48e9, 7.74e9), "resnet32": (7.36e9, 3.68e9)}
"""MODEL of configs/feddp.py -> FLOPs that the paper has, of the whole network and of
the channels that gates keep."""

_REPEATS = 3
"""Rounds of the benchmark."""


def multiplications() -> str:
    """What gates keep of an image's multiplications, ours beside the paper's."""
    header = [
        "network",
        "MACs of all channels",
        "of kept ones",
        "share",
        "of the gates",
    ]
    header += ["published FLOPs", "share", "published FLOPs over our MACs"]
    rows = []
    for model, (dense, kept) in _TABLE_I.items():
        config = load_config(f"feddp:feddp,{model},10", [])
        macs = macs_of(task_of(config, make_model(config)).layers)
        ours = [f"{macs.dense:,}", f"{macs.kept:,}", f"{macs.kept / macs.dense:.1%}"]
        theirs = [f"{dense / 1e9} and {kept / 1e9} G", f"{kept / dense:.0%}"]
        over = f"{dense / macs.dense:.1f}"
        rows.append([model, *ours, f"{macs.gates:,}", *theirs, over])
    return markdown(header, rows)


def latency() -> str:
    """What a few images take; measured anew, for minutes.

    Raises:
      WorkerError: if the benchmark does not run to its end.
    """
    header = ["network", "batch", "form", "share of the MACs", "median, ms", "p95, ms"]
    rows = [
        [
            row["network"],
            str(row["batch_size"]),
            row["form"],
            *(f"{row[key]:.2f}" for key in ("macs", "median", "p95", "speed")),
        ]
        for row in run_inference(len(runtime.cores()), _REPEATS)["rows"]
    ]
    return markdown([*header, "times as fast as dense"], rows)


COSTS = Table(
    "What do gates save? (FedDP, table I and figure 4)",
    (
        Block("macs", "Multiplications", (), lambda *_: multiplications()),
        Block("latency", "Time of a few images", (), lambda *_: latency()),
        *(
            Block(
                f"{clients}_to_target",
                f"Rounds and bytes to a target, MNIST, {clients} clients",
                with_and_without("mnist", clients),
            )
            for clients in ("10", "30", "50", "100")
        ),
    ),
    seeds=tuple(range(5)),
)
