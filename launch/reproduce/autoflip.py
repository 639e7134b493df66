"""Tables of AutoFLIP and the pruning methods that it is compared with."""

from fedjax_prune.runs.tables import pruning_table

from .last_masks import under_last_masks
from .table import Block, Line, Table, of_runs

_NAMES = {
    "fedavg": "FedAvg",
    "autoflip": "AutoFLIP, masks of each round's clients (v3)",
    "autoflip_static": "AutoFLIP, one mask",
    "autoflip_v5": "AutoFLIP, agreement (v5)",
    "autoflip_hard": "AutoFLIP, one mask, 40% of weights and 30% of channels",
    "random": "random, as many weights of each layer as AutoFLIP",
    "prunefl": "PruneFL",
    "eflprune": "EFLPrune",
    "fedsnip": "FedSNIP",
    "magnitude": "magnitude",
    "fedavg_plain": "FedAvg without server momentum",
    "autoflip_code": "AutoFLIP, rules of its authors' code",
    "random_steps": "random weights anew in each step, rule of that code",
}
"""METHOD of configs/autoflip.py -> name of its line."""

_CHANNELS = ("autoflip_hard", "eflprune")
"""Methods that are not shown for networks whose channels cannot be removed."""

_PUBLISHED = {
    "autoflip": "saves 48.8% of the compute, 35.5% of the traffic (five data sets)",
    "autoflip_v5": "saves 52% of the compute, more than 65% of the traffic",
}

_DEFAULT = 30
"""Percent: the threshold of the other lines, which is not set again."""


def _line(data: str, method: str) -> Line:
    return Line(
        _NAMES[method],
        f"autoflip:{data},{method},cpu",
        published=_PUBLISHED.get(method, ""),
    )


def _threshold(data: str, percent: int) -> Line:
    change = f"algorithm.threshold={percent / 100}"
    return Line(
        f"AutoFLIP (v3), threshold {percent}%",
        f"autoflip:{data},autoflip,cpu",
        () if percent == _DEFAULT else (change,),
    )


def _started(data: str) -> Block:
    """What the start from the explorers' mean is worth without masks, and with them."""
    channels = f"autoflip:{data},autoflip_channels,cpu"
    nothing_pruned = ("algorithm.structured_rule=off",)
    lines = (
        _line(data, "fedavg"),
        Line("FedAvg, from the explorers' mean", channels, nothing_pruned),
        Line("AutoFLIP, from there, prunes channels alone", channels),
    )
    return Block("start", "From the mean of the explorers", lines, pruning_table)


def _table(
    data: str, words: str, differs: str, *, has_channels: bool = True, seeds: int = 5
) -> Table:
    """All methods on one data set, and the parts of AutoFLIP."""
    schedules = [_line(data, f"autoflip{kind}") for kind in ("", "_static", "_v5")]
    methods = [m for m in _NAMES if has_channels or m not in _CHANNELS]
    blocks = {
        "methods": ("All methods", [_line(data, method) for method in methods]),
        "threshold": (
            "Threshold",
            [
                _line(data, "fedavg"),
                *(_threshold(data, percent) for percent in range(10, 60, 10)),
            ],
        ),
        "schedule": ("When masks are made", schedules),
        "random": ("Beside random masks", [_line(data, "random"), *schedules]),
    }
    return Table(
        f"When does pruning by exploration pay? {words}.",
        (
            *(
                Block(name, title, tuple(lines), pruning_table)
                for name, (title, lines) in blocks.items()
            ),
            Block(
                "last_masks",
                "Under the masks of the last round",
                tuple(schedules),
                of_runs(under_last_masks),
                of_checkpoints=True,
            ),
            *([_started(data)] if has_channels else []),
        ),
        seeds=tuple(range(seeds)),
        differs=differs,
    )


_IMAGES = (
    "Differences from the authors' commands: half of the channels, nothing augmented, "
    "SGD (Adam with 3e-4), explorations of at most 5 epochs with patience 3 (150 and "
    "40), 2,000 test images (10,000), "
)

MNIST = _table(
    "mnist",
    "MNIST, 20 clients with two classes each",
    f"{_IMAGES}4,000 images, two local epochs in batches of 20 (5 and 350) with steps "
    "of 0.1, 150 rounds (200).",
)
CIFAR10 = _table(
    "cifar10",
    "CIFAR-10, 20 clients with two classes each",
    f"{_IMAGES}10,000 images of 16 by 16 pixels (24), normalised, one local epoch in "
    "batches of 25 (5 and 350) with steps of 0.05, 300 rounds (200).",
)
SHAKESPEARE = _table(
    "shakespeare",
    "Shakespeare, clients are roles",
    "Differences from the authors' commands: a quarter of the width, ten roles "
    "(1,129), all of which explore, two in a round (18), one local epoch in batches of "
    "20 (5 and 350), steps of 3e-3 (3e-4), explorations of at most 5 epochs with "
    "patience 3 (150 and 40), 150 rounds (200). Evaluated is what all roles hold out "
    "(those outside of the round). What removes channels is left out: none of this "
    "network can be removed.",
    has_channels=False,
    seeds=3,
)
