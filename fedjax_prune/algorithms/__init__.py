"""The federated algorithms, by name."""

from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.algorithms.fednova import fednova
from fedjax_prune.algorithms.fedprox import fedprox
from fedjax_prune.algorithms.scaffold import scaffold

ALGORITHMS = {
    "fedavg": fedavg,
    "fednova": fednova,
    "fedprox": fedprox,
    "scaffold": scaffold,
}
"""name -> builder(task, solver, server_tx, **fields) -> FederatedAlgorithm."""
