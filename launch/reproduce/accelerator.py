"""What one accelerator does: the paper's own size, W1 in seconds, lanes."""

from fedjax_prune.runs.tables import markdown

from .. import runtime
from ..benchmark.suites import SUITES
from ..benchmark.turns import Options, run_suite
from .others import W1
from .table import Block, Line, Table

_REPEATS = 3
"""Rounds of the benchmark that count."""


def _full(method: str, model: str, precision: str) -> Line:
    published = {"feddp": "83.5% (VGG-11)", "scaffold": "84.2% (VGG-11)"}
    return Line(
        f"{method}, {model}, {precision}",
        f"feddp:{method},{model},10",
        (f"precision={precision}", "eval.every=5", "report.every=0"),
        published[method] if model == "vgg11" else "",
    )


def lanes() -> str:
    """Time and memory of a round with 1 to 64 clients side by side; takes minutes.

    Raises:
      WorkerError: if the machine's limits cannot be measured.
    """
    options = Options(
        rounds=_REPEATS,
        threads=len(runtime.cores()),
        peers=[],
        peers_dir=runtime.cache_folder() / "peers",
        compile=False,
    )
    header = ["lanes", "images a second", "time of an image, 1 lane = 1"]
    header += ["share of the device's product rate", "MB a round"]
    rows = [
        [
            row["name"],
            f"{row['median']:,.0f}",
            "" if row["time"] is None else f"{1 / row['time']:.2f}",
            "" if row["share"] is None else f"{row['share']:.1%}",
            f"{row['num_bytes'] / 1e6:,.0f}",
        ]
        for row in run_suite(SUITES["lanes"], options)["rows"]
    ]
    return markdown(header, rows)


ACCELERATOR = Table(
    "What does one accelerator do? FedDP at the paper's size, W1, lanes.",
    (
        Block("w1", "W1", W1.blocks[0].lines),
        Block(
            "vgg11",
            "CIFAR-10 with ten clients, VGG-11 and ResNet-32",
            tuple(
                _full(method, model, precision)
                for model in ("vgg11", "resnet32")
                for precision in ("bfloat16", "float32")
                for method in ("scaffold", "feddp")
            ),
        ),
        Block("lanes", "Lanes of one device", (), lambda *_: lanes()),
    ),
    seeds=(0,),
    share_time=True,
)
