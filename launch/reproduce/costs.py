"""What gates save: multiplications, time, bytes until a target."""

from collections.abc import Mapping, Sequence

import numpy as np

from fedjax_prune.runs.learning import macs_for
from fedjax_prune.runs.tables import markdown

from .. import runtime
from ..benchmark.inference import run_inference
from ..benchmark.process import WorkerError
from ..flags import load_config
from .feddp import SMALL, with_controls
from .table import Block, Line, Measured, Table

_TABLE_I = {"vgg11": (15.48e9, 7.74e9), "resnet32": (7.36e9, 3.68e9)}
"""MODEL of configs/feddp.py -> FLOPs that the paper has, of the whole network and of
the channels that gates keep."""

_FIGURE_4 = "20 GB to 78% (VGG-11), 3 GB (ResNet-32)"
"""What FedDP sends in the paper, on CIFAR-10 with ten clients."""

_REPEATS = 3
"""Rounds of the benchmark."""


def multiplications() -> str:
    """What gates keep of an image's multiplications, ours beside the paper's."""
    header = ["network", "MACs of all channels", "of kept ones", "share"]
    header += [
        "of the gates",
        "published FLOPs",
        "share",
        "published over 2 x our MACs",
    ]
    rows = []
    for model, (dense, kept) in _TABLE_I.items():
        config = load_config(f"feddp:feddp,{model},10", [])
        macs = macs_for(config)
        ours = [f"{macs.dense:,}", f"{macs.kept:,}", f"{macs.kept / macs.dense:.1%}"]
        theirs = [f"{dense / 1e9} and {kept / 1e9} G", f"{kept / dense:.0%}"]
        over = f"{dense / (2 * macs.dense):.1f}"
        rows.append([model, *ours, f"{macs.gates:,}", *theirs, over])
    return markdown(header, rows)


def latency() -> str:
    """What a few images take with random parameters, and what compacting keeps.

    Raises:
      WorkerError: if the benchmark does not run to its end, or if logits differ.
    """
    threads = len(runtime.cores())
    found = run_inference(threads, _REPEATS)
    if found["failed"]:
        raise WorkerError("; ".join(found["failed"]))
    header = ["network", "batch", "form", "share of the MACs", "median, ms", "p95, ms"]
    rows = [
        [
            row["network"],
            str(row["batch_size"]),
            row["form"],
            *(f"{row[key]:.2f}" for key in ("macs", "median", "p95", "speed")),
        ]
        for row in found["rows"]
    ]

    def mean(kind: str, clients: Sequence[Mapping[str, float]]) -> float:
        return float(np.mean([client[kind] for client in clients]))

    clients, *_ = found["accuracies"].values()
    compact = " and ".join(
        f"{mean('compact', of_clients):.1%} in blocks of {multiple}"
        for multiple, of_clients in found["accuracies"].items()
    )
    return (
        markdown([*header, "times as fast as dense"], rows)
        + f"\n{threads} CPU threads. Clients of the quick start after 20 rounds, own "
        f"validation: dense {mean('dense', clients):.1%}, with gates "
        f"{mean('gated', clients):.1%}, compacted {compact}.\n"
    )


def _to_target(data: str, words: str, clients: str, lines: tuple[Line, ...]) -> Block:
    sent = _FIGURE_4 if (data, clients) == ("cifar10", "10") else ""
    lines = tuple(
        line._replace(published=sent if line.name == "FedDP" else "") for line in lines
    )
    name, title = f"{data}_{clients}", f"To a target: {words}, {clients} clients"
    return Block(name, title, lines)


COSTS = Table(
    "What do gates save? (FedDP, table I and figure 4)",
    (
        Block("macs", "Multiplications", (), lambda *_: multiplications()),
        Block(
            "latency",
            "Time of a few images",
            (),
            measure=lambda *_: Measured(latency()),
        ),
        *(
            _to_target("mnist", "MNIST", clients, with_controls("mnist", clients))
            for clients in ("10", "30", "50", "100")
        ),
        *(
            _to_target(
                "cifar10",
                "CIFAR-10",
                clients,
                with_controls("cifar10", clients, ("fedavg", "scaffold")),
            )
            for clients in ("10", "100")
        ),
    ),
    seeds=tuple(range(3)),
    differs=f"{SMALL}; to a target that FedAvg reaches, not to 78%.",
)
