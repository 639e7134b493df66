"""Tables of what others have published: pfl-research's benchmark and FedProx's data."""

from .beside_pfl import PFL_FIELDS, beside_pfl, train_pfl
from .table import Beside, Block, Line, Table, of_runs

_FEDPROX = (
    "data.num_clients=30",
    "data.client_size=54",
    "data.client_size_sigma=2",
    "client.epochs=20",
    "rounds=1500",
    "eval.every=10",
    "report.every=0",
)
"""Near section 5.1 of the FedProx paper: 30 devices, ten in a round, 20 epochs."""


def _fedprox(name: str, lr: str, *changes: str) -> Line:
    return Line(name, "synthetic:vectors", (*_FEDPROX, f"client.lr={lr}", *changes))


SYNTHETIC = Table(
    "Is FedProx ahead of FedAvg on synthetic(1, 1)?",
    (
        Block(
            "synthetic",
            "synthetic(1, 1), 30 clients",
            (
                _fedprox("FedAvg", "0.01"),
                *(
                    _fedprox(
                        f"FedProx, mu {mu}",
                        "0.01",
                        "algorithm.name=fedprox",
                        f"algorithm.mu={mu}",
                    )
                    for mu in ("0.01", "0.1", "1")
                ),
            ),
        ),
        Block(
            "step_sizes",
            "FedAvg by step size",
            tuple(
                _fedprox(f"step size {lr}", lr) for lr in ("0.0003", "0.001", "0.003", "0.01", "0.03")
            ),
        ),
    ),
    seeds=tuple(range(5)),
    differs="Differences from the paper: clients and their sizes are drawn anew, no "
    "client is late, and 1,500 rounds in place of 200. There FedProx is ahead of "
    "FedAvg.",
)

_W1 = ("report.every=0", "eval.every=50", "data.normalize=cifar10")

W1 = Table(
    "What does the CIFAR-10 benchmark of pfl-research reach? 1,500 rounds.",
    (
        Block(
            "w1",
            "W1",
            (Line("fedjax_prune, FedAvg", "bench:w1", _W1),),
            of_runs(beside_pfl),
        ),
    ),
    seeds=tuple(range(3)),
    differs="Both libraries have the same images, normalised as in the benchmark, "
    "clients and cohorts. Each draws its own first weights and dropout; pfl splits a "
    "client's images into the same batches in every round.",
    beside=Beside(train_pfl, PFL_FIELDS),
)
