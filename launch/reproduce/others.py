"""Tables of what others have published: pfl-research's benchmark and FedProx's data."""

from .beside_pfl import PFL_FIELDS, beside_pfl, train_pfl
from .table import Beside, Block, Line, Table, of_runs

_FEDPROX = (
    "data.num_clients=30",
    "data.client_size=54",
    "data.client_size_sigma=2",
    "client.epochs=20",
    "eval.every=10",
    "report.every=0",
)
"""Near section 5.1 of the FedProx paper: 30 devices, ten in a round, 20 epochs."""


def _line(name: str, lr: str, rounds: int, *changes: str) -> Line:
    own = (f"client.lr={lr}", f"rounds={rounds}", *changes)
    return Line(name, "synthetic:vectors", (*_FEDPROX, *own))


def _with_fedprox(name: str, lr: str, rounds: int) -> Block:
    """FedAvg and FedProx with three weights."""
    fedprox = (
        _line(
            f"FedProx, mu {mu}",
            lr,
            rounds,
            "algorithm.name=fedprox",
            f"algorithm.mu={mu}",
        )
        for mu in ("0.01", "0.1", "1")
    )
    title = f"synthetic(1, 1), 30 clients, step size {lr}"
    return Block(name, title, (_line("FedAvg", lr, rounds), *fedprox))


SYNTHETIC = Table(
    "Is FedProx ahead of FedAvg on synthetic(1, 1)?",
    (
        _with_fedprox("best_step_size", "0.001", 4000),
        _with_fedprox("published_step_size", "0.01", 1500),
        Block(
            "step_sizes",
            "FedAvg by step size",
            tuple(
                _line(f"step size {lr}", lr, 1500)
                for lr in ("0.0003", "0.001", "0.003", "0.01", "0.03")
            ),
        ),
    ),
    seeds=tuple(range(5)),
    differs="Differences from the paper: clients and their sizes are drawn anew, no "
    "client is late, 1,500 or 4,000 rounds in place of 200, and other step "
    "sizes than the paper's 0.01, too. In the paper FedProx is ahead of FedAvg.",
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
