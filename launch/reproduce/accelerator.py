"""What one accelerator does: the paper's own size, W1 in seconds, lanes."""

from .feddp import PUBLISHED
from .lanes import lanes
from .others import W1
from .pace import pace
from .table import Block, Line, Table


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
